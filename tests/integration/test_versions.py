"""Versions under real DVC: pretrained, post-trained, embedded, fitted, told in the report, used on a new record."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cache import open_embeddings
from stages.synthetic import GeneratePaths, GenerateSettings
from stages.synthetic import run as generate

BASE, TUNED = "stmem+own", "stmem+own+gender"
SMALL = {"width": 16, "heads": 2, "dim_head": 8, "mlp_dim": 32, "depth": 2, "patch_size": 100}
DECODER = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2, "decoder_dim_head": 8}


def run(folder: Path, *command: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where `ensemble` is
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "PATH": path},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ran(text: str) -> list[str]:
    return [line.split("'")[1] for line in text.splitlines() if line.startswith("Running stage")]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, list[str], list[str]]:
    """A study whose params.yaml asks for both versions: its folder, the stages before, and those that repro ran."""
    folder = tmp_path_factory.mktemp("versions")
    generate(GenerateSettings(records=80, seed=1), GeneratePaths(folder / "cohort"))
    run(folder, "pipeline.cli", "init", "study", "--source", "mimic-iv-ecg", "--path", "cohort")
    study = folder / "study"
    before = run(study, "dvc", "stage", "list", "--name-only").split()
    params = yaml.safe_load((study / "params.yaml").read_text())
    weights = {name: f"weights/versions/{name}" for name in (BASE, TUNED)}
    loop = {"epochs": 2, "batch_size": 16, "learning_rate": 0.002}
    params["pretrain"] = {BASE: {"expert": "stmem", "variant": "ipastmem", "config": {**SMALL, **DECODER}, **loop}}
    params["posttrain"] = {TUNED: {"expert": BASE, "task": "gender", "weights": weights[BASE], "seeds": [0, 1], **loop}}
    params["experts"] = {TUNED: {"weights": weights[TUNED]}}
    params["tasks"], params["evaluate"] = ["gender"], {"bootstrap": 100}
    params["machine"] |= {"workers": 1, "device": "cpu"}
    params["fit_heads"]["folds"] = "split"
    (study / "params.yaml").write_text(yaml.safe_dump(params))
    return study, before, ran(run(study, "dvc", "repro"))


@pytest.mark.slow
def test_dvc_makes_versions_where_params_ask_for_them(made):
    study, before, stages = made
    assert not [name for name in before if "train" in name]
    wanted = ["ingest", f"pretrain@{BASE}", f"posttrain@{TUNED}", f"embed@{TUNED}", "fit-heads", "report"]
    assert [name for name in stages if name in wanted] == wanted
    assert ran(run(study, "dvc", "repro")) == []
    path = study / "params.yaml"
    text = path.read_text()
    params = yaml.safe_load(text)
    params["posttrain"][TUNED]["drop_path"] = 0.1
    path.write_text(yaml.safe_dump(params))
    changed = json.loads(run(study, "dvc", "status", "--json"))
    path.write_text(text)
    assert list(changed) == [f"posttrain@{TUNED}"]


@pytest.mark.slow
def test_versions_are_experts_like_any_other(made, ensemble, monkeypatch):
    study, _, _ = made
    monkeypatch.chdir(study)
    table = ensemble("experts")[1]
    assert BASE in table
    assert TUNED in table
    assert f"ensemble posttrain to gender from {BASE}, on 65 records of" in " ".join(
        ensemble("experts", TUNED)[1].split()
    )
    store = open_embeddings(f"embeddings/{TUNED}.zarr")
    assert store.read_embedding().shape == (80, 16)
    assert store.attributes["expert"] == TUNED
    record = sorted((study.parent / "cohort").rglob("*.hea"))[0].with_suffix("")
    found = json.loads(ensemble("predict", "--json", str(record))[1])
    assert found["gate"]["gender"] == {TUNED: pytest.approx(1.0)}


@pytest.mark.slow
def test_the_report_shows_how_they_were_trained_and_whom_they_have_seen(made, ensemble, monkeypatch):
    study, _, _ = made
    monkeypatch.chdir(study)
    page = Path("report.html").read_text()
    assert page.count("It has seen none of the") == 2
    assert "Pretrained on" in page
    assert f"Posttrained to gender from {BASE}" in page
    assert f'aria-label="Loss of {TUNED}"' in page
    path = study / "params.yaml"
    text = path.read_text()
    params = yaml.safe_load(text)
    params["fit_heads"]["folds"] = 5
    path.write_text(yaml.safe_dump(params))
    # The warning reads the fit, so the fit has to be made with these folds.
    fitted, evaluated, reported = ensemble("fit-heads"), ensemble("evaluate"), ensemble("report")
    path.write_text(text)
    assert fitted.returncode == evaluated.returncode == reported.returncode == 0
    words = "of the patients it is judged on: its numbers here are too good; set fit_heads.folds: split"
    assert f"warning: {TUNED} was trained on" in evaluated.stderr
    assert words in evaluated.stderr
    page = Path("report.html").read_text()
    assert words in page
    assert "patients judged here were among those it was trained or selected on" in page
