"""Kills at random moments: nothing is lost, and at most one shard of work is repeated a kill."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np

from cache.claims import Claims
from cache.embeddings import open_embeddings
from cache.upkeep.checks import embedding_faults
from tests.integration.faults import (
    FULL,
    N_RECORDS,
    PATIENCE_S,
    SHARD,
    STORE,
    Forks,
    bytes_of,
    finished,
    shards_left,
    wait_until,
)

N_KILLS = 200 if FULL else 8
MEAN_PAUSE_S = 0.3 if FULL else 0.1


def run_with_kills(forks: Forks, rng: random.Random, most: int) -> list[int]:
    """Keep 2 to 4 workers at work until the store is complete, killing some of them at random moments.

    Returns for each kill the records whose computing the victim had begun and that did not count yet.
    """
    lost: list[int] = []
    n_workers = rng.randint(2, 4)
    while not finished(forks.folder):
        while len(forks.living()) < n_workers:
            forks.start()
        time.sleep(rng.expovariate(1 / MEAN_PAUSE_S))
        for pid in chosen(forks, rng)[: most - len(lost)] if not finished(forks.folder) else []:
            forks.kill(pid)
            lost.append(forks.count(pid, "begun") - forks.count(pid, "written"))
    wait_until(lambda: not forks.living())
    return lost


def chosen(forks: Forks, rng: random.Random) -> list[int]:
    """One worker that computes; in one of ten cases all of them; now and then one that is perhaps only starting."""
    at_work, kind = [pid for pid in forks.living() if forks.count(pid, "begun")], rng.random()
    if kind < 0.1:
        return at_work
    among = at_work if kind < 0.98 else forks.living()
    return rng.sample(among, min(1, len(among)))


def test_random_kills_lose_and_repeat_nothing(study, whole, forks):
    rng = random.Random(6)
    lost, n_runs = [], 0
    while len(lost) < N_KILLS:
        shutil.rmtree(study / "embeddings", ignore_errors=True)
        lost += run_with_kills(forks, rng, N_KILLS - len(lost))
        n_runs += 1
        assert bytes_of(study / STORE) == whole
        assert list(embedding_faults(study / STORE)) == []
        with closing(Claims(study / STORE, study / ".ensemble")) as claims:
            assert claims.try_acquire(), "a lock was left"
    begun = sum(forks.count(pid, "begun") for pid in forks.logs)
    readable = int(np.isfinite(open_embeddings(study / STORE).read_embedding()).any(axis=1).sum())
    repeated = begun - n_runs * readable
    print(
        f"{len(lost)} kills in {n_runs} runs of {N_RECORDS // SHARD} shards: {repeated} of {begun} records computed "
        f"twice, {repeated / SHARD / len(lost):.2f} shards a kill, most at one kill {max(lost) / SHARD:.2f} shards"
    )
    assert max(lost) <= SHARD, "more than one shard of work was repeated"
    assert repeated <= sum(lost)


def test_a_worker_that_dies_is_survived(study, whole):
    command = [sys.executable, "-m", "pipeline.cli", "embed", "--expert", "ecgfm", "--workers", "2"]
    run = subprocess.Popen(command, cwd=study, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: shards_left(study) < N_RECORDS // SHARD or run.poll() is not None)
    workers = [pid for pid in children(run.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(max(workers), signal.SIGKILL)
    _, stderr = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 0, stderr
    assert "a worker ended with -9; its shard goes to another one" in stderr
    assert bytes_of(study / STORE) == whole


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
