"""`ensemble ingest` into a bucket: the bytes of a folder, whoever dies, comes late or runs beside it."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from cache.errors import StoreError
from cache.record_rows import RecordRows
from cache.records import open_records
from cache.signals import open_signals
from cache.storage.locations import location_of
from pipeline.study.markers import write_ingested
from stages.ingest import IngestPaths, IngestSettings, run
from stages.ingest.shards import do_task
from stages.ingest.stage import run_by
from stages.settings import Machine
from tests.clouds import ON_EVERY_CLOUD
from tests.integration.faults import bytes_of, wait_until

N_RECORDS, N_FIRST, N_SHARDS = 1200, 900, 3
OPTIONS = {"file": "ecgs.npy", "rate_hz": 100, "labels": "labels.csv"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Records of two seconds in three shards, and the stores that one process makes of them in a folder."""
    folder = tmp_path_factory.mktemp("arrays")
    ecgs = np.random.default_rng(0).normal(0, 0.3, (N_RECORDS, 12, 200)).astype(np.float32)
    ecgs[700] = np.inf
    np.save(folder / "ecgs.npy", ecgs)
    lines = [f"p{k // 2},{k % 90}" for k in range(N_RECORDS)]
    (folder / "labels.csv").write_text("\n".join(["patient_id,age", *lines]) + "\n")
    return folder


@pytest.fixture(scope="module")
def whole(cohort, tmp_path_factory):
    """What one process writes into a folder."""
    folder = tmp_path_factory.mktemp("whole")
    ingest(cohort, folder)
    return bytes_of(folder)


def ingest(cohort: Path, study, **settings):
    study = location_of(study)
    asked = IngestSettings(source="arrays", path=str(cohort), options=OPTIONS, **settings)
    return run(asked, IngestPaths(study / "records.parquet", study / "signals.zarr"), machine=Machine(workers=1))


def objects_of(study) -> dict[str, bytes]:
    study = location_of(study)
    return {name: (study / name).read_bytes() for name in study.files()}


def n_read(study) -> int:
    """Count the shards that are done, by their quality."""
    return sum(name.endswith(".json") for name in (location_of(study) / ".signals.zarr.ingest").files())


@ON_EVERY_CLOUD
def test_a_bucket_gets_the_bytes_that_a_folder_gets(cohort, whole, bucket, tmp_path):
    summary = ingest(cohort, f"{bucket}/study")
    assert (summary.n_records, summary.n_bad) == (N_RECORDS, 1)
    assert objects_of(f"{bucket}/study") == whole, "neither claims nor quality is left"
    signals, records = open_signals(f"{bucket}/study/signals.zarr"), location_of(f"{bucket}/study/records.parquet")
    assert len(signals.content_digest()) == 64
    assert open_records(records)["age"].tolist()[:3] == [0.0, 1.0, 2.0]
    write_ingested(SimpleNamespace(records=records, signals=signals.path, folder=tmp_path))
    assert json.loads((tmp_path / "ingested.json").read_text()) == {
        "records": {"at": str(records), "rows": N_RECORDS, "sha256": hashlib.sha256(records.read_bytes()).hexdigest()},
        "signals": {"at": str(signals.path), "rows": N_RECORDS, "content_sha256": signals.content_digest()},
    }
    rows = RecordRows(records)
    assert (len(rows), rows.find("600"), rows.read(slice(700, 701))[0].unreadable != "") == (N_RECORDS, 600, True)


@pytest.mark.slow
@ON_EVERY_CLOUD
def test_a_store_in_a_bucket_grows_by_what_is_new(cohort, bucket, tmp_path):
    """The last shard is not full: its rows stay; a record longer than the others lengthens the time axis."""
    for place in (tmp_path, f"{bucket}/study"):
        ingest(cohort, place, limit=N_FIRST)
    before = open_signals(f"{bucket}/study/signals.zarr").content_digest()
    for place in (tmp_path, f"{bucket}/study"):
        assert ingest(cohort, place, append=True).n_new == N_RECORDS - N_FIRST
    assert objects_of(f"{bucket}/study") == bytes_of(tmp_path)
    assert open_signals(f"{bucket}/study/signals.zarr").content_digest(N_FIRST) == before


@ON_EVERY_CLOUD
def test_long_records_lengthen_the_time_axis_in_a_bucket(bucket, tmp_path):
    folder = tmp_path / "long"
    folder.mkdir()
    np.save(folder / "ecgs.npy", np.random.default_rng(1).normal(0, 0.3, (20, 12, 6100)).astype(np.float32))
    asked = IngestSettings(
        source="arrays", path=str(folder), options={"file": "ecgs.npy", "rate_hz": 500}, seconds="all"
    )
    for place in (tmp_path / "study", location_of(f"{bucket}/study")):
        run(asked, IngestPaths(place / "records.parquet", place / "signals.zarr"), machine=Machine(workers=1))
    assert objects_of(f"{bucket}/study") == bytes_of(tmp_path / "study")
    assert open_signals(f"{bucket}/study/signals.zarr").n_samples == 10_000


RUN = f"""
import sys
from cache.errors import StoreError
from cache.storage.locations import location_of
from stages.ingest import IngestPaths, IngestSettings, run
from stages.settings import Machine
study = location_of(sys.argv[2])
asked = IngestSettings(source="arrays", path=sys.argv[1], options={OPTIONS})
try:
    run(asked, IngestPaths(study / "records.parquet", study / "signals.zarr"), machine=Machine(workers=1))
    print("done")
except StoreError as error:
    print("refused", error)
"""


