"""Stage `similar`: cosine distances to every record, block by block; of many records, to those that an index names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from cache.errors import InputError
from cache.record_rows import RecordRows
from cache.records import Target
from stages.similar.index import candidates, index_available
from stages.similar.settings import Neighbour, SimilarPaths, SimilarSettings, SimilarSummary
from stages.spaces import Space, open_space
from stages.spaces.sample import blocks

Progress = Callable[[int, int], None]
"""Called with (compared, all) records."""
WITHOUT_INDEX = "usearch is not installed: every record is compared; `pip install 'ecg-ensemble[index]'` adds an index"


def run(settings: SimilarSettings, paths: SimilarPaths, progress: Progress | None = None) -> SimilarSummary:
    """Compare one vector with those of all records. Memory does not grow with the study.

    Raises
    ------
    InputError
        The study has no such record, or the record or the file has no vector.
    StoreError, FingerprintError
        A store that is not complete, or was made for other records than these or than the fit's.
    """
    records = RecordRows(paths.records, ("record_id", "patient_id"), every_target=True)
    space = open_space(paths.space, records.digest(), task=settings.task)
    row = None if settings.ecg is not None else _row_of(records, settings.record)
    query = space.read(slice(row, row + 1))[0] if row is not None else space.place(settings.ecg)  # type: ignore[arg-type]
    if not np.isfinite(query).all():
        raise InputError(
            f"{settings.record}: has no whole vector in this space: it could not be read, or no expert took it"
        )
    excluded = _excluded(records, row, settings.same_patient)
    many = len(space) >= settings.index_from and not settings.exact
    notes = (WITHOUT_INDEX,) if many and not index_available() else ()
    if many and index_available():
        wanted = settings.count + len(excluded)
        found = candidates(space, query, wanted, paths.indexes, settings.threads, progress)
        rows, n_compared = found.rows, found.n_indexed
        distances = np.array([cosine_distances(space.read(slice(k, k + 1)), query)[0] for k in rows])
    else:
        rows, distances = np.arange(len(space)), _distances(space, query, progress)
        n_compared = int(np.isfinite(distances).sum())
    distances[np.isin(rows, excluded)] = np.inf
    order = np.argsort(distances, kind="stable")[: settings.count]
    near = (_neighbour(records, int(rows[k]), float(distances[k])) for k in order if np.isfinite(distances[k]))
    return SimilarSummary(tuple(near), n_compared - (row is not None), many and index_available(), notes)


def _row_of(records: RecordRows, record: str) -> int:
    row = records.find(record)
    if row is None:
        raise InputError(f"{record}: records.parquet has no record of this id")
    return row


def _excluded(records: RecordRows, row: int | None, same_patient: bool) -> np.ndarray:
    """Return the rows that are no neighbours: the record itself, and those of its patient where they do not count."""
    if row is None:
        return np.empty(0, np.int64)
    patient = records.take(slice(row, row + 1))["patient_id"][0]
    if same_patient or patient is None:
        return np.array([row])
    return np.flatnonzero(records.equal("patient_id", patient))


def cosine_distances(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Return 1 - cosine of each row [n]; inf where a record has no vector."""
    found = 1.0 - _unit(vectors.astype(np.float32)) @ _unit(query.astype(np.float32))
    return np.where(np.isnan(found), np.inf, np.maximum(found, 0.0)).astype(np.float64)


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def _distances(space: Space, query: np.ndarray, progress: Progress | None) -> np.ndarray:
    found = np.empty(len(space))
    for rows in blocks(len(space)):
        found[rows] = cosine_distances(space.read(rows), query)
        if progress is not None:
            progress(rows.stop, len(space))
    return found


def _neighbour(records: RecordRows, row: int, distance: float) -> Neighbour:
    facts = {name: cells[0] for name, cells in records.take(slice(row, row + 1)).items()}
    labels = {name: _label(target, facts[name]) for name, target in records.targets.items()}
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
