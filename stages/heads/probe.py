"""The preview probe: ridge, logistic and multinomial regression for all folds, tasks and strengths in one computation.

Lives here: the rotation of features to principal axes, and the convex solver on them. Not here: standardisation
(`scaler`), the choice among strengths (`stack`).

Why the rotation. An L2-penalised linear model is the same in any orthonormal basis, and its solution lies in the span
of the training rows. In the basis of their principal axes a record has at most min(n, d) coordinates (so 9,996 features
of 300 records cost what 300 do), and the quadratic bound of every loss used here becomes diagonal: one accelerated
gradient step preconditioned by that bound solves ridge exactly, and needs some tens of steps for logistic and
multinomial regression (Boehning 1992; Nesterov's momentum with the adaptive restart of O'Donoghue and Candes 2015).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.heads.losses import curvature_bounds, residuals
from stages.heads.tasks import Block, n_columns

MAX_RANK = 1536
"""Principal axes kept where both records and features are more than this (randomised range finder)."""
STRENGTHS = tuple(10.0**k for k in (-2.75, -2.0, -1.25, -0.5, 0.25, 1.0, 1.75))
"""Penalties in units of the summed loss, for coordinates scaled so that a training record has mean squared length 1."""
CHUNK_ELEMENTS = 1 << 26


@dataclass(frozen=True)
class Rotation:
    """Standardised features [n, d] -> coordinates [n, r] = (x - mean) @ axes, of mean squared length 1 in training."""

    mean: np.ndarray
    axes: np.ndarray

    @classmethod
    def fit(cls, x: np.ndarray, seed: int = 0) -> Rotation:
        """Fit on standardised training rows [n, d]."""
        mean = x.mean(0, dtype=np.float64).astype(np.float32)
        centred = torch.from_numpy(x - mean)
        n, d = centred.shape
        if min(n, d) > MAX_RANK:
            axes, variances = _randomised_axes(centred, seed)
        elif n <= d:
            values, u = torch.linalg.eigh((centred @ centred.T).double())
            keep = values > 1e-6 * values[-1].clamp_min(1e-12)
            values, u = values[keep], u[:, keep]
            axes, variances = (centred.T @ (u / values.sqrt()).float()), values
        else:
            values, v = torch.linalg.eigh((centred.T @ centred).double())
            keep = values > 1e-7 * values[-1].clamp_min(1e-12)
            axes, variances = v[:, keep].float(), values[keep]
        axes = axes.flip(1) / float((variances.sum() / n).sqrt().clamp_min(1e-12))
        return cls(mean, np.ascontiguousarray(axes.numpy()))

    def transform(self, x: np.ndarray) -> np.ndarray:
        """Coordinates of standardised rows."""
        return (x - self.mean) @ self.axes


def _randomised_axes(x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Leading axes by a seeded range finder with two power iterations (Halko, Martinsson and Tropp 2011)."""
    start = torch.randn(x.shape[1], MAX_RANK, generator=torch.Generator().manual_seed(seed))
    q = torch.linalg.qr(x @ start).Q
    for _ in range(2):
        q = torch.linalg.qr(x @ (x.T @ q)).Q
    small = q.T @ x
    values, u = torch.linalg.eigh((small @ small.T).double())
    keep = values > 1e-7 * values[-1]
    return small.T @ (u[:, keep] / values[keep].sqrt()).float(), values[keep]


def pad_stack(parts: list[np.ndarray]) -> Tensor:
    """Stack [n, r_f] of several folds to [F, n, max r], zeros behind; a zero coordinate keeps a zero weight."""
    width = max(p.shape[1] for p in parts)
    out = np.zeros((len(parts), parts[0].shape[0], width), np.float32)
    for f, part in enumerate(parts):
        out[f, :, : part.shape[1]] = part
    return torch.from_numpy(out)


