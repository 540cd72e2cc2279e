"""WFDB headers (header(5) of the WFDB Applications Guide), read tolerantly where the signal does not depend on it.

A malformed time or date in the record line is passed over; anything that would change a number is an error.
"""

from __future__ import annotations

import math
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from cache.errors import InputError
from stages.readers.paths import DataFolder, open_file
from stages.readers.recording import Converter
from stages.readers.units import is_raw, millivolts_per

MAX_HEADER_BYTES = 1 << 20
MAX_SIGNALS = 1024
DEFAULT_RATE_HZ = 250.0
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?"
_RECORD = re.compile(
    rf"(?P<name>[^\s/]+)(?:/(?P<segments>\d{{1,9}}))?\s+(?P<signals>\d{{1,9}})"
    rf"(?:\s+(?P<rate>{_NUMBER})(?:/\S*)?(?:\s+(?P<samples>\d{{1,15}})(?:\s.*)?)?)?\s*$",
    re.ASCII,
)
_SIGNAL = re.compile(
    r"(?P<file>\S+)\s+(?P<format>\d{1,4})(?:x(?P<frame>\d{1,6}))?(?::(?P<skew>\d{1,9}))?(?:\+(?P<offset>\d{1,12}))?"
    rf"(?:\s+(?P<gain>{_NUMBER})(?:\((?P<baseline>[+-]?\d{{1,12}})\))?(?:/(?P<units>\S+))?"
    r"(?:\s+(?P<bits>[+-]?\d{1,6})(?:\s+(?P<zero>[+-]?\d{1,12})(?:\s+(?P<initial>[+-]?\d{1,12})"
    r"(?:\s+(?P<checksum>[+-]?\d{1,12})(?:\s+(?P<block>[+-]?\d{1,12})(?:\s+(?P<lead>\S.*))?)?)?)?)?)?)?\s*$",
    re.ASCII,
)
_INTEGERS = re.compile(r"[+-]?\d{1,12}(?: [+-]?\d{1,12})*", re.ASCII)
_DIRECT = ("16", "61")
"""Formats of two bytes a sample, low or high byte first."""


class SignalLine(NamedTuple):
    """One signal of a record; `initial` and `checksum` are None where the header does not state them.

    `bits` of the converter are 0 where they are not known; `zero` is the count in the middle of its range.
    """

    file_name: str
    format: str
    samples_per_frame: int
    skew: int
    offset: int
    gain: float
    baseline: int
    units: str
    bits: int
    zero: int
    initial: int | None
    checksum: int | None
    lead: str

    @property
    def gain_per_mv(self) -> float:
        """Counts per mV.

        Raises
        ------
        InputError
            If the lead is not calibrated, or not in volts.
        """
        return _per_mv(self.gain, self.units, self.lead)

    @property
    def unit_note(self) -> str | None:
        """What was assumed of the unit."""
        if is_raw(self.units) and self.gain not in (0.0, 1.0):
            return f"unit '{self.units}': the gain is taken for counts per mV"
        return None


@lru_cache(maxsize=4096)
def _per_mv(gain: float, units: str, lead: str) -> float:
    if gain == 0 or not math.isfinite(gain):
        raise InputError(f"lead {lead} has gain 0: it is not calibrated")
    # A gain of 1 count per count says nothing; another one is WFDB's default, counts per mV.
    scale = 1.0 if is_raw(units) and gain != 1.0 else millivolts_per(units)
    if scale is None:
        raise InputError(f"lead {lead} is in '{units}', which is no voltage; write uV, mV or V")
    return gain / scale


class FrameLayout(NamedTuple):
    """What the signal lines of many headers have in common: all but file name, first value and checksum, per lead.

    Attributes
    ----------
    gains_per_mv
        NaN where a lead cannot be turned into mV.
    plain
        "<" or ">", the order of bytes, where every lead has two bytes a sample, one sample a frame and no skew.
    faults
        Why a lead cannot be turned into mV; None where it can.
    converters
        Per lead bits and middle of the converter's range; None where none is said to have less than 16 bits.
    notes
        What was assumed of units.
    """

    leads: tuple[str, ...]
    gains_per_mv: tuple[float, ...]
    baselines: tuple[int, ...]
    offset: int
    plain: str
    faults: tuple[str | None, ...]
    converters: tuple[Converter, ...] | None
    notes: tuple[str, ...] = ()


class Header(NamedTuple):
    """A header; `n_samples` is None where it is not stated; without signals where the record has segments.

    Attributes
    ----------
    layout
        None where there are no signals.
    file_names, initials, checksums
        Per signal; the last two are None where they are not stated.
    """

    name: str
    n_segments: int
    rate_hz: float
    n_samples: int | None
    layout: FrameLayout | None
    file_names: tuple[str, ...]
    initials: tuple[int | None, ...]
    checksums: tuple[int | None, ...]
    signal_lines: tuple[str, ...]
    comments: tuple[str, ...]

    @property
    def signals(self) -> tuple[SignalLine, ...]:
        """Everything that the signal lines say."""
        return () if self.n_segments else tuple(_parsed(line) for line in self.signal_lines)


def read_header(folder: str | Path | DataFolder, path: str) -> Header:
    """Read and parse `path`.hea."""
    descriptor, size = open_file(folder, path + ".hea")
    try:
        content = os.read(descriptor, min(size, MAX_HEADER_BYTES) + 1)
    finally:
        os.close(descriptor)
    return parse_header(content)


