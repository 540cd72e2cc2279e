"""Reads the samples of a record through the package wfdb, in whatever format they are.

wfdb is given a header of its own, which says only what is needed: it refuses malformed dates, two different skews in
one file, and format 61 without scaling.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cache.errors import InputError
from stages.readers.at_500_hz import resample
from stages.readers.lead_names import LeadNames, arrange
from stages.readers.paths import DataFolder, inside, open_file
from stages.readers.recording import Recording, at_limit
from stages.readers.standard_leads import left_out
from stages.readers.wfdb.checksums import mostly_stated, says_sums
from stages.readers.wfdb.header import Header, SignalLine
from stages.readers.wfdb.limits import MAX_BYTES, MAX_SAMPLES, beside, check_size, frames_wanted
from stages.readers.wfdb.mat_file import check_mat, is_mat

# What each format writes for a missing sample, and the bits of those that hold less than 16.
_MISSING = {"80": -(1 << 7), "508": -(1 << 7), "310": -(1 << 9), "311": -(1 << 9), "212": -(1 << 11)}
_MISSING |= dict.fromkeys(("16", "61", "160", "516"), -(1 << 15))
_MISSING |= {"24": -(1 << 23), "524": -(1 << 23), "32": -(1 << 31)}
_COMPRESSED = ("508", "516", "524")
_BITS_HELD = {"8": 8, "80": 8, "16": 16, "61": 16, "160": 16, "24": 24, "32": 32, "212": 12}
_SWAPPED = "61"
"""Format 16 with the high byte first."""


def read_with_wfdb(
    header: Header, folder: str | Path | DataFolder, above: str, seconds: float | None, lead_names: LeadNames
) -> Recording:
    """Read the beginning of the standard leads of a record; those of fewer samples a frame are resampled.

    Raises
    ------
    InputError
        wfdb cannot read it, a file is cut short, or header and samples disagree.
    """
    signals = header.signals
    wanted = min(header.n_samples or MAX_SAMPLES, frames_wanted(header.rate_hz, seconds))
    latest = wanted + max(signal.skew for signal in signals)
    check_size(latest * sum(signal.samples_per_frame for signal in signals))
    counts = _frames(header, folder, above, latest if header.n_samples else None)
    whole = not any(s.skew for s in signals) and (header.n_samples or 0) <= wanted
    if whole and says_sums(header) and not mostly_stated(header, [int(lead.sum()) for lead in counts]):
        raise InputError(f"header and {', '.join(sorted(set(header.file_names)))[:160]} disagree (checksums)")
    n_frames = header.n_samples or len(counts[0]) // signals[0].samples_per_frame
    leads = arrange(tuple(signal.lead for signal in signals), lead_names)
    columns = sorted(column for _, column in (*leads.columns, *leads.repeated))
    per_frame = max(signals[k].samples_per_frame for k in columns)
    rows = [_lead(counts[k], signals[k], min(wanted, n_frames), per_frame) for k in columns]
    slower = sorted({signals[k].samples_per_frame for k in columns} - {per_frame})
    return Recording(
        signals_mv=np.stack([row.wave_mv for row in rows]),
        leads=tuple(signals[k].lead for k in columns),
        rate_hz=header.rate_hz * per_frame,
        n_samples=n_frames * per_frame,
        clipped=np.stack([row.clipped for row in rows]),
        notes=(
            *(header.layout.notes if header.layout else ()),
            *left_out(leads.others),
            *(f"leads of {n} samples a frame are resampled to {per_frame}" for n in slower),
        ),
    )


def _frames(header: Header, folder: str | Path | DataFolder, above: str, end: int | None) -> list[np.ndarray]:
    """Return the counts of each signal in the first `end` frames as they lie in the file, skew not taken off."""
    import wfdb

    with _copied(header, folder, above, end) as copy, warnings.catch_warnings(action="ignore"):
        try:
            record = wfdb.rdrecord(copy.record, sampto=copy.n_frames, physical=False, smooth_frames=False)
        # wfdb raises nearly every builtin error on damaged records.
        except Exception as error:
            raise InputError(f"wfdb cannot read it ({' '.join(str(error).split())[:160]})") from error
    counts: list[np.ndarray] | None = getattr(record, "e_d_signal", None)
    if not counts or not len(counts[0]):
        raise InputError("it has no samples")
    return counts


class _Lead(NamedTuple):
    wave_mv: np.ndarray
    clipped: np.ndarray


def _lead(counts: np.ndarray, signal: SignalLine, n_frames: int, per_frame: int) -> _Lead:
    """Return one lead in mV, `per_frame` samples a frame, and where it is at the converter's limit."""
    first, n = signal.skew * signal.samples_per_frame, n_frames * signal.samples_per_frame
    counts = counts[first : first + n]
    nothing = _MISSING.get(signal.format)
    known = np.ones(counts.shape, dtype=bool) if nothing is None else counts != nothing
    clipped = at_limit(counts[None], known[None], [(signal.bits, signal.zero)])[0]
    if nothing is not None:
        clipped |= at_limit(counts[None], known[None], [((-nothing).bit_length(), 0)])[0]
    wave_mv = np.where(known, (counts - float(signal.baseline)) / signal.gain_per_mv, np.nan)
    # What a skew takes beyond the end of the file is missing.
    wave_mv = np.pad(wave_mv, (0, n - len(wave_mv)), constant_values=np.nan)
    clipped = np.pad(clipped, (0, n - len(clipped)))
    if signal.samples_per_frame == per_frame:
        return _Lead(wave_mv, clipped)
    ratio = Fraction(per_frame, signal.samples_per_frame)
    nearest = np.minimum(np.rint(np.arange(n_frames * per_frame) / float(ratio)).astype(int), n - 1)
    return _Lead(resample(wave_mv[None], ratio)[0, : n_frames * per_frame], clipped[nearest])


