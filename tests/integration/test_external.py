"""A fit of one study judged in another: figures recomputed from its predictions, nothing learnt from labels."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.metrics import mean_absolute_error, roc_auc_score

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def two_studies(tmp_path, tiny_ecgfm, make_cohort, monkeypatch, ensemble):
    """Study `a`, fitted and evaluated; study `b` with other patients, of whom every third has no sex."""
    for name, n_records, seed in (("a", 80, 0), ("b", 60, 1)):
        folder = tmp_path / name
        folder.mkdir()
        make_cohort(folder, n_records, seed)
        expert = {"weights": str(tiny_ecgfm.weights), "config": tiny_ecgfm.config}
        params = {
            "cohort": {"source": "wfdb", "path": "."},
            "experts": {"ecgfm": expert} if name == "a" else {},
            "machine": {"device": "cpu", "workers": 1},
            "evaluate": {"bootstrap": 200},
        }
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
    change(tmp_path / "b", lambda frame: frame.assign(sex=frame["sex"].where(frame.index % 3 > 0)))
    monkeypatch.chdir(tmp_path / "a")
    for command in (["embed", "--expert", "ecgfm"], ["fit-heads"], ["evaluate"]):
        done = ensemble(*command)
        assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path / "b")
    return tmp_path


def change(study, how):
    """Write records.parquet with another table of the same schema."""
    table = pq.read_table(study / "records.parquet")
    frame = how(table.to_pandas(ignore_metadata=True))
    import pyarrow as pa

    pq.write_table(pa.Table.from_pandas(frame, schema=table.schema, preserve_index=False), study / "records.parquet")


def rows_of(path, task, method="gate"):
    frame = pd.read_parquet(path)
    rows = frame[(frame["task"] == task) & (frame["method"] == method) & (frame["split"] == "test")]
    return rows[rows["y_true"].notna()]


def test_a_fit_is_judged_on_other_patients(two_studies, ensemble):
    done = ensemble("evaluate", "--fit", "../a")
    assert done.returncode == 0, done.stderr
    assert "ecgfm has no embeddings here: running it as" in done.stderr
    metrics = json.loads(Path("external/a/metrics.json").read_text())
    here, there = rows_of("external/a/predictions.parquet", "sex"), rows_of("../a/predictions.parquet", "sex")
    assert len(here) == 40
    moved = metrics["transfer"]["sex"]["auroc"]
    assert moved["external"]["value"] == pytest.approx(roc_auc_score(here["y_true"], here["y_pred"]))
    assert moved["internal"]["value"] == pytest.approx(roc_auc_score(there["y_true"], there["y_pred"]))
    assert moved["difference"]["value"] == pytest.approx(moved["external"]["value"] - moved["internal"]["value"])
    age = rows_of("external/a/predictions.parquet", "age")
    assert metrics["transfer"]["age"]["mae"]["external"]["value"] == pytest.approx(
        mean_absolute_error(age["y_true"], age["y_pred"])
    )
    slope = np.polyfit(age["y_pred"], age["y_true"], 1)[0]
    assert metrics["calibration"]["age"]["slope"]["value"] == pytest.approx(slope, rel=1e-3)
    assert {"gate", "mean", "expert:ecgfm"} == set(pd.read_parquet("external/a/predictions.parquet")["method"])
    assert "sex" in metrics["tasks"]["sex"]["subgroups"]
    assert "patients have the id of one in the fit's own study" in " ".join(metrics["notes"])
    assert "AUROC" in done.stdout


def test_no_label_of_this_study_changes_an_answer(two_studies, ensemble):
    assert ensemble("evaluate", "--fit", "../a").returncode == 0
    first = rows_of("external/a/predictions.parquet", "age")
    change(Path(), lambda frame: frame.assign(age=frame["age"].to_numpy()[::-1]))
    assert ensemble("evaluate", "--fit", "../a").returncode == 0
    second = rows_of("external/a/predictions.parquet", "age")
    joined = first.merge(second, on="record_id", suffixes=("", "_2"))
    assert len(joined) == len(first)
    np.testing.assert_array_equal(joined["y_pred"], joined["y_pred_2"])
    assert (joined["y_true"] != joined["y_true_2"]).any()


def test_another_expert_and_what_is_no_fit_are_refused(two_studies, ensemble):
    assert "no such study" in ensemble("evaluate", "--fit", "../nowhere").stderr
    assert "that is this study" in ensemble("evaluate", "--fit", ".").stderr
    (two_studies / "c").mkdir()
    assert "holds no fit" in ensemble("evaluate", "--fit", "../c").stderr
    params = yaml.safe_load(Path("params.yaml").read_text())
    expert = yaml.safe_load(Path("../a/params.yaml").read_text())["experts"]["ecgfm"]
    params["experts"] = {"ecgfm": {**expert, "dtype": "float32"}}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    assert ensemble("embed", "--expert", "ecgfm").returncode == 0
    done = ensemble("evaluate", "--fit", "../a")
    assert done.returncode != 0
    assert "is not the one that ../a/heads was fitted on (weights, version, preprocessing or precision" in done.stderr


def test_the_names_of_params_yaml_say_which_target_and_class_is_which(two_studies, ensemble):
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["evaluate"]["fits"] = {
        "fitted": {"study": "../a", "targets": {"age": "sex"}},
        "other": {"study": "../a", "recalibrated_on": [10]},
    }
    Path("params.yaml").write_text(yaml.safe_dump(params))
    done = ensemble("evaluate", "--fit", "fitted")
    assert "not judged: age: it is regression in the fit and binary here" in done.stdout
    assert ensemble("evaluate", "--fit", "other").returncode == 0
    found = json.loads(Path("external/other/metrics.json").read_text())
    assert [entry["patients"] for entry in found["recalibration"]["age"]] == [10]
    params["evaluate"]["fits"]["fitted"]["targets"] = {"size": "sex"}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    assert "the fit has no task 'size'" in ensemble("evaluate", "--fit", "fitted").stderr


@pytest.mark.slow
def test_through_dvc_ptbxl_is_judged_on_ludb(tmp_path, test_data):
    """Two real cohorts by sex and age, one expert; the report has the section."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def run(*command, cwd=tmp_path):
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    for name, source in (("a", "ptbxl"), ("b", "ludb")):
        run("ensemble", "init", name, "--source", source, "--path", str(test_data / source))
        path = tmp_path / name / "params.yaml"
        text = path.read_text().replace("tasks: all", "tasks: [sex, age]").replace("  rocket:", "# rocket:")
        path.write_text(text.replace("fits: {}", "fits: {ptbxl: {study: ../a}}") if name == "b" else text)
    run("dvc", "repro", "-q", cwd=tmp_path / "a")
    run("dvc", "repro", "-q", cwd=tmp_path / "b")
    metrics = json.loads((tmp_path / "b/external/ptbxl/metrics.json").read_text())
    here = rows_of(tmp_path / "b/external/ptbxl/predictions.parquet", "sex")
    assert metrics["tasks"]["sex"]["methods"]["gate"]["auroc"]["value"] == pytest.approx(
        roc_auc_score(here["y_true"], here["y_pred"])
    )
    assert 0.6 < metrics["transfer"]["sex"]["auroc"]["external"]["value"] < 1
    assert 'id="external"' in (tmp_path / "b/report.html").read_text()
    assert "up to date" in run("dvc", "status", cwd=tmp_path / "b")
