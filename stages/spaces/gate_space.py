"""The gate's space: every expert's embedding on axes of equal number, scaled by how much the gate trusts the expert.

Lives here: scaler, principal axes, weights. Not here: the gate (`stages.heads`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cache.errors import FingerprintError, InputError, UsageError
from cache.fingerprint import file_digest, fingerprint
from cache.signals import SignalStore, open_signals
from cache.storage.locations import Location
from stages.heads import EnsembleHeads
from stages.heads.inputs.lazy_rows import ChosenRows
from stages.heads.inputs.scaler import RobustScaler
from stages.learning.data import expert_parts, view_parts
from stages.learning.gate_signal import gate_signal, leads_of, reads_signal
from stages.readers.at_500_hz import read_at_500_hz
from stages.spaces.expert_space import checked_store
from stages.spaces.sample import even_sample
from stages.spaces.space import NewEcg

AXES = 50
"""Of each expert, unless one has fewer features or the study fewer records."""


class _Projection(NamedTuple):
    """Standardised values -> principal coordinates whose mean squared length is 1."""

    scaler: RobustScaler
    axes: np.ndarray
    centre: np.ndarray

    def coordinates(self, embedding: np.ndarray) -> np.ndarray:
        values = self.scaler.transform(np.asarray(embedding, np.float32))
        return np.asarray((values - self.centre) @ self.axes, dtype=np.float32)


class GateSpace:
    """Side by side, for every expert: its principal coordinates times the record's gate weight.

    Parameters
    ----------
    stores
        Those of the fit.
    task
        Whose gate; None: the mean of the tasks' weights. With several folds the weights are the mean of the fits'.

    Raises
    ------
    FingerprintError
        A store is not the one that the heads were fitted on.
    UsageError
        The fit has no such task.
    """

    def __init__(
        self, stores: Mapping[str, Location], heads: Path, signals: Location | None, digest: str, task: str | None
    ) -> None:
        self._heads, self._task, self._folder = EnsembleHeads.load(heads), task, heads
        names = [one.name for one in self._heads.tasks_]
        if task is not None and task not in names:
            raise UsageError(f"--task {task}: the fit has no such task; it has {', '.join(names)}")
        self._stores = {name: checked_store(stores[name], digest) for name in self._heads.experts_}
        for name, known in self._heads.provenance_["fingerprints"].items():
            if self._stores[name].fingerprint != known:
                raise FingerprintError(
                    f"{heads}: was fitted on other embeddings of '{name}'; run `ensemble fit-heads` again"
                )
        self._signals: SignalStore | None = None
        if reads_signal(self._heads):
            if signals is None:
                raise InputError(f"{heads}: its gate reads the signal; give signals.zarr")
            self._signals = open_signals(signals)

    def __len__(self) -> int:
        return len(next(iter(self._stores.values())))

    @property
    def fingerprint(self) -> str:
        """Digest of everything that changes a vector."""
        files = ("config.json", "heads.safetensors")
        heads = {name: file_digest(self._folder / name) for name in files if (self._folder / name).is_file()}
        stores = {name: store.fingerprint for name, store in self._stores.items()}
        return fingerprint({"heads": heads, "stores": stores, "task": self._task or "", "axes": AXES, "space": 1})

    @cached_property
    def _projections(self) -> dict[str, _Projection]:
        samples = {name: even_sample(store) for name, store in self._stores.items()}
        scalers = {name: RobustScaler.fit(sample) for name, sample in samples.items() if len(sample)}
        if not scalers:
            raise InputError("no record has a vector")
        limits = [min(scaler.width, max(len(samples[name]) - 1, 1)) for name, scaler in scalers.items()]
        n_axes = min(AXES, *limits)
        return {name: _project(scaler, samples.pop(name), n_axes) for name, scaler in scalers.items()}

    def read(self, rows: slice) -> np.ndarray:
        """Return vectors of contiguous rows, float32 [b, width]; a record without any expert is a row of NaN."""
        features = {name: self._parts(name, rows) for name in self._stores}
        signal = None
        if self._signals is not None:
            signal = gate_signal(read_at_500_hz(self._signals, rows), leads_of(self._heads))
        return self._vectors(features, signal)

    def place(self, ecg: NewEcg) -> np.ndarray:
        """Return the vector of an ECG that is in no store, float32 [width]."""
        return self._vectors(ecg.features, ecg.gate_signal)[0]

    def _parts(self, name: str, rows: slice) -> dict[str, Any]:
        store = self._stores[name]
        parts = expert_parts(store, lazy=True)
        views = view_parts(store)
        taken = {part: array[rows] for part, array in parts.items() if part not in views}
        return taken | {part: ChosenRows(view, rows) for part, view in views.items()}

    def _vectors(self, features: Mapping[str, Mapping[str, Any]], signal: np.ndarray | None) -> np.ndarray:
        weights = self._weights(features, signal)
        n, parts = len(weights), []
        seen = np.zeros(n, bool)
        for k, name in enumerate(self._heads.experts_):
            projection = self._projections.get(name)
            if projection is None:
                continue
            width = projection.axes.shape[1]
            if name not in features:
                parts.append(np.zeros((n, width), np.float32))
                continue
            embedding = np.asarray(features[name]["embedding"])
            has_vector = np.isfinite(embedding).any(axis=1)
            seen |= has_vector
            weight = np.where(has_vector, weights[:, k], 0.0).astype(np.float32)
            parts.append(projection.coordinates(embedding) * weight[:, None])
        return np.where(seen[:, None], np.concatenate(parts, axis=1), np.float32(np.nan))

    def _weights(self, features: Mapping[str, Any], signal: np.ndarray | None) -> np.ndarray:
        """Return weights [n, experts] of the task, or the tasks' mean."""
        found = self._heads.gate_weights(features, gate_signal=signal)
        return found[self._task] if self._task is not None else np.mean(list(found.values()), axis=0)


def _project(scaler: RobustScaler, sample: np.ndarray, n_axes: int) -> _Projection:
    from sklearn.decomposition import PCA

    values = scaler.transform(sample)
    fitted = PCA(n_axes, svd_solver="randomized", random_state=0).fit(values)
    length = np.sqrt(max(float(fitted.explained_variance_.sum()), 1e-12))
    axes = np.ascontiguousarray(fitted.components_.T / length, dtype=np.float32)
    return _Projection(scaler, axes, fitted.mean_.astype(np.float32))
