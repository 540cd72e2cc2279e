"""Class weights: what they do to probabilities is undone, on unweighted held-out labels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from stages.heads import EnsembleHeads, TaskSpec
from stages.heads.baselines.methods import METHODS
from stages.heads.targets.calibration import ece
from stages.heads.targets.class_weights import fit_intercepts, weight_shift
from stages.heads.targets.losses import balance_weights
from stages.heads.targets.tasks import layout

TASKS = (
    TaskSpec("rare", "binary"),
    TaskSpec("rhythm", "multiclass", tuple("abc")),
    TaskSpec("found", "multilabel", ("x", "y")),
    TaskSpec("age", "regression"),
)


def _study(n: int, seed: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Two experts; classes of 7 % (binary), 7 to 75 % (multiclass), 6 and 30 % (multilabel)."""
    rng, maps = np.random.default_rng(seed), np.random.default_rng(99)
    u = rng.normal(size=(n, 4))
    x = {
        name: (u @ maps.normal(size=(4, width)) + rng.normal(size=(n, width))).astype(np.float32)
        for name, width in (("a", 20), ("b", 12))
    }
    classes = np.c_[2 + u[:, 1], 2 * u[:, 2] - 0.5, -1.5 - u[:, 1]]
    y = {
        "rare": (rng.random(n) < 1 / (1 + np.exp(3.4 - 1.5 * u[:, 0]))).astype(float),
        "rhythm": np.argmax(classes + rng.gumbel(size=(n, 3)), 1),
        "found": (rng.random((n, 2)) < 1 / (1 + np.exp(np.array([3.0, 1.0]) - u[:, :2]))).astype(float),
        "age": 60 + 10 * u[:, 3],
    }
    return x, y


def _columns(p: dict[str, np.ndarray], y: dict[str, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    rhythm = [(p["rhythm"][:, k], (y["rhythm"] == k).astype(float)) for k in range(3)]
    return [(p["rare"], y["rare"]), *rhythm, *((p["found"][:, k], y["found"][:, k]) for k in range(2))]


def test_balanced_heads_give_calibrated_probabilities(tmp_path: Path) -> None:
    (x, y), (new, truth) = _study(900, 0), _study(3000, 1)
    options: dict[str, Any] = {"lora_epochs": 4, "gate_epochs": 6, "inner_folds": 3}
    heads = EnsembleHeads(balanced=True, **options).fit(x, y, TASKS)
    stacking = METHODS["stacking"](heads=heads).fit(x, y, TASKS)
    p = heads.predict_proba(new)
    for found in (p, *heads.expert_predictions(new).values(), stacking.predict_proba(new)):
        for probability, outcome in _columns(found, truth):
            assert probability.mean() == pytest.approx(outcome.mean(), abs=0.045)
            assert ece(probability, outcome) < 0.05
    # an intercept changes no order: the weights cost or bring nothing else here
    plain = EnsembleHeads(**options).fit(x, y, TASKS).predict_proba(new)
    for (ours, outcome), (theirs, _) in zip(_columns(p, truth), _columns(plain, truth), strict=True):
        assert roc_auc_score(outcome, ours) == pytest.approx(roc_auc_score(outcome, theirs), abs=0.015)
    again = EnsembleHeads.load(heads.save(tmp_path)).predict_proba(new)
    assert all(np.array_equal(again[name], p[name]) for name in p)


def test_intercepts_take_back_exactly_what_the_weights_add() -> None:
    rng = np.random.default_rng(3)
    true = 1.5 * rng.normal(size=6000) - 3
    y = torch.from_numpy((rng.random(6000) < 1 / (1 + np.exp(-true))).astype(np.float32))[:, None]
    blocks, known = layout([TaskSpec("rare", "binary")]), torch.ones(6000, 1)
    weight = balance_weights(y, known, known[:, 0], blocks)
    shift = weight_shift(y[None], weight[None], blocks)
    prevalence = float(y.mean())
    assert float(shift) == pytest.approx(np.log((1 - prevalence) / prevalence), rel=1e-5)
    raw = torch.from_numpy(2 * (true + float(shift))).float()[None, :, None]  # and twice too sure
    temperature, intercept = fit_intercepts(raw, y[None], known[None], 2 * shift, blocks)
    assert float(temperature) == pytest.approx(2, rel=0.1)
    calibrated = (raw + intercept[:, None]) / temperature[:, None]
    assert float(calibrated.sigmoid().mean()) == pytest.approx(prevalence, abs=0.003)
    # without one positive, nothing but the weights speaks
    _, alone = fit_intercepts(raw, y[None], 0 * known[None], shift, blocks)
    assert float(alone) == pytest.approx(-float(shift), rel=1e-5)
