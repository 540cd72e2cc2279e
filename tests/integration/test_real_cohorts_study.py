"""PTB-XL, LUDB and the challenge's sample in one study by sex and age, under real DVC; each is tested by the others."""

import json

import pandas as pd
import pytest
import yaml
from sklearn.metrics import mean_absolute_error, roc_auc_score

from cache import open_records
from tests.integration.test_study import Study

SIZES = {"ptbxl": 90, "ludb": 60, "challenge": 50}


@pytest.mark.slow
def test_three_real_cohorts_are_each_tested_by_the_others(tmp_path, test_data):
    folders = {"ptbxl": "ptbxl", "ludb": "ludb", "challenge": "challenge2021"}
    pairs = [part for kind, place in folders.items() for part in ("--source", kind, "--path", str(test_data / place))]
    done = Study(tmp_path).ensemble("init", "study", *pairs)
    assert done.returncode == 0, done.stderr
    study = Study(tmp_path / "study")
    path = study.folder / "params.yaml"
    params = yaml.safe_load(path.read_text())
    for name, section in params["cohorts"].items():
        section.update(limit=SIZES[name], targets=["age", "sex"])
    params["experts"] = {"morphology": {"weights": "weights/default"}}
    params["machine"]["device"], params["evaluate"]["bootstrap"] = "cpu", 100
    params["fit_heads"]["folds"] = "source"
    path.write_text(yaml.safe_dump(params, sort_keys=False))
    study.repro()
    records = open_records(study.folder / "records.parquet").set_index("record_id")
    assert records["source"].value_counts().to_dict() == SIZES
    metrics = json.loads((study.folder / "metrics.json").read_text())
    table = pd.read_parquet(study.folder / "predictions.parquet")
    table = table[(table["split"] == "test") & (table["method"] == "gate") & table["y_true"].notna()]
    for task, metric, score in (("sex", "auroc", roc_auc_score), ("age", "mae", mean_absolute_error)):
        rows = table[table["task"] == task]
        source = rows["record_id"].map(records["source"])
        assert list(source.groupby(rows["fold"].to_numpy()).unique().map(list)) == [["challenge"], ["ludb"], ["ptbxl"]]
        for name in SIZES:
            part, found = rows[source == name], metrics["tasks"][task]["subgroups"]["source"][name]
            assert found["n"] == len(part)
            assert found["methods"]["gate"][metric]["value"] == pytest.approx(score(part["y_true"], part["y_pred"]))
    assert study.stages_run() == []
