"""`ensemble embed --scheduler` while workers of the cluster die and join, and when the cluster goes away."""

import os
import signal
import threading

import pytest
from distributed import LocalCluster

from tests.integration.faults import N_RECORDS, SHARD, STORE, bytes_of, shards_left, wait_until


@pytest.fixture
def embed(study, ensemble, monkeypatch):
    """Run `ensemble embed` on a cluster; `meanwhile` is called when some shards are done."""
    monkeypatch.chdir(study)

    def run(cluster, meanwhile):
        def wait():
            wait_until(lambda: shards_left(study) <= N_RECORDS // SHARD - 5)
            meanwhile()

        other = threading.Thread(target=wait)
        other.start()
        done = ensemble("embed", "--expert", "ecgfm", "--scheduler", cluster.scheduler_address)
        other.join()
        return done

    return run


def test_workers_may_die_and_join(study, whole, embed):
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:

        def change():
            os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)
            cluster.scale(3)

        done = embed(cluster, change)
    assert done.returncode == 0, done.stderr
    assert bytes_of(study / STORE) == whole


def test_a_cluster_that_goes_away_is_one_line_and_the_run_resumes(study, whole, embed, ensemble):
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, processes=False) as cluster:
        done = embed(cluster, cluster.close)
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line[:6] != "embed "]
    assert len(said) == 1, done.stderr
    assert "the connection was lost; start a cluster, and the same command goes on" in said[0]
    assert 0 < shards_left(study) < N_RECORDS // SHARD
    assert ensemble("embed", "--expert", "ecgfm", "--workers", "1").returncode == 0
    assert bytes_of(study / STORE) == whole
