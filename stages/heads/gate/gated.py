"""From experts' out-of-sample logits to the gated ensemble's: the gate, what is read beside it, and their calibration.

Lives here: the order of these steps and the arrays they hand on. Not here: each step's own work (`gate.training`,
`gate.reader`, `targets.calibration`), experts that have seen the records (`gate.seen`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from stages.heads.crossfit import Masks, Split, make_masks
from stages.heads.expert_head import ExpertHead, HeadOptions
from stages.heads.gate.inputs import InputScale, shared_inputs, task_inputs
from stages.heads.gate.reader import ReaderFit, fit_readers, raised, shifted
from stages.heads.gate.training import GateData, GateFit, GateOptions, fit_gate
from stages.heads.targets.calibration import fit_temperatures, rate_shift
from stages.heads.targets.standardised import Targets

FIVE_PARTS_BELOW = 5_000
"""With so many in every fold, half of them teach the gate as well as four fifths: two inner folds instead of five."""


@dataclass(frozen=True)
class GatedOptions:
    """Settings of the gate, of what is read beside and after it, and of their calibration; `sources`: what it reads."""

    gate: GateOptions
    head: HeadOptions
    sources: tuple[str, ...]
    share_tasks: bool
    hierarchy: bool


@dataclass(frozen=True)
class JudgingRecords:
    """What the records that judge say, besides the experts' logits.

    Attributes
    ----------
    present
        [rows, E].
    judge
        int64 [F, rows]: who judges each record, -1: nobody.
    groups
        [rows] patients, or None.
    summary, scales
        [rows, q] of the signal, and its scale in each fold; None where the gate does not read it.
    shift
        [F, C] logits by which weighted classes are raised (`targets.class_weights`), or None.
    """

    present: np.ndarray
    targets: Targets
    judge: Tensor
    groups: np.ndarray | None
    summary: np.ndarray | None
    scales: list[InputScale] | None
    shift: Tensor | None


@dataclass(frozen=True)
class Gated:
    """A fitted gate and reading, and their temperature [F, C].

    Attributes
    ----------
    plain
        Readers, and joined held-out logits [F, rows, C], before temperature and base rates.
    """

    data: GateData
    masks: Masks
    gate: GateFit
    readers: ReaderFit
    temperature: Tensor
    plain: ReaderFit

    @property
    def mixed(self) -> Tensor:
        """Held-out calibrated logits [F, rows, C]."""
        return self.readers.logits / self.temperature[:, None]


def fit_gated(heads: dict[str, ExpertHead], judged: JudgingRecords, options: GatedOptions) -> Gated:
    """Fit the gate on the heads' out-of-sample logits, then the reading, then the temperature of both."""
    targets, shift, seed = judged.targets, judged.shift, options.head.seed
    data = gate_data(heads, judged, options.sources)
    masks = gate_masks(judged.judge, judged.groups, seed)
    # the weighted loss is that of a cohort with as many of each class: there the gate's mixtures are judged
    judged_at = data if shift is None else replace(data, outputs=data.outputs + shift[:, None, None])
    gate = fit_gate(judged_at, masks, options.gate, seed + 100)
    joined = fit_readers(
        gate.logits,
        judged_at.outputs,
        data.present,
        (targets.y, targets.weight),
        masks,
        targets.blocks,
        options.head,
        share_tasks=options.share_tasks,
        huber=options.gate.huber,
    )
    if shift is not None:
        joined = shifted(joined, shift, data.outputs.shape[2])
    known = targets.known * masks.judged[..., None]
    temperature = torch.ones(len(known), known.shape[2])
    plain = joined
    if options.head.calibrate:
        temperature = fit_temperatures(joined.logits, targets.y, known, targets.blocks)
        joined = raised(joined, rate_shift(targets.y, known, targets.blocks) * temperature)
    return Gated(data, masks, gate, joined, temperature, plain)


def gate_data(heads: dict[str, ExpertHead], judged: JudgingRecords, sources: tuple[str, ...]) -> GateData:
    """Stack the experts' out-of-sample outputs and the gate's inputs, [F, rows, ...]."""
    present, targets = judged.present, judged.targets
    outputs = torch.stack([h.logits for h in heads.values() if h.logits is not None], 2)
    outputs = torch.where(torch.from_numpy(present)[..., None] > 0, outputs, 0.0)
    widest = n_coordinates(heads)
    shared, per_task = [], []
    for f in range(outputs.shape[0]):
        coordinates = np.zeros((len(present), len(heads), widest), np.float32)
        for e, head in enumerate(heads.values()):
            if head.coordinates is not None:
                coordinates[:, e, : head.coordinates.shape[-1]] = head.coordinates[f].numpy()
        scaled = None if judged.summary is None or judged.scales is None else judged.scales[f](judged.summary)
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


def n_coordinates(heads: dict[str, ExpertHead]) -> int:
    """Coordinates that each expert shows the gate: as many as the one with most has."""
    return max(h.coordinates.shape[-1] for h in heads.values() if h.coordinates is not None)


def gate_masks(judge: Tensor, groups: np.ndarray | None, seed: int) -> Masks:
    """Inner folds over the records that have out-of-sample expert outputs, given who judges them [F, rows]."""
    nothing = np.empty(0, np.int64)
    rows: list[Split] = [(torch.nonzero(j >= 0).ravel().numpy(), nothing, nothing) for j in judge]
    n_parts = 5 if min(len(r) for r, _, _ in rows) < FIVE_PARTS_BELOW else 2
    return make_masks(rows, judge.shape[1], groups, n_parts, seed + 50)
