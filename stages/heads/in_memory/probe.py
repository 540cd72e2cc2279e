"""The preview probe: ridge, logistic, multinomial and Cox regression for all folds, tasks and strengths at once.

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

from stages.heads.descent import minimise
from stages.heads.targets.losses import residuals_, slopes
from stages.heads.targets.tasks import Block, layout, n_columns

FULL_RANK, MAX_RANK = 768, 1536
"""Principal axes kept: all where there are so few; else half as many as training records, between the two. The other
half holds some 2 % of the variance of wide features, and doubles the work."""
EXACT_RANK, DOUBLE_RANK = 4096, 512
"""With so many records or features or fewer all axes are computed; in double precision with fewer still."""
STRENGTHS = tuple(10.0**k for k in (-2.75, -2.0, -1.25, -0.5, 0.25, 1.0, 1.75))
"""Penalties in units of the summed loss, for coordinates scaled so that a training record has mean squared length 1."""
CURVATURE_FLOOR = 1e-3
"""Least second derivative of a column that the steps are scaled by; a sure start would make them endless."""
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
        kept = min(MAX_RANK, max(FULL_RANK, n // 2))
        if min(n, d) > EXACT_RANK:
            axes, variances = _randomised_axes(centred, seed)
        elif n <= d:
            values, u = _leading(centred @ centred.T, kept)
            axes, variances = centred.T @ (u / values.sqrt()), values
        else:
            variances, axes = _leading(centred.T @ centred, kept)
        if not axes.shape[1]:  # training records that are all alike: one axis along which nothing varies
            axes = torch.zeros(d, 1)
        axes = axes.flip(1) / float((variances.sum() / n).sqrt().clamp_min(1e-12))
        return cls(mean, np.ascontiguousarray(axes.numpy()))

    def transform(self, x: np.ndarray) -> np.ndarray:
        """Coordinates of standardised rows."""
        return (x - self.mean) @ self.axes


def _leading(gram: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues and -vectors above rounding, ascending, at most `kept`; in double where that is cheap."""
    values, vectors = torch.linalg.eigh(gram.double() if len(gram) <= DOUBLE_RANK else gram)
    least = 1e-6 if len(gram) <= DOUBLE_RANK else 1e-5
    keep = values > least * values[-1].clamp_min(1e-12)
    keep[: max(0, len(values) - kept)] = False
    return values[keep].float(), vectors[:, keep].float()


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
        if block.task.kind == "survival":
            continue  # Cox's model has no intercept
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
    max_steps: int = 60,
    tolerance: float = 1e-3,
) -> Tensor:
    """Minimise sum_i w_i loss_i + strength/2 |W|^2 (intercept free) for every fold, model, strength and column.

    Parameters
    ----------
    strengths
        [S] for all, or [F, S, C].
    start
        [F, M, S, r + 1, C] to start from; None: intercepts alone, and then from each stronger penalty's solution.
    tolerance
        Remaining decrease of the summed loss at which a problem counts as solved, per 1,000 records (at least 1,000).

    Returns
    -------
    [F, M, S, r + 1, C], the intercept last.
    """
    n_folds, n_models, _ = problem.train.shape
    strengths = strengths.reshape(1, -1, 1) if strengths.ndim == 1 else strengths
    strengths = strengths.expand(n_folds, -1, n_columns(problem.blocks))
    out = torch.zeros(n_folds, n_models, strengths.shape[1], problem.z.shape[2] + 1, strengths.shape[2])
    for f in range(n_folds):
        solver = FoldSolver(problem, f, tolerance=tolerance, max_passes=max_steps)
        # from strong to weak: a strong penalty's solution is found from nothing, and a weak one's from there
        order = strengths[f].amax(1).argsort(descending=True).tolist()
        current = solver.intercepts
        for s in order:
            current = solver.solve(strengths[f, s], current if start is None else start[f, :, s])
            out[f, :, s] = current
    return out


