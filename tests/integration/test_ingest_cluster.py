"""`ensemble ingest --scheduler`: dead workers, killed runs and rivals leave the stores of one undisturbed process."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from distributed import LocalCluster

from cache.errors import StoreError
from cache.signals import open_signals
from pipeline.compute.ingestion import ingest_on_cluster
from stages.ingest import IngestPaths, IngestSettings, run
from stages.ingest.shards import Task, do_task, identity_in, work_claims
from stages.ingest.stage import run_by
from stages.settings import Machine
from tests.integration.faults import bytes_of, wait_until

N_RECORDS, N_SHARDS = 3000, 6
SETTINGS = {"source": "arrays", "options": {"file": "ecgs.npy", "rate_hz": 100, "labels": "labels.csv"}}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Records of two seconds in one array, in six shards, and the stores that one process makes of them."""
    folder = tmp_path_factory.mktemp("arrays")
    rng = np.random.default_rng(0)
    ecgs = rng.normal(0, 0.3, (N_RECORDS, 12, 200)).astype(np.float32)
    ecgs[700] = np.inf
    np.save(folder / "ecgs.npy", ecgs)
    lines = [f"p{k // 2},{k % 90}" for k in range(N_RECORDS)]
    (folder / "labels.csv").write_text("\n".join(["patient_id,age", *lines]) + "\n")
    run(IngestSettings(path=str(folder), **SETTINGS), paths_in(folder / "whole"), machine=Machine(workers=1))
    return folder


def paths_in(study: Path) -> IngestPaths:
    study.mkdir(exist_ok=True)
    return IngestPaths(study / "records.parquet", study / "signals.zarr")


def n_done(study: Path) -> int:
    return len(list((study / ".signals.zarr.ingest").glob("0*.json")))


def test_a_task_waits_for_a_worker_that_was_given_up_and_ends_with_its_run(cohort, tmp_path):
    """The store is whole and the same although a task was done by others, twice, and once too late."""
    paths, late = paths_in(tmp_path / "study"), list[Task]()

    def read(tasks, work, n_records, progress):
        with closing(work_claims(paths.signals, work)):
            pass
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(paths.signals), str(work)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert holder.stdout.readline() == "held\n"
        waiting = threading.Thread(target=lambda: [do_task(task, work) for task in tasks])
        waiting.start()
        wait_until(lambda: n_done(tmp_path / "study") == 2)
        waiting.join(1)
        assert (waiting.is_alive(), n_done(tmp_path / "study")) == (True, 2), "the third shard is another one's"
        holder.kill()
        holder.communicate()
        waiting.join()
        do_task(tasks[0], work)
        with pytest.raises(StoreError, match="is over; run it again"):
            do_task(replace(tasks[0], identity="another"), work)
        late.append(tasks[0])

    run_by(read, IngestSettings(path=str(cohort), **SETTINGS), paths)
    assert bytes_of(tmp_path / "study") == bytes_of(cohort / "whole")
    work = tmp_path / "study" / ".signals.zarr.ingest"
    with pytest.raises(StoreError, match="is over; run it again"):
        do_task(late[0], work)
    assert not work.exists(), "a task that comes too late leaves nothing"


HOLDER = """
import sys
from pathlib import Path
from stages.ingest.shards import work_claims
claims = work_claims(Path(sys.argv[1]), Path(sys.argv[2]))
claims.share()
with claims.claim(2) as ours:
    print("held" if ours else "refused", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_workers_may_die_and_join_and_a_rival_is_refused(cohort, tmp_path):
    paths, settings = paths_in(tmp_path / "study"), IngestSettings(path=str(cohort), **SETTINGS)
    said = []
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        assert cluster.scheduler_address.startswith("tcp://")

        def change():
            wait_until(lambda: n_done(tmp_path / "study") >= 1)
            os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)
            cluster.scale(3)
            rival = [sys.executable, "-c", RIVAL, str(cohort), str(tmp_path / "study")]
            said.append(subprocess.run(rival, capture_output=True, text=True, check=False).stdout)

        other = threading.Thread(target=change)
        other.start()
        summary = ingest_on_cluster(settings, paths, cluster.scheduler_address)
        other.join()
    assert (summary.n_records, summary.n_bad) == (N_RECORDS, 1)
    assert bytes_of(tmp_path / "study") == bytes_of(cohort / "whole")
    assert said[0].startswith(("refused", "done")), said


RIVAL = f"""
import sys
from cache.errors import StoreError
from stages.ingest import IngestPaths, IngestSettings, run
from pathlib import Path
study = Path(sys.argv[2])
try:
    run(IngestSettings(path=sys.argv[1], **{SETTINGS}), IngestPaths(study / "records.parquet", study / "signals.zarr"))
    print("done")
except StoreError as error:
    print("refused", error)
"""

KILLED = f"""
import sys
from pathlib import Path
from pipeline.compute.ingestion import ingest_on_cluster
from stages.ingest import IngestPaths, IngestSettings
study = Path(sys.argv[2])
paths = IngestPaths(study / "records.parquet", study / "signals.zarr")
ingest_on_cluster(IngestSettings(path=sys.argv[1], **{SETTINGS}), paths, sys.argv[3])
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_stopped_on_one_machine(cohort, tmp_path):
    """The machine that asks dies; the cluster's workers may still be at a shard when the next run begins."""
    paths = paths_in(tmp_path / "study")
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster:
        command = [sys.executable, "-c", KILLED, str(cohort), str(tmp_path / "study"), cluster.scheduler_address]
        with subprocess.Popen(command) as asked:
            wait_until(lambda: n_done(tmp_path / "study") >= 2 or asked.poll() is not None)
            os.kill(asked.pid, signal.SIGKILL)
        assert not paths.records.exists()
        work = tmp_path / "study" / ".signals.zarr.ingest"
        assert identity_in(work) is not None
        kept = {shard for shard in range(N_SHARDS) if (work / f"{shard:08d}.json").is_file() and shard != 1}
        assert 1 <= len(kept) < N_SHARDS, "it was killed in the middle"
        before = {shard: _inode(paths, shard) for shard in kept}
        run(IngestSettings(path=str(cohort), **SETTINGS), paths, machine=Machine(workers=1))
        assert {shard: _inode(paths, shard) for shard in kept} == before, "finished shards are not read again"
    assert bytes_of(tmp_path / "study") == bytes_of(cohort / "whole")


def _inode(paths: IngestPaths, shard: int) -> int:
    return open_signals(paths.signals).signal_files(shard)[0].stat().st_ino
