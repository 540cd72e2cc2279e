"""The reference methods: one face, honest answers, chance where there is nothing to learn."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cache.errors import InputError
from stages.heads import EnsembleHeads, TaskSpec
from stages.heads.baselines.methods import METHODS, SingleExpert
from stages.heads.published.enecg_preset import EnecgHeads

TASKS = (
    TaskSpec("sex", "binary"),
    TaskSpec("age", "regression", unit="years"),
    TaskSpec("r", "multiclass", tuple("abc")),
)
NAMES = [name for name in METHODS if name not in ("pma", "attention", "gate")]


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
    assert method.n_trainable_ > 0 or name in ("mean", "knn")


def _layered(x: np.ndarray) -> dict[str, np.ndarray]:
    """Give an expert layers too, so that every method has what it reads."""
    layers, seconds = np.stack([x, 0.5 * x, x[:, ::-1]], 1), np.stack([0.5 * x, 1.5 * x, x], 1)
    return {"embedding": x, "layers": layers, "embed": x, "segments": seconds}


ROWS = np.arange(400)
SPLIT = (ROWS[:220], ROWS[220:280], ROWS[280:])
PATIENTS = ROWS // 2


def _isotropic() -> tuple[dict[str, Any], np.ndarray]:
    """Two experts of 80 directions alike in variance, of which one tells the sex; two records a patient.

    What a fit on permuted labels leans on is then nearly at right angles to what the true labels say, so that its
    AUROC stays near one half: with few directions it would lie anywhere.
    """
    rng = np.random.default_rng(0)
    u = rng.normal(size=(len(ROWS), 80))
    u[:, 0] = rng.normal(size=len(ROWS) // 2)[PATIENTS]
    parts = {"a": u[:, :50], "b": u[:, [0, *range(50, 80)]]}
    turned = {k: v @ np.linalg.qr(rng.normal(size=(v.shape[1],) * 2))[0] for k, v in parts.items()}
    return {k: v.astype(np.float32) for k, v in turned.items()}, (u[:, 0] > 0).astype(float)


def _permuted_auroc(predict: Callable[[np.ndarray], np.ndarray], y: np.ndarray, permutations: int) -> float:
    """Mean AUROC on the test records over permutations of the other patients' labels, each also turned round.

    The test records keep their true labels. What a permutation happens to have in common with the truth, its opposite
    has against it, so that only what is learnt from the test records' own labels is left.
    """
    found = []
    for seed in range(permutations):
        order = np.random.default_rng(seed).permutation(SPLIT[2][0] // 2)
        permuted = y[: SPLIT[2][0]].reshape(-1, 2)[order].ravel()
        both = (np.r_[labels, y[SPLIT[2]]] for labels in (permuted, 1 - permuted))
        found += [roc_auc_score(y[SPLIT[2]], predict(labels)) for labels in both]
    return float(np.mean(found))


# a probe head's random start outlives permuted labels: see test_heads_probe_head, over many starts
@pytest.mark.parametrize("name", [*sorted(set(METHODS) - {"probe_head"}), "expert:a", "expert:b"])
def test_permuted_training_labels_give_chance(name: str) -> None:
    x, y = _isotropic()
    features = {k: _layered(v) for k, v in x.items()}
    held_out = {k: {part: a[SPLIT[2]] for part, a in v.items()} for k, v in features.items()}

    def predict(labels: np.ndarray) -> np.ndarray:
        single = name.startswith("expert:")
        method = SingleExpert(expert=name.removeprefix("expert:")) if single else METHODS[name]()
        method.fit(features, {"sex": labels}, TASKS[:1], splits=[SPLIT], groups=PATIENTS)
        return np.asarray(method.predict_proba(held_out)["sex"])

    # 20 of the 120 test records among the training records give 0.63, all of them as validation records 0.54
    assert abs(_permuted_auroc(predict, y, 1 if name in ("full_rank", "pma", "attention") else 2) - 0.5) < 0.03
    if name != "trivial":
        assert roc_auc_score(y[SPLIT[2]], predict(y)) > 0.75


def test_permuted_training_labels_give_the_enecg_preset_chance() -> None:
    x, y = _isotropic()
    lead = np.random.default_rng(1).normal(size=(len(ROWS), 5000)).astype(np.float32) * 0.01

    def predict(labels: np.ndarray) -> np.ndarray:
        heads = EnecgHeads(epochs=20).fit({}, x, lead, {"sex": labels}, TASKS[:1], [SPLIT], PATIENTS)
        return np.asarray(heads.predict_proba({}, x, lead, fold=0)["sex"][SPLIT[2]])

    assert abs(_permuted_auroc(predict, y, 1) - 0.5) < 0.05
    assert roc_auc_score(y[SPLIT[2]], predict(y)) > 0.6


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
