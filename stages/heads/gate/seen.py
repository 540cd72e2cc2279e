"""Experts whose own training has seen the labels of the records that would weigh them.

Lives here: which records are evidence, and the share of an expert that has none. Not here: who has seen whom (the
caller knows), the gate of all others (`gate.gated`).

An expert says of patients whose labels trained it what it remembers. A head on top of it that has left such a patient
out looks better than it will be for a stranger, and a gate that learns from that follows the expert too far. So:

- Where at least half of the judging records of every fold are strangers to an expert, the others judge nothing.
- Else the expert is held: all others are weighed, read and calibrated as if it were not there, and it joins them with
  a share that does not depend on the record: it counts as one of them, times its head start (`head_starts`), because
  what many patients have taught it the others must learn from the few of this study. The share is another where
  strangers that have not chosen it are judged better by it, by more than one standard error; that one has a prior of
  ten records around an equal share. It is no surer than the others are together: its logits get their mean and at most
  their spread, then a temperature by strangers, with a narrow prior around 1.
- Thresholds, intervals and limits come from what the ensemble says of strangers, and of a record that a held expert has
  seen, from what it says without that expert.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.heads.crossfit import Gain, Masks, paired_gain
from stages.heads.expert_head import ExpertHead
from stages.heads.gate.gated import Gated, GatedOptions, JudgingRecords, fit_gated, gate_data, gate_masks, n_coordinates
from stages.heads.gate.places import Places, equal_gate, mixture_alone, renamed
from stages.heads.gate.reader import FoldReader, ReaderFit, raised
from stages.heads.gate.training import GateData, GateFit, fit_constant
from stages.heads.gate.weights import FoldGate, kept_beside, mask_softmax, mix
from stages.heads.targets.calibration import CLASS_SD, PRIOR_SD, fit_temperatures, rate_shift
from stages.heads.targets.losses import task_losses
from stages.heads.targets.tasks import Block

STRANGERS = 0.5
"""Share of every fold's judging records that an expert must not have seen to be weighed like the others."""
HELD_RECORDS = 10.0
"""Prior on a held expert's log-odds around an equal share, in records (`GateOptions.prior_strength`)."""
HEAD_START = 0.5
"""Power of the ratio of patients that a held expert's head start is: as standard errors fall with their number."""
HELD_SDS = 0.1, 0.05
"""Of a task's log temperature by strangers around 0, and of a class's around its task's: the others' spread, which held
experts have already, is known from all records, and strangers are few."""
NO_ROOM = -30.0
"""Log-odds of held experts where `top_k` is too small for them."""


