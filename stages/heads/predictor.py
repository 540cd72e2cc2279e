"""What a fitted ensemble answers: predictions, intervals, single experts, gate weights, scores.

Lives here: `FittedHeads`, the public face of prediction. Not here: fitting (`ensemble`), the arithmetic (`fold_model`),
files (`persist`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import InputError, UsageError
from stages.heads.decisions.answers import Decisions
from stages.heads.estimator import Estimator, Predictions, decide, mean_score
from stages.heads.fold_model import FoldModel, Output, run_fold, to_means
from stages.heads.gate.inputs import parse_sources
from stages.heads.inputs.expert_features import ExpertFeatures, choose_rows, mix_layers, parse_mix, read_features
from stages.heads.inputs.lazy_rows import READ_ROWS
from stages.heads.out_of_sample import OutOfSample
from stages.heads.targets.tasks import Block

KEPT_BYTES = 256 << 20
"""Of a fit's outputs that are remembered."""


@dataclass(frozen=True)
class Answers:
    """What an ensemble says of some records: `predict_proba`, `predict_interval` and `gate_weights` of one pass."""

    means: Predictions
    intervals: Predictions
    gate_weights: Predictions


class FittedHeads(Estimator):
    """Heads and gates of all folds, fitted or loaded."""

    layer_mix: str
    gate_input: str | tuple[str, ...]
    lora: bool
    rank: int
    alpha: int
    top_k: int
    blocks_: tuple[Block, ...]
    experts_: tuple[str, ...]
    skipped_: dict[str, str]
    provenance_: dict[str, Any]
    history_: dict[str, Any]
    mixers_: dict[str, Any]
    models_: list[FoldModel]
    decisions_: Decisions
    _out_of_sample: OutOfSample | None
    _folder: Path
    """Of a loaded fit."""
    _kept: list[tuple[Mapping[str, Any], np.ndarray | None, int, list[Output]]] | None = None
    _judged: Sequence[np.ndarray] | None = None

    @property
    def out_of_sample_(self) -> OutOfSample:
        """The experts' logits of records that they were not trained on; read from the fit's folder when asked for."""
        self._fitted()
        if self._out_of_sample is None:
            self._out_of_sample = OutOfSample.load(self._folder)
        return self._out_of_sample

    def _matrices(self, name: str, value: ExpertFeatures, n_folds: int) -> list[np.ndarray]:
        """One feature matrix per fold; the very same array where nothing about it was trained."""
        parts = parse_mix(self.layer_mix)
        if name not in self.mixers_:
            return [mix_layers(name, value, parts)] * n_folds
        return [mix_layers(name, value, parts, mix(value)) for mix in self.mixers_[name]]

    @property
    def n_trainable_(self) -> int:
        """Trained parameters of one fold: probes, LoRA, gate (and what mixes layers or seconds)."""
        model = self._fitted()[0]
        heads = sum(h.weight.size + h.bias.size + h.lora_a.size + h.lora_b.size for h in model.heads.values())
        mixers = sum(m[0].n_parameters for m in self.mixers_.values())
        reader = 0 if model.reader is None else model.reader.weight.size + model.reader.bias.size
        return heads + sum(a.size for a in model.gate.arrays.values()) + reader + mixers

    def _fitted(self) -> list[FoldModel]:
        models: list[FoldModel] | None = getattr(self, "models_", None)
        if models is None:
            raise UsageError("these EnsembleHeads are not fitted; call fit, or load a fit")
        return models

    @contextmanager
    def remembering(self, judged: Sequence[np.ndarray] | None = None) -> Iterator[None]:
        """Keep what each fold says of the same features, so that whoever asks the fit again needs no second pass.

        Only of the very same objects, of one fold at a time, and while together they hold at most `KEPT_BYTES`.

        Parameters
        ----------
        judged
            Of each fold, bool [n]: the only records that anybody asks about. Of all others it says NaN, and they cost
            nothing. None: all.
        """
        self._kept, self._judged = [], judged
        try:
            yield
        finally:
            self._kept = self._judged = None

    def _outputs(self, features: Mapping[str, Any], gate_signal: np.ndarray | None, fold: int | None) -> list[Output]:
        """Predict with one fold, or with all."""
        for x, signal, of_fold, outputs in self._kept or ():
            if x is features and signal is gate_signal and of_fold == fold:
                return outputs
        if self._judged is None or fold is None or not self._judged[fold].any():
            outputs = self._computed(features, gate_signal, fold)
        else:
            outputs = self._computed_of(self._judged[fold], features, gate_signal, fold)
        if self._kept is not None and fold is not None:
            held = [*outputs, *(output for *_, kept in self._kept for output in kept)]
            if sum(part.nbytes for output in held for part in vars(output).values()) <= KEPT_BYTES:
                self._kept.append((features, gate_signal, fold, outputs))
        return outputs

    def _computed_of(
        self, judged: np.ndarray, features: Mapping[str, Any], gate_signal: np.ndarray | None, fold: int
    ) -> list[Output]:
        """Predict some records, bool [n], with one fold."""
        rows = np.flatnonzero(judged)
        signal = None if gate_signal is None else gate_signal[rows]
        return [o.spread(rows, len(judged)) for o in self._computed(choose_rows(features, rows), signal, fold)]

    def _computed(self, features: Mapping[str, Any], gate_signal: np.ndarray | None, fold: int | None) -> list[Output]:
        """Predict, whatever is remembered."""
        models = self._fitted()
        if fold is not None and not 0 <= fold < len(models):
            raise UsageError(f"fold {fold} does not exist; there are folds 0 to {len(models) - 1}")
        read = read_features(features)
        n = len(next(iter(read.values())))
        if any(value.lazy for value in read.values()) and n > READ_ROWS:
            return self._outputs_by_rows(read, n, gate_signal, fold)
        if unknown := sorted(set(read) - set(self.experts_)):
            raise InputError(f"expert '{unknown[0]}' is not in this fit; it has: {', '.join(self.experts_)}")
        sources = parse_sources(self.gate_input)
        if "signal" in sources and (gate_signal is None or len(gate_signal) != n):
            raise InputError(f"this fit's gate reads the signal: give gate_signal with {n} rows")
        folds = range(len(models)) if fold is None else [fold]
        present = np.zeros((n, len(self.experts_)), np.float32)
        matrices: dict[str, list[np.ndarray]] = {}
        for e, name in enumerate(self.experts_):
            if name in read:
                present[:, e] = read[name].present
                matrices[name] = self._matrices(name, read[name], len(models))
                self._check_width(name, matrices[name][0])
            else:
                width = len(models[0].heads[name].scaler.median)
                matrices[name] = [np.full((n, width), np.nan, np.float32)] * len(models)
        return [
            run_fold(models[f], {k: v[f] for k, v in matrices.items()}, present, gate_signal, sources, self.blocks_)
            for f in folds
        ]

    def _outputs_by_rows(
        self, read: dict[str, ExpertFeatures], n: int, gate_signal: np.ndarray | None, fold: int | None
    ) -> list[Output]:
        """Predict what lies on disk piece by piece, so that memory does not grow with its width."""
        pieces = []
        for start in range(0, n, READ_ROWS):
            rows = slice(start, start + READ_ROWS)
            signal = None if gate_signal is None else gate_signal[rows]
            pieces.append(self._computed({k: v.take(rows) for k, v in read.items()}, signal, fold))
        parts = ("experts", "weights", "mixed")
        return [
            Output(*(np.concatenate([getattr(o, part) for o in of_fold]) for part in parts))
            for of_fold in zip(*pieces, strict=True)
        ]

    def _check_width(self, name: str, x: np.ndarray) -> None:
        wanted = len(self.models_[0].heads[name].scaler.median)
        if x.shape[1] != wanted:
            raise InputError(f"expert '{name}': {x.shape[1]} features, but this fit was made on {wanted}")

    def _means(self, logits: list[np.ndarray], fold: int | None, source: int = 0) -> Predictions:
        """Average the folds' values and probabilities; `source` of baseline hazards: 0 the mixture, e + 1 expert e."""
        models = self._fitted() if fold is None else [self._fitted()[fold]]
        per_fold = [
            to_means(x, m.target_centre, m.target_scale, self.blocks_, None if m.hazards is None else m.hazards[source])
            for x, m in zip(logits, models, strict=True)
        ]
        return {name: np.mean([p[name] for p in per_fold], axis=0) for name in per_fold[0]}

    def predict_proba(
        self, features: Mapping[str, Any], *, gate_signal: np.ndarray | None = None, fold: int | None = None
    ) -> Predictions:
        """Calibrated probabilities (regression: values in the task's unit) of the gated ensemble.

        Parameters
        ----------
        fold
            One fold's model; None averages the folds' probabilities.

        Returns
        -------
        task -> [n] (regression; binary: of the positive class) or [n, classes]; survival: [n, 1 + horizons], the
        log-hazard and the probabilities that the event has not come until each horizon. NaN where no expert saw the
        record.
        """
        outputs = self._outputs(features, gate_signal, fold)
        return self._means([o.mixed for o in outputs], fold)

    def predict(
        self, features: Mapping[str, Any], *, gate_signal: np.ndarray | None = None, fold: int | None = None
    ) -> Predictions:
        """Values (regression), 0 or 1 (binary, each class of multilabel) or class index (multiclass); -1: no expert.

        Of survival tasks the log-hazard.
        """
        means = self.predict_proba(features, gate_signal=gate_signal, fold=fold)
        return decide(self.tasks_, means)

    def predict_interval(
        self, features: Mapping[str, Any], *, gate_signal: np.ndarray | None = None, fold: int | None = None
    ) -> Predictions:
        """Intervals [n, 2] of regression tasks: conformal ones where `decisions_` holds limits, else 90 % of residuals.

        The latter lie between the quantiles of out-of-sample residuals.
        """
        means = self.predict_proba(features, gate_signal=gate_signal, fold=fold)
        return self._intervals(means, fold)

    def _intervals(self, means: Predictions, fold: int | None) -> Predictions:
        models = self._fitted() if fold is None else [self._fitted()[fold]]
        width = np.mean([m.interval for m in models], axis=0)
        found = {}
        for block in self.blocks_:
            if block.task.kind == "regression":
                value = means[block.task.name]
                conformal = self.decisions_.conformal.interval(block.task.name, value, fold)
                found[block.task.name] = value[:, None] + width[:, block.start] if conformal is None else conformal
        return found

    def answers(self, features: Mapping[str, Any], *, gate_signal: np.ndarray | None = None) -> Answers:
        """Return what `predict_proba`, `predict_interval` and `gate_weights` do, in a third of their time."""
        outputs = self._outputs(features, gate_signal, None)
        means = self._means([o.mixed for o in outputs], None)
        weights = np.mean([o.weights for o in outputs], axis=0)
        by_task = {task.name: weights[:, t] for t, task in enumerate(self.tasks_)}
        return Answers(means, self._intervals(means, None), by_task)

    def expert_predictions(
        self, features: Mapping[str, Any], *, gate_signal: np.ndarray | None = None, fold: int | None = None
    ) -> dict[str, Predictions]:
        """Expert -> what that expert alone says, as `predict_proba` gives it; NaN where it is absent."""
        outputs = self._outputs(features, gate_signal, fold)
        return {
            name: self._means([np.ascontiguousarray(o.experts[:, e]) for o in outputs], fold, e + 1)
            for e, name in enumerate(self.experts_)
        }

    def uniform_mean(
        self, features: Mapping[str, Any], *, gate_signal: np.ndarray | None = None, fold: int | None = None
    ) -> Predictions:
        """Plain mean of the present experts' probabilities or values: the ensemble without a gate."""
        experts = self.expert_predictions(features, gate_signal=gate_signal, fold=fold)
        out = {}
        for task in self.tasks_:
            stacked = np.stack([experts[name][task.name] for name in self.experts_])
            known = ~np.isnan(stacked)
            total = np.where(known, stacked, 0).sum(0)
            out[task.name] = np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)
        return out

    def gate_weights(
        self, features: Mapping[str, Any], *, gate_signal: np.ndarray | None = None, fold: int | None = None
    ) -> Predictions:
        """Task -> weights [n, experts] in the order of `experts_`; each row sums to 1, an absent expert has 0."""
        outputs = self._outputs(features, gate_signal, fold)
        mean = np.mean([o.weights for o in outputs], axis=0)
        return {task.name: mean[:, t] for t, task in enumerate(self.tasks_)}

    def score(
        self,
        features: Mapping[str, Any],
        targets: Mapping[str, Any],
        *,
        gate_signal: np.ndarray | None = None,
        fold: int | None = None,
    ) -> float:
        """Mean over tasks of R2, Harrell's C (survival) or accuracy (others), on labelled records; higher is better."""
        predicted = self.predict(features, gate_signal=gate_signal, fold=fold)
        return mean_score(self.tasks_, predicted, targets)
