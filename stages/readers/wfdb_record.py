"""Reads one WFDB record: directly where all signals lie in one format-16 file (.dat or 16x1 .mat), else through wfdb.

The direct way gives exactly what wfdb gives, some tens of times faster, because wfdb spends its time on the header.
Of a record of several segments each is read so.
"""

from __future__ import annotations

import contextlib
import operator
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cache.errors import InputError
from cache.signals import MISSING
from stages.readers.paths import inside, open_file
from stages.readers.recording import READ_MARGIN_S, SECONDS_KEPT, Counts, Recording, at_limit, check_rate
from stages.readers.wfdb_header import MAX_HEADER_BYTES, Header, Layout, SignalLine, parse_header

MAX_SAMPLES = 50_000_000
MAX_SAMPLES_KEPT = 20_000_000
"""Of what is read of a record, in all leads: 55 minutes of twelve at 500 Hz."""
MAX_BYTES = MAX_SAMPLES
MAX_SEGMENTS_READ = 1024
MAX_WRONG_SUMS = 2
SUMMED_TOGETHER = 50
_SEGMENT = re.compile(r"(\S+)\s+(\d{1,15})\s*", re.ASCII)
# What each format writes for a missing sample, and the bits of those that hold less than 16.
_MISSING = {"80": -(1 << 7), "508": -(1 << 7), "310": -(1 << 9), "311": -(1 << 9), "212": -(1 << 11)}
_MISSING |= dict.fromkeys(("16", "61", "160", "516"), -(1 << 15))
_MISSING |= {"24": -(1 << 23), "524": -(1 << 23), "32": -(1 << 31)}
_COMPRESSED = ("508", "516", "524")
_BITS_HELD = {"8": 8, "80": 8, "16": 16, "61": 16, "160": 16, "24": 24, "32": 32, "212": 12}


def read_wfdb(folder: str | Path, path: str, seconds: float | None = SECONDS_KEPT) -> Recording | Counts:
    """Read the beginning of a record, a second more than is kept of it.

    Parameters
    ----------
    folder
        The cohort's folder; nothing outside of it is opened.
    path
        Of the record within it, with or without `.hea`.
    seconds
        What is kept of it; None: all.

    Raises
    ------
    InputError
        The record is not there, is damaged or not calibrated, or header and samples disagree.
    """
    relative = path.removesuffix(".hea").removesuffix(".dat").removesuffix(".mat")
    if not relative:
        raise InputError("its path is empty: the list names no file")
    header = read_header(folder, relative)
    above = os.path.dirname(relative)
    check_rate(header.rate_hz)
    read = _read_segments if header.n_segments else _read_signals
    return read(header, folder, above, seconds)


def _read_signals(header: Header, folder: str | Path, above: str, seconds: float | None) -> Recording | Counts:
    layout = header.layout
    if layout is None:
        raise InputError("its header describes no signals")
    if layout.plain and header.file_names.count(header.file_names[0]) == len(header.file_names):
        return _read_direct(header, layout, folder, above, seconds)
    return _read_with_wfdb(header, folder, above, seconds)


def read_header(folder: str | Path, path: str) -> Header:
    """Read and parse `path`.hea."""
    descriptor, size = open_file(folder, path + ".hea")
    try:
        content = os.read(descriptor, min(size, MAX_HEADER_BYTES) + 1)
    finally:
        os.close(descriptor)
    return parse_header(content)


def _read_direct(header: Header, layout: Layout, folder: str | Path, above: str, seconds: float | None) -> Counts:
    file_name, offset, n_signals = header.file_names[0], layout.offset, len(layout.leads)
    descriptor, size = open_file(folder, _beside(above, file_name))
    try:
        held = size - offset
        n_samples = header.n_samples or held // (2 * n_signals)
        promised = n_samples * 2 * n_signals
        if held < promised:
            raise InputError(f"{file_name} is cut short: it holds {max(held, 0)} of {promised} bytes of samples")
        if n_samples <= 0:
            raise InputError(f"{file_name} holds no samples")
        wanted = min(n_samples, _wanted(header.rate_hz, seconds))
        _check_size(wanted * n_signals)
        samples = _samples(descriptor, file_name, offset, wanted, n_signals)
        if not _as_stated(header, samples, n_samples, longer=held - promised >= 2 * n_signals):
            _check_sums(header, offset, descriptor, n_samples)
    finally:
        os.close(descriptor)
    if layout.fault is not None:
        raise InputError(layout.fault)
    counts = Counts(samples, layout.leads, layout.gains_per_mv, layout.baselines, header.rate_hz, n_samples)
    if layout.converters is not None and at_limit(samples.T, samples.T != MISSING, layout.converters).any():
        return counts._replace(converters=layout.converters)
    return counts


