"""Makes rows of signals.zarr of many recordings at once: what nearly all records need, in few array calls.

Gives exactly what `standardise` gives record by record, and leaves to it whatever is not of the usual kind.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from cache.errors import InputError
from cache.signals import LEADS, LIMIT_UV, N_SAMPLES, RATE_HZ
from stages.readers.recording import Counts, Recording, lead_columns
from stages.readers.standardise import Quality, judge, look_up, standardise

Runs = tuple[tuple[int, int, int], ...]


def standardise_block(recordings: Sequence[Recording | Counts | None], out: np.ndarray) -> list[Quality | Exception]:
    """Write recordings into `out`, int16 [record, 12, 5000], and judge them.

    Returns
    -------
    Per record its quality, or what `standardise` raised of it. Rows of bad records and of None are undefined.
    """
    factors = np.zeros(len(recordings), dtype=np.int32)
    for row, recording in enumerate(recordings):
        way = _usual_way(recording) if isinstance(recording, Counts) else None
        if way is not None and isinstance(recording, Counts):
            factors[row], runs = way
            for place, column, width in runs:
                out[row, place : place + width] = recording.samples[:N_SAMPLES, column : column + width].T
    low, high = out[: len(recordings)].min(axis=2), out[: len(recordings)].max(axis=2)
    widest = np.maximum(-low.astype(np.int32), high)
    # Below the limit there is neither a missing nor a clipped sample, and every product fits.
    fits = (widest < LIMIT_UV) & (widest * np.abs(factors)[:, None] < LIMIT_UV)
    usual = (factors != 0) & fits.all(axis=1)
    _scale(out, np.where(usual, factors, 1))
    flat = low == high
    judged: list[Quality | Exception] = []
    for row, recording in enumerate(recordings):
        if usual[row] and recording is not None:
            judged.append(Quality(float(RATE_HZ), recording.n_samples, N_SAMPLES, 0.0, _names(flat[row]), (), 0.0))
        elif factors[row] and isinstance(recording, Counts):
            judged.append(_with_gaps(recording, int(factors[row]), fits[row], out[row]))
        else:
            judged.append(_alone(recording, out[row]))
    return judged


def _with_gaps(counts: Counts, factor: int, fits: np.ndarray, out: np.ndarray) -> Quality | Exception:
    """Finish a row of the usual kind of which some leads have missing or clipped samples."""
    at_limit = 0
    for lead, fit in zip(out, fits, strict=True):
        if fit:
            np.multiply(lead, np.int16(factor), out=lead)
        else:
            at_limit += look_up(lead, 1000.0 / factor, 0)
    try:
        return judge(out, range(len(LEADS)), N_SAMPLES, at_limit, counts)
    except InputError as error:
        return error


def _names(leads: np.ndarray) -> tuple[str, ...]:
    return tuple(LEADS[k] for k in np.flatnonzero(leads)) if leads.any() else ()


def _alone(recording: Recording | Counts | None, out: np.ndarray) -> Quality | Exception:
    if recording is None:
        return InputError("there is no recording")
    try:
        return standardise(recording, out)
    # One record must not stop the others, whatever is wrong with it.
    except Exception as error:
        return error


def _usual_way(counts: Counts) -> tuple[int, Runs] | None:
    n_samples, n_leads = counts.samples.shape
    if counts.rate_hz != RATE_HZ or n_samples < N_SAMPLES or n_leads != len(counts.leads):
        return None
    return _way(counts.leads, counts.gains_per_mv, counts.baselines)


@lru_cache(maxsize=1024)
def _way(
    leads: tuple[str, ...], gains_per_mv: tuple[float, ...], baselines: tuple[int, ...]
) -> tuple[int, Runs] | None:
    """Return the whole number of microvolts that one count is in all twelve leads, and where the leads lie.

    None where leads are missing or one count is something else.
    """
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


def _runs(columns: list[int]) -> Runs:
    """Return (first lead, its column, how many) of leads that lie side by side in standard order."""
    starts = [k for k, column in enumerate(columns) if not k or column != columns[k - 1] + 1]
    ends = [*starts[1:], len(columns)]
    return tuple((start, columns[start], end - start) for start, end in zip(starts, ends, strict=True))


def _scale(out: np.ndarray, factors: np.ndarray) -> None:
    """Multiply rows by their factors in place, neighbours of one factor together."""
    borders = [0, *(np.flatnonzero(np.diff(factors)) + 1).tolist(), len(factors)]
    for start, end in itertools.pairwise(borders):
        if end > start and factors[start] != 1:
            rows = out[start:end]
            np.multiply(rows, np.int16(factors[start]), out=rows)
