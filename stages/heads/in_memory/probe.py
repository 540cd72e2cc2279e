"""The preview probe: ridge, logistic and multinomial regression for all folds, tasks and strengths in one computation.

Lives here: the rotation of features to principal axes, and the convex solver on them. Not here: standardisation
(`inputs.scaler`), the choice among strengths (`in_memory.expert`).

Why the rotation. An L2-penalised linear model is the same in any orthonormal basis, and its solution lies in the span
of the training rows. In the basis of their principal axes a record has at most min(n, d) coordinates (so 9,996 features
of 300 records cost what 300 do), and the quadratic bound of every loss used here becomes diagonal: one accelerated
gradient step preconditioned by that bound solves ridge exactly, and needs some tens of steps for logistic and
multinomial regression (Boehning 1992; Nesterov's momentum with the adaptive restart of O'Donoghue and Candes 2015).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.heads.targets.losses import curvature_bounds, residuals_
from stages.heads.targets.tasks import Block, n_columns

MAX_RANK = 1536
"""Principal axes kept where both records and features are more than this (randomised range finder)."""
STRENGTHS = tuple(10.0**k for k in (-2.75, -2.0, -1.25, -0.5, 0.25, 1.0, 1.75))
"""Penalties in units of the summed loss, for coordinates scaled so that a training record has mean squared length 1."""
CHUNK_ELEMENTS = 1 << 26
LABEL_RECORDS = 1 << 16
"""Whose labels are summed at a time."""


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
        if not axes.shape[1]:  # training records that are all alike: one axis along which nothing varies
            axes = torch.zeros(d, 1)
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


def _label_chunks(problem: Problem) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Give masks, weights and targets of some records at a time: products of all would be larger than the labels."""
    for start in range(0, problem.y.shape[1], LABEL_RECORDS):
        part = slice(start, start + LABEL_RECORDS)
        yield problem.train[:, :, part].float(), problem.weight[:, part], problem.y[:, part]


def prior_logits(problem: Problem) -> Tensor:
    """Intercept-only solution [F, M, C] with half a record of each class added: where the solver starts."""
    weight = mean = torch.zeros(())
    for train, w, y in _label_chunks(problem):
        weight = weight + torch.einsum("fmn,fnc->fmc", train, w)
        mean = mean + torch.einsum("fmn,fnc->fmc", train, w * y)
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
    strengths = strengths.expand(n_folds, -1, n_cols)
    bound, penalty = _bound(problem, strengths), _penalty(strengths, problem.z.shape[2] + 1)
    if start is None:
        shape = (n_folds, bound.shape[1], problem.train.shape[1], strengths.shape[1], n_cols)
        out = torch.zeros(shape)
        out[:, -1] = prior_logits(problem)[:, :, None]
    else:
        out = start.permute(0, 3, 1, 2, 4).contiguous()
    # a column without both classes cannot be learnt: it keeps its prior
    still = frozen_columns(problem)[:, None, :, None].expand_as(out[:, :1])
    limit = tolerance * max(1.0, problem.z.shape[1] / 1000)
    alive = torch.arange(strengths.shape[1])
    state = _State(out.clone(), out.clone(), torch.ones_like(out[:, :1]), still)
    for step in range(max_steps):
        state = _advance(problem, state, bound, penalty, limit)
        if (step + 1) % 8 == 0 or step + 1 == max_steps:
            unsolved = ~state.still.all(-1).flatten(0, 2).all(0)
            if step + 1 == max_steps or not bool(unsolved.all()):
                out[:, :, :, alive] = state.w
            if not bool(unsolved.any()):
                break
            if not bool(unsolved.all()):
                # strong penalties are solved long before weak ones: go on with those that are left
                alive, bound, penalty = alive[unsolved], bound[:, :, :, unsolved], penalty[:, :, :, unsolved]
                state = _State(*(t[:, :, :, unsolved] for t in (state.w, state.v, state.momentum, state.still)))
    return out.permute(0, 2, 3, 1, 4)


@dataclass(frozen=True)
class _State:
    """Weights, extrapolated weights, momentum and solved problems of one step; [F, r + 1 or 1, M, S, C]."""

    w: Tensor
    v: Tensor
    momentum: Tensor
    still: Tensor


