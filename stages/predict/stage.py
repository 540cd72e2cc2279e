"""Stage `predict`: what a saved fit says of new ECGs, with the gate's weights and what to beware of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cache.errors import FingerprintError, InputError, MissingFileError
from cache.signals import LEADS, N_SAMPLES, RATE_HZ, to_millivolts
from stages.heads import EnsembleHeads
from stages.learning.data import layer_parts
from stages.learning.gate_signal import gate_signal, leads_of, reads_signal
from stages.readers import Quality, read_wfdb, standardise

if TYPE_CHECKING:
    from stages.experts import Expert

NOISY_NAN_FRACTION = 0.01
SUFFIXES = (".hea", ".dat", ".mat")


@dataclass(frozen=True)
class Recorded:
    """One new ECG in the form of signals.zarr's rows."""

    name: str
    signals_mv: np.ndarray
    """float32 [12, 5000] in mV; missing = NaN."""
    quality: Quality

    @property
    def warnings(self) -> list[str]:
        """What a reader of the predictions should know about the signal."""
        found = []
        if self.quality.missing_leads:
            found.append(f"missing leads: {', '.join(self.quality.missing_leads)}")
        if self.quality.flat_leads:
            found.append(f"flat leads: {', '.join(self.quality.flat_leads)}")
        if self.quality.valid < N_SAMPLES:
            found.append(f"short record: {self.quality.valid / RATE_HZ:.1f} s of {N_SAMPLES / RATE_HZ:g} s")
        if self.quality.nan_fraction > NOISY_NAN_FRACTION:
            found.append(f"missing samples: {self.quality.nan_fraction:.1%}")
        if self.quality.clipped_fraction > 0:
            found.append(f"clipped samples: {self.quality.clipped_fraction:.1%}")
        return found


@dataclass
class Prediction:
    """What the ensemble says of one ECG; `tasks` and `gate` are ready for JSON."""

    record: str
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    gate: dict[str, dict[str, float]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def read_record(path: str | Path) -> Recorded:
    """Read a WFDB record, named with or without its suffix.

    Raises
    ------
    MissingFileError, InputError
        No such record, or one that cannot be read; the message names it.
    """
    path = Path(path).expanduser()
    stem = path.with_suffix("") if path.suffix in SUFFIXES else path
    if not stem.with_name(stem.name + ".hea").is_file():
        raise MissingFileError(f"{path}: no WFDB record ({stem.name}.hea is not there)")
    row = np.empty((len(LEADS), N_SAMPLES), np.int16)
    try:
        quality = standardise(read_wfdb(stem.parent.resolve(), stem.name), row)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return Recorded(str(path), to_millivolts(row), quality)


def predict(
    records: list[Recorded], heads: EnsembleHeads, experts: Mapping[str, Expert], identities: Mapping[str, str]
) -> list[Prediction]:
    """Run the experts on new ECGs and let the fitted heads and gate decide.

    Parameters
    ----------
    experts
        Those of the fit; one that is not given counts as absent, and its weight goes to the others.
    identities
        Expert -> digest of what it is now (`stages.learning.data.expert_identity`).

    Raises
    ------
    FingerprintError
        An expert is not the one that the heads were fitted on (other weights, version, preprocessing or precision).
    """
    _check_identities(heads, identities)
    signals_mv = np.stack([record.signals_mv for record in records])
    found = [Prediction(record.name, warnings=record.warnings) for record in records]
    features, dtypes = {}, heads.provenance_.get("dtypes", {})
    for name in heads.experts_:
        if name in experts:
            features[name] = _features(name, experts[name], signals_mv, dtypes.get(name, "float16"), found)
    if not features:
        raise InputError(f"none of the fit's experts is here: {', '.join(heads.experts_)}")
    for name in heads.experts_:
        if name not in features:
            for prediction in found:
                prediction.warnings.append(f"expert {name} is absent")
    signal = gate_signal(signals_mv, leads_of(heads)) if reads_signal(heads) else None
    _fill(found, heads, features, signal)
    return found


def _check_identities(heads: EnsembleHeads, identities: Mapping[str, str]) -> None:
    for name, digest in heads.provenance_["identities"].items():
        if identities.get(name, digest) != digest:
            raise FingerprintError(
                f"expert '{name}' is not the one that heads/ was fitted on (weights, version, preprocessing or "
                f"precision differ); run `ensemble embed --expert {name}` and `ensemble fit-heads` again"
            )


def _features(
    name: str, expert: Expert, signals_mv: np.ndarray, dtype: str, found: list[Prediction]
) -> dict[str, np.ndarray]:
    """Embed the records one by one, rounded as the store would, so that one ECG predicts as it would in a cohort."""
    from stages.experts.run import run_expert

    spec = expert.spec
    layers = np.full((len(signals_mv), len(spec.layer_names), max(spec.layer_dims)), np.nan, dtype)
    embedding = np.full((len(signals_mv), spec.embedding_dim), np.nan, dtype)
    for row, record in enumerate(signals_mv):
        try:
            vectors = run_expert(expert, expert.prepare(record[None], RATE_HZ))
        except (ValueError, ArithmeticError, IndexError) as error:
            found[row].warnings.append(f"expert {name} gave nothing: {str(error).splitlines()[0]}")
            continue
        if vectors.failed(spec.nan_features)[0]:
            found[row].warnings.append(f"expert {name} gave no finite vector")
            continue
        layers[row], embedding[row] = vectors.layers[0].astype(dtype), vectors.embedding[0].astype(dtype)
    return layer_parts(embedding, spec.layer_names, spec.layer_dims, lambda: layers)


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
            told: dict[str, Any] = {"kind": task.kind}
            if task.kind == "regression":
                low, high = (float(x) for x in intervals[task.name][row])
                told |= {"value": float(value), "low": low, "high": high, "unit": task.unit}
            elif task.kind == "binary":
                told |= {"probability": float(value), "positive": task.classes[1] if task.classes else "1"}
            else:
                told["probabilities"] = dict(zip(task.classes, map(float, value), strict=True))
            prediction.tasks[task.name] = told
            prediction.gate[task.name] = dict(zip(heads.experts_, map(float, weights[task.name][row]), strict=True))
