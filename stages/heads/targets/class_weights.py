"""Undoing what class weights do to probabilities: a head trained as if all classes were equally frequent says so.

Lives here: the shift of the logits that weights bring about, and the intercepts and temperatures, fitted on unweighted
held-out labels, that take it back. Not here: the weights (`losses.balance_weights`), plain temperatures
(`targets.calibration`).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from stages.heads.expert_head import ExpertHead
from stages.heads.targets.calibration import PRIOR_SD
from stages.heads.targets.losses import LINEAR, column_losses
from stages.heads.targets.tasks import Block

BIAS_SD = 1.0
"""Of an intercept around the shift that the weights imply: a class with three positives stays near that."""
STEPS = 100


def weight_shift(y: Tensor, weight: Tensor, blocks: tuple[Block, ...]) -> Tensor:
    """By how much class weights raise the logits of a well-fitted model, [F, C].

    The log of a positive's weight over a negative's (binary, multilabel), the log of the class's weight (multiclass), 0
    (regression, or a class that is not there).

    Parameters
    ----------
    y, weight
        [F, n, C]; a weight of 0 marks a missing label.
    """
    up = (weight * (y > 0)).amax(1)
    down = (weight * (y <= 0)).amax(1)
    out = torch.zeros_like(up)
    for block in blocks:
        c = block.columns
        if block.task.kind == "multiclass":
            out[:, c] = torch.where(up[:, c] > 0, up[:, c].clamp_min(1e-9).log(), 0.0)
        elif block.task.kind not in LINEAR:
            both = (up[:, c] > 0) & (down[:, c] > 0)
            ratio = up[:, c].clamp_min(1e-9).log() - down[:, c].clamp_min(1e-9).log()
            out[:, c] = torch.where(both, ratio, 0.0)
    return out


def fit_intercepts(
    logits: Tensor, y: Tensor, known: Tensor, shift: Tensor, blocks: tuple[Block, ...]
) -> tuple[Tensor, Tensor]:
    """Temperatures T and intercepts b such that (logits + b) / T are calibrated, the most probable ones.

    Parameters
    ----------
    logits, y, known
        [F, n, C], out of sample; `known` 0 leaves a label out.
    shift
        [F, C], from `weight_shift`: b is expected around -shift.

    Returns
    -------
    T, b : [F, C]
        T is one per class (multilabel) or task (binary, multiclass); 1 and 0 for regression and survival.
    """
    temperature, intercept = torch.ones_like(shift), torch.zeros_like(shift)
    for block in blocks:
        if block.task.kind not in LINEAR:
            c = block.columns
            alone = replace(block, start=0, stop=block.stop - block.start)
            temperature[:, c], intercept[:, c] = _fit_task(logits[..., c], y[..., c], known[..., c], shift[:, c], alone)
    return temperature, intercept


def _fit_task(logits: Tensor, y: Tensor, known: Tensor, shift: Tensor, block: Block) -> tuple[Tensor, Tensor]:
    """Fit one task's temperatures [F, K or 1] and intercepts [F, K]; `block` starts at column 0."""
    logits, y, known, shift = (t.double() for t in (logits, y, known, shift))
    shared = block.task.kind != "multilabel"
    log_t = torch.zeros_like(shift[:, :1] if shared else shift).requires_grad_()
    intercept = (-shift).requires_grad_()
    optimiser = torch.optim.LBFGS([log_t, intercept], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        calibrated = (logits + intercept[:, None]) * torch.exp(-log_t)[:, None]
        prior = 0.5 * (log_t / PRIOR_SD).pow(2).sum() + 0.5 * ((intercept + shift) / BIAS_SD).pow(2).sum()
        total = (column_losses(calibrated, y, block) * known).sum() + prior
        total.backward()
        return total

    optimiser.step(loss)
    return torch.exp(log_t).detach().float(), intercept.detach().float()


def undo_weights(head: ExpertHead, y: Tensor, known: Tensor, shift: Tensor, blocks: tuple[Block, ...]) -> ExpertHead:
    """Give an expert's heads the intercepts and temperatures of unweighted labels.

    Parameters
    ----------
    y, known
        [F, rows, C] of the records whose logits the head keeps; `known` 0 where nothing was out of sample.
    """
    if head.logits is None:
        return head
    before = torch.stack([torch.from_numpy(fold.temperature) for fold in head.folds])
    raw = head.logits * before[:, None]
    temperature, intercept = fit_intercepts(raw, y, known, shift, blocks)
    folds = [
        replace(fold, bias=fold.bias + b.numpy(), temperature=t.numpy().copy())
        for fold, t, b in zip(head.folds, temperature, intercept, strict=True)
    ]
    return replace(head, folds=folds, logits=(raw + intercept[:, None]) / temperature[:, None])
