"""A few rows of a shard on their way: one thread reads the records, another makes rows of them, judges and packs them.

Memory for a block is made once and used over and over. Not here: which shards there are and who does them (shards.py),
how one record becomes a row (stages/readers).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cache.errors import InputError
from cache.fingerprint import DIGEST_BYTES
from cache.signals import LEADS, MISSING, N_SAMPLES, PackedRows, SignalStore
from stages.cohorts import Cohort
from stages.readers import Counts, Quality, Recording, standardise
from stages.readers.limbs import SHOWN, SlopeProducts, derive_limb_leads, suspicions
from stages.readers.pacing import count_pace_spikes
from stages.readers.whole_microvolts import Placed, finish, place

QUALITY = {
    "sampling_rate_hz": "float64",
    "n_samples": "Int64",
    "nan_fraction": "float64",
    "flat_leads": "object",
    "missing_leads": "object",
    "clipped_fraction": "float64",
    "status": "object",
    "reason": "object",
    "derived_leads": "object",
    "limb_swap": "object",
    "pace_spikes": "Int64",
}
"""Columns that reading a record gives."""
LONGEST_REASON = 300
HOT_ROWS = 8
"""Rows that are finished together, while they are in the processor's cache."""


@dataclass(frozen=True)
class Extras:
    """What is done on request only."""

    derive_leads: bool = False
    pace_spikes: bool = False


class Judged(NamedTuple):
    """What is known of the rows of a block.

    Attributes
    ----------
    valid, digests
        Of all its rows.
    columns
        Of the new ones, values in the order of `QUALITY`; those of `limb_swap` follow from `products`.
    products
        Of the new ones, as `SlopeProducts` gives them.
    """

    valid: list[int]
    digests: np.ndarray
    columns: list[tuple[Any, ...]]
    products: np.ndarray


class Block:
    """Memory for `size` rows of a store: rows that stay as they are, then records that are read.

    Reading and judging is work for one thread and packing for another. There is no third step: threads that take turns
    in Python hinder each other more than they help, and packing alone does without it.
    """

    def __init__(self, size: int, store: SignalStore) -> None:
        self._memory = np.empty((size, len(LEADS), N_SAMPLES), dtype=np.int16)
        self._slope_products = SlopeProducts()
        self._store = store

    def read(
        self,
        cohort: Cohort,
        kept: tuple[np.ndarray, np.ndarray],
        paths: Sequence[str],
        refused: Sequence[str | None],
        extras: Extras,
    ) -> Judged:
        """Take over rows that are there, with their valid lengths, and read records behind them.

        Parameters
        ----------
        refused
            Why a record must not be read, or None.
        """
        n_kept = len(kept[0])
        self._memory[:n_kept] = kept[0]
        found = Judged(kept[1].tolist(), np.empty((n_kept + len(paths), DIGEST_BYTES), np.uint8), [], _products(paths))
        found.digests[:n_kept] = self._store.digests_of(kept[0])
        for start in range(0, len(paths), HOT_ROWS):
            few = slice(start, min(start + HOT_ROWS, len(paths)))
            rows = self._memory[n_kept + few.start : n_kept + few.stop]
            read = list(map(_read, itertools.repeat(cohort), paths[few], refused[few], rows))
            judged = list(_judged(read, rows))
            told = [_told(row, one, derive_leads=extras.derive_leads) for row, one in zip(rows, judged, strict=True)]
            n_spikes = count_pace_spikes(rows) if extras.pace_spikes else [None] * len(told)
            found.valid.extend(one.get("valid", 0) for one in told)
            found.columns.extend(map(_in_order, told, n_spikes))
            found.products[few] = self._slope_products(rows)
            found.digests[n_kept + few.start : n_kept + few.stop] = self._store.digests_of(rows)
        return found

    def pack(self, judged: Judged) -> PackedRows:
        """Pack what was read."""
        return self._store.pack(self._memory[: len(judged.valid)], judged.digests)


def quality_columns(blocks: Sequence[Judged]) -> dict[str, list[Any]]:
    """Return the columns of `QUALITY` of the new rows of some blocks."""
    rows = [row for block in blocks for row in block.columns]
    columns = dict(zip(QUALITY, map(list, zip(*rows, strict=True)), strict=True)) if rows else {n: [] for n in QUALITY}
    return {**columns, "limb_swap": suspicions(np.concatenate([block.products for block in blocks]))}


_Read = Placed | Counts | Recording | Exception


def _read(cohort: Cohort, path: str, refused: str | None, row: np.ndarray) -> _Read:
    """Read a record; if it is of the usual kind its counts lie in the row then."""
    try:
        if refused is not None:
            raise InputError(refused)
        recording = cohort.read(path)
        placed = place(recording, row) if isinstance(recording, Counts) else None
        return recording if placed is None else placed
    # One record must not stop the run, whatever is wrong with it; the reason names what happened.
    except Exception as error:
        return error


def _judged(read: list[_Read], rows: np.ndarray) -> Iterator[Quality | Exception]:
    """Finish the rows of what was read, neighbours of the usual kind together."""
    start = 0
    for _, group in itertools.groupby(read, lambda one: isinstance(one, Placed)):
        members = list(group)
        part = rows[start : start + len(members)]
        start += len(members)
        placed = [one for one in members if isinstance(one, Placed)]
        yield from finish(placed, part) if placed else itertools.starmap(_alone, zip(members, part, strict=True))


def _products(paths: Sequence[str]) -> np.ndarray:
    return np.empty((len(paths), len(SHOWN), len(SHOWN)), dtype=np.float32)


def _in_order(told: dict[str, Any], n_spikes: int | None) -> tuple[Any, ...]:
    """Put what is told of a record into the order of `QUALITY`."""
    if told["status"] == "ok":
        told["pace_spikes"] = n_spikes
    return tuple(map(told.get, QUALITY))


def _alone(recording: Any, row: np.ndarray) -> Quality | Exception:
    if isinstance(recording, Exception):
        return recording
    try:
        return standardise(recording, row)
    # As above.
    except Exception as error:
        return error


def _told(row: np.ndarray, judged: Quality | Exception, *, derive_leads: bool) -> dict[str, Any]:
    if isinstance(judged, Exception):
        row.fill(MISSING)
        return {"status": "bad", "reason": _reason(judged)}
    derived = derive_limb_leads(row, judged.missing_leads) if derive_leads and judged.missing_leads else ()
    return {**judged._asdict(), "status": "ok", "derived_leads": derived}


def _reason(error: Exception) -> str:
    text = str(error) if isinstance(error, InputError) else f"unforeseen {type(error).__name__}: {error}"
    return " ".join(text.split())[:LONGEST_REASON]
