"""Fit every stage of the default method, for all folds at once: heads of each expert, then the gate.

Lives here: the order of the stages and the arrays they hand on. Not here: each stage's own work, the public face
(`ensemble`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
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
from stages.heads.gate.inputs import InputScale, shared_inputs, signal_summary, task_inputs
from stages.heads.gate.reader import ReaderFit, fit_readers, raised, shifted
from stages.heads.gate.training import GateData, GateFit, GateOptions, fit_gate
from stages.heads.in_memory.expert import fit_expert
from stages.heads.out_of_sample import OutOfSample
from stages.heads.survival.baseline import fold_hazards
from stages.heads.targets.calibration import fit_temperatures, rate_shift
from stages.heads.targets.class_weights import undo_weights, weight_shift
from stages.heads.targets.losses import balance_weights
from stages.heads.targets.tasks import Block, TaskSpec, encode, layout, unusable

ENOUGH_VALIDATION = 1500
"""With this many validation records in every fold, they alone judge; with fewer, inner training folds do too."""
MOST_JUDGES = 15_000
"""Of more records that judge, so many at random do: they choose among a few numbers, and teach a small gate."""
FIVE_PARTS_BELOW = 5_000
"""With so many in every fold, half of them teach the gate as well as four fifths: two inner folds instead of five."""
INTERVAL = (0.05, 0.95)


@dataclass
class Targets:
    """Standardised targets of all folds: y, weight [F, n, C]; known [n, C]; centre, scale [F, C]."""

    blocks: tuple[Block, ...]
    y: Tensor
    weight: Tensor
    known: Tensor
    centre: np.ndarray
    scale: np.ndarray
    skipped: dict[str, str]
    balanced: bool = False
    """Whether weights make the classes count alike; else they are 1 or, for a missing label, 0."""

    def take(self, rows: Tensor) -> Targets:
        """Select records."""
        return replace(self, y=self.y[:, rows], weight=self.weight[:, rows], known=self.known[rows])


def read_targets(
    targets: dict[str, Any],
    tasks: tuple[TaskSpec, ...],
    splits: list[Split],
    n_records: int,
    *,
    skip_unusable: bool,
    balanced: bool,
) -> Targets:
    """Check and lay out the targets, standardising regression by each fold's training rows.

    Raises
    ------
    InputError
        A task that some fold's training rows cannot teach (no label, one class), unless `skip_unusable`.
    """
    encoded, skipped = {}, {}
    for task in tasks:
        if task.name not in targets:
            raise InputError(f"task '{task.name}': no targets; there are: {', '.join(targets)}")
        y, known = encode(task, targets[task.name], n_records)
        reasons = [unusable(task, y[train], known[train]) for train, _, _ in splits]
        reason = next((f"fold {f}: {r}" for f, r in enumerate(reasons) if r), None)
        if reason and not skip_unusable:
            raise InputError(f"task '{task.name}' cannot be learnt, {reason}; leave it out or skip unusable tasks")
        if reason:
            skipped[task.name] = reason
        else:
            encoded[task] = (y, known)
    if not encoded:
        listed = "; ".join(f"{k}: {v}" for k, v in skipped.items())
        raise InputError(f"no task can be learnt ({listed})")
    blocks = layout(encoded)
    y = np.concatenate([v[0] for v in encoded.values()], 1)
    known = np.concatenate([v[1] for v in encoded.values()], 1)
    ys: list[Tensor] = []
    centres, scales, weights = [], [], []
    tensor = torch.from_numpy(known)
    differ = any(block.task.kind == "regression" for block in blocks)
    for train, _, _ in splits:
        centre, scale = _target_scale(y, known, train, blocks)
        if differ or not ys:
            ys.append(torch.from_numpy(np.where(known > 0, (y - centre) / scale, 0).astype(np.float32)))
        centres.append(centre)
        scales.append(scale)
        mask = torch.zeros(n_records)
        mask[torch.from_numpy(train)] = 1
        if balanced:
            weights.append(balance_weights(ys[-1], tensor, mask, blocks))
    return Targets(
        blocks,
        torch.stack(ys) if differ else ys[0].expand(len(splits), -1, -1),
        torch.stack(weights) if balanced else tensor.expand(len(splits), -1, -1),
        tensor,
        np.stack(centres),
        np.stack(scales),
        skipped,
        balanced,
    )


def _target_scale(
    y: np.ndarray, known: np.ndarray, train: np.ndarray, blocks: tuple[Block, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Median and robust spread of regression targets; 0 and 1 for the others."""
    centre, scale = np.zeros(y.shape[1]), np.ones(y.shape[1])
    for block in blocks:
        if block.task.kind == "regression":
            values = y[train, block.start][known[train, block.start] > 0]
            low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
            centre[block.start] = middle
            # half of the records at one value leave no interquartile range
            scale[block.start] = max((high - low) / 1.349, values.std() / 3)
    return centre, scale


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
        gate = {"start": self.gate.start, "epoch": self.gate.epoch.tolist(), "loss": self.gate.history}
        gate["shares"] = self.readers.shares
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
    head_options: HeadOptions,
    gate_options: GateOptions,
    sources: tuple[str, ...],
    place: WorkSpace,
    share_tasks: bool = True,
) -> Fitted:
    """Fit heads of every expert, then the gate on their out-of-sample outputs, then its temperature.

    Parameters
    ----------
    features
        Experts, each with its features, or with one [n, d] matrix per fold where they differ; taken one by one, so that
        a generator keeps one expert's in memory.
    present
        float32 [n, E].
    """
    seed = head_options.seed
    masks = make_masks(splits, len(present), groups, n_inner, seed)
    rows = _judges(masks, seed)
    large = max(len(train) for train, _, _ in splits) >= LARGE_RECORDS
    heads, seconds = {}, {}
    for e, (name, x) in enumerate(features):
        started = perf_counter()
        common = (targets.y, targets.weight), masks, rows, targets.blocks, head_options
        seen = present[:, e] > 0
        if large and isinstance(x, Features):
            heads[name] = fit_expert_blockwise(name, x, seen, *common, place)
        else:
            heads[name] = _fit_subset(name, x, seen, *common)
        seconds[name] = perf_counter() - started
    summary = None if signal is None or "signal" not in sources else signal_summary(signal)
    scales = None if summary is None else [InputScale.fit(summary[train]) for train, _, _ in splits]
    judges = rows.numpy()
    judging = targets.take(rows)
    shift = None
    if targets.balanced and head_options.calibrate:
        shift = weight_shift(targets.y, targets.weight * masks.train[:, 0, :, None], targets.blocks)
        judged = judging.known * masks.judged[:, rows, None]
        for e, name in enumerate(heads):
            seen_by = torch.from_numpy(present[judges, e])[:, None]
            heads[name] = undo_weights(heads[name], judging.y, judged * seen_by, shift, judging.blocks)
    data = _gate_data(heads, present[judges], judging, sources, None if summary is None else summary[judges], scales)
    gate_masks = _gate_masks(masks.judge[:, rows], None if groups is None else groups[judges], seed)
    # the weighted loss is that of a cohort with as many of each class: there the gate's mixtures are judged
    judged_at = data if shift is None else replace(data, outputs=data.outputs + shift[:, None, None])
    gate = fit_gate(judged_at, gate_masks, gate_options, seed + 100)
    joined = fit_readers(
        gate.logits,
        judged_at.outputs,
        data.present,
        (judging.y, judging.weight),
        gate_masks,
        judging.blocks,
        head_options,
        share_tasks=share_tasks,
        huber=gate_options.huber,
    )
    if shift is not None:
        joined = shifted(joined, shift, data.outputs.shape[2])
    known = judging.known * gate_masks.judged[..., None]
    temperature = torch.ones(len(splits), judging.known.shape[1])
    if head_options.calibrate:
        temperature = fit_temperatures(joined.logits, judging.y, known, judging.blocks)
        joined = raised(joined, rate_shift(judging.y, known, judging.blocks) * temperature)
    mixed = joined.logits / temperature[:, None]
    models = [
        FoldModel(
            {name: head.folds[f] for name, head in heads.items()},
            gate.folds[f],
            None if scales is None else scales[f],
            temperature[f].numpy().copy(),
            judging.centre[f],
            judging.scale[f],
            _residual_interval(judging, mixed, known, f),
            joined.folds[f],
            _hazards(judging, mixed[f], data.outputs[f], known[f], data.present),
        )
        for f in range(len(splits))
    ]
    found = OutOfSample(data.outputs, gate_masks.judge, rows, len(present))
    held_out = held_out_answers(
        judging.blocks,
        (judging.y, judging.known),
        mixed,
        gate_masks.judged,
        (judging.centre, judging.scale),
        None if groups is None else groups[judges],
        [None if model.hazards is None else model.hazards[0] for model in models],
    )
    return Fitted(models, heads, gate, joined, found, held_out, seconds)


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