def _advance(problem: Problem, state: _State, bound: Tensor, penalty: Tensor, limit: float) -> _State:
    """Take one accelerated step; a solved problem stands still, so that no solution depends on its neighbours.

    Reuses the memory of `state`, which is no longer valid afterwards: the step is limited by memory traffic.
    """
    gradient = _gradient(problem, state.v).addcmul_(penalty, state.v).masked_fill_(state.still, 0.0)
    step = gradient / bound
    decrease = torch.linalg.vecdot(gradient, step, dim=1).unsqueeze(1)
    new = state.v.sub_(step)
    change = torch.sub(new, state.w, out=state.w)
    uphill = torch.linalg.vecdot(gradient, change, dim=1).unsqueeze(1) > 0
    still = state.still | (decrease < limit)
    momentum = torch.where(uphill, 1.0, state.momentum)
    following = 0.5 * (1 + (1 + 4 * momentum**2).sqrt())
    factor = torch.where(uphill | still, 0.0, (momentum - 1) / following)
    return _State(new, change.mul_(factor).add_(new), following, still)


def _penalty(strengths: Tensor, width: int) -> Tensor:
    """Strength of every coordinate, [F, r + 1, 1, S, C]; the intercept, which is last, has none."""
    penalty = strengths[:, None, None].repeat(1, width, 1, 1, 1)
    penalty[:, -1] = 0
    return penalty


def _bound(problem: Problem, strengths: Tensor) -> Tensor:
    """Diagonal majoriser of the Hessian, [F, r + 1, 1, S, C]."""
    train = problem.train[:, 0]
    square = torch.einsum("fn,fnr->fr", train, problem.z**2)
    square = torch.cat([square, train.sum(1, keepdim=True)], 1)
    largest = (problem.weight * train[..., None]).amax(1).clamp_min(1e-6)
    curve = curvature_bounds(problem.blocks).to(square) * largest
    curve = square[:, :, None, None] * curve[:, None, None, :] + strengths[:, None]
    return curve.clamp_min(1e-9).unsqueeze(2)


def frozen_columns(problem: Problem) -> Tensor:
    """Find, bool [F, M, C], the columns of which the training rows hold no label, or one class only."""
    seen = positive = torch.zeros(())
    for train, w, y in _label_chunks(problem):
        seen = seen + torch.einsum("fmn,fnc->fmc", train, (w > 0).float())
        positive = positive + torch.einsum("fmn,fnc->fmc", train, (w > 0) * y)
    out = seen == 0
    for block in problem.blocks:
        if block.task.kind in ("binary", "multilabel"):
            c = block.columns
            out[..., c] |= (positive[..., c] == 0) | (positive[..., c] == seen[..., c])
    return out


def _gradient(problem: Problem, w: Tensor) -> Tensor:
    """Gradient of the summed loss at [F, r + 1, M, S, C], in chunks of records so that memory stays bounded."""
    n_folds, width, n_models, n_strengths, n_cols = w.shape
    flat = w.view(n_folds, width, -1)
    out = torch.zeros_like(flat)
    rows = max(1, CHUNK_ELEMENTS // max(1, n_folds * flat.shape[2]))
    for start in range(0, problem.z.shape[1], rows):
        part = slice(start, start + rows)
        z = problem.z[:, part]
        r = torch.baddbmm(flat[:, -1:], z, flat[:, :-1])
        split = r.view(n_folds, z.shape[1], n_models, n_strengths, n_cols)
        residuals_(split, problem.y[:, part, None, None], problem.blocks)
        split.mul_(
            (problem.weight[:, part, None] * problem.train[:, :, part].transpose(1, 2)[..., None])[:, :, :, None]
        )
        out[:, :-1].baddbmm_(z.transpose(1, 2), r)
        out[:, -1] += r.sum(1)
    return out.view_as(w)


def probe_logits(z: Tensor, w: Tensor) -> Tensor:
    """Logits of [F, n, r] coordinates under weights [F, M, ..., r + 1, C]: [F, M, n, ..., C]."""
    logits = torch.einsum("fnr,fm...rc->fmn...c", z, w[..., :-1, :])
    middle = w.ndim - 4
    return logits + w[..., -1, :].reshape(*w.shape[:2], 1, *w.shape[2 : 2 + middle], w.shape[-1])