def _wanted(rate_hz: float, seconds: float | None) -> int:
    """Return how many samples of a lead are read at most."""
    return MAX_SAMPLES if seconds is None else int((seconds + READ_MARGIN_S) * rate_hz) + 1


def _check_size(n_samples: int) -> None:
    if n_samples > MAX_SAMPLES_KEPT:
        raise InputError(f"what is read of it has {n_samples} samples by its header, more than {MAX_SAMPLES_KEPT}")


def _beside(above: str, file_name: str) -> str:
    if "/" in file_name or "\\" in file_name:
        raise InputError(f"its header names the file '{file_name}' in another folder")
    if file_name.endswith(".hea"):
        raise InputError(f"its header names a header, '{file_name}', as the file of its samples")
    return f"{above}/{file_name}" if above else file_name


def _samples(descriptor: int, file_name: str, offset: int, n_samples: int, n_signals: int) -> np.ndarray:
    samples = np.empty((n_samples, n_signals), dtype="<i2")
    if os.preadv(descriptor, [samples.data.cast("B")], offset) != samples.nbytes:
        raise InputError(f"{file_name} could not be read to its end")
    return samples


def _as_stated(header: Header, samples: np.ndarray, n_samples: int, *, longer: bool) -> bool:
    """Whether the samples are those the header was written for, as far as those at hand can tell."""
    if len(samples) == n_samples and not longer and _says_sums(header):
        return _sums_agree(header, samples)
    stated = header.initials
    begins = None in stated or not any(stated) or any(map(operator.eq, samples[0].tolist(), stated))
    return begins and not longer


def _says_sums(header: Header) -> bool:
    """Whether checksums are stated, if only of some leads; all zero means that they are not."""
    return any(header.checksums)


def _sums_agree(header: Header, samples: np.ndarray) -> bool:
    """Whether the leads of samples [time, lead] have their checksums."""
    # Adding long rows is several times faster than columns. A checksum counts modulo 65536, as int16 does.
    n_samples, n_signals = samples.shape
    whole = n_samples // SUMMED_TOGETHER * SUMMED_TOGETHER
    sums = np.add.reduce(samples[:whole].reshape(-1, SUMMED_TOGETHER * n_signals), axis=0, dtype=np.int16)
    sums = np.add.reduce(sums.reshape(-1, n_signals), axis=0, dtype=np.int16)
    if whole < n_samples:
        sums += np.add.reduce(samples[whole:], axis=0, dtype=np.int16)
    return _mostly_stated(header, sums.tolist())


def _mostly_stated(header: Header, sums: list[int]) -> bool:
    """Whether nearly all sums are those that the header states. Editors of headers leave single ones wrong."""
    told = [(total, stated) for total, stated in zip(sums, header.checksums, strict=True) if stated is not None]
    wrong = sum((total - stated) % 65536 != 0 for total, stated in told)
    return wrong <= MAX_WRONG_SUMS and 2 * wrong < len(told)


def _check_sums(header: Header, offset: int, descriptor: int, n_samples: int) -> None:
    """Refuse samples that are not those the header was written for: then their checksums are not those it states."""
    file_name, n_signals = header.file_names[0], len(header.file_names)
    if not (
        _says_sums(header)
        and n_samples * n_signals <= MAX_SAMPLES
        and _sums_agree(header, _samples(descriptor, file_name, offset, n_samples, n_signals))
    ):
        raise InputError(f"header and {file_name} disagree (size or first values, and checksums)")


