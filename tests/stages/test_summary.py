"""metrics.json: what it says is counted, compared and left out, and what is drawn from it."""

import contextlib
import json
import re

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from cache.errors import InputError, MissingFileError, StoreError
from cache.files import staged
from cache.record_columns import Texts
from cache.record_rows import RecordRows
from cache.records import Target, open_records
from stages.report.svg import nice_ticks, tick_text
from stages.scoring.comparison import labelled_test_block
from stages.scoring.curves import reliability
from stages.scoring.plots import FOLDERS, file_name, write_plots
from stages.scoring.predictions import open_predictions, writing_predictions
from stages.scoring.subgroups import RecordGroups
from stages.scoring.summary import headline, read_metrics, summarise, write_metrics
from stages.scoring.table import number
from tests.stages.synthetic_predictions import TARGETS, write_judged


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_judged(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def metrics(study):
    return read_metrics(study / "metrics.json")


def test_metrics_are_recomputed_from_the_predictions_alone(study, metrics):
    again = summarise(open_predictions(study / "predictions.parquet"), n_resamples=60)
    write_metrics(study / "again.json", again, study / "predictions.parquet")
    for task, found in json.loads((study / "again.json").read_text())["tasks"].items():
        for key in ("methods", "differences", "best_single_expert", "per_class", "folds"):
            assert found.get(key) == metrics["tasks"][task].get(key)


def test_metrics_json_says_who_was_compared_with_whom(metrics):
    found = metrics["tasks"]["superclass"]
    assert found["best_single_expert"] == "expert:ecgfm"
    assert found["differences"]["gate"]["auroc_macro"]["verdict"] == "better"
    assert found["differences"]["trivial"]["auroc_macro"]["verdict"] == "worse"
    assert "expert:ecgfm" not in found["differences"]
    assert metrics["tasks"]["age"]["differences"]["gate"]["mae"]["value"] < 0
    assert metrics["tasks"]["age"]["differences"]["gate"]["mae"]["verdict"] in ("better", "same")
    assert metrics["tasks"]["age"]["differences"]["trivial"]["mae"]["verdict"] == "worse"
    assert len(found["folds"]["gate"]["auroc_macro"]["values"]) == 2


def test_a_table_on_disk_is_read_by_the_row_group_and_says_the_same(study, metrics, tmp_path):
    whole = pq.read_table(study / "records.parquet")
    pq.write_table(whole, tmp_path / "records.parquet", row_group_size=70)
    said = pq.read_table(study / "predictions.parquet")
    pq.write_table(said, tmp_path / "predictions.parquet", row_group_size=64)
    predictions = open_predictions(tmp_path / "predictions.parquet")
    assert predictions.methods("age") == open_predictions(study / "predictions.parquet").methods("age")
    found = summarise(predictions, RecordRows(tmp_path / "records.parquet"), 60)
    write_metrics(tmp_path / "metrics.json", found, study / "predictions.parquet")
    assert (tmp_path / "metrics.json").read_bytes() == (study / "metrics.json").read_bytes()


def test_sources_are_groups_where_there_are_several(study):
    frame = open_records(study / "records.parquet", columns=["record_id", "source"])
    frame["source"] = np.where(np.arange(len(frame)) % 3 == 0, "b", "a")
    ids = Texts.of(["nobody", *frame["record_id"][:5], *frame["record_id"][:2]])
    (found,) = RecordGroups(frame).of(ids).values()
    assert {name: rows.tolist() for name, rows in found.items()} == {
        "a": [False, False, True, True, False, True, False, True],
        "b": [False, True, False, False, True, False, True, False],
    }


def test_counts_and_subgroups_add_up(metrics):
    n = metrics["tasks"]["gender"]["n"]
    assert n["test"] == 300
    groups = metrics["tasks"]["gender"]["subgroups"]
    assert sum(group["n"] for group in groups["sex"].values()) == 300
    assert groups["sex"]["female"]["n"] == n["positives"]
    assert groups["sex"]["female"]["methods"]["gate"]["auroc"] == {"value": None, "low": None, "high": None}
    assert set(groups["sex"]["female"]["methods"]["gate"]) == set(metrics["tasks"]["gender"]["methods"]["gate"])
    assert metrics["tasks"]["age"]["n"]["missing"] + metrics["tasks"]["age"]["n"]["test"] == 300
    assert sum(group["n"] for group in groups["age_years"].values()) == metrics["tasks"]["age"]["n"]["test"]


def test_methods_with_different_records_are_compared_on_the_common_ones(tmp_path):
    rng = np.random.default_rng(0)
    ids = np.array([f"r{i:03d}" for i in range(100)], dtype=object)
    y = rng.normal(50, 10, 100)
    error = np.where(np.arange(100) < 50, 1.0, 30.0)
    with writing_predictions(tmp_path / "p.parquet", {"age": TARGETS["age"]}) as table:
        for method, rows in (("gate", slice(0, 100)), ("expert:short", slice(0, 50))):
            extra = 0.5 if method == "gate" else 0.0
            table.add(
                "age", method, "test", 0, record_ids=ids[rows], patient_ids=ids[rows], y_true=y[rows],
                y_pred=(y + error + extra)[rows],
            )  # fmt: skip
    found = summarise(open_predictions(tmp_path / "p.parquet"), n_resamples=50)["tasks"]["age"]
    assert found["methods"]["gate"]["mae"]["value"] == pytest.approx(16.0, abs=1e-4)
    assert found["differences"]["gate"]["mae"]["value"] == pytest.approx(0.5, abs=1e-4)


def test_methods_whose_truths_disagree_are_refused(tmp_path):
    ids = np.array(["a", "b", "c"], dtype=object)
    with writing_predictions(tmp_path / "p.parquet", {"age": TARGETS["age"]}) as table:
        for method, shift in (("gate", 0), ("mean", 1)):
            y = np.array([40.0, 50, 60]) + shift
            table.add("age", method, "test", 0, record_ids=ids, patient_ids=ids, y_true=y, y_pred=y)
    with pytest.raises(InputError, match="y_true of 'mean' and 'gate' disagree"):
        summarise(open_predictions(tmp_path / "p.parquet"), n_resamples=5)


def test_a_task_without_labelled_test_records_is_left_out_and_the_others_are_judged(tmp_path):
    ids = np.array(["a"], dtype=object)
    targets = {"age": TARGETS["age"], "weight": Target("weight", "regression")}
    with writing_predictions(tmp_path / "p.parquet", targets) as table:
        for task, split in (("age", "val"), ("weight", "test")):
            table.add(task, "gate", split, 0, record_ids=ids, patient_ids=ids, y_true=np.ones(1), y_pred=np.ones(1))
    found = summarise(open_predictions(tmp_path / "p.parquet"), n_resamples=5)
    assert set(found["tasks"]) == {"weight"}
    assert found["left_out"] == {"age": "no test record has a label and a prediction"}


def test_a_method_without_labelled_test_records_is_left_out_and_the_others_are_judged(tmp_path):
    ids = np.array(["a", "b"], dtype=object)
    with writing_predictions(tmp_path / "p.parquet", {"age": TARGETS["age"]}) as table:
        for method, split in (("gate", "test"), ("expert:partial", "val")):
            table.add("age", method, split, 0, record_ids=ids, patient_ids=ids, y_true=np.ones(2), y_pred=np.ones(2))
    found = summarise(open_predictions(tmp_path / "p.parquet"), n_resamples=5)["tasks"]["age"]
    assert list(found["methods"]) == ["gate"]
    assert found["left_out"] == {"expert:partial": "no test record has a label and a prediction"}


@pytest.mark.parametrize("task", ["gender", "report_label"])
def test_the_calibration_curve_has_the_bins_of_the_ece(study, metrics, task):
    predictions = open_predictions(study / "predictions.parquet")
    target = predictions.tasks[task]
    found = reliability(target, labelled_test_block(predictions, task, "gate"))
    gap = np.sum(found.n * abs(found.stated - found.observed)) / found.n.sum()
    assert gap == pytest.approx(metrics["tasks"][task]["methods"]["gate"]["ece"]["value"], abs=1e-6)


def test_outputs_appear_together_or_not_at_all(tmp_path):
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        path.write_text("old")
    with contextlib.suppress(RuntimeError), staged(paths) as drafts:
        drafts[paths[0]].write_text("new")
        raise RuntimeError
    assert [path.read_text() for path in paths] == ["old", "old"]
    with staged(paths) as drafts:
        for path in paths:
            drafts[path].write_text("new")
    assert [path.read_text() for path in paths] == ["new", "new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_names_in_any_script_have_files_of_their_own():
    names = [
        "age",
        "AF/AFL",
        "AF+AFL",
        "\N{CJK UNIFIED IDEOGRAPH-623F}",
        "\N{CYRILLIC SMALL LETTER A}",
        "a b",
        "a_b",
        ".",
    ]
    files = [file_name(name) for name in names]
    assert len(set(files)) == len(names)
    assert (files[0], files[6]) == ("age", "a_b")
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) for name in files)


