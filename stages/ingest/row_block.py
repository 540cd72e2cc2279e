"""A few rows of a shard on their way: one thread reads the records, another packs them.

Not here: which shards there are and who does them (shards.py), how one record becomes a row (stages/readers/rows.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from cache.errors import InputError
from cache.fingerprint import DIGEST_BYTES
from cache.signals import N_SAMPLES, PackedRows, SignalStore
from stages.cohorts import Cohort
from stages.readers import Counts, Recording
from stages.readers.limbs import suspicions
from stages.readers.rows import QUALITY, RowMaker, RowOptions, no_products

HOT_ROWS = 8
"""Rows that are finished together, while they are in the processor's cache."""


class KeptRows(NamedTuple):
    """Rows that stay as they are: int16 [row, 12, time], their lengths and rates."""

    signals_uv: np.ndarray
    valid: np.ndarray
    rate_hz: np.ndarray


class Judged(NamedTuple):
    """What is known of the rows of a block.

    Attributes
    ----------
    valid, rate_hz, digests
        Of all its rows.
    columns
        Of the new ones, values in the order of `QUALITY`; those of `limb_swap` follow from `products`.
    products
        Of the new ones, as `SlopeProducts` gives them.
    """

    valid: np.ndarray
    rate_hz: np.ndarray
    digests: np.ndarray
    columns: list[tuple[Any, ...]]
    products: np.ndarray


class RowBlock:
    """Memory for `size` rows of a store: rows that stay as they are, then records that are read.

    Reading and judging is work for one thread and packing for another. There is no third step: threads that take turns
    in Python hinder each other more than they help, and packing alone does without it.
    """

    def __init__(self, size: int, store: SignalStore) -> None:
        self._maker = RowMaker(size)
        self._store = store

    def read(
        self,
        cohort: Cohort,
        kept: KeptRows,
        paths: Sequence[str],
        refused: Sequence[str | None],
        options: RowOptions,
    ) -> Judged:
        """Take over rows that are there and read records behind them.

        Parameters
        ----------
        refused
            Why a record must not be read, or None.
        """
        n_kept = len(kept.signals_uv)
        self._maker.keep(kept.signals_uv)
        n = n_kept + len(paths)
        found = Judged(
            np.empty(n, np.int32),
            np.empty(n, np.float64),
            np.empty((n, DIGEST_BYTES), np.uint8),
            [],
            no_products(len(paths)),
        )
        found.valid[:n_kept], found.rate_hz[:n_kept] = kept.valid, kept.rate_hz
        found.digests[:n_kept] = self._store.digests_of(kept.signals_uv, kept.valid, kept.rate_hz)
        for start in range(0, len(paths), HOT_ROWS):
            subset = slice(start, start + HOT_ROWS)
            reads = [partial(_read, cohort, *one) for one in zip(paths[subset], refused[subset], strict=True)]
            made = self._maker.make(n_kept + start, reads, options)
            rows = slice(n_kept + start, n_kept + start + len(reads))
            found.valid[rows], found.rate_hz[rows] = made.valid, made.rate_hz
            found.digests[rows] = self._store.digests_of(
                _trimmed(self._maker.rows[rows], made.valid), made.valid, made.rate_hz
            )
            found.products[subset] = made.products
            found.columns.extend(made.columns)
        return found

    def pack(self, judged: Judged) -> PackedRows:
        """Pack what was read."""
        return self._store.pack(_trimmed(self._maker.rows[: len(judged.valid)], judged.valid), judged.digests)


def _trimmed(rows: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return rows without the pieces of the time axis that none of them reaches."""
    pieces = max(1, -(-int(valid.max(initial=0)) // N_SAMPLES))
    return rows[:, :, : pieces * N_SAMPLES]


def quality_columns(blocks: Sequence[Judged]) -> dict[str, list[Any]]:
    """Return the columns of `QUALITY` of the new rows of some blocks."""
    rows = [row for block in blocks for row in block.columns]
    columns = dict(zip(QUALITY, map(list, zip(*rows, strict=True)), strict=True)) if rows else {n: [] for n in QUALITY}
    return {**columns, "limb_swap": suspicions(np.concatenate([block.products for block in blocks]))}


def _read(cohort: Cohort, path: str, refused: str | None) -> Recording | Counts:
    if refused is not None:
        raise InputError(refused)
    return cohort.read(path)
