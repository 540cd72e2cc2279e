"""decisions.json: every figure again from predictions.parquet alone, by scikit-learn and plain loops."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from sklearn.metrics import confusion_matrix

from cache.errors import UsageError
from stages.evaluate.decisions import check_prevalence, judge_decisions
from stages.evaluate.settings import EvaluateSettings
from stages.heads import TaskSpec
from stages.heads.decisions.answers import Decisions
from stages.heads.decisions.held_out import HeldOut
from stages.heads.decisions.settings import ConformalSection, OperatingPointsSection
from stages.scoring.comparison import Draws
from stages.scoring.decisions.operating import judge_threshold
from stages.scoring.predictions import open_predictions
from stages.scoring.summary import write_metrics
from tests.stages.synthetic_predictions import TARGETS, guess, truths, write_judged

DRAWS = Draws(60, 3)
PREVALENCE = {"gender": 0.1, "superclass": {"MI": 0.02}, "report_label": {"AF": 0.02}}


@pytest.fixture(scope="module")
def decisions() -> Decisions:
    """Thresholds and limits that each of two fits has chosen on held-out records of its own."""
    rng = np.random.default_rng(9)
    y = truths(rng, 500)
    answers = [{name: guess(rng, t.kind, y[name], 1.8) for name, t in TARGETS.items()} for _ in range(2)]
    judged = rng.random((2, 500)) < 0.7
    held = HeldOut(y, answers, judged, rng.integers(0, 250, 500))
    tasks = [TaskSpec(t.name, t.kind, t.classes, t.unit) for t in TARGETS.values()]
    rules = OperatingPointsSection(tasks={"superclass": {"rule": "sensitivity", "value": 0.8}})
    return Decisions.choose(held, tasks, rules, ConformalSection(coverage=0.85))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_judged(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def table(study) -> pd.DataFrame:
    """Labelled test rows of the gate."""
    frame = pd.read_parquet(study / "predictions.parquet")
    return frame[(frame["method"] == "gate") & frame["y_true"].notna()].astype({"task": str, "class": object})


@pytest.fixture(scope="module")
def records(study) -> pd.DataFrame:
    from cache.records import open_records

    return open_records(study / "records.parquet")


@pytest.fixture(scope="module")
def found(study, decisions, records):
    predictions = open_predictions(study / "predictions.parquet")
    judged = judge_decisions(predictions, decisions, records, DRAWS, PREVALENCE)
    write_metrics(study / "decisions.json", judged, study / "predictions.parquet")
    return json.loads((study / "decisions.json").read_text())


def rows_of(table: pd.DataFrame, task: str, label: str) -> pd.DataFrame:
    rows = table[table["task"] == task]
    return rows if task == "gender" else rows[rows["class"] == label]


CLASSES = [
    ("gender", "female"),
    ("superclass", "MI"),
    ("superclass", "HYP"),
    ("report_label", "AF"),
    ("report_label", "other"),
]


@pytest.mark.parametrize(("task", "label"), CLASSES)
def test_rates_are_those_of_the_confusion_matrix(found, table, task, label):
    judged = found["tasks"][task]["operating_points"]["classes"][label]
    rows = rows_of(table, task, label)
    limit = np.array(judged["folds"])[rows["fold"]]
    tn, fp, fn, tp = confusion_matrix(rows["y_true"], rows["y_pred"].astype(float) >= limit).ravel()
    assert [judged[k] for k in ("true_negatives", "false_positives", "false_negatives", "true_positives")] == [
        tn, fp, fn, tp,
    ]  # fmt: skip
    expected = {
        "sensitivity": tp / (tp + fn),
        "specificity": tn / (tn + fp),
        "ppv": tp / (tp + fp),
        "npv": tn / (tn + fn),
        "likelihood_ratio_positive": tp / (tp + fn) / (fp / (tn + fp)) if fp else None,
        "likelihood_ratio_negative": fn / (tp + fn) / (tn / (tn + fp)),
        "alarm_rate": (tp + fp) / len(rows),
    }
    assert {k: judged[k]["value"] for k in expected} == pytest.approx(expected)
    assert judged["prevalence"] == pytest.approx(rows["y_true"].mean())
    given = PREVALENCE[task] if task == "gender" else PREVALENCE[task].get(label)
    if given is None:
        assert judged["given"] is None
    else:
        sensitivity, specificity = expected["sensitivity"], expected["specificity"]
        alarms = sensitivity * given + (1 - specificity) * (1 - given)
        assert judged["given"]["ppv"]["value"] == pytest.approx(sensitivity * given / alarms)
        assert judged["given"]["npv"]["value"] == pytest.approx(specificity * (1 - given) / (1 - alarms))


def redrawn(rows: pd.DataFrame):
    """The rows of each resample of the patients, by a loop that knows nothing of the bootstrap's arithmetic."""
    patients = np.sort(rows["patient_id"].astype(str).unique())
    of_patient = dict(list(rows.groupby(rows["patient_id"].astype(str))))
    rng = np.random.default_rng(DRAWS.seed)
    for _ in range(DRAWS.n):
        yield pd.concat([of_patient[patients[k]] for k in rng.integers(len(patients), size=len(patients))])


