"""The gate alone, on experts' outputs made for the purpose: `top_k`, `entropy`, `load_balance`."""

import numpy as np
import pytest
import torch

from stages.heads import EnsembleHeads
from stages.heads.crossfit import make_masks
from stages.heads.gate.training import GateData, GateFit, GateOptions, fit_gate
from stages.heads.gate.weights import FoldGate
from stages.heads.targets.tasks import TaskSpec, layout

BLOCKS = layout([TaskSpec("y", "binary")])
Study = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Experts' logits [n, E], the gate's input [n, G], labels [n]."""


def _quarters(n: int, seed: int) -> Study:
    """Four experts, each right on the records that the gate's input marks as its own, noise elsewhere."""
    rng = np.random.default_rng(seed)
    own, y = rng.integers(0, 4, n), rng.integers(0, 2, n)
    logits = 2 * rng.normal(size=(n, 4))
    logits[np.arange(n), own] = 4.0 * y - 2
    return logits.astype(np.float32), np.eye(4, dtype=np.float32)[own], y.astype(np.float32)


def _equals(n: int, seed: int) -> Study:
    """Six experts as good as each other, with errors of their own; the gate's input says nothing."""
    rng = np.random.default_rng(seed)
    u = rng.normal(size=n)
    y = rng.random(n) < 1 / (1 + np.exp(-2 * u))
    logits = u[:, None] + 1.2 * rng.normal(size=(n, 6))
    return logits.astype(np.float32), rng.normal(size=(n, 3)).astype(np.float32), y.astype(np.float32)


def _halves(n: int, seed: int) -> Study:
    """Each half of the records, which the gate's input marks, has two experts: one good, one a little less so."""
    rng = np.random.default_rng(seed)
    half, u = rng.integers(0, 2, n), 2 * rng.normal(size=n)
    logits = 2 * rng.normal(size=(n, 4))
    for expert, noise in enumerate((0.7, 1.0, 0.7, 1.0)):
        own = half == expert // 2
        logits[own, expert] = u[own] + noise * rng.normal(size=own.sum())
    return logits.astype(np.float32), np.eye(2, dtype=np.float32)[half], (u > 0).astype(np.float32)


def _fit(study: Study, **options: float) -> GateFit:
    logits, inputs, y = study
    n, n_experts = logits.shape
    nothing = np.empty(0, np.int64)
    data = GateData(
        torch.from_numpy(logits)[None, :, :, None],
        torch.ones(n, n_experts),
        torch.from_numpy(inputs)[None],
        torch.zeros(1, n, 1, 0),
        torch.from_numpy(y)[None, :, None],
        torch.ones(1, n, 1),
        BLOCKS,
    )
    masks = make_masks([(np.arange(n), nothing, nothing)], n, None, 5, 0)
    return fit_gate(data, masks, GateOptions(**options), 0)  # type: ignore[arg-type]


def _weights(gate: FoldGate, study: Study) -> np.ndarray:
    return gate.weights(study[1], np.zeros((len(study[1]), 1, 0), np.float32), np.ones_like(study[0]))[:, 0]


def _log_loss(logits: np.ndarray, y: np.ndarray) -> float:
    return float((np.logaddexp(0, logits) - y * logits).mean())


@pytest.mark.parametrize("top_k", [1, 2])
def test_a_gate_of_few_experts_learns_whom_to_ask(top_k: int) -> None:
    fit, new = _fit(_quarters(800, 0), top_k=top_k, epochs=40), _quarters(2000, 1)
    weights = _weights(fit.folds[0], new)
    assert np.all((weights > 0).sum(1) == top_k)
    # the best single expert is right on five eighths
    assert np.mean(((weights * new[0]).sum(1) > 0) == new[2]) > 0.95


@pytest.mark.parametrize("top_k", [1, 2])
def test_constant_weights_are_judged_with_the_experts_that_they_keep(top_k: int) -> None:
    study = _equals(1500, 0)
    fit, new = _fit(study, top_k=top_k, epochs=0), _equals(20_000, 1)
    weights = _weights(fit.folds[0], new)
    assert np.all((weights > 0).sum(1) == top_k)
    held_out = _log_loss(fit.logits[0, :, 0].numpy(), study[2])
    # a dense mixture of the six has 0.53, two of them 0.58, one of them 0.65
    assert held_out == pytest.approx(_log_loss((weights * new[0]).sum(1), new[2]), abs=0.03)
    singles = [_log_loss(study[0][:, e], study[2]) for e in range(6)]
    assert held_out < min(singles) + (0.01 if top_k == 1 else -0.02)


def test_keeping_as_many_experts_as_there_are_changes_nothing() -> None:
    study = _quarters(300, 2)
    dense, all_kept = (_fit(study, top_k=k, epochs=5).folds[0] for k in (0, 4))
    np.testing.assert_array_equal(_weights(dense, study), _weights(all_kept, study))


def test_entropy_spreads_weights_and_negative_entropy_sharpens_them() -> None:
    study, found = _quarters(600, 3), []
    for entropy in (-0.3, 0.0, 0.3):
        fit = _fit(study, entropy=entropy, epochs=25, expert_dropout=0.0)
        assert fit.folds[0].active.all()
        w = _weights(fit.folds[0], study)
        found.append(float(-(w * np.log(np.maximum(w, 1e-12))).sum(1).mean()))
    assert found[0] < found[1] - 0.02
    assert found[1] < found[2] - 0.02


def test_load_balance_evens_the_experts_mean_weights() -> None:
    study, spread = _halves(600, 4), []
    for penalty in (0.0, 1.0):
        fit = _fit(study, load_balance=penalty, epochs=25, expert_dropout=0.0)
        assert fit.folds[0].active.all()
        load = _weights(fit.folds[0], study).mean(0)
        spread.append(float(4 * (load**2).sum() - 1))
    assert spread[1] < 0.7 * spread[0]


def test_folds_of_different_ranks_share_a_gate() -> None:
    rng = np.random.default_rng(0)
    x, y = {name: rng.normal(size=(60, 80)).astype(np.float32) for name in "ab"}, rng.normal(size=60)
    rows = np.arange(60)
    folds = [(rows[:20], rows[20:30], rows[50:]), (rows[:36], rows[36:50], rows[50:])]
    heads = EnsembleHeads(lora=False).fit(x, {"t": y}, splits=folds)
    for fold in range(2):
        assert np.isfinite(heads.predict({k: v[50:] for k, v in x.items()}, fold=fold)["t"]).all()
