"""Telling columns: single features that alone explain much of a regression target, fitted before the probe of all.

Lives here: which columns these are (forward selection), and the small regression on them. Not here: the probe of all
features, which starts from what the telling columns say and replaces nothing of it (`in_memory.probe`), and the choice
whether that is better (`in_memory.expert`).

Why. An L2 penalty on rotated features believes beforehand that every direction counts alike. Where one column of 700 is
nearly the target itself (an RR interval among a cardiograph's measurements), the penalty that silences the noise of the
699 others shrinks that one, too. Classes have no telling columns: tried, and their probes did not gain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.heads.in_memory.probe import Problem
from stages.heads.targets.tasks import Block

MOST = 3
"""Telling columns of one target."""
LEAST_SHARE = 0.25
"""Of the variance that those before it left, what a telling column explains."""
LEAST_VARIANCE = 0.05
"""Of a standardised column, and of one beside those already chosen: less is next to constant, or a repetition."""
PRIOR = 1.0
"""Precision of a telling column's weight, in units of the summed loss, where the column has standard deviation 1."""


@dataclass(frozen=True)
class Telling:
    """What telling columns of one fold say.

    Attributes
    ----------
    columns
        [U], of the standardised features.
    weight
        [M, U, C], zeros where a column is not telling for a model's target; no intercept.
    tasks
        Numbers of the tasks that have any.
    """

    columns: np.ndarray
    weight: Tensor
    tasks: list[int]

    def logits(self, x: np.ndarray) -> Tensor:
        """Give their part of the logits, [M, n, C], of centred standardised features [n, d]."""
        return torch.einsum("nu,muc->mnc", torch.from_numpy(np.ascontiguousarray(x[:, self.columns])), self.weight)

    def only(self, tasks: list[int], blocks: tuple[Block, ...]) -> Telling | None:
        """Keep the columns of some tasks; None where these are none."""
        weight = torch.zeros_like(self.weight)
        for t in tasks:
            weight[..., blocks[t].columns] = self.weight[..., blocks[t].columns]
        used = (weight != 0).any(0).any(1)
        return Telling(self.columns[used.numpy()], weight[:, used], tasks) if bool(used.any()) else None


def find_telling(x: np.ndarray, problem: Problem) -> Telling | None:
    """Find and fit the telling columns of every model and regression target of one fold; None where there are none.

    Parameters
    ----------
    x
        [n, d] centred standardised features; each model chooses on its own training records alone.
    problem
        Of one fold (leading axis 1).
    """
    features, train = torch.from_numpy(x), problem.train[0] > 0
    fits: list[tuple[int, int, list[int], Tensor]] = []
    tasks = []
    for t, block in enumerate(problem.blocks):
        c = block.start
        known = problem.weight[0, :, c] > 0
        if block.task.kind != "regression" or not bool((train & known).any(1).all()):
            continue
        found = _of_target(features, problem.y[0, :, c], train & known)
        fits += [(m, c, *fit) for m, fit in enumerate(found)]
        tasks += [t] if any(chosen for chosen, _ in found) else []
    columns = sorted({column for *_, chosen, _ in fits for column in chosen})
    if not columns:
        return None
    weight = torch.zeros(len(train), len(columns), problem.y.shape[2])
    for m, c, chosen, values in fits:
        weight[m, [columns.index(column) for column in chosen], c] = values
    return Telling(np.array(columns), weight, tasks)


def _of_target(x: Tensor, y: Tensor, train: Tensor) -> list[tuple[list[int], Tensor]]:
    """Choose and fit every model's columns of one target y [n]; `train` bool [M, n].

    The first column of all models comes from sums over cells of records that train the same models, so that the
    features are read once.
    """
    rows = torch.nonzero(train.any(0)).ravel()
    cells, cell = torch.unique(train[:, rows], dim=1, return_inverse=True)
    parts = [_sums(x[rows[cell == k]], y[rows[cell == k]]) for k in range(cells.shape[1])]
    sums = [cells.float() @ torch.stack(part) for part in zip(*parts, strict=True)]
    n, sx, sxx, sxy, sy, syy = sums
    xy, xx, yy = sxy - sx * sy / n, sxx - sx**2 / n, syy - sy**2 / n
    share = torch.where(xx > LEAST_VARIANCE * n, xy**2 / (xx * yy).clamp_min(1e-9), 0.0)
    out: list[tuple[list[int], Tensor]] = []
    for m in range(len(train)):
        telling = bool(share[m].max() >= least_share(int(n[m]), x.shape[1]))
        training = torch.nonzero(train[m]).ravel()
        out.append(_forward(x[training], y[training], int(share[m].argmax())) if telling else ([], torch.zeros(0)))
    return out


def least_share(n_records: int, n_columns: int) -> float:
    """Give the share of the variance left that a column has to explain.

    At least `LEAST_SHARE`, and so much that not even the best of as many columns of noise would (the extended Bayesian
    information criterion, Chen and Chen 2008).
    """
    return max(LEAST_SHARE, 1 - math.exp(-(math.log(n_records) + 2 * math.log(n_columns)) / n_records))


def _sums(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    one = torch.tensor([float(len(x))])
    return one, x.sum(0), (x * x).sum(0), y @ x, y.sum()[None], (y @ y)[None]


def _forward(x: Tensor, y: Tensor, first: int) -> tuple[list[int], Tensor]:
    """Add columns while each explains enough of what is left (Gram-Schmidt); return them and their weights."""
    x, rest = x - x.mean(0), y - y.mean()
    variance, chosen, basis = (x * x).sum(0), [first], torch.zeros(0, len(x))
    floor, least = LEAST_VARIANCE * variance.clamp_min(len(x)), least_share(len(x), x.shape[1])
    while len(chosen) < MOST:
        q = x[:, chosen[-1]] - basis.T @ (basis @ x[:, chosen[-1]])
        q = q / q.norm()
        basis, rest, variance = torch.cat([basis, q[None]]), rest - q * (q @ rest), variance - (q @ x) ** 2
        share = torch.where(variance > floor, (rest @ x) ** 2 / (variance * (rest @ rest)).clamp_min(1e-9), 0.0)
        if float(share.max()) < least:
            break
        chosen.append(int(share.argmax()))
    z = x[:, chosen].double()
    gram = z.T @ z + PRIOR * torch.eye(len(chosen), dtype=torch.double)
    return chosen, torch.linalg.solve(gram, z.T @ (y - y.mean()).double()).float()
