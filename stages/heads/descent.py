"""Many convex problems at once, each solved in some ten passes over the records.

Lives here: limited-memory BFGS (Liu and Nocedal 1989) on whitened coordinates, batched over folds, models, penalties
and groups of columns. Not here: the losses and the coordinates (`in_memory.probe`, `blockwise.loss_pass`).

On the folds' principal axes the quadratic bound of every loss (Boehning 1992) is diagonal. Scaled by it, ridge is
solved by the first step, no step from fresh can go uphill, and the curvature left for L-BFGS to learn is near one.

A step is judged by gradients alone. The losses are convex, so a step at whose end the slope is downhill has lowered
them; a little uphill, the mean of both slopes says as much to second order. Losses would cost a third of a pass, and
in single precision they hide the last decreases.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

HISTORY, MAX_PASSES = 8, 60
TOLERANCE = 1e-3
"""Remaining decrease of the summed loss at which a problem counts as solved, per 1,000 records."""
OVERSHOOT = 0.5
"""A step is taken where the slope at its end, uphill, is at most this share of the slope at its start, downhill."""
Evaluate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Weights [F, D, k], intercepts [F, k] -> gradients of the summed losses by both."""


class Scaling(Protocol):
    """The square root P of the inverse bound: [F] symmetric maps on [F, D + 1, k], of which the intercept is last."""

    def __call__(self, x: Tensor) -> Tensor:
        """Apply P."""


class _Sums:
    """Inner products per problem: columns of one group belong together, [F, D + 1, Q * C] -> [F, Q, G]."""

    def __init__(self, groups: Tensor, device: torch.device) -> None:
        self.member = torch.nn.functional.one_hot(groups).float().to(device)

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        products = (a * b).sum(1)
        return products.view(len(a), -1, len(self.member)) @ self.member

    def spread(self, x: Tensor) -> Tensor:
        """[F, Q, G] -> [F, 1, k]."""
        return (x.to(self.member.dtype) @ self.member.T).flatten(1)[:, None]


def minimise(
    evaluate: Evaluate,
    scaling: Scaling,
    penalty: Tensor,
    start: Tensor,
    groups: Tensor,
    still: Tensor,
    limit: float,
    max_passes: int = MAX_PASSES,
) -> tuple[Tensor, Tensor, int]:
    """Minimise the summed loss + penalty/2 |W|^2 of every fold, model, penalty and group of columns.

    Parameters
    ----------
    penalty
        [F, k] with k = Q * C.
    start
        [F, D + 1, k]: P applied to it gives the weights and intercepts to start from.
    groups
        [C], the problem that a column belongs to: a multinomial task's columns are one.
    still
        bool [F, Q, G]: problems that keep their start.
    limit
        Remaining decrease of the summed loss at which a problem counts as solved.

    Returns
    -------
    Weights [F, D, k], intercepts [F, k], and the number of passes.
    """
    sums, t = _Sums(groups, start.device), start

    def slopes(at: Tensor) -> Tensor:
        w = scaling(at)
        slope, slope_b = evaluate(w[:, :-1], w[:, -1])
        return scaling(torch.cat([torch.addcmul(slope, penalty[:, None], w[:, :-1]), slope_b[:, None]], 1))

    gradient = slopes(t)
    memory = _Memory(sums, sums.dot(gradient, gradient))
    for passes in range(2, max_passes + 2):
        direction = memory.direction(gradient)
        decrease = -sums.dot(gradient, direction)
        still = still | (torch.maximum(decrease, sums.dot(gradient, gradient)) < limit)
        if bool(still.all()):
            return *_split(scaling(t)), passes - 1
        direction = direction * sums.spread(~still)
        new_gradient = slopes(t + direction)
        better = (sums.dot(new_gradient, direction) <= OVERSHOOT * decrease) & ~still
        taken = sums.spread(better)
        memory.learn(direction * taken, (new_gradient - gradient) * taken, better, still)
        t = t + direction * taken
        gradient = torch.where(taken > 0, new_gradient, gradient)
    return *_split(scaling(t)), max_passes + 1


def _split(w: Tensor) -> tuple[Tensor, Tensor]:
    return w[:, :-1].contiguous(), w[:, -1].contiguous()


class _Memory:
    """The last steps and changes of gradient of every problem; a problem whose step failed starts afresh."""

    def __init__(self, sums: _Sums, like: Tensor) -> None:
        self.sums = sums
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        self.gamma = torch.ones_like(like)

    def direction(self, gradient: Tensor) -> Tensor:
        """Two-loop recursion (Nocedal and Wright 2006, algorithm 7.4)."""
        sums, q, factors = self.sums, gradient, []
        for step, change, rho in reversed(self.pairs):
            factor = rho * sums.dot(step, q)
            q = q - sums.spread(factor) * change
            factors.append(factor)
        q = sums.spread(self.gamma) * q
        for (step, change, rho), factor in zip(self.pairs, reversed(factors), strict=True):
            q = q + sums.spread(factor - rho * sums.dot(change, q)) * step
        return -q

    def learn(self, step: Tensor, change: Tensor, better: Tensor, still: Tensor) -> None:
        """Remember a step where it was taken; forget everything where it was not."""
        curvature, length = self.sums.dot(step, change), self.sums.dot(change, change)
        known = better & (curvature > 1e-8 * length) & (length > 0)
        learnt = torch.stack([r != 0 for *_, r in self.pairs]).any(0) if self.pairs else torch.zeros_like(known)
        failed = ~better & ~still
        # a step from fresh that fails: the bound was of a sample only
        shorter = torch.where(learnt, torch.ones_like(self.gamma), self.gamma * 0.25)
        self.gamma = torch.where(failed, shorter, self.gamma)
        self.gamma = torch.where(known, curvature / length.clamp_min(1e-30), self.gamma)
        self.pairs = [(s, y, torch.where(failed, 0.0, r)) for s, y, r in self.pairs]
        rho = torch.where(known, 1 / curvature.clamp_min(1e-30), 0.0)
        self.pairs = [*self.pairs, (step, change, rho)][-HISTORY:]