def _read_segments(master: Header, folder: str | Path, above: str, seconds: float | None) -> Recording:
    """Read a record of several segments, each as a record of its own; where there is none, the samples are missing."""
    spans = _spans(master)
    leads, headers = _segment_headers(master, spans, folder, above)
    n_samples = sum(length for _, length in spans)
    wanted, place = min(n_samples, _wanted(master.rate_hz, seconds)), {lead: k for k, lead in enumerate(leads)}
    _check_size(wanted * len(leads))
    signals_mv, clipped = np.full((len(leads), wanted), np.nan), np.zeros((len(leads), wanted), dtype=bool)
    start = 0
    for k, (name, length) in enumerate(spans):
        if start >= wanted:
            break
        if k > MAX_SEGMENTS_READ:
            raise InputError(f"its first seconds are in more than {MAX_SEGMENTS_READ} segments")
        header = headers[name]
        if header is not None and length:
            with _named(name):
                part = _read_signals(header._replace(n_samples=length), folder, above, seconds)
            part = part.to_recording() if isinstance(part, Counts) else part
            rows, taken = [place[lead] for lead in part.leads], min(length, wanted - start)
            signals_mv[rows, start : start + taken] = part.signals_mv[:, :taken]
            if part.clipped is not None:
                clipped[rows, start : start + taken] = part.clipped[:, :taken]
        start += length
    return Recording(signals_mv, leads, master.rate_hz, n_samples, clipped)


def _spans(master: Header) -> list[tuple[str, int]]:
    """Return name and length of each segment."""
    if len(master.signal_lines) < master.n_segments:
        raise InputError(f"its header promises {master.n_segments} segments and names {len(master.signal_lines)}")
    spans = []
    for line in master.signal_lines[: master.n_segments]:
        found = _SEGMENT.fullmatch(line)
        if found is None:
            raise InputError(f"a segment line of its header cannot be read: {line[:80]!r}")
        spans.append((found[1], int(found[2])))
    n_samples = sum(length for _, length in spans)
    if n_samples == 0 or master.n_samples not in (None, n_samples):
        raise InputError(f"its segments have {n_samples} samples and its header says {master.n_samples or 0}")
    return spans


def _segment_headers(
    master: Header, spans: list[tuple[str, int]], folder: str | Path, above: str
) -> tuple[tuple[str, ...], dict[str, Header | None]]:
    """Return the leads of a record and the header of each segment, None of a gap; all must fit together."""
    headers: dict[str, Header | None] = {"~": None}
    leads: tuple[str, ...] | None = None
    units: dict[str, str] = {}
    for name, length in spans:
        if name not in headers:
            with _named(name):
                header, layout = _segment_header(master, folder, _beside(above, name))
                headers[name] = header
                # A first segment without samples says which leads there are: then others may lack some of them.
                leads = leads or layout.leads
                if (spans[0][1] and layout.leads != leads) or not set(layout.leads) <= set(leads):
                    raise InputError(f"its leads are {', '.join(layout.leads)[:120]}, and not those of the first")
                if length:
                    _check_units(header, layout, units)
        stated = headers[name]
        if stated is not None and stated.n_samples not in (None, length):
            raise InputError(f"segment {name}: it has {stated.n_samples} samples and is said to have {length}")
    if leads is None:
        raise InputError("its segments are gaps only")
    return leads, headers


def _check_units(header: Header, layout: Layout, units: dict[str, str]) -> None:
    if layout.fault is not None:
        raise InputError(layout.fault)
    for signal in header.signals:
        before = units.setdefault(signal.lead, signal.units.lower())
        if signal.units.lower() != before:
            raise InputError(f"lead {signal.lead} is in {signal.units} and in another segment in {before}")


def _segment_header(master: Header, folder: str | Path, path: str) -> tuple[Header, Layout]:
    header = read_header(folder, path)
    if header.n_segments:
        raise InputError("it has segments itself")
    if header.layout is None:
        raise InputError("its header describes no signals")
    if header.rate_hz != master.rate_hz:
        raise InputError(f"its rate is {header.rate_hz:g} Hz and that of the record {master.rate_hz:g} Hz")
    return header, header.layout


@contextlib.contextmanager
def _named(segment: str) -> Iterator[None]:
    """Say in which segment something is wrong."""
    try:
        yield
    except InputError as error:
        raise InputError(f"segment {segment}: {error}") from error


