"""LoRA on frozen probes: every fold, inner model and task trained at once; written as a peft adapter.

Lives here: the batched training of y = W x + (alpha/r) B A x with W frozen (Hu et al. 2022), and its export. Not here:
the probe that gives W (`in_memory.probe`).

The adapters of different folds and tasks share no parameter, and Adam treats every parameter by itself, so training
them as one tensor gives what training them one by one gives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.heads.adamw import AdamW
from stages.heads.crossfit import Masks, paired_gain
from stages.heads.in_memory.probe import Problem
from stages.heads.targets.losses import task_losses


@dataclass(frozen=True)
class LoraOptions:
    """Settings of the low-rank stage. Rank and alpha are EnECG's."""

    rank: int = 8
    alpha: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    epochs: int = 30
    patience: int = 6
    batch_size: int = 0
    """0: an eighth of the records, at least 32 and at most 2048."""
    huber: bool = True

    @property
    def scaling(self) -> float:
        """The factor alpha / rank."""
        return self.alpha / self.rank


@dataclass
class LoraFit:
    """Adapters on coordinates, and what they give out of sample.

    Attributes
    ----------
    a, b
        [F, r, T, R] and [F, R, C]; column c of B belongs to the A of its task. Zero B where LoRA was not accepted.
    logits
        [F, n, C] out-of-sample logits (base where not accepted).
    epoch
        [F, T], 0 where the probe itself was kept.
    history
        Per epoch: out-of-sample loss, [F, T] as lists.
    """

    a: Tensor
    b: Tensor
    logits: Tensor
    epoch: Tensor
    history: list[list[list[float]]]


class Adapters:
    """A [F, M, r, T, R] and B [F, M, R, C] of every fold, model and task, on coordinates of unit mean variance."""

    def __init__(self, problem: Problem, rank: int, scaling: float, seed: int) -> None:
        n_folds, n_models, _ = problem.train.shape
        width, n_tasks = problem.z.shape[2], len(problem.blocks)
        generator = torch.Generator().manual_seed(seed)
        bound = width**-0.5
        start = (torch.rand(1, 1, width, n_tasks, rank, generator=generator) * 2 - 1) * bound
        self.a = start.expand(n_folds, n_models, -1, -1, -1).to(problem.z).contiguous().requires_grad_()
        n_cols = problem.blocks[-1].stop
        self.b = problem.z.new_zeros(n_folds, n_models, rank, n_cols).requires_grad_()
        self.blocks, self.input_scale, self.scaling = problem.blocks, width**0.5, scaling

    def delta(self, z: Tensor) -> Tensor:
        """(alpha/r) B A x for coordinates [F, b, r]: [F, M, b, C]."""
        n_folds, n_models, width = self.a.shape[:3]
        flat = self.a.permute(0, 2, 1, 3, 4).reshape(n_folds, width, -1)
        hidden = (z * self.input_scale) @ flat
        hidden = hidden.view(n_folds, z.shape[1], n_models, *self.a.shape[3:]).permute(0, 2, 3, 1, 4)
        parts = [hidden[:, :, t] @ self.b[..., block.columns] for t, block in enumerate(self.blocks)]
        return torch.cat(parts, -1) * self.scaling


def fit_lora(problem: Problem, base: Tensor, masks: Masks, options: LoraOptions, seed: int) -> LoraFit:
    """Train adapters from zero; keep each fold and task's best epoch, judged out of sample.

    Parameters
    ----------
    base
        [F, M, n, C] logits of the frozen probes.

    Notes
    -----
    Epoch 0, the probe, is a candidate; a later epoch replaces it only where the paired improvement of the out-of-sample
    loss exceeds one standard error, so that forty validation records do not pick noise.
    """
    adapters = Adapters(problem, options.rank, options.scaling, seed)
    optimiser = AdamW([adapters.a, adapters.b], options.learning_rate, options.weight_decay)
    judge = Judge(problem, masks, masks.out_of_sample(base), options.huber)
    rows = torch.nonzero(problem.train[:, 0].amax(0)).ravel()
    batch = batch_size(options.batch_size, len(rows))
    generator = torch.Generator().manual_seed(seed + 1)
    for epoch in range(1, options.epochs + 1):
        for part in rows[torch.randperm(len(rows), generator=generator)].split(batch):
            _training_loss(problem, adapters, base, part, options.huber).backward()
            optimiser.step()
        with torch.no_grad():
            logits = masks.out_of_sample(base + adapters.delta(problem.z))
            judge.see(epoch, logits, adapters.a[:, 0], adapters.b[:, 0])
        if epoch - judge.last_better >= options.patience:
            break
    return judge.verdict(adapters.a.detach()[:, 0], adapters.b.detach()[:, 0], adapters.input_scale)


