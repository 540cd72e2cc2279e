import numpy as np
import pytest
from sklearn import metrics as sk

from cache.records import Target
from stages.scoring.blocks import PredictionBlock
from stages.scoring.metrics import METRICS, METRICS_OF, make_scorer, score


def block(y_true, y_pred):
    ids = np.array([f"r{i}" for i in range(len(y_true))], dtype=object)
    return PredictionBlock.of(
        ids, ids, np.full(len(ids), "test"), np.zeros(len(ids), int), np.asarray(y_true), np.asarray(y_pred)
    )


def values(kind, y_true, y_pred, classes=()):
    return {k: v[0] for k, v in score(Target("t", kind, classes=classes), block(y_true, y_pred)).values.items()}


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def names(k):
    return tuple(f"c{i}" for i in range(k))


@pytest.mark.parametrize("decimals", [1, 2, 8])
def test_binary_metrics_are_those_of_sklearn_also_with_ties(rng, decimals):
    y = (rng.random(300) < 0.3).astype(float)
    p = np.clip(rng.normal(0.3 + 0.3 * y, 0.25), 0, 1).round(decimals)
    found, hard = values("binary", y, p), p >= 0.5
    expected = {
        "auroc": sk.roc_auc_score(y, p),
        "auprc": sk.average_precision_score(y, p),
        "f1": sk.f1_score(y, hard),
        "accuracy": sk.accuracy_score(y, hard),
        "sensitivity": sk.recall_score(y, hard),
        "specificity": sk.recall_score(1 - y, ~hard),
        "f1_macro": sk.f1_score(y, hard, average="macro"),
        "precision_macro": sk.precision_score(y, hard, average="macro"),
        "recall_macro": sk.recall_score(y, hard, average="macro"),
        "brier": sk.brier_score_loss(y, p),
    }
    assert set(found) == set(METRICS_OF["binary"])
    assert {k: found[k] for k in expected} == pytest.approx(expected, abs=1e-12)


def test_multiclass_metrics_are_those_of_sklearn(rng):
    y = rng.choice(4, 500, p=[0.7, 0.2, 0.07, 0.03])
    p = rng.dirichlet(np.ones(4), 500) + 0.5 * np.eye(4)[y]
    p /= p.sum(axis=1, keepdims=True)
    found, hard = values("multiclass", y, p, names(4)), p.argmax(axis=1)
    expected = {
        "auroc_macro": sk.roc_auc_score(y, p, multi_class="ovr", average="macro"),
        "auprc_macro": sk.average_precision_score(np.eye(4)[y], p, average="macro"),
        "accuracy": sk.accuracy_score(y, hard),
        "f1_macro": sk.f1_score(y, hard, average="macro"),
        "precision_macro": sk.precision_score(y, hard, average="macro"),
        "recall_macro": sk.recall_score(y, hard, average="macro"),
        "brier": sum(sk.brier_score_loss(y == k, p[:, k]) for k in range(4)),
    }
    assert {k: found[k] for k in expected} == pytest.approx(expected, abs=1e-12)


