"""Studies on Google's and Azure's object storage, on servers on loopback: kills, rivals, errors.

S3: `test_object_store`.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from cache.embeddings import open_embeddings
from cache.errors import EnsembleError
from cache.records import open_records
from cache.storage.locations import location_of, stores_in
from cache.storage.objects import client_for
from tests.integration.faults import bytes_of, wait_until

N_RECORDS = 700
OF_ARRAYS = {"file": "ecgs.npy", "rate_hz": 100, "labels": "labels.csv"}
PARAMS = {
    "cohort": {
        "source": "arrays",
        "path": ".",
        "options": {"file": "ecgs.npy", "rate_hz": 100, "labels": "labels.csv"},
    },
    "experts": {"rocket": {}},
    "embed": {"shard_records": 100},
    "machine": {"workers": 1, "device": "cpu"},
    "tasks": ["age"],
    "fit_heads": {"options": {"lora_epochs": 2, "gate_epochs": 2}},
    "evaluate": {"bootstrap": 100},
}
COMMANDS = [["ingest"], ["embed", "--expert", "rocket"], ["fit-heads"], ["evaluate"], ["cache", "verify"]]
PREDICT = ["predict", ".", "--out", "new.parquet", "--workers", "1"]
CLOUDS = ["gs", "az"]


def written_study(folder: Path, n_records: int, **params: object) -> Path:
    """Write the files of a study of arrays."""
    folder.mkdir(exist_ok=True)
    ecgs = np.random.default_rng(0).normal(0, 0.3, (n_records, 12, 200)).astype(np.float32)
    np.save(folder / "ecgs.npy", ecgs)
    lines = ["patient_id,age", *(f"p{k // 2},{20 + k % 60}" for k in range(n_records))]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    (folder / "params.yaml").write_text(yaml.safe_dump({**PARAMS, **params}))
    return folder


def elsewhere(bucket: str) -> dict[str, str]:
    """Return the parameters that name a bucket."""
    places = {"records": "records.parquet", "signals": "signals.zarr", "embeddings": "embeddings"}
    return {name: f"{bucket}/study/{place}" for name, place in places.items()}


def objects_of(url) -> dict[str, bytes]:
    url = location_of(url)
    return {name: (url / name).read_bytes() for name in url.files()}


def stores_of(folder: Path) -> dict[str, bytes]:
    """Return the files that lie in a bucket where the study's stores do."""
    kept = ("records.parquet", "bad_records.csv", "signals.zarr/", "embeddings/rocket.zarr/")
    return {name: raw for name, raw in bytes_of(folder).items() if name.startswith(kept)}


@pytest.mark.slow
@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_study_is_ingested_embedded_fitted_and_used_in_a_bucket(cloud, request, ensemble, tmp_path, monkeypatch):
    """By the commands alone: the bucket holds the bytes of a folder, and heads and metrics are the same."""
    bucket = request.getfixturevalue(cloud)
    local, remote = (written_study(tmp_path / name, 60) for name in ("local", "remote"))
    (remote / "params.yaml").write_text(yaml.safe_dump({**PARAMS, **elsewhere(bucket)}))
    for folder in (local, remote):
        monkeypatch.chdir(folder)
        for command in [*COMMANDS, PREDICT]:
            done = ensemble(*command)
            assert done.returncode == 0, (command, done.stderr)
    assert objects_of(f"{bucket}/study") == stores_of(local)
    assert not (remote / "signals.zarr").exists()
    for name in ("metrics.json", "predictions.parquet", "new.parquet", "new.warnings.parquet"):
        assert (remote / name).read_bytes() == (local / name).read_bytes()
    assert bytes_of(remote / "heads") == bytes_of(local / "heads")
    said = ensemble("doctor", "--offline").stdout
    for what in ("records.parquet", "signals.zarr", "embeddings"):
        assert f"PASS  {bucket}/study/{what} answers" in said


