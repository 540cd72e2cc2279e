"""A study whose stores lie on object storage, on an S3 server on loopback: real commands, kills, rivals, errors."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from fsspec.registry import _registry

from cache.storage.locations import location_of
from cache.storage.objects import client_for
from tests.cloud_servers import azure_environment, google_environment
from tests.clouds import ON_EVERY_CLOUD
from tests.integration.faults import FULL, Forks, bytes_of, wait_until
from tests.s3_server import LEASE_S, environment

N_RECORDS, SHARD = 40, 4


@pytest.fixture(scope="module")
def made(tmp_path_factory, make_cohort, tiny_ecgfm):
    """A study of 40 records in shards of 4 that nothing has been embedded of."""
    folder = tmp_path_factory.mktemp("made")
    make_cohort(folder, N_RECORDS)
    shutil.copy(tiny_ecgfm.weights, folder / "ecgfm.safetensors")
    params = {
        "cohort": {"source": "wfdb", "path": "."},
        "experts": {"ecgfm": {"weights": "ecgfm.safetensors", "config": tiny_ecgfm.config}},
        "embed": {"shard_records": SHARD},
        "machine": {"batch_size": 2, "device": "cpu", "workers": 1},
        "tasks": ["sex"],
        "fit_heads": {"options": {"lora_epochs": 2, "gate_epochs": 2}},
        "evaluate": {"bootstrap": 100},
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    return folder


@pytest.fixture(scope="module")
def program(s3_server, google_server, azure_server):
    """The process that `embed` processes are forked from."""
    start = "import obstore, runpy, s3fs, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
    command = [sys.executable, "-c", start, Path(__file__).with_name("embed_forks.py")]
    clouds = {**google_environment(google_server.address), **azure_environment(azure_server.address)}
    env = {**os.environ, **environment(s3_server), **clouds, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as running:
        yield running
        running.stdin.close()


@pytest.fixture(scope="module")
def local(made, program, tmp_path_factory):
    """The same study, embedded into folders."""
    folder = tmp_path_factory.mktemp("local") / "study"
    shutil.copytree(made, folder)
    with Forks(program, folder) as forks:
        forks.start()
        forks.wait_all()
    return folder


@pytest.fixture
def study(made, bucket, tmp_path, monkeypatch):
    """The study with its embeddings in a bucket, as the current folder."""
    folder = tmp_path / "study"
    shutil.copytree(made, folder)
    change(folder, embeddings=f"{bucket}/study/embeddings")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def store(bucket):
    return location_of(f"{bucket}/study/embeddings/ecgfm.zarr")


@pytest.fixture
def forks(program, study):
    with Forks(program, study) as running:
        yield running


def change(folder, **params):
    told = yaml.safe_load((folder / "params.yaml").read_text())
    (folder / "params.yaml").write_text(yaml.safe_dump({**told, **params}))


def objects_of(store):
    return {name: (store / name).read_bytes() for name in store.files()}


def n_done(store):
    return sum(name.startswith("done/c/") for name in store.files())


def n_computed(forks):
    return sum(forks.count(pid, "computed") for pid in forks.logs)


def test_a_bucket_gets_the_bytes_that_a_folder_gets(study, store, local, bucket, ensemble):
    change(study, signals=f"{bucket}/study/signals.zarr")
    for name, raw in bytes_of(study / "signals.zarr").items():
        (location_of(f"{bucket}/study/signals.zarr") / name).create(raw)
    shutil.rmtree(study / "signals.zarr")
    done = ensemble("embed", "--expert", "ecgfm")
    assert done.returncode == 0, done.stderr
    assert "40 records embedded" in done.stdout
    assert f"-> {store}" in done.stdout
    assert objects_of(store) == bytes_of(local / "embeddings/ecgfm.zarr")
    before = {name: entry.tag for name, entry in store.files().items()}, (study / "embeddings/ecgfm.json").read_bytes()
    again = ensemble("embed", "--expert", "ecgfm")
    assert "0 records embedded" in again.stdout
    assert "40 done already" in again.stdout
    assert ({n: e.tag for n, e in store.files().items()}, (study / "embeddings/ecgfm.json").read_bytes()) == before
    assert (store.parent / ".claims").files() == {}
    assert "current" in ensemble("cache", "ls").stdout
    assert ensemble("cache", "verify").stdout == "every shard reads as it was written\n"


def test_heads_and_metrics_from_a_bucket_are_those_from_a_folder(study, store, local, ensemble, monkeypatch):
    for name, raw in bytes_of(local / "embeddings/ecgfm.zarr").items():
        (store / name).create(raw)
    for folder in (study, local):
        monkeypatch.chdir(folder)
        for command in (["fit-heads"], ["evaluate"], ["cache", "export", "ecgfm", "vectors.npy"]):
            done = ensemble(*command)
            assert done.returncode == 0, done.stderr
    assert bytes_of(study / "heads") == bytes_of(local / "heads")
    for name in ("metrics.json", "predictions.parquet", "vectors.npy"):
        assert (study / name).read_bytes() == (local / name).read_bytes()


def test_vectors_of_another_tool_are_imported_into_a_bucket(study, store, ensemble):
    import numpy as np

    from cache import open_embeddings, open_records

    vectors = np.random.default_rng(0).normal(size=(N_RECORDS, 8)).astype(np.float32)
    np.save(study / "mine.npy", vectors)
    open_records(study / "records.parquet")[["record_id"]].to_csv(study / "ids.csv", index=False)
    command = ["cache", "import", "mine.npy", "--expert", "mine", "--ids", "ids.csv", "--dtype", "float32"]
    done = ensemble(*command)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(open_embeddings(str(store.parent / "mine.zarr")).read_embedding(), vectors)
    assert "exists; say --replace" in ensemble(*command).stderr
    assert "mine.zarr (" in ensemble("cache", "gc").stdout
    assert "deleted" in ensemble("cache", "gc", "--delete").stdout
    assert store.parent.files() == {}


@ON_EVERY_CLOUD
def test_a_killed_worker_costs_its_shard_and_leaves_nothing(forks, store, local):
    pid = forks.start()
    wait_until(lambda: n_done(store) >= 3)
    forks.kill(pid)
    done = n_done(store)
    assert 3 <= done < N_RECORDS // SHARD
    forks.start()
    forks.wait_all()
    assert objects_of(store) == bytes_of(local / "embeddings/ecgfm.zarr")
    assert n_computed(forks) <= N_RECORDS + 2 * SHARD
    assert (store.parent / ".claims").files() == {}


@pytest.mark.skipif(not FULL, reason="takes minutes; ENSEMBLE_FAULTS=full runs it")
@ON_EVERY_CLOUD
def test_random_kills_lose_nothing(forks, store, local):
    rng, kills, n_runs = random.Random(7), 0, 0
    while kills < 20:
        store.delete(sorted(store.files()))
        n_runs += 1
        while n_done(store) < N_RECORDS // SHARD:
            while len(forks.living()) < 3:
                forks.start()
            time.sleep(rng.expovariate(1.0))
            at_work = [pid for pid in forks.living() if forks.count(pid, "begun")]
            for pid in rng.sample(at_work, min(1, len(at_work))) if rng.random() < 0.9 else at_work:
                forks.kill(pid)
                kills += 1
        forks.start()
        wait_until(lambda: not forks.living())
        assert objects_of(store) == bytes_of(local / "embeddings/ecgfm.zarr")
        assert (store.parent / ".claims").files() == {}
        print(f"{kills} kills in {n_runs} runs", flush=True)
    repeated = n_computed(forks) - n_runs * N_RECORDS
    print(f"{kills} kills in {n_runs} runs: {repeated} of {n_computed(forks)} records computed twice")


@ON_EVERY_CLOUD
def test_two_runs_at_once_share_the_work(forks, store, local):
    forks.start(), forks.start()
    forks.wait_all()
    assert objects_of(store) == bytes_of(local / "embeddings/ecgfm.zarr")
    assert n_computed(forks) == N_RECORDS


@pytest.mark.slow
@ON_EVERY_CLOUD
def test_a_run_paused_past_its_lease_is_overtaken_and_goes_on(forks, store, local):
    slow = forks.start()
    wait_until(lambda: n_done(store) >= 2)
    os.kill(slow, signal.SIGSTOP)
    forks.start()
    wait_until(lambda: n_done(store) == N_RECORDS // SHARD)
    os.kill(slow, signal.SIGCONT)
    forks.wait_all()
    assert objects_of(store) == bytes_of(local / "embeddings/ecgfm.zarr")


@pytest.mark.slow
@ON_EVERY_CLOUD
def test_a_run_paused_past_its_lease_never_mixes_with_a_store_that_replaced_its_own(forks, store, ensemble):
    slow = forks.start()
    wait_until(lambda: n_done(store) >= 2)
    os.kill(slow, signal.SIGSTOP)
    time.sleep(LEASE_S)
    forks.start(preprocessing="enecg")
    wait_until(lambda: n_done(store) == N_RECORDS // SHARD and forks.said(max(forks.logs))[-1:] == ["finished"])
    whole = objects_of(store)
    os.kill(slow, signal.SIGCONT)
    wait_until(lambda: not forks.living())
    assert "meanwhile another run has replaced the store" in forks.said(slow)[-1]
    assert objects_of(store) == whole
    assert ensemble("cache", "verify").returncode == 0


def test_a_flipped_byte_is_found_refused_and_mended(study, store, local, ensemble):
    for name, raw in bytes_of(local / "embeddings/ecgfm.zarr").items():
        (store / name).create(raw)
    raw = bytearray((store / "embedding/c/4/0").read_bytes())
    raw[40] ^= 1
    (store / "embedding/c/4/0").replace(bytes(raw), (store / "embedding/c/4/0").tag())
    found = ensemble("cache", "verify")
    assert found.returncode == 1
    assert found.stdout.startswith(f"{store}: shard 4: embedding is damaged")
    assert "run `ensemble cache repair`" in ensemble("fit-heads").stderr
    assert ensemble("cache", "repair").stdout == f"{store}: shard 4 dropped; run `ensemble embed --expert ecgfm`\n"
    assert "4 records embedded" in ensemble("embed", "--expert", "ecgfm").stdout
    assert ensemble("cache", "verify").returncode == 0
    assert objects_of(store) == bytes_of(local / "embeddings/ecgfm.zarr")


@pytest.mark.slow
def test_dvc_watches_a_marker_and_repeats_nothing(study, store, local, monkeypatch):
    from pipeline.study.scaffold import StoreUrls, make_study

    make_study(study / "fresh", "wfdb", local, urls=StoreUrls(embeddings=str(store.parent)))
    embed = yaml.safe_load((study / "fresh/dvc.yaml").read_text())["stages"]["embed"]
    (study / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"embed": embed}}))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")

    def dvc(*arguments):
        command = [sys.executable, "-m", "dvc", *arguments]
        return subprocess.run(command, cwd=study, capture_output=True, text=True, check=False)

    assert dvc("init", "--no-scm", "-q").returncode == 0
    done = dvc("repro")
    assert done.returncode == 0, done.stderr + done.stdout
    assert objects_of(store) == bytes_of(local / "embeddings/ecgfm.zarr")
    assert "embeddings/ecgfm.json" in (study / "dvc.lock").read_text()
    assert "Data and pipelines are up to date." in dvc("repro").stdout


@pytest.fixture
def refusing(monkeypatch):
    """The server looks at who asks; whoever it was before is unknown."""
    import moto.core.responses
    import moto.settings

    monkeypatch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
    monkeypatch.setattr(moto.core.responses.ActionAuthenticatorMixin, "request_count", 0)


def one_line(done, *parts):
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for part in parts:
        assert part in done.stderr


@pytest.mark.parametrize(
    "command", [["embed", "--expert", "ecgfm"], ["fit-heads"], ["cache", "verify"], ["cache", "ls"]]
)
def test_an_unknown_key_is_one_line(study, store, ensemble, refusing, command):
    one_line(ensemble(*command), str(store.parent), "the access key is unknown; check AWS_ACCESS_KEY_ID")


@pytest.mark.parametrize("command", [["embed", "--expert", "ecgfm"], ["fit-heads"], ["cache", "verify"]])
def test_a_missing_bucket_is_one_line(study, ensemble, command):
    change(study, embeddings="s3://no-such-bucket/study")
    one_line(ensemble(*command), "s3://no-such-bucket/study", "there is no such bucket; make it, or correct the URL")


def test_doctor_says_whether_the_bucket_answers(study, store, ensemble):
    assert f"PASS  {store.parent} answers" in ensemble("doctor", "--offline").stdout
    change(study, embeddings="s3://no-such-bucket/study")
    assert "FAIL  s3://no-such-bucket/study: there is no such bucket" in ensemble("doctor", "--offline").stdout


def test_no_credentials_are_one_line(study, store, ensemble, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(study / "none"))
    client_for.cache_clear()
    one_line(
        ensemble("embed", "--expert", "ecgfm"), str(store.parent), "there are no credentials; check AWS_ACCESS_KEY_ID"
    )


def test_a_server_that_does_not_answer_is_one_line(study, store, ensemble, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    client_for.cache_clear()
    one_line(ensemble("fit-heads"), str(store), "the server cannot be reached; check AWS_ENDPOINT_URL")


def test_a_missing_package_is_one_line(study, ensemble, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(_registry, "s3")
    client_for.cache_clear()
    one_line(ensemble("fit-heads"), "s3://...", "pip install 'ecg-ensemble[s3]'")


def test_a_url_costs_nothing_until_it_is_used(study):
    look = "import sys; import pipeline.cli, cache.embeddings, cache.claims; print([n for n in sys.modules if n in {}])"
    names = ("s3fs", "aiobotocore", "botocore", "obstore")
    done = subprocess.run([sys.executable, "-c", look.format(names)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_marker_says_what_the_bucket_holds(study, store, local, ensemble):
    for name, raw in bytes_of(local / "embeddings/ecgfm.zarr").items():
        (store / name).create(raw)
    ensemble("embed", "--expert", "ecgfm")
    said = json.loads((study / "embeddings/ecgfm.json").read_text())
    assert said["store"] == str(store)
    assert (said["records"], said["objects"]) == (N_RECORDS, len(store.files()))
    assert said["fingerprint"] == json.loads((store / "zarr.json").read_bytes())["attributes"]["fingerprint"]
