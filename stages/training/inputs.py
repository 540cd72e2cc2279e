"""Model inputs of a cohort, prepared once and kept in a file that is mapped into memory.

Training reads records in random order, epoch after epoch: filters and resampling run once, memory stays bounded by one
shard of signals, and the file is what the operating system makes of it. It lies in the study's state folder, where it
may be deleted.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from cache.errors import InputError, StoreError
from cache.files import replacing
from cache.fingerprint import fingerprint
from cache.records import records_digest
from cache.signals import LEADS, SignalStore
from stages.experts import Expert
from stages.experts.options import plain_options

_LOG = logging.getLogger(__name__)

Prepare = Callable[[np.ndarray, float], Tensor]
BLOCK = 64
"""Records prepared at once, a multiple of the signals' chunks."""


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


class PreparedInputs(NamedTuple):
    """Model inputs of a cohort.

    Attributes
    ----------
    x
        float32 [record, windows, ...], mapped read-only.
    rows
        Row of each record; those that the expert refuses (too short, for one) are left out.
    """

    x: np.ndarray
    rows: np.ndarray


def prepared_inputs(
    folder: Path,
    identity: dict[str, object],
    prepare: Prepare,
    signals: SignalStore,
    rows: np.ndarray,
    progress: Callable[[int, int], None] | None = None,
) -> PreparedInputs:
    """Return what `prepare` makes of records `rows` (ascending), each at its own rate and of its own length.

    All have as many windows as records of the commonest length; a record of fewer is there with each of its windows as
    often, which leaves their mean as it is, and left out where that does not go.

    Parameters
    ----------
    identity
        What `prepare` depends on; with the signals and the rows, it names the file.

    Raises
    ------
    InputError
        No record gives a model input; says why the first does not.
    """
    rows_id = records_digest([str(row) for row in rows.tolist()])
    key = fingerprint({**identity, "lengths": "own", "signals": signals.content_digest(), "rows": rows_id})[:24]
    path, kept = folder / f"{key}.npy", folder / f"{key}.rows.npy"
    if not path.is_file() or not kept.is_file():
        with replacing(path) as temporary, replacing(kept) as temporary_rows:
            _save(temporary_rows, _write(temporary, prepare, signals, rows, progress))
    used = np.load(kept, allow_pickle=False)
    return PreparedInputs(np.load(path, mmap_mode="r", allow_pickle=False)[: len(used)], used)


def _save(path: Path, values: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, values, allow_pickle=False)


def _write(
    path: Path,
    prepare: Prepare,
    signals: SignalStore,
    rows: np.ndarray,
    progress: Callable[[int, int], None] | None,
) -> np.ndarray:
    """Write the inputs of the records that have one, and return their rows."""
    out, kept, left_out = None, list[int](), dict[int, str]()
    shape = _common_shape(prepare, signals, rows)
    for block in np.unique(rows // BLOCK):
        span = slice(int(block) * BLOCK, min((int(block) + 1) * BLOCK, len(signals)))
        wanted = np.isin(np.arange(span.start, span.stop), rows)
        made = dict(_inputs(prepare, signals, span, wanted, shape, left_out))
        if out is None and made:
            out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(len(rows), *shape))
        for row in sorted(made):
            assert out is not None
            out[len(kept)] = made[row]
            kept.append(row)
        if progress is not None:
            progress(len(kept) + len(left_out), len(rows))
    if out is None:
        raise InputError(f"no record can be trained on: {next(iter(left_out.values()), 'none could be read')}")
    out.flush()
    if left_out:
        first = next(iter(left_out.values()))
        _LOG.warning("%d of %d records are left out of training, the first: %s", len(left_out), len(rows), first)
    return np.array(kept, dtype=np.int64)


def _common_shape(prepare: Prepare, signals: SignalStore, rows: np.ndarray) -> tuple[int, ...]:
    """Return the shape of one model input of the commonest length and rate that gives one; () where none does."""
    whole = slice(0, len(signals))
    kinds = Counter(zip(signals.valid_of(whole)[rows].tolist(), signals.rates_of(whole)[rows].tolist(), strict=True))
    for (n_samples, rate_hz), _ in kinds.most_common():
        if n_samples:
            try:
                return tuple(prepare(np.zeros((1, len(LEADS), n_samples), np.float32), rate_hz).shape[1:])
            except InputError:
                continue
    return ()


def _inputs(
    prepare: Prepare,
    signals: SignalStore,
    span: slice,
    wanted: np.ndarray,
    shape: tuple[int, ...],
    left_out: dict[int, str],
) -> Iterator[tuple[int, np.ndarray]]:
    """Give row and model input of the wanted records of a span."""
    for positions, signals_mv, rate_hz in signals.read_groups(span, wanted):
        for row, record_mv in zip((span.start + positions).tolist(), signals_mv, strict=True):
            try:
                x = prepare(record_mv[None], rate_hz).numpy()[0]
            except InputError as error:
                left_out[row] = str(error)
                continue
            if not np.isfinite(x).all():
                raise StoreError(f"{signals.path}: the model input of record {row} is not finite")
            if x.shape[1:] != shape[1:] or shape[0] % len(x):
                left_out[row] = f"a model input of {list(x.shape)}, where others are {list(shape)}"
                continue
            yield row, np.tile(x, (shape[0] // len(x), *(1 for _ in shape[1:])))