def test_a_class_that_is_never_predicted_has_precision_zero_as_in_sklearn():
    y, p = np.array([0, 0, 1, 2, 2]), np.eye(4)[[0, 0, 0, 2, 2]]
    found = values("multiclass", y, p, names(4))
    assert found["precision_macro"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert found["f1_macro"] == pytest.approx(sk.f1_score(y, p.argmax(axis=1), average="macro"))


def test_multilabel_metrics_are_those_of_sklearn(rng):
    y = (rng.random((400, 6)) < 0.2).astype(float)
    p = np.clip(rng.normal(0.3 + 0.3 * y, 0.25), 0, 1).round(2)
    found = values("multilabel", y, p, names(6))
    expected = {
        "auroc_macro": sk.roc_auc_score(y, p, average="macro"),
        "auprc_macro": sk.average_precision_score(y, p, average="macro"),
        "f1_macro": sk.f1_score(y, p >= 0.5, average="macro"),
        "brier": np.mean([sk.brier_score_loss(y[:, k], p[:, k]) for k in range(6)]),
    }
    assert {k: found[k] for k in expected} == pytest.approx(expected, abs=1e-12)


def test_regression_metrics_are_those_of_sklearn(rng):
    y = rng.normal(800, 120, 301)
    p = y + rng.normal(5, 40, 301)
    expected = {
        "mae": sk.mean_absolute_error(y, p),
        "median_absolute_error": sk.median_absolute_error(y, p),
        "mse": sk.mean_squared_error(y, p),
        "rmse": sk.root_mean_squared_error(y, p),
        "r2": sk.r2_score(y, p),
        "pearson": np.corrcoef(y, p)[0, 1],
    }
    assert values("regression", y, p) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("kind", [kind for kind in METRICS_OF if kind != "survival"])  # that has a file of its own
def test_integer_weights_equal_repeated_records(rng, kind):
    n = 120
    y = {
        "regression": rng.normal(size=n),
        "binary": (rng.random(n) < 0.4).astype(float),
        "multiclass": rng.integers(0, 3, n),
        "multilabel": (rng.random((n, 3)) < 0.4).astype(float),
    }[kind]
    wide = kind in ("multiclass", "multilabel")
    p = rng.random((n, 3) if wide else n).round(1)
    weights, target = rng.integers(0, 4, n), Target("t", kind, classes=names(3) if wide else ())
    repeated = np.repeat(np.arange(n), weights)
    weighted = make_scorer(target, block(y, p))(weights[:, None].astype(np.float32)).values
    plain = score(target, block(y[repeated], p[repeated])).values
    assert {k: v[0] for k, v in weighted.items()} == pytest.approx({k: v[0] for k, v in plain.items()}, rel=1e-5)


def test_missing_labels_do_not_count(rng):
    y = (rng.random((200, 2)) < 0.3).astype(float)
    p = rng.random((200, 2))
    y[rng.random((200, 2)) < 0.2] = np.nan
    expected = [sk.roc_auc_score(y[k, c], p[k, c]) for c in range(2) for k in [~np.isnan(y[:, c])]]
    assert values("multilabel", y, p, names(2))["auroc_macro"] == pytest.approx(np.mean(expected))
    assert values("regression", np.array([1.0, np.nan]), np.array([2.0, 9.0]))["mae"] == 1
    assert values("multiclass", np.array([0, -1]), np.eye(2), names(2))["accuracy"] == 1


def test_undefined_metrics_are_nan_and_counted():
    one_sided = values("binary", np.zeros(5), np.full(5, 0.1))
    assert np.isnan([one_sided["auroc"], one_sided["auprc"], one_sided["f1"], one_sided["sensitivity"]]).all()
    assert one_sided["accuracy"] == 1
    y = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1.0]])
    found = score(Target("t", "multilabel", classes=names(3)), block(y, np.array([[0.9, 0.1, 0.9]] * 3)))
    assert found.values["auroc_macro"][0] == 0.5
    assert found.n_classes["auroc_macro"][0] == 1
    assert found.n_classes["f1_macro"][0] == 2
    constant = values("regression", np.full(4, 7.1), np.array([7.0, 7.1, 7.2, 7.3]))
    assert np.isnan([constant["r2"], constant["pearson"]]).all()


def test_ece_is_the_mean_gap_over_fifteen_bins():
    p, y = np.array([0.05, 0.05, 0.95, 0.95]), np.array([0, 1, 1, 1.0])
    assert values("binary", y, p)["ece"] == pytest.approx((2 * abs(0.5 - 0.05) + 2 * 0.05) / 4)
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7]])
    found = values("multiclass", np.array([0, 1, 1]), probabilities, names(2))
    assert found["ece"] == pytest.approx((2 * abs(0.5 - 0.9) + 0.3) / 3)


def test_every_reported_metric_is_explained():
    assert {name for names_ in METRICS_OF.values() for name in names_} == set(METRICS)
    assert all(metric.meaning for metric in METRICS.values())