def _gate_data(
    heads: dict[str, ExpertHead],
    present: np.ndarray,
    targets: Targets,
    sources: tuple[str, ...],
    summary: np.ndarray | None,
    scales: list[InputScale] | None,
) -> GateData:
    """Stack the experts' out-of-sample outputs and the gate's inputs, [F, rows, ...]."""
    outputs = torch.stack([h.logits for h in heads.values() if h.logits is not None], 2)
    outputs = torch.where(torch.from_numpy(present)[..., None] > 0, outputs, 0.0)
    widest = max(h.coordinates.shape[-1] for h in heads.values() if h.coordinates is not None)
    shared, per_task = [], []
    for f in range(outputs.shape[0]):
        coordinates = np.zeros((len(present), len(heads), widest), np.float32)
        for e, head in enumerate(heads.values()):
            if head.coordinates is not None:
                coordinates[:, e, : head.coordinates.shape[-1]] = head.coordinates[f].numpy()
        scaled = None if summary is None or scales is None else scales[f](summary)
        shared.append(torch.from_numpy(shared_inputs(sources, coordinates, present, scaled)))
        per_task.append(torch.from_numpy(task_inputs(sources, outputs[f].numpy(), present, targets.blocks)))
    return GateData(
        outputs,
        torch.from_numpy(present),
        torch.stack(shared),
        torch.stack(per_task),
        targets.y,
        targets.weight,
        targets.blocks,
    )


def _gate_masks(judge: Tensor, groups: np.ndarray | None, seed: int) -> Masks:
    """Inner folds over the records that have out-of-sample expert outputs, given who judges them [F, rows]."""
    nothing = np.empty(0, np.int64)
    rows: list[Split] = [(torch.nonzero(j >= 0).ravel().numpy(), nothing, nothing) for j in judge]
    n_parts = 5 if min(len(r) for r, _, _ in rows) < FIVE_PARTS_BELOW else 2
    return make_masks(rows, judge.shape[1], groups, n_parts, seed + 50)


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
