"""A whole study under real DVC: init, repro, change, repro again, predict."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from cache import open_embeddings, open_records
from stages.experts import load_expert
from stages.scoring.predictions import open_predictions
from stages.synthetic import GeneratePaths, GenerateSettings
from stages.synthetic import run as generate

N_RECORDS = 80


@dataclass(frozen=True)
class Study:
    folder: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where `ensemble` is
        return subprocess.run(
            command,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
            env={**os.environ, "PATH": path},
        )

    def ensemble(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "pipeline.cli", *arguments)

    def repro(self) -> str:
        done = self.run(sys.executable, "-m", "dvc", "repro")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stages_run(self) -> list[str]:
        """Names of the stages that a repro runs."""
        return [line.split("'")[1] for line in self.repro().splitlines() if line.startswith("Running stage")]

    def change_params(self, **sections: dict) -> None:
        path = self.folder / "params.yaml"
        params = yaml.safe_load(path.read_text())
        for section, values in sections.items():
            params[section].update(values)
        path.write_text(yaml.safe_dump(params))


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_ecgfm) -> Study:
    """A study of 80 generated records with `morphology` and the tiny ECG-FM, after its first `dvc repro`."""
    folder = tmp_path_factory.mktemp("study")
    generate(GenerateSettings(records=N_RECORDS, seed=1), GeneratePaths(folder / "cohort"))
    study = Study(folder / "study")
    done = Study(folder).ensemble("init", "study", "--source", "mimic-iv-ecg", "--path", "cohort")
    assert done.returncode == 0, done.stderr
    shutil.copy(tiny_ecgfm.weights, study.folder / "weights/tiny.safetensors")
    params = yaml.safe_load((study.folder / "params.yaml").read_text())
    params["experts"] = {
        "morphology": {"weights": "weights/default"},
        "ecgfm": {"weights": "weights/tiny.safetensors", "config": tiny_ecgfm.config},
    }
    params["tasks"] = ["rr_interval", "gender"]
    params["machine"]["workers"] = 1
    params["evaluate"] = {"bootstrap": 100, "fits": {}}
    (study.folder / "params.yaml").write_text(yaml.safe_dump(params))
    study.repro()
    return study


def test_a_study_gives_records_vectors_metrics_predictions_and_a_report(made):
    records = open_records(made.folder / "records.parquet")
    assert len(records) == N_RECORDS
    metrics = json.loads((made.folder / "metrics.json").read_text())
    methods = metrics["tasks"]["rr_interval"]["methods"]
    assert {"gate", "expert:morphology", "expert:ecgfm", "mean", "concat", "trivial"} <= set(methods)
    assert methods["gate"]["mae"]["low"] <= methods["gate"]["mae"]["value"] <= methods["gate"]["mae"]["high"]
    assert methods["expert:morphology"]["mae"]["value"] < methods["trivial"]["mae"]["value"] / 2
    assert "rr_interval" in (made.folder / "report.html").read_text()


def test_a_second_repro_does_nothing(made):
    assert "Data and pipelines are up to date." in made.repro()


def test_a_clone_writes_the_same_report_from_what_dvc_pulls(made, tmp_path, monkeypatch, ensemble):
    shutil.copytree(made.folder, tmp_path / "study", ignore=shutil.ignore_patterns(".ensemble"))
    dvc = [sys.executable, "-m", "dvc"]
    study = Study(tmp_path / "study")
    assert study.run(*dvc, "remote", "add", "-d", "shelf", str(tmp_path / "shelf")).returncode == 0
    pushed = study.run(*dvc, "push", "-q")
    assert pushed.returncode == 0, pushed.stderr
    for command in (("init", "-q"), ("add", "-A"), ("commit", "-qm", "study"), ("clone", "-q", ".", "../clone")):
        done = study.run("git", "-c", "user.name=a", "-c", "user.email=a@b.c", *command)
        assert done.returncode == 0, done.stderr
    clone = Study(tmp_path / "clone")
    pulled = clone.run(*dvc, "pull", "-q")
    assert pulled.returncode == 0, pulled.stderr
    names = ["report.html", *(str(p.relative_to(made.folder)) for p in (made.folder / "plots").rglob("*.csv"))]
    for name in names:
        (clone.folder / name).unlink()
    monkeypatch.chdir(clone.folder)
    written = ensemble("report")
    assert written.returncode == 0, written.stderr
    for name in names:
        assert (clone.folder / name).read_bytes() == (made.folder / name).read_bytes(), name


def test_dvc_shows_metrics_and_plots(made):
    shown = made.run(sys.executable, "-m", "dvc", "metrics", "show", "--json")
    assert "rr_interval" in shown.stdout
    plots = made.run(sys.executable, "-m", "dvc", "plots", "show", "-o", "pages")
    assert plots.returncode == 0, plots.stderr
    assert (made.folder / "pages/index.html").is_file()


def test_moving_to_another_machine_runs_nothing(made):
    before = (made.folder / "params.yaml").read_text()
    made.change_params(machine={"device": "cpu", "workers": 2, "threads": 2, "batch_size": 3, "memory_gb": 0.5})
    assert made.stages_run() == []
    (made.folder / "params.yaml").write_text(before)


@pytest.mark.slow
def test_nothing_depends_on_the_state_folder(made):
    outputs = ("metrics.json", "evaluation.json", "predictions.parquet", "report.html")
    before = {name: (made.folder / name).read_bytes() for name in outputs}
    shutil.rmtree(made.folder / ".ensemble")
    assert made.ensemble("report").returncode == 0
    assert {name: (made.folder / name).read_bytes() for name in outputs} == before
    assert made.stages_run() == []


@pytest.mark.slow
def test_a_clone_with_pulled_outputs_gives_the_same_report(made, tmp_path):
    dvc = (sys.executable, "-m", "dvc")
    assert made.run(*dvc, "remote", "add", "-d", "-f", "shelf", str(tmp_path / "shelf")).returncode == 0
    pushed = made.run(*dvc, "push", "-q")
    assert pushed.returncode == 0, pushed.stderr
    clone = Study(tmp_path / "clone")
    (clone.folder / ".dvc").mkdir(parents=True)
    for name in ("params.yaml", "dvc.yaml", "dvc.lock", ".dvc/config", ".dvcignore"):  # what git would bring
        shutil.copy(made.folder / name, clone.folder / name)
    shutil.copytree(made.folder / "weights", clone.folder / "weights")
    pulled = clone.run(*dvc, "pull", "-q")
    assert pulled.returncode == 0, pulled.stderr
    expected = (made.folder / "report.html").read_bytes()
    assert (clone.folder / "report.html").read_bytes() == expected
    (clone.folder / "report.html").unlink()
    done = clone.ensemble("report")
    assert done.returncode == 0, done.stderr
    assert (clone.folder / "report.html").read_bytes() == expected


def test_no_patient_is_in_two_splits_of_the_predictions(made):
    table = pd.read_parquet(made.folder / "predictions.parquet")
    per_patient = table.groupby("patient_id", observed=True)["split"].nunique()
    assert per_patient.max() == 1


def test_predict_on_a_raw_record_equals_the_evaluation(made, monkeypatch, ensemble):
    block = open_predictions(made.folder / "predictions.parquet").read("rr_interval", "gate", "test")
    records = open_records(made.folder / "records.parquet").set_index("record_id")
    record_id = block.record_ids[0]
    path = made.folder.parent / "cohort" / records.loc[record_id, "path"]
    monkeypatch.chdir(made.folder)
    done = ensemble("predict", str(path), "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["tasks"]["rr_interval"]["value"] == pytest.approx(float(block.y_pred[0]), rel=1e-4)
    assert sum(answer["gate"]["rr_interval"].values()) == pytest.approx(1.0, abs=1e-5)
    assert answer["tasks"]["gender"]["probability"] == pytest.approx(
        float(open_predictions(made.folder / "predictions.parquet").read("gender", "gate", "test").y_pred[0]), rel=1e-3
    )


def test_predict_warns_of_what_is_wrong_with_the_signal(made, tmp_path, monkeypatch, ensemble):
    import wfdb

    signals = np.random.default_rng(0).normal(0, 0.1, (3000, 11))
    signals[:, 4] = 0.0
    names = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5"]
    wfdb.wrsamp(
        "new", fs=500, units=["mV"] * 11, sig_name=names, p_signal=signals, fmt=["16"] * 11, write_dir=str(tmp_path)
    )
    monkeypatch.chdir(made.folder)
    done = ensemble("predict", str(tmp_path / "new.hea"), "--json")
    assert done.returncode == 0, done.stderr
    warnings = json.loads(done.stdout)["warnings"]
    assert {"missing leads: V6", "flat leads: aVL", "short record: 6.0 s of 10 s"} <= set(warnings)


@pytest.mark.slow
def test_other_weights_run_exactly_that_expert_and_what_depends_on_it(made, tiny_ecgfm):
    from safetensors.torch import save_file

    before = open_embeddings(made.folder / "embeddings/ecgfm.zarr").read_embedding()
    torch.manual_seed(1)
    other = load_expert("ecgfm", config=tiny_ecgfm.config, random_weights=True)
    state = {name: value.contiguous() for name, value in other.module.state_dict().items()}
    save_file(state, made.folder / "weights/tiny.safetensors")
    assert made.ensemble("evaluate").returncode == 0, "the old embeddings still belong to the old fit"
    assert made.stages_run() == ["embed@ecgfm", "fit-heads", "evaluate", "report"]
    after = open_embeddings(made.folder / "embeddings/ecgfm.zarr").read_embedding()
    assert not np.array_equal(before, after, equal_nan=True)
    assert "up to date" in made.repro()


@pytest.mark.slow
def test_another_preprocessing_runs_exactly_that_expert(made):
    path = made.folder / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["experts"]["ecgfm"]["preprocessing"] = "enecg"
    path.write_text(yaml.safe_dump(params))
    assert made.stages_run() == ["embed@ecgfm", "fit-heads", "evaluate", "report"]


@pytest.mark.slow
def test_heads_of_other_embeddings_are_refused(made):
    params = yaml.safe_load((made.folder / "params.yaml").read_text())
    before = params["experts"]["ecgfm"].get("preprocessing")
    params["experts"]["ecgfm"]["preprocessing"] = "authors" if before == "enecg" else "enecg"
    (made.folder / "params.yaml").write_text(yaml.safe_dump(params))
    assert made.ensemble("embed", "--expert", "ecgfm").returncode == 2  # it would replace vectors
    assert made.ensemble("embed", "--expert", "ecgfm", "--replace").returncode == 0
    done = made.ensemble("evaluate")
    assert done.returncode == 1
    assert "was fitted on other embeddings of 'ecgfm'" in done.stderr
    record = next((made.folder.parent / "cohort").rglob("*.hea"))
    done = made.ensemble("predict", str(record))
    assert done.returncode == 1
    assert "expert 'ecgfm' is not the one that heads/ was fitted on" in done.stderr


def test_init_does_not_overwrite_a_study(made, monkeypatch, ensemble):
    monkeypatch.chdir(made.folder.parent)
    done = ensemble("init", "study", "--source", "mimic-iv-ecg", "--path", "cohort")
    assert done.returncode == 2
    assert "holds params.yaml already" in done.stderr
