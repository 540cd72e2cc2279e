"""What a network reads of labelled records: each whole, or crops of it.

Lives here: reading, and where crops lie. Not here: labels (`cohort`), the network (`tuned`).

Crops are cut from the record at 500 Hz before an expert's filters and its own resampling, as the ECG-FM benchmark does
(AI4HealthUOL/ecg-fm-benchmarking 6367295, clinical_ts/data/time_series_dataset.py): in training one that begins
anywhere in the record at each visit, elsewhere one after the other from the start; a rest shorter than a crop is none.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from cache.errors import InputError, StoreError
from cache.files import replacing
from cache.fingerprint import fingerprint
from cache.records import records_digest
from cache.signals import LEADS, SignalStore
from stages.experts.signals.dsp import resample_rate
from stages.posttrain.settings import RATE_HZ
from stages.training.inputs import BLOCK, Prepare

_LOG = logging.getLogger(__name__)
TestCrops = Literal["mean", "middle"]


def inputs_of(inputs: RecordInputs, positions: np.ndarray) -> np.ndarray:
    """Return the numbers of the inputs that records are judged by, in the records' order."""
    begins = np.searchsorted(inputs.positions, positions, "left")
    counts = np.searchsorted(inputs.positions, positions, "right") - begins
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(begins, counts) + within


def mean_of_records(inputs: RecordInputs, values: Tensor) -> Tensor:
    """Average values [input, ...] over the inputs of each record: [record, ...]."""
    positions = torch.from_numpy(inputs.positions)
    counts = torch.bincount(positions).to(values.dtype)
    sums = values.new_zeros((len(counts), *values.shape[1:])).index_add_(0, positions, values)
    return sums / counts.view(-1, *[1] * (values.ndim - 1))


class RecordInputs(Protocol):
    """Model inputs of records, which are counted by position; a record is judged by one input or by several."""

    @property
    def positions(self) -> np.ndarray:
        """Record of each input that is judged, int64 [input], ascending; every record has one at least."""

    def read(self, inputs: np.ndarray) -> Tensor:
        """Read judged inputs: float32 [k, windows, ...]."""

    def draw(self, positions: np.ndarray, generator: np.random.Generator) -> Tensor:
        """Read what training sees of records: float32 [k, windows, ...]."""


@dataclass(frozen=True)
class WholeRecords:
    """Prepared records, x float32 [record, windows, ...]: the same in training and elsewhere."""

    x: np.ndarray

    @property
    def positions(self) -> np.ndarray:
        """One input a record."""
        return np.arange(len(self.x))

    def read(self, inputs: np.ndarray) -> Tensor:
        """Read records: [k, windows, ...]."""
        return torch.from_numpy(np.ascontiguousarray(self.x[inputs]))

    def draw(self, positions: np.ndarray, generator: np.random.Generator) -> Tensor:
        """Read records: [k, windows, ...]; nothing is drawn."""
        del generator
        return self.read(positions)


@dataclass(frozen=True)
class Crops:
    """Crops of records, prepared when they are read.

    Attributes
    ----------
    signals_mv
        float32 [sample, lead] at 500 Hz, mapped from a file: the records one after the other; missing is NaN.
    begins, ends
        Of each record in `signals_mv`, int64 [record].
    n_samples
        Of a crop.
    test_crops
        What a record is judged by: the mean over all its crops, or the one in its middle.
    """

    signals_mv: np.ndarray
    begins: np.ndarray
    ends: np.ndarray
    n_samples: int
    prepare: Prepare
    test_crops: TestCrops = "mean"

    @cached_property
    def positions(self) -> np.ndarray:
        """Record of each judged crop."""
        return np.repeat(np.arange(len(self.begins)), self._counts)

    @cached_property
    def starts(self) -> np.ndarray:
        """First sample of each judged crop in `signals_mv`."""
        if self.test_crops == "middle":
            return self.begins + (self.ends - self.begins - self.n_samples) // 2
        before = np.cumsum(self._counts) - self._counts
        number = np.arange(len(self.positions)) - before[self.positions]
        return self.begins[self.positions] + number * self.n_samples

    @property
    def _counts(self) -> np.ndarray:
        if self.test_crops == "middle":
            return np.ones(len(self.begins), np.int64)
        return (self.ends - self.begins) // self.n_samples

    def read(self, inputs: np.ndarray) -> Tensor:
        """Read judged crops: [k, windows, ...]."""
        return self._prepared(self.starts[inputs])

    def draw(self, positions: np.ndarray, generator: np.random.Generator) -> Tensor:
        """Read one crop of each record, which begins anywhere where it still ends inside: [k, windows, ...]."""
        last = self.ends[positions] - self.n_samples
        return self._prepared(generator.integers(self.begins[positions], last, endpoint=True))

    def chosen(self, kept: np.ndarray) -> Crops:
        """Return the crops of some records, bool [record]."""
        return replace(self, begins=self.begins[kept], ends=self.ends[kept])

    def _prepared(self, starts: np.ndarray) -> Tensor:
        cut = np.stack([self.signals_mv[start : start + self.n_samples].T for start in starts.tolist()])
        return self.prepare(cut, float(RATE_HZ)).float()