def started(cohort: Path, study: str) -> subprocess.Popen:
    command = [sys.executable, "-c", RUN, str(cohort), study]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
@ON_EVERY_CLOUD
def test_a_killed_ingest_goes_on_where_it_stopped_and_a_rival_is_refused(cohort, whole, bucket):
    study = f"{bucket}/study"
    with started(cohort, study) as first:
        wait_until(lambda: n_read(study) >= 1 or first.poll() is not None)
        with pytest.raises(StoreError, match="another `ensemble ingest` is writing it"):
            ingest(cohort, study)
        os.kill(first.pid, signal.SIGKILL)
    assert not (location_of(study) / "records.parquet").exists()
    tags = {name: entry.tag for name, entry in location_of(study).files().items() if name.endswith("/digest/c/0/0")}
    assert tags, "it was killed in the middle"
    wait_until(lambda: ingested_by_now(cohort, study))
    assert objects_of(study) == whole
    after = location_of(study).files()
    assert {name: after[name].tag for name in tags} == tags


def ingested_by_now(cohort: Path, study: str) -> bool:
    """Whether the dead one's lease has run out."""
    try:
        ingest(cohort, study)
    except StoreError:
        return False
    return True


@pytest.mark.slow
@ON_EVERY_CLOUD
def test_an_ingest_that_was_paused_and_overtaken_mixes_nothing(cohort, whole, bucket):
    study = f"{bucket}/study"
    with started(cohort, study) as first:
        wait_until(lambda: n_read(study) >= 1 or first.poll() is not None)
        os.kill(first.pid, signal.SIGSTOP)
        wait_until(lambda: ingested_by_now(cohort, study))
        assert objects_of(study) == whole
        os.kill(first.pid, signal.SIGCONT)
        said = first.communicate()[0]
    assert said.startswith("refused") or first.returncode != 0, said
    assert {name: raw for name, raw in objects_of(study).items() if not name.startswith(".claims")} == whole


@ON_EVERY_CLOUD
def test_workers_do_tasks_by_the_url_alone_and_a_late_one_leaves_nothing(cohort, whole, bucket):
    """As on a cluster: shards are done by others, one of them twice, and once when the run is over."""
    study, late = location_of(f"{bucket}/study"), []

    def read(tasks, work, n_records, progress):
        threads = [threading.Thread(target=do_task, args=(task, work)) for task in tasks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        do_task(tasks[0], work)
        late.append((tasks[0], work))

    asked = IngestSettings(source="arrays", path=str(cohort), options=OPTIONS)
    run_by(read, asked, IngestPaths(study / "records.parquet", study / "signals.zarr"))
    with pytest.raises(StoreError, match="is over; run it again"):
        do_task(*late[0])
    assert objects_of(study) == whole


@pytest.mark.slow
@ON_EVERY_CLOUD
def test_dask_workers_may_die_and_join(cohort, whole, bucket):
    from distributed import LocalCluster

    from pipeline.compute.ingestion import ingest_on_cluster

    study = location_of(f"{bucket}/study")
    asked = IngestSettings(source="arrays", path=str(cohort), options=OPTIONS)
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:

        def change():
            wait_until(lambda: n_read(study) >= 1)
            os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)
            cluster.scale(3)

        other = threading.Thread(target=change)
        other.start()
        ingest_on_cluster(
            asked, IngestPaths(study / "records.parquet", study / "signals.zarr"), cluster.scheduler_address
        )
        other.join()
    assert {name: raw for name, raw in objects_of(study).items() if not name.startswith(".claims")} == whole


def test_a_study_is_ingested_embedded_and_fitted_in_a_bucket(ensemble, bucket, tmp_path, monkeypatch):
    """By the commands alone; the folder keeps no store."""
    ecgs = np.random.default_rng(2).normal(0, 0.3, (60, 12, 1000)).astype(np.float32)
    np.save(tmp_path / "ecgs.npy", ecgs)
    (tmp_path / "labels.csv").write_text("\n".join(["patient_id,age", *(f"p{k},{20 + k}" for k in range(60))]) + "\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(PARAMS.format(s3=bucket))
    for command in (("ingest",), ("embed", "--expert", "rocket"), ("fit-heads",), ("evaluate",)):
        done = ensemble(*command)
        assert done.returncode == 0, (command, done.stderr)
    assert not (tmp_path / "records.parquet").exists()
    assert not (tmp_path / "signals.zarr").exists()
    assert set(pd.read_parquet(tmp_path / "predictions.parquet")["record_id"]) <= set(
        open_records(f"{bucket}/study/records.parquet")["record_id"]
    )


PARAMS = """
cohort: {{source: arrays, path: ., options: {{file: ecgs.npy, rate_hz: 100, labels: labels.csv}}}}
records: {s3}/study/records.parquet
signals: {s3}/study/signals.zarr
embeddings: {s3}/study/embeddings
experts: {{rocket: {{}}}}
machine: {{workers: 1, device: cpu}}
tasks: [age]
fit_heads: {{options: {{lora_epochs: 2, gate_epochs: 2}}}}
evaluate: {{bootstrap: 100}}
"""
