"""Model inputs of a cohort, prepared once and kept in a file that is mapped into memory.

Training reads records in random order, epoch after epoch: filters and resampling run once, memory stays bounded by one
shard of signals, and the file is what the operating system makes of it. It lies in the study's state folder, where it
may be deleted.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from cache.errors import InputError, StoreError
from cache.files import replacing
from cache.fingerprint import fingerprint
from cache.records import records_digest
from cache.signals import RATE_HZ, SignalStore
from stages.experts import Expert
from stages.experts.options import plain_options

Prepare = Callable[[np.ndarray, float], Tensor]
BLOCK = 64
"""Records prepared at once, a multiple of the signals' chunks."""


def training_rows(records: pd.DataFrame, split: str = "train") -> np.ndarray:
    """Return the rows of a split whose signals could be read.

    Raises
    ------
    InputError
        None of them.
    """
    rows = np.flatnonzero((records["split"] == split) & (records["status"] == "ok"))
    if not len(rows):
        raise InputError(f"no readable record has split '{split}'; run `ensemble ingest` with more records")
    return rows


def input_identity(expert: Expert) -> dict[str, object]:
    """Return what an expert's `prepare` depends on: its version, input path, and the options of both.

    A named version of an expert prepares as its base does, so that both share the files.
    """
    spec = expert.spec
    return {
        "expert": spec.name.partition("+")[0],
        "version": spec.version,
        "path": expert.preprocessing,
        "options": plain_options(spec.name, spec.preprocessing),
        "input": [spec.sampling_rate_hz, spec.seconds, list(spec.leads)],
    }


def prepared_inputs(
    folder: Path,
    identity: dict[str, object],
    prepare: Prepare,
    signals: SignalStore,
    rows: np.ndarray,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Return float32 [row, windows, ...], mapped read-only: what `prepare` makes of records `rows` (ascending).

    Parameters
    ----------
    identity
        What `prepare` depends on; with the signals and the rows, it names the file.
    """
    rows_id = records_digest([str(row) for row in rows.tolist()])
    key = fingerprint({**identity, "signals": signals.content_digest(), "rows": rows_id})[:24]
    path = folder / f"{key}.npy"
    if not path.is_file():
        with replacing(path) as temporary:
            _write(temporary, prepare, signals, rows, progress)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _write(
    path: Path,
    prepare: Prepare,
    signals: SignalStore,
    rows: np.ndarray,
    progress: Callable[[int, int], None] | None,
) -> None:
    out, done = None, 0
    for block in np.unique(rows // BLOCK):
        start = int(block) * BLOCK
        chosen = rows[rows // BLOCK == block] - start
        signals_mv = signals.read_mv(slice(start, min(start + BLOCK, len(signals))))[chosen]
        x = prepare(signals_mv, RATE_HZ).numpy()
        if not np.isfinite(x).all():
            raise StoreError(f"{signals.path}: a model input of records {start}..{start + BLOCK} is not finite")
        if out is None:
            shape = (len(rows), *x.shape[1:])
            out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        out[done : done + len(x)] = x
        done += len(x)
        if progress is not None:
            progress(done, len(rows))
    if out is not None:
        out.flush()