def open_crops(
    folder: Path, signals: SignalStore, rows: np.ndarray, crop_s: float, prepare: Prepare, test_crops: TestCrops
) -> tuple[Crops, np.ndarray]:
    """Open crops of records `rows` (ascending), and the rows that have some and whose crops the expert takes.

    Parameters
    ----------
    folder
        Of the file that the records are laid out in at 500 Hz, one for all experts and lengths of crops.

    Raises
    ------
    InputError
        No record is as long as a crop, or the expert refuses all of them; says why.
    """
    path, lengths = _laid_out(folder, signals, rows)
    n_samples, ends = round(crop_s * RATE_HZ), np.cumsum(lengths)
    long_enough = lengths >= max(n_samples, 1)
    if not long_enough.any():
        longest = lengths.max(initial=0) / RATE_HZ
        raise InputError(f"crop_s {crop_s:g}: the longest record has {longest:g} s; choose a shorter crop")
    flat = np.memmap(path, np.float32, "r").reshape(-1, len(LEADS))
    crops = Crops(flat, ends - lengths, ends, n_samples, prepare, test_crops).chosen(long_enough)
    refused = _refused(crops)
    if len(refused) == len(crops.begins):
        raise InputError(f"crop_s {crop_s:g}: no record can be trained on: {refused[0]}")
    if left_out := len(rows) - len(crops.begins) + len(refused):
        first = next(iter(refused.values()), f"shorter than {crop_s:g} s")
        _LOG.warning("%d of %d records are left out of training, the first: %s", left_out, len(rows), first)
    taken = ~np.isin(np.arange(len(crops.begins)), list(refused))
    return crops.chosen(taken), rows[long_enough][taken]


def _laid_out(folder: Path, signals: SignalStore, rows: np.ndarray) -> tuple[Path, np.ndarray]:
    """Return the file of float32 [sample, lead], records one after the other, and how many samples each has."""
    rows_id = records_digest([str(row) for row in rows.tolist()])
    made_from = {"layout": "500 Hz", "version": 1, "signals": signals.content_digest(), "rows": rows_id}
    path = folder / f"{fingerprint(made_from)[:24]}.f32"
    lengths_path = path.with_suffix(".lengths.npy")
    if not path.is_file() or not lengths_path.is_file():
        with replacing(path) as temporary, replacing(lengths_path) as temporary_lengths:
            with temporary.open("wb") as file:
                lengths = [_append(file, record_mv) for record_mv in _at_500_hz(signals, rows)]
            with temporary_lengths.open("wb") as file:
                np.save(file, np.array(lengths, np.int64), allow_pickle=False)
    return path, np.load(lengths_path, allow_pickle=False)


def _append(file: IO[bytes], record_mv: np.ndarray) -> int:
    file.write(np.ascontiguousarray(record_mv.T, np.float32).tobytes())
    return int(record_mv.shape[1])


def _at_500_hz(signals: SignalStore, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Give each record [lead, sample] in mV, in the order of `rows`; without samples where it could not be read."""
    for block in np.unique(rows // BLOCK):
        span = slice(int(block) * BLOCK, min((int(block) + 1) * BLOCK, len(signals)))
        wanted = np.isin(np.arange(span.start, span.stop), rows)
        found = dict.fromkeys(np.flatnonzero(wanted).tolist(), np.zeros((len(LEADS), 0), np.float32))
        for positions, signals_mv, rate_hz in signals.read_groups(span, wanted):
            found |= zip(positions.tolist(), resample_rate(signals_mv, rate_hz, RATE_HZ), strict=True)
        yield from found.values()


def _refused(crops: Crops) -> dict[int, str]:
    """Return the records one of whose judged crops the expert refuses, with its reason.

    Raises
    ------
    StoreError
        A model input that is not finite.
    """
    positions, reasons = crops.positions, dict[int, str]()
    for start in range(0, len(positions), BLOCK):
        block = np.arange(start, min(start + BLOCK, len(positions)))
        try:
            x = crops.read(block)
        except InputError:
            reasons |= dict(_refused_of_block(crops, block, positions))
            continue
        if not bool(torch.isfinite(x).all()):
            raise StoreError("signals.zarr: a model input of a crop is not finite; run `ensemble cache verify`")
    return reasons


def _refused_of_block(crops: Crops, block: np.ndarray, positions: np.ndarray) -> Iterator[tuple[int, str]]:
    for each in block.tolist():
        try:
            crops.read(np.array([each]))
        except InputError as error:
            yield int(positions[each]), str(error)
