"""Reads one WFDB record: directly where all signals lie in one format-16 file (.dat or 16x1 .mat), else through wfdb.

The direct way gives exactly what wfdb gives, some tens of times faster, because wfdb spends its time on the header.
"""

from __future__ import annotations

import contextlib
import operator
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cache.errors import InputError
from stages.readers.paths import inside, open_file
from stages.readers.recording import READ_MARGIN_S, SECONDS_KEPT, Counts, Recording
from stages.readers.wfdb_header import MAX_HEADER_BYTES, Header, Layout, parse_header

MAX_SAMPLES = 50_000_000
MAX_BYTES = 4 * MAX_SAMPLES


def read_wfdb(folder: str | Path, path: str) -> Recording | Counts:
    """Read the first eleven seconds of a record (what ten seconds at 500 Hz can depend on).

    Parameters
    ----------
    folder
        The cohort's folder; nothing outside of it is opened.
    path
        Of the record within it, with or without `.hea`.

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
    layout = header.layout
    if layout is None and header.n_segments == 0:
        raise InputError("its header describes no signals")
    if layout is not None and layout.plain and header.file_names.count(header.file_names[0]) == len(header.file_names):
        return _read_direct(header, layout, folder, above)
    return _read_with_wfdb(header, folder, relative)


def read_header(folder: str | Path, path: str) -> Header:
    """Read and parse `path`.hea."""
    descriptor, size = open_file(folder, path + ".hea")
    try:
        content = os.read(descriptor, min(size, MAX_HEADER_BYTES) + 1)
    finally:
        os.close(descriptor)
    return parse_header(content)


def _read_direct(header: Header, layout: Layout, folder: str | Path, above: str) -> Counts:
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
        wanted = min(n_samples, int((SECONDS_KEPT + READ_MARGIN_S) * header.rate_hz) + 1)
        samples = _samples(descriptor, file_name, offset, wanted, n_signals)
        if not _as_stated(header, samples, n_samples, longer=held - promised >= 2 * n_signals):
            _check_sums(header, offset, descriptor, n_samples)
    finally:
        os.close(descriptor)
    if layout.fault is not None:
        raise InputError(layout.fault)
    return Counts(samples, layout.leads, layout.gains_per_mv, layout.baselines, header.rate_hz, n_samples)


def _beside(above: str, file_name: str) -> str:
    if "/" in file_name or "\\" in file_name:
        raise InputError(f"its header names the file '{file_name}' in another folder")
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
    """Whether checksums are stated; all zero means that they are not."""
    return None not in header.checksums and any(header.checksums)


def _sums_agree(header: Header, samples: np.ndarray) -> bool:
    """Whether a lead has its checksum. One is enough: editors of headers leave single ones wrong."""
    # A checksum counts modulo 65536, as int16 does. Lead after lead: nearly always the first one settles it.
    return any(
        (int(lead.sum(dtype=np.int16)) - stated) % 65536 == 0
        for lead, stated in zip(samples.T, header.checksums, strict=True)
        if stated is not None
    )


def _check_sums(header: Header, offset: int, descriptor: int, n_samples: int) -> None:
    """Refuse samples that are not those the header was written for: then no lead has the checksum it states."""
    file_name, n_signals = header.file_names[0], len(header.file_names)
    if not (
        _says_sums(header)
        and n_samples * n_signals <= MAX_SAMPLES
        and _sums_agree(header, _samples(descriptor, file_name, offset, n_samples, n_signals))
    ):
        raise InputError(f"header and {file_name} disagree (size or first values, and every checksum)")


def _read_with_wfdb(header: Header, folder: str | Path, relative: str) -> Recording:
    import wfdb

    above = os.path.dirname(relative)
    n_samples = header.n_samples or 0
    if header.n_segments:
        _check_segments(header, folder, above)
    with contextlib.ExitStack() as stack:
        source = inside(folder, relative)
        if header.n_segments == 0:
            source = stack.enter_context(_cleaned(header, folder, above))
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        wanted = int((SECONDS_KEPT + READ_MARGIN_S) * header.rate_hz) + 1
        try:
            end = min(n_samples, wanted) if n_samples else None
            record = wfdb.rdrecord(source, sampto=end)
        # wfdb raises nearly every builtin error on damaged records.
        except Exception as error:
            raise InputError(f"wfdb cannot read it ({' '.join(str(error).split())[:160]})") from error
    return _from_wfdb(record, header)


def _check_segments(header: Header, folder: str | Path, above: str) -> None:
    """Every file that wfdb would open for a multi-segment record must lie in the cohort's folder."""
    for line in header.signal_lines:
        name = line.split()[0]
        if name == "~":
            continue
        segment = read_header(folder, _beside(above, name))
        if segment.n_segments:
            raise InputError(f"its segment {name} has segments itself")
        for signal in segment.signals:
            if signal.file_name != "~":
                inside(folder, _beside(above, signal.file_name))


@contextlib.contextmanager
def _cleaned(header: Header, folder: str | Path, above: str) -> Iterator[str]:
    """Give a record whose header holds only what is needed, since wfdb refuses headers with a malformed date."""
    with tempfile.TemporaryDirectory(prefix="record-") as temporary:
        samples = f" {header.n_samples}" if header.n_samples else ""
        lines = [f"record {len(header.signals)} {header.rate_hz:.12g}{samples}", *header.signal_lines]
        Path(temporary, "record.hea").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for file_name in set(header.file_names):
            source = os.path.abspath(inside(folder, _beside(above, file_name)))
            if not header.n_samples and os.path.isfile(source) and os.path.getsize(source) > MAX_BYTES:
                raise InputError(f"{file_name} has more than {MAX_BYTES} bytes and the header does not say its length")
            Path(temporary, file_name).symlink_to(source)
        yield str(Path(temporary, "record"))


def _from_wfdb(record: object, header: Header) -> Recording:
    signals = getattr(record, "p_signal", None)
    if signals is None:
        raise InputError("it has no samples")
    signals_mv = np.ascontiguousarray(signals.T, dtype=np.float64)
    if not header.n_segments:
        for row, line in zip(signals_mv, header.signals, strict=True):
            np.multiply(row, line.gain / line.gain_per_mv, out=row)
    elif any(unit.lower() != "mv" for unit in record.units):  # type: ignore[attr-defined]
        raise InputError(f"its segments are in {', '.join(sorted(set(record.units)))}, not mV")  # type: ignore[attr-defined]
    names = tuple(record.sig_name)  # type: ignore[attr-defined]
    rate_hz = float(record.fs)  # type: ignore[attr-defined]
    return Recording(signals_mv, names, rate_hz, header.n_samples or signals_mv.shape[1])