def test_damaged_metrics_are_one_line(tmp_path):
    with pytest.raises(MissingFileError, match="run `ensemble evaluate` first"):
        read_metrics(tmp_path / "metrics.json")
    (tmp_path / "metrics.json").write_text('{"tasks": ')
    with pytest.raises(StoreError, match="not JSON"):
        read_metrics(tmp_path / "metrics.json")
    (tmp_path / "metrics.json").write_text("[]")
    with pytest.raises(StoreError, match="has no 'tasks'"):
        read_metrics(tmp_path / "metrics.json")


def test_plots_hold_one_file_per_task_and_lose_the_files_of_gone_tasks(study, metrics, tmp_path):
    (tmp_path / "roc").mkdir()
    (tmp_path / "roc" / "gone.csv").write_text("fpr,tpr\n")
    written = {
        path.relative_to(tmp_path).as_posix()
        for path in write_plots(open_predictions(study / "predictions.parquet"), metrics, tmp_path)
    }
    assert {path.name for path in tmp_path.iterdir()} == set(FOLDERS)
    assert "roc/gone.csv" not in {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.csv")}
    assert {"roc/gender.csv", "pr/superclass.csv", "confusion/report_label.csv", "predicted_vs_true/age.csv"} <= written
    curve = pd.read_csv(tmp_path / "roc" / "gender.csv")
    area = np.trapezoid(curve["tpr"], curve["fpr"])
    assert area == pytest.approx(metrics["tasks"]["gender"]["methods"]["gate"]["auroc"]["value"], abs=0.005)


def test_the_headline_holds_the_gate_and_the_best_expert_of_each_task(metrics):
    found = headline(metrics)
    assert list(found) == list(TARGETS)
    methods = metrics["tasks"]["age"]["methods"]
    assert found["age"] == {
        "mae": methods["gate"]["mae"]["value"],
        "mae_best_expert": methods["expert:ecgfm"]["mae"]["value"],
    }
    assert set(found["report_label"]) == {
        *("auroc_macro", "auroc_macro_best_expert", "accuracy", "accuracy_best_expert"),
    }


def test_numbers_are_written_for_readers():
    assert number(None, 3) == "\N{EN DASH}"
    assert number(-0.0001, 2) == "0.00"
    assert number(-1.5, 1, sign=True) == "\N{MINUS SIGN}1.5"
    assert [tick_text(t, ticks) for ticks in [nice_ticks(0, 1, 4)] for t in ticks] == [
        "0.00",
        "0.25",
        "0.50",
        "0.75",
        "1.00",
    ]