@dataclass(frozen=True)
class HeldExperts:
    """Who has seen how many of the records that judge, and what was made of it.

    Attributes
    ----------
    seen, judged
        [E] judging records with a vector of the expert that it has seen, and all of them (in any fold).
    patients
        [E, 2] the same of patients (of records where nobody knows the patients).
    held
        bool [E]; False where strangers alone were enough.
    share
        [F, T, E] of held experts where all experts are present; 0 for the others.
    """

    seen: np.ndarray
    judged: np.ndarray
    patients: np.ndarray
    held: np.ndarray
    share: np.ndarray

    @classmethod
    def nobody(cls, n_experts: int) -> HeldExperts:
        """Nobody has seen anyone."""
        none = np.zeros(n_experts, int)
        return cls(none, none, np.stack([none, none], 1), none.astype(bool), np.zeros((0, 0, n_experts)))

    def any(self) -> bool:
        """Whether some expert has seen a record that judges."""
        return bool(self.seen.any())

    def history(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Expert -> counts and, where it is held, its share per fold and task, ready for JSON."""
        return {
            name: {
                "records": [int(self.seen[e]), int(self.judged[e])],
                "patients": self.patients[e].tolist(),
                **({"share": np.round(self.share[..., e], 6).tolist()} if self.held[e] else {}),
            }
            for e, name in enumerate(names)
            if self.seen[e]
        }


def head_starts(taught: np.ndarray, teaching: np.ndarray) -> np.ndarray:
    """Return how often a held expert counts, [F, E], where each of the others counts once; never less than once.

    Parameters
    ----------
    taught
        [E] patients whose labels have trained the expert.
    teaching
        [F] patients whose labels a fold has: they teach its heads, or validate them.

    Examples
    --------
    >>> head_starts(np.array([0, 2000]), np.array([2000, 500]))
    array([[1., 1.],
           [1., 2.]])
    """
    return np.maximum(1.0, taught[None] / np.maximum(teaching[:, None], 1)) ** HEAD_START


def fit_without_seen(
    heads: dict[str, ExpertHead], judged: JudgingRecords, seen: np.ndarray, starts: np.ndarray, options: GatedOptions
) -> tuple[dict[str, ExpertHead], Gated, Tensor, HeldExperts]:
    """Fit the gated ensemble on evidence that no expert has been trained on.

    Parameters
    ----------
    seen
        bool [rows, E].
    starts
        [F, E], see `head_starts`.

    Returns
    -------
    heads, gated
        Calibrated and weighed by strangers.
    mixed
        [F, rows, C] what thresholds, intervals and limits may be chosen by.
    held
        Who was held, and with which share.
    """
    held, unused = _divide(seen, judged.judge)
    judge = judged.judge.masked_fill(torch.from_numpy(unused), -1)
    seen_by_anyone = _Counts.of(seen, judged)
    judged = replace(judged, judge=judge)
    names, others = list(heads), np.flatnonzero(~held)
    if options.head.calibrate:
        for e in np.flatnonzero(seen.any(0) & ~held):
            heads[names[e]] = _cooled(heads[names[e]], judged, seen[:, e], (PRIOR_SD, CLASS_SD))
    if not held.any():
        gated = fit_gated(heads, judged, options)
        return heads, gated, gated.mixed, seen_by_anyone.held(held, np.zeros((0, 0, len(held))))
    without = None
    kept = kept_beside(options.gate.top_k, int(held.sum()))
    if len(others):
        part = replace(judged, present=judged.present[:, others])
        alone = replace(options, gate=replace(options.gate, top_k=kept))
        without = fit_gated({names[e]: heads[names[e]] for e in others}, part, alone)
    joining = _Joining(heads, judged, seen, held, starts, without, options)
    gated, share = joining.run()
    mixed = gated.mixed
    if without is not None:
        remembered = torch.from_numpy((seen & held).any(1) & (judged.present[:, others] > 0).any(1))
        mixed = torch.where(remembered[:, None], without.mixed, mixed)
    return joining.heads, gated, mixed, seen_by_anyone.held(held, share)


@dataclass(frozen=True)
class _Counts:
    seen: np.ndarray
    judged: np.ndarray
    patients: np.ndarray

    @classmethod
    def of(cls, seen: np.ndarray, judged: JudgingRecords) -> _Counts:
        judging = (judged.judge >= 0).any(0).numpy()[:, None] & (judged.present > 0)
        names = np.arange(len(seen)) if judged.groups is None else judged.groups
        of_experts = zip((seen & judging).T, judging.T, strict=True)
        patients = [[len(np.unique(names[rows])) for rows in pair] for pair in of_experts]
        return cls((seen & judging).sum(0), judging.sum(0), np.array(patients))

    def held(self, held: np.ndarray, share: np.ndarray) -> HeldExperts:
        return HeldExperts(self.seen, self.judged, self.patients, held, share)


def _divide(seen: np.ndarray, judge: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return who is held [E], and which records judge nothing any more [rows], as few experts held as can be."""
    judging = (judge >= 0).numpy()
    held, unused = np.zeros(seen.shape[1], bool), np.zeros(len(seen), bool)
    for e in np.argsort(seen.sum(0), kind="stable"):
        both = unused | seen[:, e]
        enough = ((judging & ~both).sum(1) >= STRANGERS * judging.sum(1)).all()
        if enough:
            unused = both
        else:
            held[e] = True
    return held, unused


def _cooled(head: ExpertHead, judged: JudgingRecords, seen: np.ndarray, sds: tuple[float, float]) -> ExpertHead:
    """Give an expert's head the temperature that records which it has not seen ask for."""
    assert head.logits is not None
    strangers = torch.from_numpy(~seen)[:, None] & (judged.judge >= 0)[..., None]
    known = judged.targets.known * strangers
    temperature = fit_temperatures(head.logits, judged.targets.y, known, judged.targets.blocks, *sds)
    temperature = torch.where((known > 0).any(1), temperature, 1.0)
    return _rescaled(head, 1 / temperature, torch.zeros_like(temperature))


def _rescaled(head: ExpertHead, slope: Tensor, offset: Tensor) -> ExpertHead:
    """Turn a head's logits x into slope * x + offset, [F, C]."""
    assert head.logits is not None
    folds = []
    for fold, a, b in zip(head.folds, slope.numpy(), offset.numpy(), strict=True):
        temperature = (fold.temperature / a).astype(np.float32)
        folds.append(replace(fold, temperature=temperature, bias=fold.bias + b * temperature))
    return replace(head, folds=folds, logits=head.logits * slope[:, None] + offset[:, None])


class _Joining:
    """Joins held experts to the ensemble of all others (None: there are no others)."""

    def __init__(
        self,
        heads: dict[str, ExpertHead],
        judged: JudgingRecords,
        seen: np.ndarray,
        held: np.ndarray,
        starts: np.ndarray,
        without: Gated | None,
        options: GatedOptions,
    ) -> None:
        self.judged, self.without, self.options = judged, without, options
        usual = torch.from_numpy(np.log(starts[:, held])).float()
        self.usual = usual if without is not None else torch.zeros_like(usual)
        self.seen, self.held = torch.from_numpy(seen), torch.from_numpy(held)
        self.present = torch.from_numpy(judged.present)
        self.blocks: tuple[Block, ...] = judged.targets.blocks
        self.masks = gate_masks(judged.judge, judged.groups, options.head.seed) if without is None else without.masks
        self.others = self.present[:, ~self.held].any(1)
        self.sds = (PRIOR_SD, CLASS_SD) if without is None else HELD_SDS
        self.heads = dict(heads)
        for e in np.flatnonzero(held) if options.head.calibrate else ():
            name = list(heads)[e]
            head = heads[name] if without is None else self._matched(heads[name], int(e), without.plain.logits)
            self.heads[name] = _cooled(head, judged, seen[:, e], self.sds)
        self.data = gate_data(self.heads, judged, options.sources)
        self.n_kept = self._kept()

    def _kept(self) -> int:
        """Experts that divide what held ones leave."""
        n_others = int((~self.held).sum())
        kept = kept_beside(self.options.gate.top_k, int(self.held.sum()))
        return min(kept, n_others) if kept else n_others

    def _matched(self, head: ExpertHead, e: int, reference: Tensor) -> ExpertHead:
        """Give logits the class means of the reference [F, rows, C] and, per task, at most its spread."""
        assert head.logits is not None
        counted = (self.present[:, e] > 0) & self.others & (self.judged.judge >= 0)
        weight = (self.judged.targets.known * counted[..., None]).double()
        total = weight.sum(1).clamp_min(1e-9)
        means, spreads = [], []
        for logits in (head.logits.double(), reference.double()):
            mean = (weight * logits).sum(1) / total
            means.append(mean)
            spreads.append((weight * (logits - mean[:, None]) ** 2).sum(1) / total)
        slope, offset = torch.ones_like(total), torch.zeros_like(total)
        for block in self.blocks:
            c = block.columns
            if block.task.kind != "regression":
                ratio = spreads[1][:, c].sum(1, keepdim=True) / spreads[0][:, c].sum(1, keepdim=True).clamp_min(1e-12)
                slope[:, c] = ratio.sqrt().clamp(1e-3, 1.0)
                offset[:, c] = means[1][:, c] - slope[:, c] * means[0][:, c]
        measured = (weight > 0).any(1)
        slope, offset = torch.where(measured, slope, 1.0), torch.where(measured, offset, 0.0)
        return _rescaled(head, slope.float(), offset.float())

    def run(self) -> tuple[Gated, np.ndarray]:
        """Return the joined ensemble, and the share [F, T, E] of each held expert where all are present."""
        targets, temperature = self.judged.targets, self._temperature()
        odds, plain = self._weighed(temperature)
        known = targets.known * self.masks.judged[..., None]
        joined = readers = self._readers(odds, plain)
        if self.options.head.calibrate:
            strangers = known * ~(self.seen & self.held).any(1)[:, None]
            more = fit_temperatures(plain / temperature[:, None], targets.y, strangers, self.blocks, *self.sds)
            temperature = temperature * torch.where((strangers > 0).any(1), more, 1.0)
            readers = raised(readers, rate_shift(targets.y, known, self.blocks) * temperature)
        gate = self._gate(odds)
        return Gated(self.data, self.masks, gate, readers, temperature, joined), self._share(odds).numpy()

    def _temperature(self) -> Tensor:
        if self.without is not None:
            return self.without.temperature
        return torch.ones(len(self.masks.judge), self.data.y.shape[2])

    def _weighed(self, temperature: Tensor) -> tuple[Tensor, Tensor]:
        """Log-odds [F, T, held] against an equal share, and held-out logits [F, rows, C] before temperature."""
        copies = [] if self.without is None else [self.without.plain.logits] * self.n_kept
        outputs = torch.stack([*copies, *self.data.outputs[:, :, self.held].unbind(2)], 2)
        n_copies, n_held = len(copies), int(self.held.sum())
        others = self.others.float()[:, None].expand(-1, n_copies)
        present = torch.cat([others, self.present[:, self.held]], 1)
        if 0 < self.options.gate.top_k <= n_held and n_copies:
            odds = torch.full((len(outputs), self.masks.train.shape[1], len(self.blocks), n_held), NO_ROOM)
        else:
            odds = self._odds(outputs / temperature[:, None, None], present, n_copies)
        scores = torch.cat([odds.new_zeros(*odds.shape[:-1], n_copies), odds], -1)
        weights = mask_softmax(scores[:, :, None], present[:, None])
        plain = self.masks.out_of_sample(mix(weights, outputs[:, None], self.blocks))
        return odds[:, 0], plain

    def _odds(self, outputs: Tensor, present: Tensor, n_copies: int) -> Tensor:
        """Log-odds [F, M, T, held] by the records that somebody held has not seen, where these show a gain."""
        strangers = present.clone()
        strangers[:, n_copies:] *= ~self.seen[:, self.held]
        rows = torch.nonzero(strangers[:, n_copies:].any(1) & (self.masks.judge >= 0).any(0)).ravel()
        shape = (len(outputs), self.masks.train.shape[1], len(self.blocks), outputs.shape[2])
        usual = self.usual[:, None, None].expand(*shape[:-1], -1)
        if not len(rows):
            return usual
        shift = self.judged.shift
        at = outputs if shift is None else outputs + shift[:, None, None]
        nothing = self.data.shared[:, rows, :0]
        targets = self.judged.targets.take(rows)
        data = GateData(
            at[:, rows], strangers[rows], nothing, nothing[:, :, None], targets.y, targets.weight, self.blocks
        )
        gate = self.options.gate
        options = replace(gate, prior_strength=max(gate.prior_strength, HELD_RECORDS))
        masks = self.masks.take(rows)
        found = fit_constant(data, masks, options, self.options.head.seed)
        middle = found[..., :n_copies].mean(-1, keepdim=True) if n_copies else found.mean(-1, keepdim=True)
        odds = (found - middle)[..., n_copies:]
        evident = self._gain(data, masks, usual, odds).accepted
        return torch.where(evident[:, None, :, None], odds, usual)

    def _gain(self, data: GateData, masks: Masks, usual: Tensor, odds: Tensor) -> Gain:
        """Compare log-odds [F, M, T, held] with the usual ones, on strangers that have not chosen them."""
        n_copies = data.outputs.shape[2] - odds.shape[-1]
        weight, losses = data.weight * masks.judged[..., None], []
        for each in (usual, odds):
            scores = torch.cat([each.new_zeros(*each.shape[:-1], n_copies), each], -1)
            weights = mask_softmax(scores[:, :, None], data.present[:, None])
            mixed = masks.out_of_sample(mix(weights, data.outputs[:, None], data.blocks))
            losses.append(task_losses(mixed, data.y, weight, data.blocks, huber=self.options.gate.huber))
        (unmoved, row), (moved, _) = losses
        return paired_gain(unmoved, moved, row)

    def _share(self, odds: Tensor) -> Tensor:
        """Share [F, T, E] of each held expert where all are present; 0 for the others."""
        counts = odds.exp()
        share = torch.zeros(*odds.shape[:2], len(self.held))
        share[..., self.held] = counts / (counts.sum(-1, keepdim=True) + (self.n_kept if self.without else 0))
        return share

    def _readers(self, odds: Tensor, plain: Tensor) -> ReaderFit:
        """Weigh the others' readings down, and read held experts by their share beside them."""
        n_columns, n_experts = plain.shape[2], len(self.held)
        share, sizes = self._share(odds), torch.tensor([b.stop - b.start for b in self.blocks])
        of_column = share.repeat_interleave(sizes, dim=1).numpy()
        readers = mixture_alone(len(plain), n_columns, n_experts, len(self.blocks))
        if self.without is not None:
            readers = self.without.plain
        others, folds = np.flatnonzero(~self.held.numpy()), []
        for f, fold in enumerate(readers.folds):
            weight = np.zeros((n_experts, n_columns, n_columns), np.float32)
            rest = 1 - of_column[f].sum(-1)
            if self.without is not None:
                weight[others] = fold.weight.reshape(len(others), n_columns, n_columns) * rest
            for e in np.flatnonzero(self.held.numpy()):
                weight[e] += np.diag(of_column[f, :, e] * (1 - fold.share))
            folds.append(FoldReader(weight.reshape(-1, n_columns), (fold.bias * rest).astype(np.float32), fold.share))
        return ReaderFit(folds, plain, readers.shares)

    def _gate(self, odds: Tensor) -> GateFit:
        """Put the others' gate in the places of all experts, and the held ones' odds beside it."""
        n_experts, held = len(self.held), self.held.numpy()
        others, top_k = np.flatnonzero(~held), self.options.gate.top_k
        log_odds = np.full((len(odds), len(self.blocks), n_experts), np.nan, np.float32)
        log_odds[..., held] = odds.numpy()
        if self.without is None:
            return equal_gate(self.data, log_odds, top_k)
        fit, names = self.without.gate, list(self.heads)
        coordinates = (0, 0)
        if "embedding" in self.options.sources:
            coordinates = n_coordinates({names[e]: self.heads[names[e]] for e in others}), n_coordinates(self.heads)
        place = Places(others, n_experts, coordinates, self.data)
        folds = [
            FoldGate({**place.arrays(fold.arrays), "held": held_odds}, fold.active, top_k)
            for fold, held_odds in zip(fit.folds, log_odds, strict=True)
        ]
        start = [[renamed(name, others) for name in row] for row in fit.start]
        return GateFit(folds, fit.logits, fit.epoch, start, fit.history)
