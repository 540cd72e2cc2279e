"""Classes that are kinds of a class of another task: the child's logit gets a share of the parent's.

Lives here: the share of each task, chosen out of sample, the calibration after it, and what a fold keeps of both. Not
here: which class is whose parent (`TaskSpec.parents`), the logits before it (`gate.gated`).

A rare class has few positives to be ranked by, and often none in a fold. Its parent (the subclass of a statement, the
superclass of a subclass) has many, and a record without the parent does not have the child either. Both logits are
calibrated ones. The parent's is centred on its mean, and is raised by its own parent's first. The share is put to a
vote, as those of the gate's members are (`gate.shares`): candidates are judged by ranking, since each has its best
slope and intercepts. The more positives a class has, the less of the share it takes: of frequent classes the parent's
logit blurs which of its children a record has. Calibration comes after: a class with positives keeps at most the
spread that its logits had, and an intercept keeps each class's mean probability.

A parent among the tasks that are not fitted gives nothing. Records without the parent's label count as all others do:
its logit is read, not its label.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter

import numpy as np
import torch
from torch import Tensor

from cache.errors import InputError
from stages.heads.gate.shares import PRIOR, at_its_best, equal_classes, vote
from stages.heads.targets.losses import column_losses
from stages.heads.targets.tasks import Block

SHARES = (0.0, 0.1, 0.25, 0.5)
"""Of the parent's logit, for a class without positives, to choose from; a whole parent ranks no better and costs
calibration."""
MIDDLE = 0.25
"""Where the weak prior on the share has its middle: being somebody's child is knowledge, not chance."""
HALF_AT = 10.0
"""Positives of a class with which it takes half of the share: what has records of its own needs less of its parent."""
INTERCEPT_STEPS = 20


