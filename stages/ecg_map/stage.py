"""Stage `ecg_map`: vectors of the chosen records, their places in a plane, the page and the table.

Lives here: the order of work. Not here: the plane (`plane`), colours (`colours`), the page (`page`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cache.errors import InputError
from cache.files import replacing, write_text
from cache.record_columns import names_of
from cache.record_rows import RecordRows
from cache.records import open_records
from cache.signals import open_signals
from stages.ecg_map.colours import colourings
from stages.ecg_map.page import render
from stages.ecg_map.plane import plane
from stages.ecg_map.settings import MapPaths, MapSettings, MapSummary
from stages.plots.scale import SignalScale, scale_of
from stages.plots.strokes import packed_strokes
from stages.scoring.gate_weights import open_gate_weights
from stages.scoring.predictions import open_predictions
from stages.scoring.record_parts import rows_by_id
from stages.spaces import Space, open_space
from stages.spaces.sample import blocks

Progress = Callable[[int, int], None]
"""Called with (read, all) records."""


def run(settings: MapSettings, paths: MapPaths, progress: Progress | None = None) -> MapSummary:
    """Write map.html and map.parquet. Equal inputs and an equal umap-learn, equal bytes.

    Raises
    ------
    InputError
        Fewer than three records have a vector.
    StoreError, FingerprintError
        Stores that are incomplete, or do not belong to the records or the fit.
    UsageError
        UMAP is asked for and not installed, or the fit has no such task.
    """
    records = RecordRows(paths.records)
    space = open_space(paths.space, records.digest(), task=settings.task, standardise=True)
    wanted = np.ones(len(records), bool) if settings.records == "all" else _tested(records, paths)
    vectors = _vectors(space, wanted, progress)
    has_vector = np.isfinite(vectors).all(axis=1)
    rows = np.flatnonzero(wanted)[has_vector]
    if not len(rows):
        raise InputError(f"{paths.records}: none of the {settings.records} records has a vector in this space")
    places, method, notes = plane(vectors[has_vector], settings.method, settings.seed)
    shown = open_records(paths.records, without=("path", "n_samples", "reason", "notes"), rows=rows)
    predictions = None if paths.predictions is None else open_predictions(paths.predictions)
    weights = None if paths.gate_weights is None else open_gate_weights(paths.gate_weights, split="test")
    scale = scale_of(records.row_options.get("amplitude", "mV"))
    strokes, words = _strokes(settings, paths, rows, scale)
    notes += words
    left_out = int(len(has_vector) - len(rows))
    if left_out:
        notes.append(f"{left_out:,} records have no vector in this space and are left out")
    found = colourings(shown, shown.attrs["targets"], predictions, weights)
    ids = None if settings.hide_ids else [str(name) for name in shown["record_id"]]
    page = render(settings, method, places, found, ids, strokes, notes)
    write_text(paths.page, page)
    _write_table(paths, settings, method, shown, places)
    n_drawn = 0 if strokes is None else len(rows)
    return MapSummary(len(rows), left_out, method, n_drawn, len(page.encode()), tuple(notes))


def _tested(records: RecordRows, paths: MapPaths) -> np.ndarray:
    """Return which records are judged, bool [n]: those of predictions.parquet's test rows, else of the test split."""
    if paths.predictions is None:
        return records.equal("split", "test")
    predictions = open_predictions(paths.predictions)
    judged = [
        predictions.read(task, method, "test").records
        for task in predictions.tasks
        for method in predictions.methods(task)[:1]
    ]
    tested = np.zeros(len(records), bool)
    tested[rows_by_id(records, names_of(judged))] = True
    return tested


def _vectors(space: Space, wanted: np.ndarray, progress: Progress | None) -> np.ndarray:
    """Return vectors of the wanted records, float32 [m, width]; NaN where there is none."""
    parts = []
    for rows in blocks(len(space)):
        if wanted[rows].any():
            parts.append(space.read(rows)[wanted[rows]])
        if progress is not None:
            progress(rows.stop, len(space))
    return np.concatenate(parts) if parts else np.empty((0, 1), np.float32)


def _strokes(
    settings: MapSettings, paths: MapPaths, rows: np.ndarray, scale: SignalScale
) -> tuple[np.ndarray | None, list[str]]:
    """Return the small ECGs, int8 [m, 12, points], and a note where there are none."""
    if not settings.thumbnails or paths.signals is None:
        return None, []
    if len(rows) > settings.thumbnails:
        return None, [
            f"{len(rows):,} records are more than the {settings.thumbnails:,} that may have small ECGs: none are drawn"
        ]
    store = open_signals(paths.signals)
    found = []
    for row in map(int, rows):
        groups = list(store.read_groups(slice(row, row + 1)))
        found.append(
            packed_strokes(scale.drawn(groups[0][1][0]), groups[0][2]) if groups else packed_strokes(None, 1.0)
        )
    words = f"small ECGs at {scale.gain}, a square is {scale.square}: {scale.note}"
    return np.stack(found), [words] if scale.note else []


def _write_table(paths: MapPaths, settings: MapSettings, method: str, shown: pd.DataFrame, places: np.ndarray) -> None:
    columns = {name: pa.array(shown[name].astype(str).tolist()) for name in ("record_id", "source", "split")}
    columns |= {"x": pa.array(places[:, 0]), "y": pa.array(places[:, 1])}
    about = {"method": method, "space": settings.space, "records": settings.records, "seed": str(settings.seed)}
    table = pa.table(columns).replace_schema_metadata(about)
    with replacing(paths.table) as temporary:
        pq.write_table(table, temporary, compression="zstd")
