"""`ensemble embed --scheduler` while workers of the cluster die and join, and when the cluster goes away."""

import os
import shutil
import signal
import threading

import pytest
import torch
from distributed import LocalCluster
from safetensors.torch import load_file, save_file

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


@pytest.mark.slow
def test_workers_may_die_and_join(study, whole, embed):
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:

        def change():
            os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)
            cluster.scale(3)

        done = embed(cluster, change)
    assert done.returncode == 0, done.stderr
    assert bytes_of(study / STORE) == whole


@pytest.mark.slow
def test_a_cluster_that_stays_up_takes_new_weights(study, ensemble, monkeypatch):
    monkeypatch.chdir(study)
    weights = study / "ecgfm.safetensors"
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster:
        on_cluster = ("embed", "--expert", "ecgfm", "--scheduler", cluster.scheduler_address)
        assert ensemble(*on_cluster).returncode == 0
        before = bytes_of(study / STORE)
        save_file({name: value * 1.5 for name, value in load_file(weights).items()}, weights)
        assert ensemble(*on_cluster, "--replace").returncode == 0
        after = bytes_of(study / STORE)
    assert all(after[name] != content for name, content in before.items() if name.startswith("embedding/c/"))
    shutil.rmtree(study / "embeddings")
    assert ensemble("embed", "--expert", "ecgfm", "--workers", "1").returncode == 0
    assert bytes_of(study / STORE) == after


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the worker has a GPU")
def test_the_device_is_the_workers_not_that_of_the_machine_that_asks(study, ensemble, monkeypatch):
    monkeypatch.chdir(study)
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0", processes=False) as cluster:
        done = ensemble("embed", "--expert", "ecgfm", "--scheduler", cluster.scheduler_address, "--device", "cuda")
    assert done.returncode == 2
    assert "this machine has 0 CUDA devices" in done.stderr
    assert (study / STORE).exists(), "the machine that asks needs no GPU to make the store"


def test_a_cluster_that_goes_away_is_one_line_and_the_run_resumes(study, whole, embed, ensemble):
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0", processes=False) as cluster:
        done = embed(cluster, cluster.close)
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line[:6] != "embed "]
    assert len(said) == 1, done.stderr
    assert "the connection was lost; start a cluster, and the same command goes on" in said[0]
    assert 0 < shards_left(study) < N_RECORDS // SHARD
    assert ensemble("embed", "--expert", "ecgfm", "--workers", "1").returncode == 0
    assert bytes_of(study / STORE) == whole
