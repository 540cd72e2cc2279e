"""ECG-Soup's probe head as a reference method: it learns what is in the layers, and is remembered."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from stages.evaluate.methods import FinishedMethods
from stages.heads import TaskSpec
from stages.heads.baselines.methods import METHODS

TASKS = (TaskSpec("sex", "binary"), TaskSpec("age", "regression"), TaskSpec("r", "multiclass", tuple("abc")))


def test_the_probe_head_learns_a_planted_signal_and_is_remembered(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n, rows = 500, np.arange(500)
    u = rng.normal(size=(n, 3))
    layers = (np.stack([u @ rng.normal(size=(3, 16)) for _ in range(3)], 1) + rng.normal(size=(n, 3, 16))).astype("f4")
    flat = (u @ rng.normal(size=(3, 24)) + rng.normal(size=(n, 24))).astype("f4")
    flat[310:330] = np.nan
    # the embedding of the layered expert says nothing: what is learnt there comes from its layers
    deep = {"embedding": rng.normal(size=(n, 16)).astype("f4"), "layers": layers, "embed": layers[:, 0]}
    classes = np.argmax(2 * u + rng.gumbel(size=(n, 3)), 1)
    y = {"sex": (u[:, 0] > 0).astype(float), "age": 60 + 10 * u[:, 1], "r": classes}
    splits = [(rows[:240], rows[240:300], rows[300:])]

    def predict(epochs: int, experts: dict[str, object]) -> dict[str, np.ndarray]:
        method = METHODS["probe_head"](epochs=epochs).fit(experts, y, TASKS, splits=splits)
        assert method.n_trainable_ > 3 * 256 * 16
        return method.predict_proba(experts, fold=0)

    for experts in ({"deep": deep}, {"deep": deep, "flat": flat}):
        p = predict(40, experts)
        assert roc_auc_score(y["sex"][300:], p["sex"][300:]) > 0.88
        assert np.abs(p["age"] - y["age"])[300:].mean() < 0.7 * np.abs(y["age"] - np.median(y["age"]))[300:].mean()
        assert (p["r"].argmax(1) == classes)[300:].mean() > 0.6
        np.testing.assert_allclose(p["r"].sum(1), 1, atol=1e-5)
    alone = predict(3, {"flat": flat})
    assert np.isnan(alone["sex"][310:330]).all()
    for name, values in predict(3, {"flat": flat}).items():
        np.testing.assert_array_equal(values, alone[name])  # the same again, whatever was drawn before
    memory = FinishedMethods(tmp_path, "k" * 16)
    memory.put("probe_head", [alone], {"parameters": 1.0}, {})
    found = memory.get("probe_head")
    assert found is not None
    assert found[0][0]["age"] == pytest.approx(alone["age"], nan_ok=True)


def test_permuted_training_labels_give_chance_over_many_starts() -> None:
    rng = np.random.default_rng(1)
    x = {"a": rng.normal(size=(300, 40)).astype("f4")}
    y, rows, found = (x["a"][:, 0] > 0).astype(float), np.arange(300), []
    for seed in range(8):
        permuted = np.r_[np.random.default_rng(seed).permutation(y[:160]), y[160:]]
        for labels in (permuted, np.r_[1 - permuted[:160], y[160:]]):
            method = METHODS["probe_head"](seed=seed, epochs=30, patience=5)
            method.fit(x, {"sex": labels}, TASKS[:1], splits=[(rows[:120], rows[120:160], rows[160:])])
            found.append(roc_auc_score(y[160:], method.predict_proba(x)["sex"][160:]))
    # one start alone lies anywhere between 0.4 and 0.6: a head that has learnt nothing is its random start
    assert np.mean(found) == pytest.approx(0.5, abs=0.06)
