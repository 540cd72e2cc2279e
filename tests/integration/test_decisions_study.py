"""params.yaml to decisions: what a study asks of thresholds and coverage is what its fit, evaluation and report do."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from cache import open_records
from stages.heads import EnsembleHeads
from tests.integration.test_compare import _write_store

N = 90
PARAMS = {
    "cohort": {"source": "wfdb", "path": "."},
    "experts": {"mine": {}},
    "fit_heads": {
        "folds": 3,
        "options": {"lora": False, "gate_epochs": 0},
        "operating_points": {"rule": "sensitivity", "value": 0.9},
        "conformal": {"coverage": 0.8, "by_class": False},
    },
    "evaluate": {"bootstrap": 100, "prevalence": {"sex": 0.2}},
    "report": {"cases": 0},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory, make_cohort) -> Path:
    folder = tmp_path_factory.mktemp("decided")
    make_cohort(folder, N)
    records = open_records(folder / "records.parquet")
    known = np.stack([records["sex"].to_numpy(float) * 2, records["age"].to_numpy(float) / 20], 1)
    rng = np.random.default_rng(0)
    vectors = known @ rng.normal(size=(2, 12)) + 0.7 * rng.normal(size=(N, 12))
    vectors[3] = np.nan
    _write_store(folder / "embeddings/mine.zarr", records["record_id"].tolist(), vectors, output=False)
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    return folder


def test_what_params_yaml_asks_is_chosen_judged_and_shown(study, monkeypatch, ensemble, tmp_path):
    monkeypatch.chdir(study)
    for command in (["fit-heads"], ["evaluate"], ["report", "--tables", str(tmp_path / "manuscript")]):
        done = ensemble(*command)
        assert done.returncode == 0, done.stderr
        if command == ["evaluate"]:
            printed = done.stdout
    points = json.loads(Path("heads/operating_points.json").read_text())["tasks"]["sex"]
    limits = json.loads(Path("heads/conformal.json").read_text())
    assert (points["rule"], points["value"]) == ("sensitivity", 0.9)
    assert points["classes"]["female"]["sensitivity"] >= 0.9
    assert (limits["coverage"], limits["by_class"]) == (0.8, False)
    found = json.loads(Path("decisions.json").read_text())["tasks"]
    rows = pd.read_parquet("predictions.parquet")
    rows = rows[(rows["method"] == "gate") & (rows["split"] == "test")]
    sex = rows[rows["task"] == "sex"]
    above = sex["y_pred"].astype(float) >= np.array(points["classes"]["female"]["folds"])[sex["fold"]]
    judged = found["sex"]["operating_points"]["classes"]["female"]
    assert f"{judged['sensitivity']['value']:.3f} ({judged['sensitivity']['low']:.3f}" in printed
    assert "Coverage of sets and intervals by patient" in printed
    assert judged["sensitivity"]["value"] == pytest.approx(above[sex["y_true"] == 1].mean())
    assert judged["given"]["prevalence"] == 0.2
    age = rows[rows["task"] == "age"].astype({"y_pred": float})
    low, high = (age["y_pred"] + np.array(limits["tasks"]["age"]["folds"])[age["fold"], k] for k in range(2))
    covered = ((age["y_true"] >= low) & (age["y_true"] <= high)).groupby(age["patient_id"].astype(str)).mean().mean()
    assert found["age"]["conformal"]["answers"]["age"]["all"]["value"] == pytest.approx(covered)
    page = Path("report.html").read_text(encoding="utf-8")
    assert "a sensitivity of at least 0.9" in page
    assert "Flow of participants" in page
    names = sorted(path.name for path in Path("tables").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "manuscript").iterdir())
    assert {"flow.csv", "tripod_ai.tex", "operating_points.csv"} <= set(names)
    for name in names:
        assert (Path("tables") / name).read_bytes() == (tmp_path / "manuscript" / name).read_bytes()


def test_another_rule_moves_the_threshold_alone(study, monkeypatch, ensemble):
    monkeypatch.chdir(study)
    before = {path.name: path.read_bytes() for path in Path("heads").iterdir() if path.is_file()}
    rule = {**PARAMS["fit_heads"], "operating_points": {"rule": "alarm_rate", "value": 0.1}}
    Path("params.yaml").write_text(yaml.safe_dump({**PARAMS, "fit_heads": rule}))
    assert ensemble("fit-heads").returncode == 0
    changed = {name for name, content in before.items() if (Path("heads") / name).read_bytes() != content}
    assert changed == {"operating_points.json"}
    assert EnsembleHeads.load("heads").decisions_.points.tasks["sex"].facts[0].alarm_rate <= 0.1


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"rule": "sensitivity"}, r"fit_heads\.operating_points.*rule 'sensitivity' needs a value"),
        (
            {"tasks": {"age": {"rule": "youden"}}},
            r"'age' is no task with classes of this study; there are: sex",
        ),
        ({"rule": "yuden"}, r"fit_heads\.operating_points\.rule"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_in_one_line(study, monkeypatch, ensemble, section, words):
    monkeypatch.chdir(study)
    rule = {**PARAMS["fit_heads"], "operating_points": section}
    Path("params.yaml").write_text(yaml.safe_dump({**PARAMS, "fit_heads": rule}))
    done = ensemble("fit-heads")
    assert done.returncode == 2
    assert re.search(words, done.stderr), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