def test_intervals_are_those_of_redrawn_patients(found, table):
    judged = found["tasks"]["gender"]["operating_points"]["classes"]["female"]
    rows = rows_of(table, "gender", "female")
    rows = rows.assign(above=rows["y_pred"].astype(float) >= np.array(judged["folds"])[rows["fold"]])
    drawn = [part.loc[part["y_true"] == 1, "above"].mean() for part in redrawn(rows)]
    expected = np.quantile(drawn, [0.025, 0.975])
    assert [judged["sensitivity"][k] for k in ("low", "high")] == pytest.approx(expected.tolist())
    curve = found["tasks"]["gender"]["decision_curves"]["female"]
    benefit = [
        ((part["y_true"] - (1 - part["y_true"]) * 0.25) * (part["y_pred"] >= 0.2)).mean() for part in redrawn(rows)
    ]
    assert [curve[k][19] for k in ("low", "high")] == pytest.approx(np.quantile(benefit, [0.025, 0.975]).tolist())


@pytest.mark.parametrize(("task", "label"), CLASSES)
def test_net_benefit_is_true_alarms_less_weighed_false_ones(found, table, task, label):
    curve, rows = found["tasks"][task]["decision_curves"][label], rows_of(table, task, label)
    for k in (4, 19, 49, 90):
        t = curve["threshold"][k]
        acted = rows[rows["y_pred"].astype(float) >= t]
        n, tp = len(rows), (acted["y_true"] == 1).sum()
        assert curve["net_benefit"][k] == pytest.approx(tp / n - (len(acted) - tp) / n * t / (1 - t))
        share = rows["y_true"].mean()
        assert curve["treat_all"][k] == pytest.approx(share - (1 - share) * t / (1 - t))


def test_coverage_is_the_mean_over_patients(found, table, decisions):
    limits = decisions.conformal.tasks["report_label"].of_folds
    wide = table[table["task"] == "report_label"].pivot(index=["record_id", "patient_id", "fold"], columns="class")
    names = list(TARGETS["report_label"].classes)
    p, y = wide["y_pred"][names].to_numpy(float), wide["y_true"][names].to_numpy()
    held = 1 - p <= limits[wide.index.get_level_values("fold")] + 1e-9
    rows = pd.DataFrame({"patient": wide.index.get_level_values("patient_id").astype(str)})
    rows["covered"], rows["size"], rows["truth"] = (held & (y == 1)).any(axis=1), held.sum(axis=1), y.argmax(axis=1)
    answer = found["tasks"]["report_label"]["conformal"]["answers"]["report_label"]
    assert found["tasks"]["report_label"]["conformal"]["coverage"] == 0.85
    assert answer["all"]["value"] == pytest.approx(rows.groupby("patient")["covered"].mean().mean())
    assert answer["all"]["several"] == pytest.approx((rows["size"] > 1).mean())
    assert answer["all"]["none"] == pytest.approx((rows["size"] == 0).mean())
    assert answer["all"]["right_where_certain"] == pytest.approx(rows.loc[rows["size"] == 1, "covered"].mean())
    for k, name in enumerate(names):
        part = rows[rows["truth"] == k]
        assert answer["true_class"][name]["value"] == pytest.approx(part.groupby("patient")["covered"].mean().mean())
        assert answer["true_class"][name]["patients"] == part["patient"].nunique()


