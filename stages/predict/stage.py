"""Stage `predict`: what a saved fit says of new ECGs, with the gate's weights and what to beware of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from cache.errors import FingerprintError, InputError, MissingFileError
from stages.experts.run import RunSettings, Signal, embed_records
from stages.heads import EnsembleHeads
from stages.learning.data import layer_parts
from stages.learning.gate_signal import gate_signal, leads_of, reads_signal
from stages.predict.settings import Prediction, PredictPaths, PredictSettings, PredictSummary
from stages.readers.at_500_hz import all_at_500_hz
from stages.readers.files import Recorded, read_ecg
from stages.readers.rows import RowOptions

if TYPE_CHECKING:
    from stages.experts import Expert


Progress = Callable[[list[Prediction]], None]
"""Called with the predictions of some records, as soon as they are there."""


def run(settings: PredictSettings, paths: PredictPaths, progress: Progress | None = None) -> PredictSummary:
    """Predict records, some at a time. A record that cannot be read is named in the summary and stops none.

    Raises
    ------
    MissingFileError
        No fit.
    FingerprintError
        An expert is not the one that the heads were fitted on.
    """
    heads, summary = EnsembleHeads.load(paths.heads), PredictSummary()
    options, step = row_options(heads), settings.records_at_once
    for start in range(0, len(paths.records), step):
        recorded = []
        for path in paths.records[start : start + step]:
            try:
                recorded.append(read_ecg(path, options, follow_links=settings.follow_links))
            except (InputError, MissingFileError) as error:
                summary.unreadable.append(str(error))
        if recorded:
            found = predict(recorded, heads, settings.experts, settings.identities, settings.running)
            summary.n_predicted += len(found)
            if progress is not None:
                progress(found)
    return summary


def row_options(heads: EnsembleHeads) -> RowOptions:
    """Return how the rows were made that a fit learnt from."""
    kept = heads.provenance_.get("rows") or {}
    return RowOptions.from_json({**kept, "pace_spikes": False})


def predict(
    records: Sequence[Recorded],
    heads: EnsembleHeads,
    experts: Mapping[str, Expert],
    identities: Mapping[str, str],
    settings: RunSettings | None = None,
) -> list[Prediction]:
    """Run the experts on new ECGs and let the fitted heads and gate decide.

    Parameters
    ----------
    experts
        Those of the fit; one that is not given counts as absent, and its weight goes to the others.
    identities
        Expert -> digest of what it is now (`stages.learning.data.expert_identity`).
    settings
        Threads and batch size of the experts' stores; numbers are rounded as those stores are.

    Raises
    ------
    FingerprintError
        An expert is not the one that the heads were fitted on (other weights, version, preprocessing or precision).
    """
    found = [Prediction(record.name, warnings=list(record.warnings)) for record in records]
    _fill(found, heads, *_inputs(records, heads, experts, identities, settings, found))
    return found


def answers(
    records: Sequence[Recorded],
    heads: EnsembleHeads,
    experts: Mapping[str, Expert],
    identities: Mapping[str, str],
    settings: RunSettings | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """Return "gate" and "expert:NAME" -> task -> what they say of the records, as `EnsembleHeads.predict_proba` does.

    Parameters and errors are those of `predict`; NaN where nobody answers.
    """
    found = [Prediction(record.name) for record in records]
    features, signal = _inputs(records, heads, experts, identities, settings, found)
    alone = heads.expert_predictions(features, gate_signal=signal)
    return {
        "gate": dict(heads.predict_proba(features, gate_signal=signal)),
        **{f"expert:{name}": dict(alone[name]) for name in features},
    }


def _inputs(
    records: Sequence[Recorded],
    heads: EnsembleHeads,
    experts: Mapping[str, Expert],
    identities: Mapping[str, str],
    settings: RunSettings | None,
    found: list[Prediction],
) -> tuple[dict[str, dict[str, np.ndarray]], np.ndarray | None]:
    """Return the experts' features and what the gate sees of the signals; warnings go to `found`."""
    _check_identities(heads, identities)
    features, dtypes = {}, heads.provenance_.get("dtypes", {})
    for name in heads.experts_:
        if name in experts:
            views = tuple(heads.provenance_.get("views", {}).get(name, ()))
            rounded = replace(settings or RunSettings(), dtype=dtypes.get(name), views=views)
            features[name] = _features(name, experts[name], records, rounded, found)
    if not features:
        raise InputError(f"none of the fit's experts is here: {', '.join(heads.experts_)}")
    for name in heads.experts_:
        if name not in features:
            for prediction in found:
                prediction.warnings.append(f"expert {name} is absent")
    signal = None
    if reads_signal(heads):
        signal = gate_signal(all_at_500_hz([(r.signals_mv, r.rate_hz) for r in records]), leads_of(heads))
    return features, signal


def _check_identities(heads: EnsembleHeads, identities: Mapping[str, str]) -> None:
    for name, digest in heads.provenance_["identities"].items():
        if identities.get(name, digest) != digest:
            raise FingerprintError(
                f"expert '{name}' is not the one that heads/ was fitted on (weights, version, preprocessing or "
                f"precision differ); run `ensemble embed --expert {name}` and `ensemble fit-heads` again"
            )


def _features(
    name: str, expert: Expert, records: Sequence[Recorded], settings: RunSettings, found: list[Prediction]
) -> dict[str, np.ndarray]:
    """Embed the records as `embed` does, so that one ECG predicts as it would in a cohort."""
    embedded = embed_records(expert, [Signal(record.signals_mv, record.rate_hz) for record in records], settings)
    for row, reason in embedded.reasons.items():
        found[row].warnings.append(f"expert {name} gave nothing: {reason}")
    spec = expert.spec
    parts = layer_parts(embedded.embedding, spec.layer_names, spec.layer_dims, lambda: embedded.layers)
    return parts | embedded.views


def _fill(
    found: list[Prediction], heads: EnsembleHeads, features: dict[str, dict[str, np.ndarray]], signal: np.ndarray | None
) -> None:
    means = heads.predict_proba(features, gate_signal=signal)
    intervals = heads.predict_interval(features, gate_signal=signal)
    weights = heads.gate_weights(features, gate_signal=signal)
    for row, prediction in enumerate(found):
        for task in heads.tasks_:
            value = np.asarray(means[task.name][row], dtype=np.float64)
            if not np.isfinite(value).all():
                prediction.warnings.append(f"task {task.name}: no expert has a vector for this record")
                continue
            facts: dict[str, Any] = {"kind": task.kind}
            if task.kind == "regression":
                low, high = (float(x) for x in intervals[task.name][row])
                facts |= {"value": float(value), "low": low, "high": high, "unit": task.unit}
            elif task.kind == "binary":
                facts |= {"probability": float(value), "positive": task.classes[1] if task.classes else "1"}
            elif task.kind == "survival":
                alive = zip((f"{horizon:g}" for horizon in task.horizons), map(float, value[1:]), strict=True)
                facts |= {"log_hazard": float(value[0]), "survival": dict(alive), "unit": task.unit}
            else:
                facts["probabilities"] = dict(zip(task.classes, map(float, value), strict=True))
            prediction.tasks[task.name] = facts | heads.decisions_.of(task, value)
            prediction.gate[task.name] = dict(zip(heads.experts_, map(float, weights[task.name][row]), strict=True))
