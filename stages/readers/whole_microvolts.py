"""Makes rows of signals.zarr of recordings of the usual kind, in few array calls: what nearly all records need.

Usual: counts of all twelve leads at 500 Hz of which ten seconds are kept, of a whole number of microvolts each. The
result is exactly that of `standardise.standardise`. Here also how counts are looked up where a factor will not do.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from cache.errors import InputError
from cache.signals import LEADS, LIMIT_UV, MISSING, N_SAMPLES, RATE_HZ, to_microvolts
from stages.readers.lead_names import lead_columns
from stages.readers.quality import Quality, judge
from stages.readers.recording import SECONDS_KEPT, Counts, samples_kept

Way = tuple[int, tuple[tuple[int, int, int], ...]]
"""Microvolts of a count, and where the leads lie: (first lead, its column, how many side by side)."""


class Placed(NamedTuple):
    """What is known of a record whose counts lie in its row: the microvolts of a count, the samples of its file."""

    factor: int
    n_samples: int


def place(counts: Counts, row: np.ndarray, seconds: float | None = SECONDS_KEPT) -> Placed | None:
    """Write counts of the usual kind into their row, int16 [12, 5000], as they are; None where they are of another."""
    way = _usual_way(counts, seconds)
    if way is None:
        return None
    factor, runs = way
    for first, column, width in runs:
        row[first : first + width] = counts.samples[:N_SAMPLES, column : column + width].T
    return Placed(factor, counts.n_samples)


def finish(placed: Sequence[Placed], out: np.ndarray) -> list[Quality | InputError]:
    """Turn counts that lie in their rows, int16 [record, 12, 5000], into microvolts, and judge each record."""
    factors = np.array([one.factor for one in placed], dtype=np.int16)[:, None, None]
    low, high = out.min(axis=2), out.max(axis=2)
    # Below the limit there is neither a missing nor a clipped sample, and every product fits.
    largest = np.maximum(-low.astype(np.int32), high) * np.abs(factors[:, 0], dtype=np.int32)
    fits = (largest < LIMIT_UV).all(axis=1)
    if not fits.all():
        factors = np.where(fits[:, None, None], factors, np.int16(1))
    if (factors != 1).any():
        np.multiply(out, factors, out=out)
    flat = low == high
    return [
        Quality(float(RATE_HZ), one.n_samples, N_SAMPLES, 0.0, _names(flat[k]), (), 0.0)
        if fits[k]
        else _with_limits(one, low[k], high[k], out[k])
        for k, one in enumerate(placed)
    ]


def _names(flat: np.ndarray) -> tuple[str, ...]:
    return tuple(LEADS[k] for k in np.flatnonzero(flat)) if flat.any() else ()


def _with_limits(placed: Placed, low: np.ndarray, high: np.ndarray, out: np.ndarray) -> Quality | InputError:
    """Finish a row of which some leads have missing or clipped samples."""
    at_limit = 0
    for lead, least, most in zip(out, low.tolist(), high.tolist(), strict=True):
        if max(-least, most) * max(abs(placed.factor), 1) < LIMIT_UV:
            np.multiply(lead, np.int16(placed.factor), out=lead)
        else:
            at_limit += look_up(lead, 1000.0 / placed.factor, 0)
    try:
        return judge(out, range(len(LEADS)), N_SAMPLES, at_limit, rate_hz=RATE_HZ, n_samples=placed.n_samples)
    except InputError as error:
        return error


def _usual_way(counts: Counts, seconds: float | None) -> Way | None:
    n_samples, n_leads = counts.samples.shape
    if counts.rate_hz != RATE_HZ or samples_kept(n_samples, RATE_HZ, seconds) != N_SAMPLES:
        return None
    if n_leads != len(counts.leads) or counts.converters:
        return None
    return _way(counts.leads, counts.gains_per_mv, counts.baselines)


@lru_cache(maxsize=1024)
def _way(leads: tuple[str, ...], gains_per_mv: tuple[float, ...], baselines: tuple[int, ...]) -> Way | None:
    """Find a whole number of microvolts that one count is in all twelve leads; None where there is none."""
    try:
        columns = lead_columns(leads)
    except InputError:
        return None
    gain = gains_per_mv[columns[0][1]]
    factor = 1000.0 / gain if gain else 0.0
    alike = all(gains_per_mv[column] == gain and baselines[column] == 0 for _, column in columns)
    if len(columns) < len(LEADS) or not alike or not factor.is_integer() or not 0 < abs(factor) <= LIMIT_UV:
        return None
    return int(factor), _runs([column for _, column in columns])


def _runs(columns: list[int]) -> tuple[tuple[int, int, int], ...]:
    """Return (first lead, its column, how many) of leads that lie side by side in standard order."""
    starts = [k for k, column in enumerate(columns) if not k or column != columns[k - 1] + 1]
    ends = [*starts[1:], len(columns)]
    return tuple((start, columns[start], end - start) for start, end in zip(starts, ends, strict=True))


def look_up(row: np.ndarray, gain: float, baseline: int) -> int:
    """Turn counts into microvolts in place; returns how many samples are at the converter's or the store's limit."""
    at_converter = _at_limit(row)
    np.take(_table(gain, baseline), row.view(np.uint16), out=row, mode="clip")
    at_store = _at_limit(row)
    either = [at for at in (at_converter, at_store) if at is not None]
    return int(np.logical_or.reduce(either).sum()) if either else 0


def _at_limit(row: np.ndarray) -> np.ndarray | None:
    """Say which samples are +-32767; None where it is none."""
    if row.size == 0 or (row.min() > -LIMIT_UV and row.max() < LIMIT_UV):
        return None
    return (row == LIMIT_UV) | (row == -LIMIT_UV)


@lru_cache(maxsize=64)
def _table(gain: float, baseline: int) -> np.ndarray:
    """Microvolts of every int16 count, indexed by its bits as uint16."""
    counts = np.arange(65536, dtype=np.uint16).view(np.int16)
    signals_mv = (counts.astype(np.float64) - baseline) / gain
    return np.where(counts == MISSING, np.int16(MISSING), to_microvolts(signals_mv))
