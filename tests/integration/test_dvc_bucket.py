"""A study of `ensemble init` whose records, signals and embeddings lie in a bucket, under real `dvc repro`."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from cache import open_embeddings, open_records, open_signals
from cache.storage.locations import location_of

N = 48
STAGES = ["ingest", "embed@rocket", "fit-heads", "evaluate", "report"]
PATIENCE_S = 1500


class BucketStudy:
    """The study's folder, and the commands run in it."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where `ensemble` is
        self.environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}

    def run(self, *command: str, folder: Path | None = None) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=folder or self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def stages_run(self, *options: str) -> list[str]:
        """Reproduce the study; which stages ran, in order."""
        return re.findall(r"Running stage '([^']+)'", self.run("dvc", "repro", *options))

    def tags(self) -> dict[str, str]:
        """Tag of each object of signals and embeddings."""
        return {name: entry.tag for name, entry in location_of(self.url).files().items()}


def write_cohort(folder: Path, n_records: int) -> None:
    """Write records, of which the first ones are the same for any number."""
    rng = np.random.default_rng(0)
    ecgs = np.stack([rng.normal(0, 0.2 + 0.3 * (k % 2), (12, 2500)) for k in range(n_records)]).astype(np.float32)
    np.save(folder / "ecgs.npy", ecgs)
    lines = [f"p{k // 2},{k % 2}" for k in range(n_records)]
    (folder / "labels.csv").write_text("\n".join(["patient_id,loud", *lines]))


@pytest.fixture
def study(tmp_path, s3) -> BucketStudy:
    data = tmp_path / "data"
    data.mkdir()
    write_cohort(data, N)
    study = BucketStudy(tmp_path / "study", f"{s3}/study")
    options = ("file=ecgs.npy", "rate_hz=250", "labels=labels.csv")
    urls = {name: f"{study.url}/{name}" for name in ("embeddings", "signals.zarr", "records.parquet")}
    study.run(
        "pipeline.cli",
        *("init", "study", "--source", "arrays", "--path", "data"),
        *(word for option in options for word in ("--option", option)),
        *("--embeddings", urls["embeddings"], "--signals", urls["signals.zarr"], "--records", urls["records.parquet"]),
        folder=tmp_path,
    )
    study.run("dvc", "config", "core.analytics", "false")
    params = yaml.safe_load((study.folder / "params.yaml").read_text())
    params["experts"] = {"rocket": {"weights": "weights/default"}}
    params["fit_heads"]["options"] = {"lora": False, "gate_epochs": 2}
    params["evaluate"]["bootstrap"] = 100
    params["machine"] |= {"device": "cpu", "workers": 1}
    (study.folder / "params.yaml").write_text(yaml.safe_dump(params))
    return study


@pytest.mark.slow
def test_repro_runs_what_has_changed_and_nothing_else(study):
    assert study.stages_run() == STAGES
    here = {path.name for path in study.folder.iterdir()}
    assert "ingested.json" in here
    assert not here & {"records.parquet", "signals.zarr"}
    marker, tags = (study.folder / "ingested.json").read_bytes(), study.tags()
    metrics = (study.folder / "metrics.json").read_bytes()

    assert study.stages_run() == []
    assert study.tags() == tags

    labels = study.folder.parent / "data" / "labels.csv"
    labels.write_text(labels.read_text() + "\n")  # another file that says the same
    assert study.stages_run() == ["ingest"], "what is ingested again and is the same repeats nothing after it"
    assert (study.folder / "ingested.json").read_bytes() == marker

    params = yaml.safe_load((study.folder / "params.yaml").read_text())
    params["fit_heads"]["operating_points"] = {"rule": "sensitivity", "value": 0.9}
    (study.folder / "params.yaml").write_text(yaml.safe_dump(params))
    assert study.stages_run() == ["fit-heads", "evaluate", "report"]

    write_cohort(labels.parent, N + 1)
    assert study.stages_run() == STAGES
    said = json.loads((study.folder / "ingested.json").read_text())
    assert (said["records"]["rows"], said["signals"]["rows"]) == (N + 1, N + 1)
    assert len(open_records(f"{study.url}/records.parquet")) == N + 1
    assert len(open_signals(f"{study.url}/signals.zarr")) == N + 1
    store = open_embeddings(f"{study.url}/embeddings/rocket.zarr")
    assert len(store) == N + 1
    assert not store.pending()
    assert (study.folder / "metrics.json").read_bytes() != metrics
    assert study.stages_run() == []