def parse_header(content: bytes) -> Header:
    """Parse the bytes of a .hea file.

    Raises
    ------
    InputError
        It is not a header, or a field that the signal depends on cannot be read.
    """
    if len(content) > MAX_HEADER_BYTES:
        raise InputError(f"its header has {len(content)} bytes, more than {MAX_HEADER_BYTES}")
    lines: list[str] = []
    comments: list[str] = []
    for line in _decoded(content).splitlines():
        plain = line.strip()
        if plain:
            (comments if plain[0] == "#" else lines).append(plain)
    record = _RECORD.match(lines[0]) if lines else None
    if record is None:
        raise InputError(f"its record line cannot be read: {(lines[0] if lines else '')[:80]!r}{_link_as_text(lines)}")
    name, segments, signals, rate, samples = record.groups()
    n_signals, n_segments, rate_hz = int(signals), int(segments or 0), float(rate or DEFAULT_RATE_HZ)
    if n_signals > MAX_SIGNALS or not 0 < rate_hz < 1e6:
        raise InputError(f"its record line says {n_signals} signals at {rate_hz:g} Hz")
    if n_segments == 0 and len(lines) - 1 < n_signals:
        raise InputError(f"its header promises {n_signals} signals and describes {len(lines) - 1}")
    described = lines[1:] if n_segments else lines[1 : 1 + n_signals]
    layout, file_names, initials, checksums = _columns([] if n_segments else described)
    return Header(
        name=name,
        n_segments=n_segments,
        rate_hz=rate_hz,
        n_samples=int(samples or 0) or None,
        layout=layout,
        file_names=file_names,
        initials=initials,
        checksums=checksums,
        signal_lines=tuple(described),
        comments=tuple(comments),
    )


def _link_as_text(lines: list[str]) -> str:
    """Say what the text of a header may be where it is one path: git on Windows and zip programs keep links so."""
    is_path = len(lines) == 1 and lines[0].endswith(".hea") and " " not in lines[0]
    return "; it is a link kept as text, put the file it names in its place" if is_path else ""


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


_Stated = tuple[int | None, ...]


def _columns(lines: list[str]) -> tuple[FrameLayout | None, tuple[str, ...], _Stated, _Stated]:
    """Return what the signal lines say: their layout, and each lead's file, first value and checksum."""
    if not lines:
        return None, (), (), ()
    cells = [line.split(None, 8) for line in lines]
    if min(map(len, cells)) == 9:
        # The lines of a collection differ in file name, first value and checksum alone: the rest is parsed once.
        files, formats, gains, bits, zeros, initials, checksums, blocks, leads = zip(*cells, strict=True)
        if _INTEGERS.fullmatch(" ".join(initials + checksums)):
            layout = _like(formats, gains, bits, zeros, blocks, leads)
            if layout is not None:
                return layout, files, tuple(map(int, initials)), tuple(map(int, checksums))
    signals = [_parsed(line) for line in lines]
    names, first = tuple(s.file_name for s in signals), tuple(s.initial for s in signals)
    return _layout(signals), names, first, tuple(s.checksum for s in signals)


@lru_cache(maxsize=4096)
def _like(*cells: tuple[str, ...]) -> FrameLayout | None:
    """Return the layout of all lines that have these cells; None where they need a closer look."""
    try:
        return _layout(
            [
                _parsed(f"file {fmt} {gain} {bits} {zero} 0 0 {block} {lead}")
                for fmt, gain, bits, zero, block, lead in zip(*cells, strict=True)
            ]
        )
    except InputError:
        return None


def _layout(signals: list[SignalLine]) -> FrameLayout:
    gains, faults = zip(*map(_gain, signals), strict=True)
    formats = {s.format for s in signals}
    plain = len(formats) == 1 and formats <= set(_DIRECT)
    plain = plain and all(s.samples_per_frame == 1 and s.skew == 0 for s in signals)
    return FrameLayout(
        leads=tuple(s.lead for s in signals),
        gains_per_mv=gains,
        baselines=tuple(s.baseline for s in signals),
        offset=signals[0].offset,
        plain=("<" if "16" in formats else ">") if plain else "",
        faults=faults,
        converters=tuple((s.bits, s.zero) for s in signals) if any(1 < s.bits < 16 for s in signals) else None,
        notes=tuple(sorted({note for s in signals if (note := s.unit_note)})),
    )


def _gain(signal: SignalLine) -> tuple[float, str | None]:
    """Return the gain of a lead, or NaN and why it has none."""
    try:
        return signal.gain_per_mv, None
    except InputError as error:
        return math.nan, str(error)


def _parsed(line: str) -> SignalLine:
    found = _SIGNAL.match(line)
    if found is None:
        raise InputError(f"a signal line of its header cannot be read: {line[:80]!r}")
    file, fmt, frame, skew, offset, gain, baseline, units, bits, zero, initial, checksum, _, lead = found.groups()
    return SignalLine(
        file_name=file,
        format=fmt,
        samples_per_frame=int(frame or 1),
        skew=int(skew or 0),
        offset=int(offset or 0),
        gain=float(gain or 0),
        baseline=int(baseline if baseline is not None else zero or 0),
        units=units or "mV",
        bits=int(bits or 0),
        zero=int(zero or 0),
        initial=None if initial is None else int(initial),
        checksum=None if checksum is None else int(checksum),
        lead=lead or "",
    )