def test_coverage_of_values_and_subgroups(found, table, decisions, records):
    limits = decisions.conformal.tasks["age"].of_folds
    rows = table[table["task"] == "age"]
    low, high = (rows["y_pred"].astype(float) + limits[rows["fold"], k] for k in range(2))
    rows = rows.assign(
        covered=(rows["y_true"] >= low) & (rows["y_true"] <= high), patient=rows["patient_id"].astype(str)
    )
    answer = found["tasks"]["age"]["conformal"]["answers"]["age"]
    assert answer["all"]["value"] == pytest.approx(rows.groupby("patient")["covered"].mean().mean())
    assert answer["all"]["mean_width"] == pytest.approx((high - low).mean())
    old = set(records.loc[records["age"] >= 75, "record_id"])
    part = rows[rows["record_id"].isin(old)]
    group = answer["subgroups"]["age_years"]["75 and over"]
    assert group["value"] == pytest.approx(part.groupby("patient")["covered"].mean().mean())
    assert group["records"] == len(part)
    of_finding = found["tasks"]["superclass"]["conformal"]["answers"]["HYP"]
    assert set(of_finding["true_class"]) == {"absent", "present"}


def test_a_fit_of_before_decides_nothing(study, records):
    predictions = open_predictions(study / "predictions.parquet")
    assert judge_decisions(predictions, Decisions(), records, DRAWS)["tasks"] == {}


def test_undefined_rates_are_null_and_thresholds_that_are_missing_judge_nothing():
    ids = np.array(["a", "b", "c"])
    perfect = judge_threshold(np.array([1.0, 0.0, 0.0]), np.array([1.0, 0.0, 0.0]), ids, DRAWS)
    assert np.isnan(perfect["likelihood_ratio_positive"]["value"])
    assert perfect["sensitivity"]["value"] == 1
    nothing = judge_threshold(np.full(3, np.nan), np.ones(3), ids, DRAWS)
    assert nothing == {"n": 0, "positives": 0}


def test_a_prevalence_is_of_a_class_that_exists():
    targets = list(TARGETS.values())
    check_prevalence(PREVALENCE, targets)
    with pytest.raises(UsageError, match=r"'age' is no task with classes; there are: gender, report_label, superclass"):
        check_prevalence({"age": 0.1}, targets)
    with pytest.raises(UsageError, match=r"'XX' is no class of superclass"):
        check_prevalence({"superclass": {"XX": 0.1}}, targets)
    with pytest.raises(UsageError, match=r"superclass \(multilabel\) needs one for each class"):
        check_prevalence({"superclass": 0.1}, targets)
    with pytest.raises(UsageError, match=r"report_label \(multiclass\) needs one for each class"):
        check_prevalence({"report_label": 0.1}, targets)
    with pytest.raises(ValidationError):
        EvaluateSettings(prevalence={"gender": 1.5})


def test_thresholds_of_one_fold_do_not_meet_records_of_another(study, decisions, records):
    predictions = open_predictions(study / "predictions.parquet")
    points = decisions.points.tasks["gender"]
    moved = dataclasses.replace(points, of_folds=np.array([[0.0], [2.0]]))
    changed = Decisions(type(decisions.points)({"gender": moved}), decisions.conformal)
    judged = judge_decisions(predictions, changed, records, DRAWS)["tasks"]["gender"]["operating_points"]["classes"][
        "female"
    ]
    block = predictions.read("gender", "gate", "test")
    assert judged["true_positives"] + judged["false_positives"] == (block.fold == 0).sum()