def _read_with_wfdb(header: Header, folder: str | Path, above: str, seconds: float | None) -> Recording:
    import wfdb

    wanted = min(header.n_samples or MAX_SAMPLES, _wanted(header.rate_hz, seconds))
    latest = wanted + max(signal.skew for signal in header.signals)
    _check_size(latest * sum(signal.samples_per_frame for signal in header.signals))
    with _copied(header, folder, above) as source, warnings.catch_warnings(action="ignore"):
        try:
            end = wanted if header.n_samples else None
            record = wfdb.rdrecord(source, sampto=end, physical=False, smooth_frames=False)
        # wfdb raises nearly every builtin error on damaged records.
        except Exception as error:
            raise InputError(f"wfdb cannot read it ({' '.join(str(error).split())[:160]})") from error
    counts: list[np.ndarray] | None = getattr(record, "e_d_signal", None)
    if not counts or not len(counts[0]):
        raise InputError("it has no samples")
    whole = not any(s.skew for s in header.signals) and (header.n_samples or 0) <= wanted
    if whole and _says_sums(header) and not _mostly_stated(header, [int(lead.sum()) for lead in counts]):
        raise InputError(f"header and {', '.join(sorted(set(header.file_names)))[:160]} disagree (checksums)")
    n_samples = header.n_samples or len(counts[0]) // header.signals[0].samples_per_frame
    kept = [lead[: wanted * s.samples_per_frame] for lead, s in zip(counts, header.signals, strict=True)]
    rows = [_in_millivolts(lead, signal) for lead, signal in zip(kept, header.signals, strict=True)]
    signals_mv, clipped = (np.stack(both) for both in zip(*rows, strict=True))
    leads = tuple(signal.lead for signal in header.signals)
    return Recording(signals_mv, leads, header.rate_hz, n_samples, clipped)


def _in_millivolts(counts: np.ndarray, signal: SignalLine) -> tuple[np.ndarray, np.ndarray]:
    """Return one lead, one sample a frame, in mV, and where it is at the converter's limit."""
    nothing = _MISSING.get(signal.format)
    known = np.ones(counts.shape, dtype=bool) if nothing is None else counts != nothing
    clipped = at_limit(counts[None], known[None], [(signal.bits, signal.zero)])[0]
    if nothing is not None:
        clipped |= at_limit(counts[None], known[None], [((-nothing).bit_length(), 0)])[0]
    signals_mv = np.where(known, (counts - float(signal.baseline)) / signal.gain_per_mv, np.nan)
    frames = signal.samples_per_frame
    return signals_mv.reshape(-1, frames).mean(axis=1), clipped.reshape(-1, frames).any(axis=1)


@contextlib.contextmanager
def _copied(header: Header, folder: str | Path, above: str) -> Iterator[str]:
    """Give a record for wfdb that has only what is needed: wfdb refuses headers with a malformed date, for one."""
    samples = f" {header.n_samples}" if header.n_samples else ""
    lines = [f"record {len(header.signals)} {header.rate_hz:.12g}{samples}"]
    names: dict[str, str] = {}
    for k, signal in enumerate(header.signals):
        name = names.setdefault(signal.file_name, f"{len(names)}.dat")
        if signal.format in _COMPRESSED and not header.n_samples:
            raise InputError(f"{signal.file_name} is compressed and the header does not say its length")
        form = f"{signal.format}x{signal.samples_per_frame}:{signal.skew}+{signal.offset}"
        lines.append(f"{name} {form} 1(0)/mV 0 0 {signal.initial or 0} 0 0 {k}")
    with tempfile.TemporaryDirectory(prefix="record-") as temporary:
        for file_name, name in names.items():
            descriptor, size = open_file(folder, _beside(above, file_name))
            os.close(descriptor)
            if not header.n_samples and size > MAX_BYTES:
                raise InputError(f"{file_name} has more than {MAX_BYTES} bytes and the header does not say its length")
            promised = _bytes_promised(header, file_name)
            if size < promised:
                raise InputError(f"{file_name} is cut short: it holds {size} of {promised} bytes")
            Path(temporary, name).symlink_to(os.path.abspath(inside(folder, _beside(above, file_name))))
        Path(temporary, "record.hea").write_text("\n".join(lines) + "\n", encoding="ascii")
        yield str(Path(temporary, "record"))


def _bytes_promised(header: Header, file_name: str) -> int:
    """Return how long a file must be by its header; 0 where that depends on the samples."""
    signals = [signal for signal in header.signals if signal.file_name == file_name]
    if any(signal.format not in _BITS_HELD for signal in signals):
        return 0
    bits = sum(signal.samples_per_frame * _BITS_HELD[signal.format] for signal in signals)
    return signals[0].offset + (header.n_samples or 0) * bits // 8
