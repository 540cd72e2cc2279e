"""What an external validation computes, against statsmodels and scikit-learn, and which tasks it joins."""

from types import SimpleNamespace

import numpy as np
import pytest
import statsmodels.api as sm
from sklearn.linear_model import LinearRegression

import stages.external.calibration as calibrating
from cache.errors import UsageError
from cache.records import Target
from stages.external.calibration import calibration, log_odds
from stages.external.matching import judged_tasks
from stages.external.recalibration import recalibration
from stages.external.settings import ExternalFit
from stages.heads import TaskSpec
from stages.scoring.blocks import PredictionBlock
from stages.scoring.comparison import Draws

N = 600


def block_of(y_true, y_pred, n_patients=300):
    n = len(y_true)
    patients = np.array([f"p{k % n_patients}" for k in range(n)], dtype=object)
    ids = np.array([f"r{k}" for k in range(n)], dtype=object)
    return PredictionBlock.of(ids, patients, np.full(n, "test", object), np.zeros(n, np.int16), y_true, y_pred)


def said_and_true(intercept, slope, seed=0, n=N, spread=2.0):
    """Probabilities that are said, and labels that follow `intercept + slope * log-odds`."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, spread, n)
    truth = rng.random(n) < 1 / (1 + np.exp(-(intercept + slope * x)))
    return (1 / (1 + np.exp(-x))).astype(np.float32), truth.astype(np.float64)


@pytest.mark.parametrize(
    ("intercept", "slope", "spread"), [(0.0, 1.0, 1.5), (-1.0, 0.4, 2.0), (0.7, 2.0, 1.0), (0, 0.3, 6)]
)
def test_intercept_and_slope_are_those_of_a_logistic_regression(intercept, slope, spread):
    said, truth = said_and_true(intercept, slope, spread=spread)
    found = calibration(Target("ill", "binary"), block_of(truth, said), Draws(200, 0))
    reference = sm.Logit(truth, sm.add_constant(log_odds(said))).fit(disp=0)
    for k, name in enumerate(("intercept", "slope")):
        assert found[name]["value"] == pytest.approx(reference.params[k], abs=1e-4)
        width = np.diff(reference.conf_int()[k])[0]
        assert found[name]["high"] - found[name]["low"] == pytest.approx(width, rel=0.25)
    moved = 1 / (1 + np.exp(-(log_odds(said) + found["in_the_large"]["value"])))
    assert moved.mean() == pytest.approx(truth.mean(), abs=1e-6)


def test_a_value_is_calibrated_by_least_squares():
    rng = np.random.default_rng(0)
    said = rng.uniform(20, 90, N).astype(np.float32)
    truth = 10 + 0.7 * said + rng.normal(0, 5, N)
    found = calibration(Target("age", "regression"), block_of(truth, said), Draws(200, 0))
    line = LinearRegression().fit(said[:, None].astype(float), truth)
    assert found["slope"]["value"] == pytest.approx(line.coef_[0], abs=1e-6)
    assert found["intercept"]["value"] == pytest.approx(line.intercept_, abs=1e-4)
    assert found["in_the_large"]["value"] == pytest.approx((truth - said).mean(), abs=1e-6)
    assert found["slope"]["low"] < 0.7 < found["slope"]["high"]


def test_a_class_of_few_records_is_counted_and_not_calibrated():
    said, truth = said_and_true(0, 1)
    rare = np.zeros(N)
    rare[:4] = 1
    target = Target("findings", "multilabel", classes=("common", "rare"))
    found = calibration(target, block_of(np.column_stack([truth, rare]), np.column_stack([said, said])), Draws(100, 0))
    assert found["rare"] == {"n_positive": 4}
    assert found["common"]["slope"]["value"] > 0


def test_recalibration_mends_what_is_off_by_a_constant_and_is_judged_on_other_patients():
    said, truth = said_and_true(-1.5, 1.0, n=4000)
    whole = block_of(truth, said, n_patients=4000)
    (small, large) = recalibration(Target("ill", "binary"), whole, (50, 1000, 3000), draws=20, seed=0)
    assert [small["patients"], large["patients"]] == [50, 1000]
    before, after = (large["log_loss"][way]["value"] for way in ("before", "intercept"))
    ideal = 1 / (1 + np.exp(-(log_odds(said) - 1.5)))
    best = -np.mean(truth * np.log(ideal) + (1 - truth) * np.log(1 - ideal))
    assert before > best + 0.1
    assert after == pytest.approx(best, abs=0.02)
    assert small["log_loss"]["intercept"]["high"] > large["log_loss"]["intercept"]["high"]


def test_recalibration_of_a_value_takes_the_offset_away():
    rng = np.random.default_rng(0)
    truth = rng.uniform(20, 90, N)
    said = (truth + 12 + rng.normal(0, 4, N)).astype(np.float32)
    (found,) = recalibration(Target("age", "regression"), block_of(truth, said, N), (100,), draws=10, seed=0)
    assert found["mae"]["before"]["value"] == pytest.approx(np.abs(said - truth).mean(), rel=0.05)
    assert found["mae"]["intercept"]["value"] == pytest.approx(4 * np.sqrt(2 / np.pi), rel=0.15)


def test_newtons_steps_that_repeat_earlier_ones_are_left_out():
    said, truth = said_and_true(0.3, 0.7)
    x, weights = log_odds(said), np.random.default_rng(0).poisson(1, (len(said), 40)).astype(float)
    taken = []

    def counted(step, state):
        def each(now):
            taken[-1] += 1
            return step(now)

        taken.append(0)
        return newton(each, state)

    newton = calibrating._newton
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrating, "_newton", counted)
        short = calibrating.logistic_shift(x, truth, weights), *calibrating.logistic_line(x, truth, weights)
        patch.setattr(calibrating, "ROUNDS", (calibrating.STEPS,))
        whole = calibrating.logistic_shift(x, truth, weights), *calibrating.logistic_line(x, truth, weights)
    assert max(taken[:2]) < calibrating.STEPS == min(taken[2:])
    np.testing.assert_array_equal(short, whole)


# ---- joining by name


def data_of(**targets):
    kept = {name: target for name, (target, _) in targets.items()}
    return SimpleNamespace(tasks=tuple(kept.values()), targets={name: truth for name, (_, truth) in targets.items()})


SEX = TaskSpec("sex", "binary", ("female", "male"))
RHYTHM = TaskSpec("rhythm", "multiclass", ("AF", "SR", "ST"))
FINDINGS = TaskSpec("findings", "multilabel", ("MI", "LVH", "LBBB"))


def test_classes_are_joined_by_name_whatever_their_order():
    data = data_of(sex=(Target("sex", "binary", classes=("male", "female")), np.array([0.0, 1.0, np.nan])))
    (task,), left_out = judged_tasks([SEX], data, ExternalFit(study="a"))
    assert not left_out
    np.testing.assert_array_equal(task.truth, [1.0, 0.0, np.nan])


def test_a_class_that_the_fit_does_not_know_is_counted_and_no_label():
    here = Target("rhythm", "multiclass", classes=("PACE", "SR", "AF"))
    (task,), _ = judged_tasks([RHYTHM], data_of(rhythm=(here, np.array([0, 1, 2, -1]))), ExternalFit(study="a"))
    np.testing.assert_array_equal(task.truth, [-1, 1, 0, -1])
    assert task.n_other_class == 1


def test_findings_are_judged_where_both_studies_have_them():
    here = Target("dx", "multilabel", classes=("LBBB", "WPW", "infarct"))
    truth = np.array([[1.0, 0.0, 1.0], [np.nan, 1.0, 0.0]])
    asked = ExternalFit(study="a", targets={"findings": "dx"}, classes={"findings": {"infarct": "MI"}})
    (task,), _ = judged_tasks([FINDINGS], data_of(dx=(here, truth)), asked)
    assert task.target.classes == ("MI", "LBBB")
    np.testing.assert_array_equal(task.truth, [[1.0, 1.0], [0.0, np.nan]])
    np.testing.assert_array_equal(task.predicted(np.array([[0.1, 0.2, 0.3]])), [[0.1, 0.3]])


@pytest.mark.parametrize(
    ("task", "target", "reason"),
    [
        (SEX, Target("sex", "binary", classes=("F", "M")), "female, male in the fit and F, M here"),
        (SEX, Target("sex", "multiclass", classes=("female", "male")), "binary in the fit and multiclass here"),
        (TaskSpec("k", "regression", (), "mmol/L"), Target("k", "regression", unit="mEq/L"), "mmol/L in the fit"),
        (RHYTHM, Target("rhythm", "multiclass", classes=("a", "b")), "may say which is which"),
        (SEX, Target("gender", "binary", classes=("female", "male")), "no target 'sex'"),
    ],
)
def test_what_differs_is_left_out_and_never_guessed(task, target, reason):
    judged, left_out = judged_tasks([task], data_of(**{target.name: (target, np.zeros(3))}), ExternalFit(study="a"))
    assert not judged
    assert reason in left_out[task.name]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"targets": {"age": "x"}}, "no task 'age'"),
        ({"targets": {"sex": "x"}}, "no target 'x'"),
        ({"classes": {"sex": {"x": "male"}}}, "'x' is no class of this study's"),
        ({"classes": {"sex": {"F": "x"}}}, "'x' is no class of the fit's"),
    ],
)
def test_names_in_the_settings_that_do_not_exist_are_refused(asked, words):
    data = data_of(sex=(Target("sex", "binary", classes=("F", "M")), np.zeros(3)))
    with pytest.raises(UsageError, match=words):
        judged_tasks([SEX], data, ExternalFit(study="a", **asked))
