"""A study of two sources under real DVC: each source is tested by a fit of the other, and judged by itself."""

import json

import pandas as pd
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from cache import open_records
from pipeline.study.folder import Study as Folder
from stages.synthetic import GeneratePaths, GenerateSettings
from stages.synthetic import run as generate
from tests.integration.test_study import Study

pytestmark = pytest.mark.slow
SIZES = {"mimic-iv-ecg-1": 90, "mimic-iv-ecg-2": 70}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Study:
    """Two generated cohorts, the second noisier and of other people, after `dvc repro`."""
    folder = tmp_path_factory.mktemp("two")
    pairs = []
    for k, n in enumerate(SIZES.values()):
        generate(GenerateSettings(records=n, seed=k + 5, variety=float(k)), GeneratePaths(folder / f"c{k}"))
        pairs += ["--source", "mimic-iv-ecg", "--path", f"c{k}"]
    done = Study(folder).ensemble("init", "study", *pairs)
    assert done.returncode == 0, done.stderr
    study = Study(folder / "study")
    path = study.folder / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["experts"] = {"morphology": {"weights": "weights/default"}}
    params["tasks"], params["machine"]["device"], params["evaluate"]["bootstrap"] = ["age", "gender"], "cpu", 100
    params["fit_heads"]["folds"] = "source"
    path.write_text(yaml.safe_dump(params, sort_keys=False))
    study.repro()
    return study


def test_each_source_is_answered_by_the_fit_of_the_other(made):
    records = open_records(made.folder / "records.parquet").set_index("record_id")
    assert records["source"].value_counts().to_dict() == SIZES
    assert all(name.startswith(f"{source}/") for name, source in records["source"].items())
    table = pd.read_parquet(made.folder / "predictions.parquet")
    test = table[(table["split"] == "test") & (table["method"] == "gate") & (table["task"] == "age")]
    source = test["record_id"].map(records["source"])
    assert dict(zip(test["fold"], source, strict=True)) == dict(enumerate(SIZES))
    assert not test["record_id"].duplicated().any()
    for fold, part in table.groupby("fold"):
        held_out = set(part[part["split"] == "test"]["patient_id"])
        assert not held_out & set(part[part["split"] == "val"]["patient_id"]), fold


def test_metrics_by_source_are_those_of_the_predictions(made):
    metrics = json.loads((made.folder / "metrics.json").read_text())
    records = open_records(made.folder / "records.parquet").set_index("record_id")
    table = pd.read_parquet(made.folder / "predictions.parquet")
    test = table[(table["split"] == "test") & (table["task"] == "gender") & (table["method"] == "gate")].dropna(
        subset=["y_true"]
    )
    source = test["record_id"].map(records["source"])
    found = metrics["tasks"]["gender"]["subgroups"]["source"]
    assert set(found) == set(SIZES)
    for name in SIZES:
        part = test[source == name]
        assert found[name]["n"] == len(part)
        auroc = roc_auc_score(part["y_true"].astype(float), part["y_pred"].astype(float))
        assert found[name]["methods"]["gate"]["auroc"]["value"] == pytest.approx(auroc)


def test_the_report_and_the_doctor_name_the_sources(made):
    report = (made.folder / "report.html").read_text()
    assert all(name in report for name in SIZES)
    assert list(Folder(made.folder).source_folders()) == list(SIZES)
    done = made.ensemble("doctor", "--offline")
    assert "cohorts mimic-iv-ecg-1, mimic-iv-ecg-2" in " ".join(done.stdout.split())


def test_dvc_watches_the_sources(made):
    stage = yaml.safe_load((made.folder / "dvc.yaml").read_text())["stages"]["ingest"]
    assert "cohorts" in stage["params"]
    assert sum("record_list.csv" in dep for dep in stage["deps"]) == 2
    assert made.stages_run() == []
