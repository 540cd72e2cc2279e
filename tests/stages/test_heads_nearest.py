"""k nearest neighbours: they are scikit-learn's, k is chosen, and a patient is no neighbour of itself."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor, NearestNeighbors

from cache.records import Target
from stages.evaluate.retrieval import retrieval_precision
from stages.heads import TaskSpec
from stages.heads.baselines import nearest
from stages.heads.baselines.methods import METHODS
from stages.heads.baselines.nearest import JointSpace, neighbours
from stages.heads.inputs.expert_features import read_features

N = 300
RNG = np.random.default_rng(0)
RHYTHM = RNG.integers(0, 3, N)
AGE = RNG.uniform(20, 90, N)
FEATURES = {
    "a": (np.eye(3)[RHYTHM] @ RNG.normal(0, 1.5, (3, 8)) + RNG.normal(size=(N, 8))).astype(np.float32),
    "b": (AGE[:, None] / 20 * RNG.normal(size=12) + RNG.normal(size=(N, 12))).astype(np.float32),
}
FEATURES["b"][7] = np.nan
TASKS = (TaskSpec("rhythm", "multiclass", ("AF", "SR", "ST")), TaskSpec("age", "regression", (), "years"))
SPLIT = (np.arange(200), np.arange(200, 220), np.arange(220, N))


def vectors():
    features = read_features(FEATURES)
    return JointSpace.fit(features, SPLIT[0]).vectors(features)


def test_neighbours_are_those_of_scikit_learn_and_never_the_same_patients():
    x = vectors()
    near = np.concatenate([found for _, found in neighbours(x[220:], x[:200], 10)])
    reference = NearestNeighbors(n_neighbors=10, metric="cosine").fit(x[:200]).kneighbors(x[220:])[1]
    np.testing.assert_array_equal(near, reference)
    patients = np.arange(200) // 2
    own = np.concatenate([found for _, found in neighbours(x[:200], x[:200], 10, patients, patients)])
    assert (patients[own] != patients[:, None]).all()


def test_blocks_change_nothing(monkeypatch):
    x = vectors()
    whole = np.concatenate([found for _, found in neighbours(x, x[:200], 5)])
    monkeypatch.setattr(nearest, "BLOCK_ROWS", 7)
    np.testing.assert_array_equal(np.concatenate([found for _, found in neighbours(x, x[:200], 5)]), whole)


def test_answers_are_scikit_learns_with_the_average_as_one_more_neighbour():
    method = METHODS["knn"]().fit(FEATURES, {"rhythm": RHYTHM, "age": AGE}, TASKS, splits=[SPLIT])
    found, x, train = method.predict_proba(FEATURES, fold=0), vectors(), SPLIT[0]
    sizes = method.folds_[0].sizes
    k = sizes["rhythm"]
    share = KNeighborsClassifier(k, metric="cosine").fit(x[train], RHYTHM[train]).predict_proba(x)
    average = np.bincount(RHYTHM[train]) / len(train)
    np.testing.assert_allclose(found["rhythm"], (k * share + average) / (k + 1), atol=1e-5)
    k = sizes["age"]
    mean = KNeighborsRegressor(k, metric="cosine").fit(x[train], AGE[train]).predict(x)
    shrunk = (k * mean + AGE[train].mean()) / (k + 1)
    np.testing.assert_allclose(found["age"], shrunk, atol=0.02)
    assert roc_auc_score(RHYTHM[220:], found["rhythm"][220:], multi_class="ovr") > 0.85
    assert np.abs(found["age"] - AGE)[220:].mean() < 10


def test_more_neighbours_are_taken_where_labels_are_noise():
    noise = np.random.default_rng(1).integers(0, 2, N)
    clear = (FEATURES["a"][:, 0] > 0).astype(int)
    tasks = (TaskSpec("noise", "binary"), TaskSpec("clear", "binary"))
    method = METHODS["knn"]().fit(FEATURES, {"noise": noise, "clear": clear}, tasks, splits=[SPLIT])
    assert method.folds_[0].sizes["noise"] == max(nearest.SIZES)
    assert method.folds_[0].sizes["clear"] < max(nearest.SIZES)


def test_a_record_that_no_expert_saw_has_no_answer():
    features = {name: x.copy() for name, x in FEATURES.items()}
    for x in features.values():
        x[250] = np.nan
    method = METHODS["knn"]().fit(features, {"age": AGE}, TASKS[1:], splits=[SPLIT])
    found = method.predict_proba(features, fold=0)["age"]
    assert np.isnan(found[250])
    assert np.isfinite(np.delete(found, 250)).all()


def test_retrieval_precision_is_the_share_of_neighbours_of_the_class():
    truth = RHYTHM.copy()
    truth[5] = -1
    data = SimpleNamespace(
        features=FEATURES,
        tasks=(Target("rhythm", "multiclass", classes=("AF", "SR", "ST")), Target("age", "regression")),
        targets={"rhythm": truth, "age": AGE},
    )
    found = retrieval_precision(SimpleNamespace(data=data, splits=[SPLIT]))
    assert set(found) == {"rhythm"}
    x, train, test = vectors(), SPLIT[0], SPLIT[2]
    near = NearestNeighbors(n_neighbors=10, metric="cosine").fit(x[train]).kneighbors(x[test])[1]
    for code, name in enumerate(("AF", "SR", "ST")):
        rows = truth[test] == code
        labels = truth[train][near[rows]]
        shares = [(row == code).sum() / (row >= 0).sum() for row in labels]
        assert found["rhythm"][name]["precision_at_10"] == pytest.approx(np.mean(shares))
        assert found["rhythm"][name]["by_chance"] == pytest.approx((truth[train] == code).sum() / 199)
        assert found["rhythm"][name]["records"] == rows.sum()
        assert found["rhythm"][name]["precision_at_10"] > found["rhythm"][name]["by_chance"] + 0.2