class _Copy(NamedTuple):
    """A record that wfdb reads: its path, and how many frames to read (None = all)."""

    record: str
    n_frames: int | None


@contextlib.contextmanager
def _copied(header: Header, folder: str | Path | DataFolder, above: str, end: int | None) -> Iterator[_Copy]:
    """Give a record for wfdb that has only what is needed: wfdb refuses headers with a malformed date, for one."""
    n_frames = None if end is None else min(end, *_frames_held(header, folder, above, end))
    lines = [f"record {len(header.signals)} {header.rate_hz:.12g}" + (f" {n_frames}" if n_frames else "")]
    names: dict[str, str] = {}
    for k, signal in enumerate(header.signals):
        name = names.setdefault(signal.file_name, f"{len(names)}.dat")
        if signal.format in _COMPRESSED and not header.n_samples:
            raise InputError(f"{signal.file_name} is compressed and the header does not say its length")
        form, offset = ("16", 0) if signal.format == _SWAPPED else (signal.format, signal.offset)
        layout = f"{form}x{signal.samples_per_frame}:0+{offset}"
        lines.append(f"{name} {layout} 1(0)/mV 0 0 {signal.initial or 0} 0 0 {k}")
    with tempfile.TemporaryDirectory(prefix="record-") as temporary:
        for file_name, name in names.items():
            _provide(header, folder, beside(above, file_name), file_name, Path(temporary, name), n_frames)
        Path(temporary, "record.hea").write_text("\n".join(lines) + "\n", encoding="ascii")
        yield _Copy(str(Path(temporary, "record")), n_frames)


def _frames_held(header: Header, folder: str | Path | DataFolder, above: str, end: int) -> list[int]:
    """Return how many frames each file holds, at least as many as the header promises; of packed ones these."""
    held = []
    for file_name in dict.fromkeys(header.file_names):
        signals = _signals_of(header, file_name)
        bits = sum(signal.samples_per_frame * _BITS_HELD.get(signal.format, 0) for signal in signals)
        n_promised = header.n_samples or end
        if all(signal.format in _BITS_HELD for signal in signals):
            descriptor, size = open_file(folder, beside(above, file_name))
            os.close(descriptor)
            held.append(max((size - signals[0].offset) * 8 // bits, n_promised))
        else:
            held.append(n_promised)
    return held


def _provide(
    header: Header, folder: str | Path | DataFolder, path: str, file_name: str, target: Path, n_frames: int | None
) -> None:
    """Put one file where wfdb finds it: as a link, or with its bytes exchanged."""
    descriptor, size = open_file(folder, path)
    try:
        if not header.n_samples and size > MAX_BYTES:
            raise InputError(f"{file_name} has more than {MAX_BYTES} bytes and the header does not say its length")
        promised = _bytes_promised(header, file_name)
        if size < promised:
            raise InputError(f"{file_name} is cut short: it holds {size} of {promised} bytes")
        signals = _signals_of(header, file_name)
        if is_mat(file_name):
            check_mat(descriptor, file_name, signals[0].offset, len(signals))
        if all(signal.format == _SWAPPED for signal in signals):
            n_bytes = size - signals[0].offset
            if n_frames is not None:
                n_bytes = min(n_bytes, 2 * n_frames * sum(signal.samples_per_frame for signal in signals))
            content = os.pread(descriptor, n_bytes // 2 * 2, signals[0].offset)
            target.write_bytes(np.frombuffer(content, dtype=">i2").astype("<i2").tobytes())
        elif any(signal.format == _SWAPPED for signal in signals):
            raise InputError(f"{file_name} holds format 61 beside other formats")
        else:
            target.symlink_to(os.path.abspath(inside(folder, path)))
    finally:
        os.close(descriptor)


def _signals_of(header: Header, file_name: str) -> list[SignalLine]:
    return [signal for signal in header.signals if signal.file_name == file_name]


def _bytes_promised(header: Header, file_name: str) -> int:
    """Return how long a file must be by its header; 0 where that depends on the samples."""
    signals = _signals_of(header, file_name)
    if any(signal.format not in _BITS_HELD for signal in signals):
        return 0
    bits = sum(signal.samples_per_frame * _BITS_HELD[signal.format] for signal in signals)
    return signals[0].offset + (header.n_samples or 0) * bits // 8
