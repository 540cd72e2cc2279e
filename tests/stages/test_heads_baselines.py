"""The reference methods: one face, honest answers, chance where there is nothing to learn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cache.errors import InputError
from stages.heads import EnsembleHeads, TaskSpec
from stages.heads.baselines import METHODS, SingleExpert

TASKS = (
    TaskSpec("sex", "binary"),
    TaskSpec("age", "regression", unit="years"),
    TaskSpec("r", "multiclass", tuple("abc")),
)
NAMES = [name for name in METHODS if name not in ("pma", "gate")]


def _study(n: int = 300, *, permuted: bool = False) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Any]]:
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
    seen = {k: v.copy() for k, v in y.items()}
    if permuted:
        order = rng.permutation(200)
        for values in seen.values():
            values[:200] = values[:200][order]
    return x, y, seen


@pytest.mark.parametrize("name", NAMES)
def test_a_method_learns_what_can_be_learnt(name: str) -> None:
    x, y, _ = _study()
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


@pytest.mark.parametrize("name", NAMES)
def test_permuted_training_labels_give_chance(name: str) -> None:
    x, y, seen = _study(permuted=True)
    rows = np.arange(300)
    method = METHODS[name]().fit(x, seen, TASKS, splits=[(rows[:160], rows[160:200], rows[200:])])
    p = method.predict_proba({k: v[200:] for k, v in x.items()})
    # five latent directions: a random one may lean on the true one, but a leak would give 0.9 and more
    assert roc_auc_score(y["sex"][200:], p["sex"]) < 0.75
    assert np.abs(p["age"] - y["age"][200:]).mean() > 6


def test_methods_reuse_a_fit() -> None:
    x, y, _ = _study()
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
    x, y, _ = _study()
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