def batch_size(asked: int, n_train: int) -> int:
    """Choose a mini-batch's records: as asked, or (0) an eighth of those to train on, at least 32, at most 2048."""
    return asked or int(min(2048, max(32, n_train // 8)))


def _training_loss(problem: Problem, adapters: Adapters, base: Tensor, rows: Tensor, huber: bool) -> Tensor:
    """Sum over folds, models and tasks of the batch's mean loss."""
    logits = base[:, :, rows] + adapters.delta(problem.z[:, rows])
    weight = problem.weight[:, None, rows] * problem.train[:, :, rows, None]
    loss, w = task_losses(logits, problem.y[:, None, rows], weight, problem.blocks, huber=huber)
    return ((loss * w).sum(2) / w.sum(2).clamp_min(1e-9)).sum()


class Judge:
    """Remembers the best epoch of every fold and task."""

    def __init__(self, problem: Problem, masks: Masks, base: Tensor, huber: bool) -> None:
        self.problem, self.huber, self.base = problem, huber, base
        self.judged = problem.weight * masks.judged[..., None]
        self.base_loss, self.row_weight = task_losses(base, problem.y, self.judged, problem.blocks, huber=huber)
        shape = (base.shape[0], len(problem.blocks))
        self.best = torch.zeros(shape)
        self.accepted = torch.zeros(shape, dtype=torch.bool)
        self.epoch = torch.zeros(shape, dtype=torch.long)
        self.a: Tensor | None = None
        self.b: Tensor | None = None
        self.logits, self.last_better = base.clone(), 0
        total = self.row_weight.sum(1).clamp_min(1e-9)
        self.history = [((self.base_loss * self.row_weight).sum(1) / total).tolist()]

    def see(self, epoch: int, logits: Tensor, a: Tensor, b: Tensor) -> None:
        """Judge one epoch by its out-of-sample logits [F, n, C]; A [F, r, T, R] and B [F, R, C] are model 0's."""
        loss, _ = task_losses(logits, self.problem.y, self.judged, self.problem.blocks, huber=self.huber)
        total = self.row_weight.sum(1).clamp_min(1e-9)
        self.history.append(((loss * self.row_weight).sum(1) / total).tolist())
        gain = paired_gain(self.base_loss, loss, self.row_weight)
        better = gain.mean > self.best
        if not bool(better.any()):
            return
        self.best = torch.where(better, gain.mean, self.best)
        self.accepted = torch.where(better, gain.accepted, self.accepted)
        self.epoch = torch.where(better, epoch, self.epoch)
        self.last_better = epoch
        a, b = a.detach(), b.detach()
        self.a = torch.where(better[:, None, :, None], a, a if self.a is None else self.a)
        columns = self._columns(better)
        self.b = torch.where(columns[:, None], b, torch.zeros_like(b) if self.b is None else self.b)
        self.logits = torch.where(columns[:, None], logits, self.logits)

    def verdict(self, last_a: Tensor, last_b: Tensor, input_scale: float) -> LoraFit:
        """Apply the acceptance rule and put the input scale into A."""
        a, b = last_a, torch.zeros_like(last_b)
        columns = self._columns(self.accepted)
        if self.a is not None and self.b is not None:
            a, b = self.a, torch.where(columns[:, None], self.b, 0.0)
        logits = torch.where(columns[:, None], self.logits, self.base)
        epoch = torch.where(self.accepted, self.epoch, 0)
        return LoraFit(a * input_scale, b, logits, epoch, self.history)

    def _columns(self, per_task: Tensor) -> Tensor:
        """Repeat [F, T] over each task's columns: [F, C]."""
        sizes = torch.tensor([b.stop - b.start for b in self.problem.blocks])
        return per_task.repeat_interleave(sizes, dim=1)
