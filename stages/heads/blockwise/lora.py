"""LoRA on frozen probes with many records: mini-batches of shuffled blocks, every fold, model and task in one product.

Lives here: the training. Not here: what an adapter is, and the rule by which it is accepted (`in_memory.lora`).

For a task of one column, x (A B) needs rank times the work of x times the product A B, which is one column; and both
gradients follow from x' R alone: dA = x' R B', dB = A' x' R. So a step is one product of the batch with all folds'
effective weights, and one of its transpose with the residuals.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.heads.adamw import AdamW
from stages.heads.blockwise.blocks import Blocks
from stages.heads.blockwise.coordinates import FoldGradients, FoldMaps, RecordBlock
from stages.heads.blockwise.loss_pass import Judges, Labels
from stages.heads.in_memory.lora import Judge, LoraFit, LoraOptions, batch_size
from stages.heads.in_memory.probe import Problem
from stages.heads.targets.losses import task_losses


class WideAdapters:
    """A [F, M, D, T, R] and B [F, M, R, C] on the folds' standardised features, beside their frozen base.

    Parameters
    ----------
    base
        Weights [F, D, M * C] and intercepts [F, M * C].
    """

    input_scale = 1.0

    def __init__(self, blocks: Blocks, labels: Labels, base: tuple[Tensor, Tensor], options: LoraOptions, seed: int):
        self.scale, self.columns, self.base, self.scaling = blocks.scale, labels.blocks, base, options.scaling
        n_folds, self.n_models, _ = labels.train.shape
        width, n_tasks = self.scale.width, len(labels.blocks)
        generator = torch.Generator().manual_seed(seed)
        start = (torch.rand(1, 1, width, n_tasks, options.rank, generator=generator) * 2 - 1) * width**-0.5
        device = self.scale.device
        self.a = start.expand(n_folds, self.n_models, -1, -1, -1).contiguous().to(device).requires_grad_()
        n_cols = labels.blocks[-1].stop
        self.b = torch.zeros(n_folds, self.n_models, options.rank, n_cols, device=device).requires_grad_()

    @torch.no_grad()
    def maps(self) -> FoldMaps:
        """Join base and adapters into one linear map."""
        added = torch.cat([self.a[:, :, :, t] @ self.b[..., c.columns] for t, c in enumerate(self.columns)], -1)
        weight = self.base[0] + self.scaling * added.transpose(1, 2).flatten(2)
        return FoldMaps(self.scale, weight, self.base[1])

    @torch.no_grad()
    def set_gradients(self, block: RecordBlock, r: Tensor) -> None:
        """Give A and B the gradients that follow from those of the logits, [b, F, M * C]."""
        sums = FoldGradients(self.scale, r.shape[2])
        sums.add(block, r)
        along = sums.result()[0].unflatten(2, (self.n_models, -1)).transpose(1, 2) * self.scaling
        parts = [along[..., c.columns] for c in self.columns]
        self.a.grad = torch.stack([g @ self.b[..., c.columns].mT for g, c in zip(parts, self.columns, strict=True)], 3)
        self.b.grad = torch.cat([self.a[:, :, :, t].mT @ g for t, g in enumerate(parts)], -1)


def fit_lora_blockwise(
    blocks: Blocks,
    labels: Labels,
    judges: Judges,
    base: tuple[Tensor, Tensor],
    base_logits: Tensor,
    options: LoraOptions,
    seed: int,
) -> LoraFit:
    """Train adapters from zero; each fold and task keeps its best epoch, judged out of sample (see `lora.fit_lora`).

    Parameters
    ----------
    base_logits
        [F, rows, C], out of sample, of the records that judge.
    """
    adapters = WideAdapters(blocks, labels, base, options, seed)
    optimiser = AdamW([adapters.a, adapters.b], options.learning_rate, options.weight_decay)
    of = judges.labels
    problem = Problem(base_logits.new_zeros(len(of.y), 0, 0), of.y, of.weight, of.train.float(), of.blocks)
    judge = Judge(problem, judges.masks, base_logits, options.huber)
    wanted = labels.train[:, 0].any(0)
    batch = batch_size(options.batch_size, int(wanted.sum()))
    generator = torch.Generator().manual_seed(seed + 1)
    for epoch in range(1, options.epochs + 1):
        for rows, block in blocks.shuffled(batch, wanted, generator):
            _step(adapters, labels, rows, block, options.huber)
            optimiser.step()
        logits = judges.masks.out_of_sample(judges.logits(adapters.maps(), adapters.n_models))
        judge.see(epoch, logits, adapters.a.detach()[:, 0].cpu(), adapters.b.detach()[:, 0].cpu())
        if epoch - judge.last_better >= options.patience:
            break
    return judge.verdict(adapters.a.detach()[:, 0].cpu(), adapters.b.detach()[:, 0].cpu(), adapters.input_scale)


def _step(adapters: WideAdapters, labels: Labels, rows: Tensor, block: RecordBlock, huber: bool) -> None:
    """Set the gradients of the sum, over folds, models and tasks, of the batch's mean loss."""
    y, weight = labels.of(rows, block.u.device)
    logits = adapters.maps()(block).view(weight.shape)
    with torch.enable_grad():
        logits.requires_grad_()
        loss, w = task_losses(logits, y, weight, labels.blocks, huber=huber, axis=0)
        total = ((loss * w).sum(0) / w.sum(0).clamp_min(1e-9)).sum()
        (gradient,) = torch.autograd.grad(total, logits)
    adapters.set_gradients(block, gradient.flatten(2))
