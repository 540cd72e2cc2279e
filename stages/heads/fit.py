"""Fit every stage of the default method, for all folds at once: heads of each expert, then the gate.

Lives here: the order of the stages and the arrays they hand on. Not here: each stage's own work, the public face
(`ensemble`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache.errors import InputError
from stages.heads.blockwise.expert import LARGE_RECORDS, Features, WorkSpace, fit_expert_blockwise
from stages.heads.crossfit import Masks, Split, make_masks
from stages.heads.decisions.held_out import HeldOut, held_out_answers
from stages.heads.expert_head import ExpertHead, HeadOptions
from stages.heads.fold_model import FoldModel
from stages.heads.gate.gated import GatedOptions, JudgingRecords, fit_gated
from stages.heads.gate.hierarchy import HierarchyFit, fit_hierarchy, parents_first
from stages.heads.gate.inputs import InputScale, signal_summary
from stages.heads.gate.reader import ReaderFit
from stages.heads.gate.seen import HeldExperts, fit_without_seen, head_starts
from stages.heads.gate.training import GateFit
from stages.heads.in_memory.expert import fit_expert
from stages.heads.out_of_sample import OutOfSample
from stages.heads.survival.baseline import fold_hazards
from stages.heads.targets.class_weights import undo_weights, weight_shift
from stages.heads.targets.standardised import Targets
from stages.heads.targets.tasks import Block

ENOUGH_VALIDATION = 1500
"""With this many validation records in every fold, they alone judge; with fewer, inner training folds do too."""
MOST_JUDGES = 15_000
"""Of more records that judge, so many at random do: they choose among a few numbers, and teach a small gate."""
INTERVAL = (0.05, 0.95)


def inner_fold_count(splits: list[Split], asked: int | str, trained: str) -> int:
    """Resolve `inner_folds="auto"`: 5, or 0 where validation rows are enough or a part of `layer_mix` is `trained`."""
    smallest_val = min(len(val) for _, val, _ in splits)
    if trained:
        if smallest_val == 0:
            raise InputError(f"layer_mix '{trained}' needs validation rows in every fold")
        return 0
    if asked == "auto":
        return 0 if smallest_val >= ENOUGH_VALIDATION else 5
    if int(asked) < 2 and smallest_val == 0:
        raise InputError("no validation rows: inner_folds must be 2 or more")
    return 0 if int(asked) < 2 else int(asked)


@dataclass
class Fitted:
    """All that fitting gives."""

    models: list[FoldModel]
    heads: dict[str, ExpertHead]
    gate: GateFit
    readers: ReaderFit
    out_of_sample: OutOfSample
    """The experts' logits, for methods that combine them otherwise (stacking)."""
    held_out: HeldOut
    """What the gated ensemble says out of sample, for thresholds and conformal sets."""
    seconds: dict[str, float]
    """Of fitting each expert's heads."""
    held: HeldExperts
    """Experts that have seen the records that judge, and what was made of it."""
    hierarchy: HierarchyFit | None
    """What parents add to the logits of their children; None where no class has one."""

    def history(self) -> dict[str, Any]:
        """Return per stage what was chosen and the out-of-sample losses per epoch, ready for JSON."""
        experts = {
            name: {
                "strength": head.strengths,
                "lora_epoch": head.lora_epochs,
                "lora_loss": head.history,
                "passes": head.passes,
            }
            for name, head in self.heads.items()
        }
        gate: dict[str, Any] = {"start": self.gate.start, "epoch": self.gate.epoch.tolist(), "loss": self.gate.history}
        gate["shares"] = self.readers.shares
        if self.hierarchy is not None:
            gate["hierarchy"] = self.hierarchy.shares
        if self.held.any():
            gate["held"] = self.held.history(tuple(self.heads))
        return {"experts": experts, "gate": gate}