def started(folder: Path, *command: str) -> subprocess.Popen:
    run = [sys.executable, "-c", "from pipeline.cli import main; main()", *command]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(run, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def n_below(url: str, folder: str) -> int:
    return sum(name.startswith(folder) for name in location_of(url).files())


@pytest.mark.slow
@pytest.mark.parametrize("cloud", CLOUDS)
def test_killed_runs_go_on_beside_rivals_to_the_bytes_of_a_folder(cloud, request, ensemble, tmp_path, monkeypatch):
    """`ingest` is killed after its first shard and refused to a rival; `embed` is killed, and two others finish it."""
    bucket = request.getfixturevalue(cloud)
    local, remote = (written_study(tmp_path / name, N_RECORDS) for name in ("local", "remote"))
    monkeypatch.chdir(local)
    for command in COMMANDS[:2]:
        assert ensemble(*command).returncode == 0
    (remote / "params.yaml").write_text(yaml.safe_dump({**PARAMS, **elsewhere(bucket)}))
    monkeypatch.chdir(remote)
    study, embeddings = f"{bucket}/study", f"{bucket}/study/embeddings/rocket.zarr"

    with started(remote, "ingest") as first:
        wait_until(lambda: n_below(study, ".signals.zarr.ingest/") >= 1 or first.poll() is not None)
        rival = ensemble("ingest")
        os.kill(first.pid, signal.SIGKILL)
    assert "another `ensemble ingest` is writing it" in rival.stderr
    assert first.returncode == -signal.SIGKILL
    assert not (location_of(study) / "records.parquet").exists()
    wait_until(lambda: ensemble("ingest").returncode == 0)  # as soon as the dead one's lease has run out

    with started(remote, "embed", "--expert", "rocket") as first:
        wait_until(lambda: n_below(embeddings, "done/c/") >= 2 or first.poll() is not None)
        os.kill(first.pid, signal.SIGKILL)
    done = n_below(embeddings, "done/c/")
    assert 2 <= done < N_RECORDS // 100, "it was killed in the middle"
    rivals = [started(remote, "embed", "--expert", "rocket") for _ in range(2)]
    for run in rivals:
        said = run.communicate()[0]
        assert run.returncode == 0, said
    assert objects_of(study) == stores_of(local), "and neither claims nor quality is left"


@pytest.fixture
def study(request, tmp_path, monkeypatch):
    """A study whose embeddings are to lie in a bucket, as the current folder."""
    bucket = request.getfixturevalue(request.param)
    folder = written_study(tmp_path / "study", 20, embeddings=f"{bucket}/study")
    monkeypatch.chdir(folder)
    return bucket


def one_line(done, *parts: str) -> None:
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for part in parts:
        assert part in done.stderr


WORDS = {
    "gs": ("bucket", "GOOGLE_APPLICATION_CREDENTIALS", "google_server", "GOOGLE_BASE_URL"),
    "az": ("container", "AZURE_STORAGE_ACCOUNT_KEY", "azure_server", "AZURE_STORAGE_ENDPOINT"),
}


@pytest.mark.parametrize("study", CLOUDS, indirect=True)
def test_what_is_wrong_with_a_storage_is_one_line(study, ensemble, request, monkeypatch):
    kind, keys, server, endpoint = WORDS[study[:2]]
    missing = f"{study[:2]}://no-such-{kind}/study"
    (Path("params.yaml")).write_text(yaml.safe_dump({**PARAMS, "embeddings": missing}))
    one_line(ensemble("cache", "ls"), missing, f"there is no such {kind}; make it, or correct the URL")
    assert f"FAIL  {missing}: there is no such {kind}" in ensemble("doctor", "--offline").stdout
    (Path("params.yaml")).write_text(yaml.safe_dump({**PARAMS, "embeddings": f"{study}/study"}))
    monkeypatch.setattr(request.getfixturevalue(server).storage, "refuses", True)
    one_line(ensemble("cache", "ls"), f"{study}/study", keys)
    for name in ("GOOGLE_SERVICE_ACCOUNT_KEY", "AZURE_STORAGE_ENDPOINT"):
        monkeypatch.setenv(name, os.environ.get(name, "").replace("127.0.0.1", "127.0.0.2"))
    client_for.cache_clear()
    monkeypatch.setattr("cache.storage.obstore_client.MAX_RETRIES", 1)
    one_line(ensemble("cache", "ls"), "the server cannot be reached", endpoint)


def test_an_account_that_is_not_named_is_one_line(az, monkeypatch):
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME")
    client_for.cache_clear()
    with pytest.raises(EnsembleError, match="names no storage account; set AZURE_STORAGE_ACCOUNT_NAME"):
        stores_in(location_of(f"{az}/study"))


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_missing_package_is_one_line_that_names_the_extra(cloud, monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    client_for.cache_clear()
    with pytest.raises(EnsembleError, match=rf"the package for it is missing.*'ecg-ensemble\[{cloud}\]'"):
        open_embeddings(f"{cloud}://bucket/study/rocket.zarr")


def test_a_name_that_no_storage_takes_is_one_line(gs):
    with pytest.raises(EnsembleError, match="the URL has an empty part"):
        open_records(location_of(f"{gs}/study//records.parquet"))