@dataclass(frozen=True)
class Problem:
    """Everything the solver reads.

    Attributes
    ----------
    z
        [F, n, r] coordinates; rows of model 0's training mask are centred per fold.
    y, weight
        [F, n, C] targets and label weights (0: missing).
    train
        [F, M, n] training masks, one per model.
    """

    z: Tensor
    y: Tensor
    weight: Tensor
    train: Tensor
    blocks: tuple[Block, ...]

    def take(self, rows: Tensor) -> Problem:
        """Select records."""
        return Problem(self.z[:, rows], self.y[:, rows], self.weight[:, rows], self.train[:, :, rows], self.blocks)


def prior_logits(problem: Problem) -> Tensor:
    """Intercept-only solution [F, M, C] with half a record of each class added: where the solver starts."""
    weight = torch.einsum("fmn,fnc->fmc", problem.train, problem.weight)
    mean = torch.einsum("fmn,fnc->fmc", problem.train, problem.weight * problem.y)
    out = torch.zeros_like(mean)
    for block in problem.blocks:
        c = block.columns
        if block.task.kind == "regression":
            out[..., c] = mean[..., c] / weight[..., c].clamp_min(1e-9)
        elif block.task.kind == "multiclass":
            out[..., c] = (mean[..., c] + 0.5).log()
            out[..., c] -= out[..., c].mean(-1, keepdim=True)
        else:
            out[..., c] = ((mean[..., c] + 0.5) / (weight[..., c] - mean[..., c] + 0.5)).log()
    return out


def fit_path(
    problem: Problem,
    strengths: Tensor,
    *,
    start: Tensor | None = None,
    max_steps: int = 200,
    tolerance: float = 1e-3,
) -> Tensor:
    """Minimise sum_i w_i loss_i + strength/2 |W|^2 (intercept free) for every fold, model, strength and column.

    Parameters
    ----------
    strengths
        [S] for all, or [F, S, C].
    start
        [F, M, S, r + 1, C] to start from; None: intercepts alone.
    tolerance
        Remaining decrease of the summed loss at which a problem counts as solved, per 1,000 records (at least 1,000).

    Returns
    -------
    [F, M, S, r + 1, C], the intercept last.
    """
    n_folds, n_cols = problem.train.shape[0], n_columns(problem.blocks)
    strengths = strengths.reshape(1, -1, 1) if strengths.ndim == 1 else strengths
    bound = _bound(problem, strengths.expand(n_folds, -1, n_cols))
    if start is None:
        start = torch.zeros_like(bound)
        start[..., -1, :] = prior_logits(problem)[:, :, None]
    penalty = strengths[:, None, :, None].expand_as(bound).clone()
    penalty[..., -1, :] = 0
    # a column without both classes cannot be learnt: it keeps its prior
    still = _frozen_columns(problem)[:, :, None, None].expand_as(bound[..., :1, :])
    limit = tolerance * max(1.0, problem.z.shape[1] / 1000)
    out, alive = start.clone(), torch.arange(bound.shape[2])
    state = _State(start, start, torch.ones_like(bound[..., :1, :]), still)
    for step in range(max_steps):
        state = _advance(problem, state, bound, penalty, limit)
        if (step + 1) % 8 == 0 or step + 1 == max_steps:
            out[:, :, alive] = state.w
            unsolved = ~state.still.all(-1).all(-1).flatten(0, 1).all(0)
            if not bool(unsolved.any()):
                break
            # strong penalties are solved long before weak ones: go on with those that are left
            alive, bound, penalty = alive[unsolved], bound[:, :, unsolved], penalty[:, :, unsolved]
            state = _State(*(t[:, :, unsolved] for t in (state.w, state.v, state.momentum, state.still)))
    return out


@dataclass(frozen=True)
class _State:
    """Weights, extrapolated weights, momentum and solved problems of one step; [F, M, S, r + 1 or 1, C]."""

    w: Tensor
    v: Tensor
    momentum: Tensor
    still: Tensor


