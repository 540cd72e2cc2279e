"""Fixtures every test may use: real ECGs and official outputs (where this machine has them), and small studies."""

import os
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import yaml

if TYPE_CHECKING:
    from tests.cloud_servers import CloudServer

if "PYTEST_XDIST_WORKER" in os.environ:
    # Processes with as many threads as there are cores wait for one another: on two cores, golden vectors of six
    # experts took 36.8 s of processor time, with one thread each 14.2 s. Before torch is imported; children inherit it.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def _folder(variable: str, what: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set: it names the folder with {what}")
    folder = Path(value)
    if not folder.is_dir():
        pytest.fail(f"{variable}={value} is not a folder; unset it or point it at {what}")
    return folder


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder with the real ECGs (ptbxl/, ludb/, challenge2021/)."""
    return _folder("ENSEMBLE_TEST_DATA", "real ECG records")


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """Folder with the official code's outputs on small random weights."""
    return _folder("ENSEMBLE_PARITY", "official outputs")


class Ended(NamedTuple):
    """What a run of the command line left."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def ensemble(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run the command line in this process, in the current folder."""
    from pipeline import cli

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["ensemble", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Ended(code, *capsys.readouterr())

    return run


@dataclass(frozen=True)
class TinyExpert:
    """A neural expert with random weights on disk, small enough to run in milliseconds a record."""

    name: str
    config: dict[str, Any]
    weights: Path


ECGFM_TINY = {
    "encoder_embed_dim": 32,
    "encoder_layers": 2,
    "encoder_ffn_embed_dim": 64,
    "encoder_attention_heads": 4,
    "conv_feature_layers": "[(16, 2, 2)] * 4",
    "conv_pos": 16,
    "conv_pos_groups": 4,
    "final_dim": 16,
    "latent_vars": 8,
}


@pytest.fixture(scope="session")
def tiny_ecgfm(tmp_path_factory: pytest.TempPathFactory) -> TinyExpert:
    """Random ECG-FM weights under the official keys."""
    import torch
    from safetensors.torch import save_file

    from stages.experts import load_expert

    torch.manual_seed(0)
    expert = load_expert("ecgfm", config=ECGFM_TINY, random_weights=True)
    path = tmp_path_factory.mktemp("weights") / "ecgfm.safetensors"
    save_file({name: value.contiguous() for name, value in expert.module.state_dict().items()}, path)
    return TinyExpert("ecgfm", ECGFM_TINY, path)


def write_cohort(folder: Path, n_records: int, seed: int = 0) -> None:
    """Write records.parquet and signals.zarr as ingest would: beats that tell the targets, one bad record."""
    from cache.records import BASE_COLUMNS, Target, write_records
    from cache.signals import create_signals, to_microvolts

    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({name: [None] * n_records for name in BASE_COLUMNS})
    frame["record_id"] = [f"r{i:04d}" for i in range(n_records)]
    frame["patient_id"] = [f"p{i // 2:04d}" for i in range(n_records)]
    frame["fold"] = [(i // 2) % 10 for i in range(n_records)]
    frame["split"] = ["test" if fold == 9 else "val" if fold == 8 else "train" for fold in frame["fold"]]
    frame["status"], frame["source"], frame["sampling_rate_hz"], frame["n_samples"] = "ok", "toy", 500.0, 5000
    frame["nan_fraction"], frame["clipped_fraction"] = 0.0, 0.0
    frame["flat_leads"], frame["missing_leads"] = [[[] for _ in range(n_records)] for _ in range(2)]
    frame.loc[3, ["status", "reason"]] = ["bad", "truncated"]
    sex, age = rng.integers(0, 2, n_records), rng.uniform(20, 90, n_records)
    frame["sex"], frame["age"] = sex, age
    time = np.arange(5000) / 500
    beats = np.sin(2 * np.pi * (1 + age[:, None] / 100) * time) ** 21 * (1 + 0.5 * sex[:, None])
    signals = beats[:, None, :] * rng.uniform(0.5, 1.5, (1, 12, 1)) + rng.normal(0, 0.02, (n_records, 12, 5000))
    signals[3] = np.nan
    signals[5, 7] = np.nan
    targets = [Target("sex", "binary", classes=("male", "female")), Target("age", "regression", unit="years")]
    write_records(folder / "records.parquet", frame, targets)
    store = create_signals(folder / "signals.zarr", n_records, shard_records=16)
    for shard in range(store.n_shards):
        rows = store.rows_of(shard)
        valid = np.where(np.arange(rows.start, rows.stop) == 3, 0, 5000)
        store.write_shard(shard, to_microvolts(signals[rows]), valid)


@pytest.fixture(scope="session")
def make_cohort() -> Callable[..., None]:
    """`write_cohort`, for tests that want another size."""
    return write_cohort


@pytest.fixture
def toy_study(tmp_path: Path, tiny_ecgfm: TinyExpert) -> Path:
    """A study of 40 records, ingested, whose only expert is the tiny ECG-FM in shards of 4."""
    write_cohort(tmp_path, 40)
    params = {
        "cohort": {"source": "wfdb", "path": "."},
        "experts": {"ecgfm": {"weights": str(tiny_ecgfm.weights), "config": tiny_ecgfm.config}},
        "embed": {"shard_records": 4},
        "machine": {"batch_size": 2, "device": "cpu"},
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    return tmp_path


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Address of an S3 server on loopback (moto's), that knows conditional requests."""
    from tests.s3_server import serving

    with serving() as address:
        yield address


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a new, empty bucket; whoever is asked about the environment is told how to get there."""
    from tests.s3_server import environment

    bucket, client = _bucket("s3", environment(s3_server), monkeypatch)
    client.files.call_s3("create_bucket", Bucket=bucket)
    return f"s3://{bucket}"


@pytest.fixture(scope="session")
def google_server() -> "Iterator[CloudServer]":
    """Google's object storage on loopback."""
    from tests.cloud_servers import Google, serving

    with serving(Google) as server:
        yield server


@pytest.fixture(scope="session")
def azure_server() -> "Iterator[CloudServer]":
    """Azure's object storage on loopback."""
    from tests.cloud_servers import Azure, serving

    with serving(Azure) as server:
        yield server


@pytest.fixture
def gs(google_server: "CloudServer", monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a new, empty bucket of Google's storage."""
    from tests.cloud_servers import google_environment

    bucket, _ = _bucket("gs", google_environment(google_server.address), monkeypatch)
    google_server.begin(bucket)
    return f"gs://{bucket}"


@pytest.fixture
def az(azure_server: "CloudServer", monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a new, empty container of Azure's storage."""
    from tests.cloud_servers import azure_environment

    bucket, _ = _bucket("az", azure_environment(azure_server.address), monkeypatch)
    azure_server.begin(bucket)
    return f"az://{bucket}"


def _bucket(protocol: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> tuple[str, Any]:
    from cache.storage.objects import client_for
    from tests.s3_server import LEASE_S

    for name, value in {**environment, "ENSEMBLE_LEASE_SECONDS": str(LEASE_S)}.items():
        monkeypatch.setenv(name, value)
    client_for.cache_clear()
    return f"b{uuid.uuid4().hex[:12]}", client_for(protocol, os.getpid())


@pytest.fixture
def bucket(request: pytest.FixtureRequest) -> str:
    """URL of a new, empty bucket: of S3, or of what `tests.clouds` names."""
    return request.getfixturevalue(getattr(request, "param", "s3"))
