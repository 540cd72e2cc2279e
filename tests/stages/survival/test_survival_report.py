"""A survival task in report.html, in plots/, in predict, explain, similar and posttrain."""

import re

import numpy as np
import pandas as pd
import pytest

from cache.errors import UsageError
from cache.records import Target, open_records, write_records
from pipeline.views.explanations import _check_class, _column, _on_scale
from pipeline.views.predictions import prediction_table
from stages.heads import EnsembleHeads
from stages.posttrain.cohort import LabelledCohort
from stages.predict.answering import predictions_of
from stages.predict.batches import RecordBatch
from stages.predict.tables import part_tables
from stages.report.page import render
from stages.report.survival.figures import kaplan_meier_figure
from stages.scoring.cases import choose
from stages.scoring.gate_weights import open_gate_weights, writing_gate_weights
from stages.scoring.plots import write_plots
from stages.scoring.predictions import open_predictions, writing_predictions
from stages.scoring.summary import summarise
from stages.similar.stage import _label
from tests.stages.survival.follow_up_study import DEATH as TASK
from tests.stages.survival.follow_up_study import make_study, thirds
from tests.stages.survival.plain_metrics import alive_at, read_method
from tests.stages.synthetic_predictions import write_study
from tests.stages.test_report import Wellformed

HORIZONS = TASK.horizons
DEATH = Target("death", "survival", unit="days", description="from the ECG to death", horizons=HORIZONS)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder with records, predictions of two folds, gate weights; and what the report reads of them."""
    folder = tmp_path_factory.mktemp("report")
    records, made = write_study(folder, n=300), make_study(300, 4)
    records["death"] = made.signed
    records.attrs["targets"] = {"death": DEATH}
    rng, ids = np.random.default_rng(0), records["record_id"].to_numpy()
    patients = records["patient_id"].to_numpy()
    fold = pd.factorize(patients)[0] % 2
    with writing_predictions(folder / "predictions.parquet", {"death": DEATH}) as table:
        for method, noise in {"gate": 0.5, "expert:a": 1.0, "expert:b": 2.0, "mean": 0.9, "trivial": None}.items():
            eta = np.zeros(300) if noise is None else made.log_hazard + noise * rng.normal(size=300)
            alive = np.exp(-np.outer(np.exp(eta), np.array(HORIZONS) / 400))
            for k in range(2):
                rows = fold == k
                block = {"y_true": made.signed[rows], "y_pred": np.column_stack([eta, alive])[rows]}
                table.add("death", method, "test", k, record_ids=ids[rows], patient_ids=patients[rows], **block)
    with writing_gate_weights(folder / "gate_weights.parquet") as table:
        for k in range(2):
            weights = rng.dirichlet((1, 2), int((fold == k).sum()))
            table.add("death", "test", k, record_ids=ids[fold == k], experts=("a", "b"), weights=weights)
    predictions = open_predictions(folder / "predictions.parquet")
    return folder, records, predictions, summarise(predictions, records, n_resamples=40)


def test_the_report_shows_curves_with_numbers_at_risk_and_horizons(study):
    folder, records, predictions, metrics = study
    weights = open_gate_weights(folder / "gate_weights.parquet")
    html = render(metrics, predictions, weights, records, {"hide_ids": False, "methods": {}})
    page = Wellformed()
    page.feed(html)
    words = " ".join(" ".join(page.words).split())
    assert "the time to an event in days" in words
    assert f"In {metrics['tasks']['death']['n']['events']} of them the event was seen" in words
    assert "Harrell's C" in words
    assert "Mean ± standard deviation over 2 folds" in words
    assert "Horizons of death" in words
    assert "event seen" in words  # gate weights by what was observed
    assert "No cases are shown: of a censored record nobody knows whether the answer was right." in words
    for horizon in metrics["tasks"]["death"]["horizons"]:
        assert f"{horizon['events']} / {horizon['beyond']} / {horizon['censored_before']}" in words
    for third in metrics["tasks"]["death"]["thirds"]:
        assert all(f">{n}</text>" in html for n in (third["at_risk"][0], *third["at_risk"][-2:]))


def test_the_curves_are_those_of_the_predictions(study):
    folder, _, predictions, metrics = study
    block = predictions.read("death", "gate", "test")
    drawn = kaplan_meier_figure(DEATH, block)
    assert re.findall(r'aria-label="([^"]+)"', drawn) == ["Kaplan-Meier curves of death by predicted risk"]
    assert drawn.count('class="curve c') == 6  # three curves, and a key to each
    written = {path.relative_to(folder).as_posix() for path in write_plots(predictions, metrics, folder)}
    assert {"kaplan_meier/death.csv", "calibration/death.csv", "methods/death.csv"} <= written
    curves = pd.read_csv(folder / "kaplan_meier" / "death.csv")
    signed, answers, _ = read_method(folder / "predictions.parquet", "death", "gate")
    lowest = np.argsort(-answers["survival_365"], kind="stable")[:100]
    of_group = curves[(curves["group"] == "lowest third") & (curves["time"] <= 180)]
    assert of_group["free_of_event"].iloc[-1] == pytest.approx(alive_at(signed[lowest], 180.0), abs=1e-5)


def test_no_case_is_chosen(study):
    block = study[2].read("death", "gate", "test")
    assert all(not len(rows) for rows in choose(DEATH, block, [], 3))


@pytest.fixture(scope="module")
def heads():
    made = make_study(400)
    fit = EnsembleHeads(lora=False, gate_epochs=0).fit(
        made.features, {"death": made.signed}, [TASK], splits=thirds(400)
    )
    return fit, made


def test_predict_says_log_hazard_and_survival(heads):
    fit, made = heads
    batch = RecordBatch(names=["ecg", "other"], patients=["p", "q"], warnings=[[], []])
    answers = fit.answers({name: x[:2] for name, x in made.features.items()})
    found = predictions_of(batch, fit, answers)
    rows = part_tables([(batch, answers)], fit).predictions.to_pandas()
    facts, expected = found[0].tasks["death"], fit.predict_proba(made.features)["death"][0]
    assert facts["kind"] == "survival"
    assert facts["unit"] == "days"
    assert facts["log_hazard"] == pytest.approx(expected[0])
    assert facts["survival"] == pytest.approx(dict(zip(("30", "180", "365"), expected[1:], strict=True)))
    first = rows[rows["record_id"] == "ecg"]
    assert first["class"].tolist() == ["log_hazard", "survival_30", "survival_180", "survival_365"]
    np.testing.assert_allclose(first["y_pred"], expected, rtol=1e-6)
    table = prediction_table(found[0])
    cell = next(iter(table.columns[1].cells))
    assert cell.startswith(f"free of it until 30 days {expected[1]:.2f}, 180 days")


def test_explain_reads_the_log_hazard(heads):
    fit, _ = heads
    task = fit.tasks_[0]
    with pytest.raises(UsageError, match="none: it is a value"):
        _check_class(task, "death")
    column, label = _column(task, None, None, None)
    assert label == ""
    answers = _on_scale(lambda ecgs: {"gate": np.array([[0.3, 0.9, 0.8, 0.7]])}, column, "log hazard")([None])
    assert answers["gate"].tolist() == [0.3]


def test_similar_writes_labels_as_times():
    assert _label(DEATH, 42.0) == "42 days"
    assert _label(DEATH, -365.0) == "> 365 days"
    assert _label(DEATH, float("nan")) is None


def test_posttrain_says_why_it_cannot(study, tmp_path):
    records = study[1]
    write_records(tmp_path / "records.parquet", records, [DEATH])
    assert open_records(tmp_path / "records.parquet").attrs["targets"]["death"] == DEATH
    from stages.posttrain import cohort

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cohort, "open_signals", lambda path: None)
        with pytest.raises(UsageError, match="--task death: posttrain cannot learn a time to an event"):
            LabelledCohort.read(None, ("death",), (tmp_path / "records.parquet", tmp_path), tmp_path)