def _advance(problem: Problem, state: _State, bound: Tensor, penalty: Tensor, limit: float) -> _State:
    """Take one accelerated step; a solved problem stands still, so that no solution depends on its neighbours."""
    gradient = torch.where(state.still, 0.0, _gradient(problem, state.v) + penalty * state.v)
    step = gradient / bound
    still = state.still | ((gradient * step).sum(-2, keepdim=True) < limit)
    new = torch.where(still, state.w, state.v - step)
    uphill = ((state.v - new) * bound * (new - state.w)).sum(-2, keepdim=True) > 0
    momentum = torch.where(uphill, 1.0, state.momentum)
    following = 0.5 * (1 + (1 + 4 * momentum**2).sqrt())
    v = new + torch.where(uphill | still, 0.0, (momentum - 1) / following) * (new - state.w)
    return _State(new, v, following, still)


def _bound(problem: Problem, strengths: Tensor) -> Tensor:
    """Diagonal majoriser of the Hessian, [F, M, S, r + 1, C]."""
    train = problem.train[:, 0]
    square = torch.einsum("fn,fnr->fr", train, problem.z**2)
    square = torch.cat([square, train.sum(1, keepdim=True)], 1)
    largest = (problem.weight * train[..., None]).amax(1).clamp_min(1e-6)
    curve = curvature_bounds(problem.blocks).to(square) * largest
    curve = square[:, None, :, None] * curve[:, None, None, :] + strengths[:, :, None, :]
    n_models = problem.train.shape[1]
    return (curve.clamp_min(1e-9)).unsqueeze(1).expand(-1, n_models, -1, -1, -1).contiguous()


def _frozen_columns(problem: Problem) -> Tensor:
    """Find, bool [F, M, C], the columns of which the training rows hold no label, or one class only."""
    seen = torch.einsum("fmn,fnc->fmc", problem.train, (problem.weight > 0).float())
    positive = torch.einsum("fmn,fnc->fmc", problem.train, (problem.weight > 0) * problem.y)
    out = seen == 0
    for block in problem.blocks:
        if block.task.kind in ("binary", "multilabel"):
            c = block.columns
            out[..., c] |= (positive[..., c] == 0) | (positive[..., c] == seen[..., c])
    return out


def _gradient(problem: Problem, w: Tensor) -> Tensor:
    """Gradient of the summed loss, in chunks of records so that memory stays bounded."""
    n_folds, n_models, n_strengths, width, n_cols = w.shape
    flat = w.permute(0, 3, 1, 2, 4).reshape(n_folds, width, -1)
    out = torch.zeros_like(flat)
    rows = max(1, CHUNK_ELEMENTS // max(1, n_folds * flat.shape[2]))
    for start in range(0, problem.z.shape[1], rows):
        part = slice(start, start + rows)
        z = problem.z[:, part]
        logits = torch.baddbmm(flat[:, -1:], z, flat[:, :-1])
        shape = (n_folds, z.shape[1], n_models, n_strengths, n_cols)
        r = residuals(logits.view(shape), problem.y[:, part, None, None], problem.blocks)
        r = r * problem.weight[:, part, None, None] * problem.train[:, :, part].transpose(1, 2)[:, :, :, None, None]
        r = r.reshape(n_folds, z.shape[1], -1)
        out[:, :-1] += z.transpose(1, 2) @ r
        out[:, -1] += r.sum(1)
    return out.view(n_folds, width, n_models, n_strengths, n_cols).permute(0, 2, 3, 1, 4)


def probe_logits(z: Tensor, w: Tensor) -> Tensor:
    """Logits of [F, n, r] coordinates under weights [F, M, ..., r + 1, C]: [F, M, n, ..., C]."""
    logits = torch.einsum("fnr,fm...rc->fmn...c", z, w[..., :-1, :])
    middle = w.ndim - 4
    return logits + w[..., -1, :].reshape(*w.shape[:2], 1, *w.shape[2 : 2 + middle], w.shape[-1])
