"""The reference methods: one face, honest answers, chance where there is nothing to learn."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cache.errors import InputError
from stages.heads import EnsembleHeads, TaskSpec
from stages.heads.baselines import METHODS, SingleExpert
from stages.heads.enecg_preset import EnecgHeads

TASKS = (
    TaskSpec("sex", "binary"),
    TaskSpec("age", "regression", unit="years"),
    TaskSpec("r", "multiclass", tuple("abc")),
)
NAMES = [name for name in METHODS if name not in ("pma", "gate")]


def _study(n: int = 300) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    u = rng.normal(size=(n, 5))
    x = {
        "a": (u @ rng.normal(size=(5, 30)) + rng.normal(size=(n, 30))).astype(np.float32),
        "b": (u @ rng.normal(size=(5, 12)) + rng.normal(size=(n, 12))).astype(np.float32),
    }
    y = {
        "sex": (u[:, 0] > 0).astype(float),
        "age": 60 + 10 * u[:, 1],
        "r": np.argmax(3 * u[:, 2:] + rng.gumbel(size=(n, 3)), 1),
    }
    return x, y


@pytest.mark.parametrize("name", NAMES)
def test_a_method_learns_what_can_be_learnt(name: str) -> None:
    x, y = _study()
    rows = np.arange(300)
    splits = [(rows[:160], rows[160:200], rows[200:])]
    x["b"][250:260] = np.nan
    method = METHODS[name]().fit(x, y, TASKS, splits=splits)
    held = {k: v[200:] for k, v in x.items()}
    p = method.predict_proba(held, fold=0)
    assert p["sex"].shape == (100,)
    assert p["r"].shape == (100, 3)
    np.testing.assert_allclose(p["r"].sum(1), 1, atol=1e-5)
    assert set(np.unique(method.predict(held)["sex"])) <= {0, 1}
    if name == "trivial":
        assert np.ptp(p["age"]) == 0
        assert p["age"][0] == pytest.approx(np.median(y["age"][:160]))
        assert p["sex"][0] == pytest.approx(y["sex"][:160].mean(), abs=0.01)
        return
    assert roc_auc_score(y["sex"][200:], p["sex"]) > 0.85
    assert np.abs(p["age"] - y["age"][200:]).mean() < 6
    assert method.n_trainable_ > 0 or name == "mean"


def _layered(x: np.ndarray) -> dict[str, np.ndarray]:
    """Give an expert layers too, so that every method has what it reads."""
    return {"embedding": x, "layers": np.stack([x, 0.5 * x, x[:, ::-1]], 1), "embed": x}


SPLIT = (np.arange(160), np.arange(160, 200), np.arange(200, 300))
PERMUTATIONS = 5


def _permuted_auroc(predict: Callable[[dict[str, np.ndarray]], np.ndarray], y: dict[str, np.ndarray]) -> float:
    """Mean over permutations of the training labels; one alone is wide, with five latent directions to lean on."""
    found = []
    for seed in range(PERMUTATIONS):
        order = np.r_[np.random.default_rng(seed).permutation(200), 200:300]
        found.append(roc_auc_score(y["sex"][200:], predict({k: v[order] for k, v in y.items()})))
    return float(np.mean(found))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_permuted_training_labels_give_chance(name: str) -> None:
    x, y = _study()
    features = {k: _layered(v) for k, v in x.items()}
    held_out = {k: {part: a[200:] for part, a in v.items()} for k, v in features.items()}

    def predict(labels: dict[str, np.ndarray]) -> np.ndarray:
        return METHODS[name]().fit(features, labels, TASKS, splits=[SPLIT]).predict_proba(held_out)["sex"]

    # a method that sees held-out labels, or the true ones, reaches 0.85 and more
    assert abs(_permuted_auroc(predict, y) - 0.5) < 0.22
    if name != "trivial":
        assert roc_auc_score(y["sex"][200:], predict(y)) > 0.85


def test_permuted_training_labels_give_the_enecg_preset_chance() -> None:
    x, y = _study()
    lead = np.random.default_rng(1).normal(size=(300, 5000)).astype(np.float32) * 0.01

    def predict(labels: dict[str, np.ndarray]) -> np.ndarray:
        heads = EnecgHeads(epochs=20).fit({}, x, lead, labels, TASKS[:1], [SPLIT])
        return heads.predict_proba({}, x, lead, fold=0)["sex"][200:]

    assert abs(_permuted_auroc(predict, y) - 0.5) < 0.22
    assert roc_auc_score(y["sex"][200:], predict(y)) > 0.72


def test_methods_reuse_a_fit() -> None:
    x, y = _study()
    heads = EnsembleHeads(lora=False, gate_epochs=0).fit(x, y, TASKS)
    models = heads.models_
    mean = METHODS["mean"](heads=heads).fit(x, y, TASKS)
    single = SingleExpert(expert="b", heads=heads).fit(x, y, TASKS)
    stack = METHODS["stacking"](heads=heads).fit(x, y, TASKS)
    assert heads.models_ is models
    np.testing.assert_array_equal(single.predict_proba(x)["age"], heads.expert_predictions(x)["b"]["age"])
    np.testing.assert_array_equal(mean.predict_proba(x)["age"], heads.uniform_mean(x)["age"])
    assert stack.score(x, y) > 0.6


def test_stacking_on_a_loaded_fit_equals_stacking_on_the_fit_itself(tmp_path: Path) -> None:
    x, y = _study()
    rows = np.arange(300)
    x["b"][20:40] = np.nan
    splits = [(rows[:160], rows[160:200], rows[200:]), (rows[100:], rows[60:100], rows[:60])]
    heads = EnsembleHeads(lora=False, gate_epochs=0).fit(x, y, TASKS, splits=splits)
    heads.save(tmp_path)
    stacks = [
        METHODS["stacking"](heads=fit).fit(x, y, TASKS, splits=splits) for fit in (heads, EnsembleHeads.load(tmp_path))
    ]
    for task, values in stacks[0].predict_proba(x, fold=1).items():
        np.testing.assert_array_equal(values, stacks[1].predict_proba(x, fold=1)[task])
    with pytest.raises(InputError, match="fitted on 300 records, but 299"):
        METHODS["stacking"](heads=heads).fit({k: v[:299] for k, v in x.items()}, {k: v[:299] for k, v in y.items()})