class FoldSolver:
    """The convex problems of one fold on its own training rows.

    Parameters
    ----------
    offset
        [M, n, C] logits that every model starts from, beside what is learnt.

    Attributes
    ----------
    intercepts
        [M, r + 1, C]: the solution without features.
    """

    def __init__(
        self,
        problem: Problem,
        f: int,
        *,
        offset: Tensor | None = None,
        tolerance: float = 1e-3,
        max_passes: int = 60,
    ) -> None:
        part = slice(f, f + 1)
        one = Problem(problem.z[part], problem.y[part], problem.weight[part], problem.train[part], problem.blocks)
        self.frozen, prior = frozen_columns(one)[0], prior_logits(one)[0]
        rows = torch.nonzero(one.train[0].amax(0) > 0).ravel()
        self.z, self.y, self.weight = one.z[0, rows], one.y[0, rows], one.weight[0, rows]
        self.train = one.train[0][:, rows].T.contiguous()
        self.blocks = problem.blocks
        self.offset = None if offset is None else offset[:, rows].transpose(0, 1).contiguous()
        self.intercepts = torch.cat([torch.zeros(*prior.shape[:1], self.z.shape[1], prior.shape[1]), prior[:, None]], 1)
        self.square = torch.cat([self.z**2, torch.ones(len(self.z), 1)], 1)
        self.limit, self.max_passes = tolerance * max(1.0, problem.z.shape[1] / 1000), max_passes

    def solve(
        self, strengths: Tensor, start: Tensor, models: list[int] | None = None, tasks: list[int] | None = None
    ) -> Tensor:
        """Solve some models' problems of some tasks; the rest of `start` is returned as it is.

        Parameters
        ----------
        strengths
            [C].
        start
            [M, r + 1, C].
        models, tasks
            None: all.
        """
        models = list(range(len(start))) if models is None else models
        chosen = [self.blocks[t] for t in (range(len(self.blocks)) if tasks is None else tasks)]
        columns = torch.cat([torch.arange(b.start, b.stop) for b in chosen])
        work = _FoldLoss(self, columns, layout([b.task for b in chosen]), models)
        penalty = strengths[columns].repeat(len(models))
        curvature = self._curvature(start[models[0]][:, columns], columns, work.blocks, models[0])
        bound = curvature.repeat(1, len(models))
        bound[:-1] += penalty
        scaling = _Diagonal(bound.clamp_min(1e-9).rsqrt()[None])
        at = start[models][:, :, columns].permute(1, 0, 2).flatten(1)[None]
        still = self.frozen[models][:, columns].float() @ work.member > 0
        weight, bias, _ = minimise(
            work, scaling, penalty[None], at / scaling.root, work.groups, still[None], self.limit, self.max_passes
        )
        found = torch.cat([weight[0], bias], 0).view(self.square.shape[1], len(models), len(columns)).permute(1, 0, 2)
        out = start.clone()
        out[torch.tensor(models)[:, None, None], torch.arange(self.square.shape[1])[:, None], columns] = found
        return out

    def _curvature(self, start: Tensor, columns: Tensor, blocks: tuple[Block, ...], model: int) -> Tensor:
        """Second derivatives of the summed losses along every coordinate, at weights `start` [r + 1, C]."""
        weight = self.weight[:, columns] * self.train[:, :1]
        logits = torch.addmm(start[-1], self.z, start[:-1])
        if self.offset is not None:
            logits += self.offset[:, model, columns]
        _, curve = slopes(logits, self.y[:, columns], blocks, weight)
        return self.square.T @ (curve.clamp_min(CURVATURE_FLOOR) * weight)


@dataclass(frozen=True)
class _Diagonal:
    """Scaling along the coordinates: `root` [1, r + 1, k]."""

    root: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return self.root * x


class _FoldLoss:
    """Gradients of one fold's summed losses, as `descent.minimise` asks for them."""

    def __init__(self, fold: FoldSolver, columns: Tensor, blocks: tuple[Block, ...], models: list[int]) -> None:
        self.z, self.blocks, self.y = fold.z, blocks, fold.y[:, None, columns]
        self.weight = fold.weight[:, None, columns] * fold.train[:, models, None]
        self.offset = None if fold.offset is None else fold.offset[:, models][..., columns]
        self.groups = problem_groups(blocks)
        self.member = torch.nn.functional.one_hot(self.groups).float()

    def __call__(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        logits = torch.addmm(bias, self.z, weight[0]).view(self.weight.shape)
        if self.offset is not None:
            logits += self.offset
        residuals_(logits, self.y, self.blocks, self.weight, axis=0)
        flat = logits.mul_(self.weight).flatten(1)
        return (self.z.T @ flat)[None], flat.sum(0)[None]


def problem_groups(blocks: tuple[Block, ...]) -> Tensor:
    """Give the number of every column's convex problem, [C]; a multinomial task's columns share theirs."""
    groups: list[int] = []
    for block in blocks:
        size, start = block.stop - block.start, max(groups, default=-1) + 1
        groups += [start] * size if block.task.kind == "multiclass" else list(range(start, start + size))
    return torch.tensor(groups)


def frozen_columns(problem: Problem) -> Tensor:
    """Find, bool [F, M, C], the columns of which the training rows hold no label, one class only, or no event."""
    seen = positive = torch.zeros(())
    for train, w, y in _label_chunks(problem):
        seen = seen + torch.einsum("fmn,fnc->fmc", train, (w > 0).float())
        positive = positive + torch.einsum("fmn,fnc->fmc", train, (w > 0) * y.clamp_min(0))
    out = seen == 0
    for block in problem.blocks:
        if block.task.kind in ("binary", "multilabel"):
            c = block.columns
            out[..., c] |= (positive[..., c] == 0) | (positive[..., c] == seen[..., c])
        elif block.task.kind == "survival":
            out[..., block.columns] |= positive[..., block.columns] == 0
    return out


def probe_logits(z: Tensor, w: Tensor) -> Tensor:
    """Logits of [F, n, r] coordinates under weights [F, M, ..., r + 1, C]: [F, M, n, ..., C]."""
    logits = torch.einsum("fnr,fm...rc->fmn...c", z, w[..., :-1, :])
    middle = w.ndim - 4
    return logits + w[..., -1, :].reshape(*w.shape[:2], 1, *w.shape[2 : 2 + middle], w.shape[-1])
