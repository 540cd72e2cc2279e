"""Several processes at one store: they share the work, wait for one another, and never mix."""

import os
import shutil
import signal
import time

import pytest

from cache.upkeep.checks import embedding_faults
from tests.integration.faults import N_RECORDS, SHARD, STORE, bytes_of, is_alive, shards_left, wait_until


def test_a_paused_worker_is_waited_for(study, whole, forks):
    paused = forks.start()
    wait_until(lambda: forks.count(paused, "written") >= SHARD)
    os.kill(paused, signal.SIGSTOP)
    other = forks.start()
    wait_until(lambda: shards_left(study) <= 3 and "finished" not in forks.said(other))
    time.sleep(1.5)
    assert is_alive(other)
    assert 0 < shards_left(study) <= 3
    os.kill(paused, signal.SIGCONT)
    forks.wait_all()
    total = forks.count(paused, "computed") + forks.count(other, "computed")
    assert total == N_RECORDS
    assert bytes_of(study / STORE) == whole


@pytest.mark.slow
def test_the_shards_of_a_paused_worker_that_dies_are_taken_over(study, whole, forks):
    paused = forks.start()
    wait_until(lambda: forks.count(paused, "written") >= SHARD)
    os.kill(paused, signal.SIGSTOP)
    forks.start()
    wait_until(lambda: shards_left(study) <= 3)
    forks.kill(paused)
    wait_until(lambda: not forks.living())
    assert bytes_of(study / STORE) == whole


def test_two_runs_at_once_share_the_work(study, whole, forks):
    pids = [forks.start(), forks.start()]
    forks.wait_all()
    computed = [forks.count(pid, "computed") for pid in pids]
    assert sum(computed) == N_RECORDS
    assert min(computed) > 0
    assert bytes_of(study / STORE) == whole


@pytest.mark.slow
def test_two_runs_of_different_settings_never_mix(study, whole, forks):
    pids = [forks.start(), forks.start(preprocessing="enecg"), forks.start(), forks.start(preprocessing="enecg")]
    forks.wait_all()
    assert all(forks.said(pid)[-1] == "finished" for pid in pids)
    found = bytes_of(study / STORE)
    assert list(embedding_faults(study / STORE)) == []
    if found == whole:
        return
    shutil.rmtree(study / "embeddings")
    forks.start(preprocessing="enecg")
    forks.wait_all()
    assert found == bytes_of(study / STORE)