@dataclass(frozen=True)
class FoldHierarchy:
    """One fold's step from calibrated logits to those raised by parents: `logits @ weight + bias`, [C, C] and [C]."""

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Raise calibrated logits [n, C]; a row of NaN stays one."""
        # In double: the last bits of a single-precision product depend on threads and on the other rows.
        raised = logits.astype(np.float64) @ self.weight.astype(np.float64) + self.bias
        return np.asarray(raised.astype(np.float32))


@dataclass(frozen=True)
class HierarchyFit:
    """The steps per fold, the raised held-out logits [F, n, C], and task -> share of each fold."""

    folds: list[FoldHierarchy]
    logits: Tensor
    shares: dict[str, list[float]]


def fit_hierarchy(logits: Tensor, y: Tensor, known: Tensor, blocks: tuple[Block, ...]) -> HierarchyFit | None:
    """Choose each task's share of its parents' logits out of sample.

    Parameters
    ----------
    logits, y, known
        Calibrated held-out logits and labels, [F, n, C]; `known` 0 leaves a label out.

    Returns
    -------
    None where no task has a parent among `blocks`.

    Raises
    ------
    InputError
        Tasks that are each other's parents.
    """
    parents = parent_columns(blocks)
    if not parents:
        return None
    n_folds, _, n_columns = logits.shape
    raising = _Raising(
        torch.eye(n_columns, dtype=torch.double).repeat(n_folds, 1, 1),
        torch.zeros(n_folds, n_columns, dtype=torch.double),
        logits.double().clone(),
    )
    shares = {}
    for block in parents_first(blocks):
        if block.task.name in parents:
            step = _TaskStep(raising.logits, y, known, block, parents[block.task.name])
            share = step.choose()
            shares[block.task.name] = [round(value, 6) for value in share.tolist()]
            step.raise_by(share, raising)
    folds = [
        FoldHierarchy(w.float().numpy().copy(), b.float().numpy().copy())
        for w, b in zip(raising.weight, raising.bias, strict=True)
    ]
    # by the very function that predicts, so that limits and thresholds are chosen from the bits that it gives
    raised = [torch.from_numpy(fold(part.numpy())) for fold, part in zip(folds, logits, strict=True)]
    return HierarchyFit(folds, torch.stack(raised), shares)


def parent_columns(blocks: tuple[Block, ...]) -> dict[str, Tensor]:
    """Task -> [C, its columns] that takes the mean of each class's parents' logits; tasks without any are left out."""
    column = {
        (block.task.name, name): block.start + k
        for block in blocks
        for k, name in enumerate(block.task.yes_or_no_classes)
    }
    found = {}
    for block in blocks:
        means = torch.zeros(blocks[-1].stop, block.stop - block.start, dtype=torch.double)
        for child, task, parent in block.task.parents:
            if (task, parent) in column:
                means[column[task, parent], column[block.task.name, child] - block.start] = 1
        if means.any():
            found[block.task.name] = means / means.sum(0).clamp_min(1)
    return found


def parents_first(blocks: tuple[Block, ...]) -> list[Block]:
    """Order tasks so that each comes after those that its classes' parents belong to.

    Raises
    ------
    InputError
        Tasks that are each other's parents.
    """
    of_name = {block.task.name: block for block in blocks}
    graph = {name: {task for _, task, _ in b.task.parents if task in of_name} for name, b in of_name.items()}
    try:
        return [of_name[name] for name in TopologicalSorter(graph).static_order()]
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        raise InputError(
            f"tasks are each other's parents ({circle}): leave one of them out, or give its classes no parents"
        ) from error


@dataclass(frozen=True)
class _Raising:
    """What the tasks so far have made of the logits: `weight` [F, C, C], `bias` [F, C], `logits` [F, n, C]."""

    weight: Tensor
    bias: Tensor
    logits: Tensor


class _TaskStep:
    """One task's held-out logits and its parents'."""

    def __init__(self, logits: Tensor, y: Tensor, known: Tensor, block: Block, parents: Tensor) -> None:
        c = block.columns
        self.block, self.columns, self.parents = replace(block, start=0, stop=block.stop - block.start), c, parents
        self.y, self.known, self.child = y[..., c], known[..., c], logits[..., c]
        self.has_parent = (parents > 0).any(0)
        of_parents = logits @ parents
        counted = (self.known > 0).any(-1, keepdim=True).double()
        self.mean = (counted * of_parents).sum(1) / counted.sum(1).clamp_min(1)
        positives = (self.known * (self.y > 0)).sum(1).double()
        self.rarity = HALF_AT / (HALF_AT + positives)
        self.borrowed = self.rarity[:, None] * (of_parents - self.mean[:, None])

    def choose(self) -> Tensor:
        """Return the share of each fold, [F]: the mean of what wins the votes of resampled records."""
        blocks = (self.block,)
        alike = equal_classes(self.y, self.known, blocks)
        losses = []
        for share in SHARES:
            logits = at_its_best((self.child + share * self.borrowed).float(), self.y, alike, blocks)
            losses.append((column_losses(logits, self.y, self.block) * alike).mean(-1))
        stacked, labelled = torch.stack(losses), (self.known > 0).any(-1)
        candidates = torch.tensor(SHARES)
        prior = PRIOR * (candidates - MIDDLE) ** 2
        votes = [vote(stacked[:, f, labelled[f]], prior, candidates[:, None])[0] for f in range(len(self.y))]
        return torch.tensor(votes, dtype=torch.double)

    def raise_by(self, share: Tensor, raising: _Raising) -> None:
        """Write the task's columns of `raising`, given the share of each fold [F]."""
        raised = self.child + share[:, None, None] * self.borrowed
        changed = self.has_parent & (share[:, None] > 0)
        slope = torch.where(changed, 1 / self._widening(raised), 1.0)
        raised = raised * slope[:, None]
        offset = torch.where(changed, _same_rate(raised, self.child, self.known), 0.0)
        c = self.columns
        share = share[:, None] * self.rarity
        of_parents = share[:, None] * (raising.weight @ self.parents)
        raising.weight[..., c] = (raising.weight[..., c] + of_parents) * slope[:, None]
        of_parents = share * (raising.bias @ self.parents - self.mean)
        raising.bias[:, c] = (raising.bias[:, c] + of_parents) * slope + offset
        raising.logits[..., c] = raised + offset[:, None]

    def _widening(self, raised: Tensor) -> Tensor:
        """Spread of logits over that before, [F, C], from 1 to 5; 1 for classes without a positive, which had none."""
        positive = ((self.y > 0) & (self.known > 0)).any(1)
        ratio = _spread(raised, self.known) / _spread(self.child, self.known).clamp_min(1e-6)
        return torch.where(positive, ratio.clamp(1.0, 5.0), 1.0)


def _spread(logits: Tensor, known: Tensor) -> Tensor:
    """Return the standard deviation over known records, [F, C]."""
    total = known.sum(1).clamp_min(1)
    centred = logits - ((known * logits).sum(1) / total)[:, None]
    return ((known * centred**2).sum(1) / total).sqrt()


def _same_rate(logits: Tensor, before: Tensor, known: Tensor) -> Tensor:
    """Find intercepts [F, C] that give logits [F, n, C] the mean probability that they had before."""
    counted = known.double()
    total = counted.sum(1).clamp_min(1)
    wanted = (counted * before.sigmoid()).sum(1)
    offset = torch.zeros_like(total)
    for _ in range(INTERCEPT_STEPS):
        p = (logits + offset[:, None]).sigmoid()
        slope = (counted * p * (1 - p)).sum(1).clamp_min(1e-9)
        offset = offset + ((wanted - (counted * p).sum(1)) / slope).clamp(-1, 1)
    return offset
