"""Stage `similar`: cosine distances to every record, block by block; exact at any size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from cache.embeddings import EmbeddingStore, open_embeddings
from cache.errors import InputError
from cache.records import Target, open_records, records_digest
from stages.similar.settings import Neighbour, SimilarPaths, SimilarSettings, SimilarSummary

BLOCK_ROWS = 8192
Progress = Callable[[int, int], None]
"""Called with (compared, all) records."""


def run(settings: SimilarSettings, paths: SimilarPaths, progress: Progress | None = None) -> SimilarSummary:
    """Compare one vector with those of all records. Memory does not grow with the study.

    Raises
    ------
    InputError
        The study has no such record, or the record has no vector.
    StoreError
        The store is not complete, or was made for other records.
    """
    records, store = open_records(paths.records), open_embeddings(paths.embeddings)
    store.require_records(records_digest(records["record_id"].tolist()))
    store.require_complete()
    row = _row_of(records, settings.record)
    query = _vector(store, row, settings.record)
    distances = _distances(store, _unit(query.astype(np.float32)), progress)
    n_compared = int(np.isfinite(distances).sum()) - 1
    distances[row] = np.inf
    if not settings.same_patient:
        patients = records["patient_id"].to_numpy()
        distances[patients == patients[row]] = np.inf
    order = np.argsort(distances, kind="stable")[: settings.count]
    found = (_neighbour(records, int(k), float(distances[k])) for k in order if np.isfinite(distances[k]))
    return SimilarSummary(tuple(found), n_compared)


def _row_of(records: pd.DataFrame, record: str) -> int:
    rows = np.flatnonzero(records["record_id"].astype(str).to_numpy() == record)
    if not len(rows):
        raise InputError(f"{record}: records.parquet has no record of this id")
    return int(rows[0])


def _vector(store: EmbeddingStore, row: int, record: str) -> np.ndarray:
    vector = store.read_embedding(slice(row, row + 1))[0]
    if not np.isfinite(vector).all():
        raise InputError(
            f"record {record} has no whole vector in {store.path}: it could not be read, was refused, or some "
            "of its numbers are missing, as of morphology; take an expert that is a network"
        )
    return vector


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def _distances(store: EmbeddingStore, query: np.ndarray, progress: Progress | None) -> np.ndarray:
    """Return 1 - cosine to each record, float64 [n]; inf where a record has no vector."""
    found = np.empty(len(store))
    for start in range(0, len(store), BLOCK_ROWS):
        rows = slice(start, min(start + BLOCK_ROWS, len(store)))
        found[rows] = 1.0 - _unit(store.read_embedding(rows).astype(np.float32)) @ query
        if progress is not None:
            progress(rows.stop, len(store))
    return np.where(np.isnan(found), np.inf, np.maximum(found, 0.0))


def _neighbour(records: pd.DataFrame, row: int, distance: float) -> Neighbour:
    facts, targets = records.iloc[row], records.attrs["targets"]
    labels = {name: _label(target, facts[name]) for name, target in targets.items()}
    return Neighbour(str(facts["record_id"]), str(facts["patient_id"]), distance, labels)


def _label(target: Target, value: Any) -> Any:
    """Return a label as words or a number; None where it is missing."""
    if target.kind == "multilabel":
        return None if value is None else list(value)
    if pd.isna(value):
        return None
    if target.kind == "survival":
        return f"{value:.4g} {target.unit}" if value > 0 else f"> {-value:.4g} {target.unit}"
    if target.kind == "regression" or not target.classes:
        return float(value)
    return target.classes[int(value)]


def as_rows(found: SimilarSummary) -> list[Mapping[str, Any]]:
    """Return one flat row a neighbour, for tables."""
    return [
        {"record_id": n.record_id, "patient_id": n.patient_id, "distance": n.distance, **n.labels}
        for n in found.neighbours
    ]
