"""What a saved fit says of a batch of records: the experts that have to run, the heads, the gate.

Lives here: from a batch to arrays, and to the objects that JSON is made of. Not here: reading (batches.py), files of
answers (tables.py, parts.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cache.errors import FingerprintError, InputError
from stages.experts import Expert
from stages.experts.faults import SAME_FAULTS, Faults
from stages.experts.run import Prepared, RunSettings, empty_result, prepare_group, put_vectors, run_expert
from stages.heads import EnsembleHeads
from stages.heads.predictor import Answers
from stages.learning.data import layer_parts
from stages.predict.batches import Features, RecordBatch
from stages.predict.settings import Prediction


@dataclass
class PreparedBatch:
    """A batch, and of each expert that has to run its model inputs and why it refuses some of the records."""

    batch: RecordBatch
    inputs: dict[str, list[Prepared]]
    reasons: dict[str, dict[int, str]]


class Answerer:
    """A fit and the experts that run for it; the same records give the same bits, whatever process asks.

    Parameters
    ----------
    cached
        Experts whose vectors come with the batches.
    n_records
        Records there are in all: an expert whose code fails at three in a row is at fault itself.

    Raises
    ------
    FingerprintError
        An expert is not the one that the heads were fitted on.
    InputError
        None of the fit's experts is there.
    """

    def __init__(
        self,
        heads: EnsembleHeads,
        experts: Mapping[str, Expert],
        identities: Mapping[str, str],
        running: RunSettings | None,
        *,
        cached: frozenset[str] = frozenset(),
        n_records: int = 1,
    ) -> None:
        check_identities(heads, identities)
        self.heads, self._running = heads, running or RunSettings()
        self._experts = {n: experts[n] for n in heads.experts_ if n in experts and n not in cached}
        self.names = tuple(name for name in heads.experts_ if name in self._experts or name in cached)
        if not self.names:
            raise InputError(f"none of the fit's experts is here: {', '.join(heads.experts_)}")
        self._faults = {name: Faults(name, min(SAME_FAULTS, n_records)) for name in self._experts}

    def prepare(self, batch: RecordBatch) -> PreparedBatch:
        """Make model inputs; any one thread may do it while another one runs the experts."""
        prepared = PreparedBatch(batch, {}, {})
        for name, expert in self._experts.items():
            reasons: dict[int, str] = {}
            made = (prepare_group(expert, group, self._faults[name], batch.names, reasons) for group in batch.groups)
            prepared.inputs[name] = [one for one in made if one is not None]
            prepared.reasons[name] = reasons
        batch.groups = []  # the inputs are what is left of the signals
        return prepared

    def answer(self, prepared: PreparedBatch) -> Answers:
        """Run the experts, the heads and the gate; what is to be known of single records goes to their warnings."""
        features = self.features(prepared)
        return self.heads.answers(features, gate_signal=prepared.batch.signal)

    def features(self, prepared: PreparedBatch) -> dict[str, Features]:
        """Return each expert's vectors, computed or from its store, in the fit's order."""
        batch, found = prepared.batch, dict(prepared.batch.cached)
        for name in self._experts:
            found[name] = self._vectors(name, prepared)
        for name in self.heads.experts_:
            if name not in found:
                for position in readable(batch):
                    batch.warnings[position].append(f"expert {name} is absent")
        return {name: found[name] for name in self.heads.experts_ if name in found}

    def _vectors(self, name: str, prepared: PreparedBatch) -> Features:
        """Embed a batch as `embed` does, so that one ECG predicts as it would in a cohort."""
        expert, kept = self._experts[name], self.heads.provenance_
        views = tuple(kept.get("views", {}).get(name, ()))
        settings = replace(self._running, dtype=kept.get("dtypes", {}).get(name), views=views)
        result = empty_result(expert, len(prepared.batch), settings)
        result.reasons.update(prepared.reasons[name])
        for part in prepared.inputs[name]:
            vectors = run_expert(expert, part.x, settings.batch_size, views, part.record_s)
            put_vectors(result, part.positions, vectors, expert.spec.nan_features)
        for position, reason in sorted(result.reasons.items()):
            prepared.batch.warnings[position].append(f"expert {name} gave nothing: {reason}")
        spec = expert.spec
        parts = layer_parts(result.embedding, spec.layer_names, spec.layer_dims, lambda: result.layers)
        return parts | result.views


def check_identities(heads: EnsembleHeads, identities: Mapping[str, str]) -> None:
    """Refuse experts that are not those of the fit."""
    for name, digest in heads.provenance_["identities"].items():
        if identities.get(name, digest) != digest:
            raise FingerprintError(
                f"expert '{name}' is not the one that heads/ was fitted on (weights, version, preprocessing or "
                f"precision differ); run `ensemble embed --expert {name}` and `ensemble fit-heads` again"
            )


def readable(batch: RecordBatch) -> list[int]:
    """Return the positions of the records that could be read."""
    return [position for position in range(len(batch)) if position not in batch.unreadable]


def note_missing(batch: RecordBatch, heads: EnsembleHeads, answers: Answers) -> None:
    """Say of which records a task has no answer."""
    for task in heads.tasks_:
        known = known_rows(answers.means[task.name])
        for position in np.flatnonzero(~known).tolist():
            if position not in batch.unreadable:
                batch.warnings[position].append(f"task {task.name}: no expert has a vector for this record")


def known_rows(values: np.ndarray) -> np.ndarray:
    """Return which rows of [n] or [n, classes] are finite, bool [n]."""
    finite = np.isfinite(np.asarray(values, dtype=np.float64))
    return np.asarray(finite if finite.ndim == 1 else finite.all(axis=1))


def predictions_of(batch: RecordBatch, heads: EnsembleHeads, answers: Answers) -> list[Prediction]:
    """Return what is said of each record that could be read, ready for JSON."""
    note_missing(batch, heads, answers)
    found = []
    for row in readable(batch):
        prediction = Prediction(batch.names[row], warnings=list(batch.warnings[row]))
        for task in heads.tasks_:
            value = np.asarray(answers.means[task.name][row], dtype=np.float64)
            if not np.isfinite(value).all():
                continue
            prediction.tasks[task.name] = _facts(task, value, answers, row) | heads.decisions_.of(task, value)
            weights = map(float, answers.gate_weights[task.name][row])
            prediction.gate[task.name] = dict(zip(heads.experts_, weights, strict=True))
        found.append(prediction)
    return found


def _facts(task: Any, value: np.ndarray, answers: Answers, row: int) -> dict[str, Any]:
    facts: dict[str, Any] = {"kind": task.kind}
    if task.kind == "regression":
        low, high = (float(x) for x in answers.intervals[task.name][row])
        return facts | {"value": float(value), "low": low, "high": high, "unit": task.unit}
    if task.kind == "binary":
        return facts | {"probability": float(value), "positive": task.classes[1] if task.classes else "1"}
    if task.kind == "survival":
        alive = zip((f"{horizon:g}" for horizon in task.horizons), map(float, value[1:]), strict=True)
        return facts | {"log_hazard": float(value[0]), "survival": dict(alive), "unit": task.unit}
    return facts | {"probabilities": dict(zip(task.classes, map(float, value), strict=True))}