def fit_all(
    features: Iterable[tuple[str, Features | list[np.ndarray]]],
    present: np.ndarray,
    targets: Targets,
    splits: list[Split],
    groups: np.ndarray | None,
    signal: np.ndarray | None,
    *,
    n_inner: int,
    options: GatedOptions,
    place: WorkSpace,
    seen: np.ndarray | None = None,
    taught: np.ndarray | None = None,
) -> Fitted:
    """Fit heads of every expert, then the gate on their out-of-sample outputs, then its temperature.

    Parameters
    ----------
    features
        Experts, each with its features, or with one [n, d] matrix per fold where they differ; taken one by one, so that
        a generator keeps one expert's in memory.
    present
        float32 [n, E].
    seen
        bool [n, E]: records whose labels have trained the expert itself, which say nothing of its worth; None: nobody
        knows of any.
    taught
        [E] patients whose labels have trained the expert, of these records or others; None: nobody's, of any.
    """
    seed = options.head.seed
    if options.hierarchy:
        parents_first(targets.blocks)  # what it refuses is refused before hours of fitting
    masks = make_masks(splits, len(present), groups, n_inner, seed)
    rows = _judges(masks, seed)
    large = max(len(train) for train, _, _ in splits) >= LARGE_RECORDS
    heads, seconds = {}, {}
    for e, (name, x) in enumerate(features):
        started = perf_counter()
        common = (targets.y, targets.weight), masks, rows, targets.blocks, options.head
        has_vector = present[:, e] > 0
        if large and isinstance(x, Features):
            heads[name] = fit_expert_blockwise(name, x, has_vector, *common, place)
        else:
            heads[name] = _fit_subset(name, x, has_vector, *common)
        seconds[name] = perf_counter() - started
    summary = None if signal is None or "signal" not in options.sources else signal_summary(signal)
    scales = None if summary is None else [InputScale.fit(summary[train]) for train, _, _ in splits]
    judges = rows.numpy()
    judging = targets.take(rows)
    shift = None
    if targets.balanced and options.head.calibrate:
        shift = weight_shift(targets.y, targets.weight * masks.train[:, 0, :, None], targets.blocks)
        counted = judging.known * masks.judged[:, rows, None]
        for e, name in enumerate(heads):
            seen_by = torch.from_numpy(present[judges, e])[:, None]
            heads[name] = undo_weights(heads[name], judging.y, counted * seen_by, shift, judging.blocks)
    judged = JudgingRecords(
        present[judges],
        judging,
        masks.judge[:, rows],
        None if groups is None else groups[judges],
        None if summary is None else summary[judges],
        scales,
        shift,
    )
    held = HeldExperts.nobody(present.shape[1])
    if seen is None or not (seen[judges] & (present[judges] > 0)).any():
        gated = fit_gated(heads, judged, options)
        mixed = gated.mixed
    else:
        patients = np.arange(len(present)) if groups is None else groups
        teaching = np.array([len(np.unique(patients[np.concatenate([train, val])])) for train, val, _ in splits])
        starts = head_starts(np.zeros(present.shape[1]) if taught is None else taught, teaching)
        of_judges = seen[judges] & (present[judges] > 0)
        heads, gated, mixed, held = fit_without_seen(heads, judged, of_judges, starts, options)
    known = judging.known * gated.masks.judged[..., None]
    hierarchy = None
    if options.hierarchy:
        hierarchy = fit_hierarchy(mixed, judging.y, known, judging.blocks)
    mixed = mixed if hierarchy is None else hierarchy.logits
    models = [
        FoldModel(
            {name: head.folds[f] for name, head in heads.items()},
            gated.gate.folds[f],
            None if scales is None else scales[f],
            gated.temperature[f].numpy().copy(),
            judging.centre[f],
            judging.scale[f],
            _residual_interval(judging, mixed, known, f),
            gated.readers.folds[f],
            _hazards(judging, mixed[f], gated.data.outputs[f], known[f], gated.data.present),
            None if hierarchy is None else hierarchy.folds[f],
        )
        for f in range(len(splits))
    ]
    found = OutOfSample(gated.data.outputs, gated.masks.judge, rows, len(present))
    held_out = held_out_answers(
        judging.blocks,
        (judging.y, judging.known),
        mixed,
        gated.masks.judged,
        (judging.centre, judging.scale),
        judged.groups,
        [None if model.hazards is None else model.hazards[0] for model in models],
    )
    return Fitted(models, heads, gated.gate, gated.readers, found, held_out, seconds, held, hierarchy)


def _fit_subset(
    name: str,
    x: Features | list[np.ndarray],
    seen: np.ndarray,
    labels: tuple[Tensor, Tensor],
    masks: Masks,
    rows: Tensor,
    blocks: tuple[Block, ...],
    options: HeadOptions,
) -> ExpertHead:
    """Fit an expert in memory, on the records alone that train or judge in some fold: of many, these may be few."""
    used = torch.nonzero(((masks.train[:, 0] > 0) | (masks.judge >= 0)).any(0)).ravel()
    whole = len(used) == len(seen)
    chosen = slice(0, len(seen)) if whole else used.numpy()
    n_folds = len(masks.train)
    matrices = [x.read(chosen)] * n_folds if isinstance(x, Features) else x if whole else [m[chosen] for m in x]
    if not whole:
        seen, labels, rows = seen[chosen], (labels[0][:, used], labels[1][:, used]), torch.searchsorted(used, rows)
        masks = masks.take(used)
    return fit_expert(name, matrices, seen, labels, masks, rows, blocks, options)


def _judges(masks: Masks, seed: int) -> Tensor:
    """Find the records that judge in any fold, ascending; at most `MOST_JUDGES` of them."""
    rows = torch.nonzero((masks.judge >= 0).any(0)).ravel()
    if len(rows) <= MOST_JUDGES:
        return rows
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:MOST_JUDGES]].sort().values


def _hazards(targets: Targets, mixed: Tensor, outputs: Tensor, known: Tensor, present: Tensor) -> np.ndarray | None:
    """Baseline hazards [1 + E, T, horizons] of one fold's mixture [n, C] and experts [n, E, C]; None: no such task."""
    if not any(block.task.kind == "survival" for block in targets.blocks):
        return None
    signed = targets.y[0].numpy()
    of_experts = [(outputs[:, e], known * present[:, e, None]) for e in range(outputs.shape[1])]
    answers = [(mixed, known), *of_experts]
    return np.stack([fold_hazards(x.numpy(), signed, k.numpy(), targets.blocks) for x, k in answers])


def _residual_interval(targets: Targets, mixed: Tensor, known: Tensor, f: int) -> np.ndarray:
    """5 % and 95 % quantiles [2, C] of regression residuals (true - predicted) on held-out records, target units."""
    out = np.zeros((2, mixed.shape[-1]))
    for block in targets.blocks:
        c = block.start
        if block.task.kind == "regression":
            rows = known[f, :, c] > 0
            residual = (targets.y[f, rows, c] - mixed[f, rows, c]).numpy()
            residual = residual[np.isfinite(residual)]
            if len(residual):
                out[:, c] = np.quantile(residual, INTERVAL) * targets.scale[f, c]
    return out
