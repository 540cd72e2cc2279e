"""Reads a record of several segments, each as a record of its own."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cache.errors import InputError
from cache.signals import LEADS
from stages.readers.lead_names import LeadNames, arrange
from stages.readers.paths import DataFolder
from stages.readers.recording import Counts, Recording
from stages.readers.standard_leads import LEFT_OUT, left_out
from stages.readers.wfdb.header import FrameLayout, Header, read_header
from stages.readers.wfdb.limits import MAX_SEGMENTS_READ, beside, check_size, frames_wanted
from stages.readers.wfdb.signals import check_calibrated, read_signals

_SEGMENT = re.compile(r"(\S+)\s+(\d{1,15})\s*", re.ASCII)
Slot = tuple[str, int]
"""A lead of a record: its name, and how many of that name come before it."""


class _Standard(NamedTuple):
    """The standard leads of a whole record, under its own names; segments may lack some of them."""

    slots: tuple[Slot, ...]
    lead_names: LeadNames
    others: tuple[str, ...]


def read_segments(
    master: Header, folder: str | Path | DataFolder, above: str, seconds: float | None, lead_names: LeadNames
) -> Recording:
    """Read the standard leads of a record of several segments; where there is no segment, samples are missing.

    Raises
    ------
    InputError
        The segments do not fit each other or the record's header, or one cannot be read.
    """
    spans = _spans(master)
    names, headers = _segment_headers(master, spans, folder, above, lead_names)
    standard = _standard(names, lead_names)
    per_frame = _per_frame(headers.values(), standard)
    n_frames = sum(length for _, length in spans)
    wanted = min(n_frames, frames_wanted(master.rate_hz, seconds)) * per_frame
    check_size(wanted * len(standard.slots))
    signals_mv = np.full((len(standard.slots), wanted), np.nan)
    clipped, notes, start = np.zeros(signals_mv.shape, dtype=bool), dict.fromkeys(left_out(standard.others)), 0
    for k, (name, length) in enumerate(spans):
        if start >= wanted:
            break
        if k > MAX_SEGMENTS_READ:
            raise InputError(f"what is read of it lies in more than {MAX_SEGMENTS_READ} segments")
        header = headers[name]
        if header is not None and length and _has_any(header, standard):
            with _named(name):
                part = _part(header._replace(n_samples=length), folder, above, seconds, standard)
                if part.rate_hz != master.rate_hz * per_frame:
                    raise InputError(f"its leads have {part.rate_hz:g} Hz, others {master.rate_hz * per_frame:g} Hz")
            rows = [standard.slots.index(slot) for slot in _slots(part.leads)]
            taken = min(length * per_frame, wanted - start)
            signals_mv[rows, start : start + taken] = part.signals_mv[:, :taken]
            if part.clipped is not None:
                clipped[rows, start : start + taken] = part.clipped[:, :taken]
            notes.update(dict.fromkeys(part.notes))
        start += length * per_frame
    leads, rate_hz = tuple(name for name, _ in standard.slots), master.rate_hz * per_frame
    return Recording(signals_mv, leads, rate_hz, n_frames * per_frame, clipped, tuple(notes))


def _slots(names: Sequence[str]) -> tuple[Slot, ...]:
    seen: Counter[str] = Counter()
    slots = []
    for name in names:
        slots.append((name, seen[name]))
        seen[name] += 1
    return tuple(slots)


def _standard(names: tuple[str, ...], lead_names: LeadNames) -> _Standard:
    leads = arrange(names, lead_names)
    columns = sorted((*leads.columns, *leads.repeated), key=lambda pair: pair[1])
    slots = _slots(names)
    # What a name means may depend on the others of the record, which a segment may lack.
    meanings = dict.fromkeys((names[column], LEADS[place]) for place, column in columns)
    return _Standard(tuple(slots[column] for _, column in columns), tuple(meanings), leads.others)


def _has_any(header: Header, standard: _Standard) -> bool:
    names = {name for name, _ in standard.slots}
    return header.layout is not None and not names.isdisjoint(header.layout.leads)


def _per_frame(headers: Iterable[Header | None], standard: _Standard) -> int:
    """Return the most samples a frame of any standard lead."""
    names = {name for name, _ in standard.slots}
    signals = (signal for header in headers if header is not None for signal in header.signals)
    return max((signal.samples_per_frame for signal in signals if signal.lead in names), default=1)


def _part(
    header: Header, folder: str | Path | DataFolder, above: str, seconds: float | None, standard: _Standard
) -> Recording:
    """Read the standard leads of one segment."""
    part = read_signals(header, folder, above, seconds, standard.lead_names)
    part = part.to_recording() if isinstance(part, Counts) else part
    rows = [row for row, slot in enumerate(_slots(part.leads)) if slot in standard.slots]
    return Recording(
        part.signals_mv[rows],
        tuple(part.leads[row] for row in rows),
        part.rate_hz,
        part.n_samples,
        None if part.clipped is None else part.clipped[rows],
        tuple(note for note in part.notes if not note.startswith(LEFT_OUT)),
    )


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
    master: Header, spans: list[tuple[str, int]], folder: str | Path | DataFolder, above: str, lead_names: LeadNames
) -> tuple[tuple[str, ...], dict[str, Header | None]]:
    """Return the leads of a record and the header of each segment, None of a gap; all must fit together."""
    headers: dict[str, Header | None] = {"~": None}
    leads: tuple[str, ...] | None = None
    units: dict[str, str] = {}
    for name, length in spans:
        if name not in headers:
            with _named(name):
                header, layout = _segment_header(master, folder, beside(above, name))
                headers[name] = header
                # A first segment without samples says which leads there are: then others may lack some of them.
                leads = leads or layout.leads
                if (spans[0][1] and layout.leads != leads) or not set(layout.leads) <= set(leads):
                    raise InputError(f"its leads are {', '.join(layout.leads)[:120]}, and not those of the first")
                if length:
                    _check_units(header, layout, units, lead_names)
        stated = headers[name]
        if stated is not None and stated.n_samples not in (None, length):
            raise InputError(f"segment {name}: it has {stated.n_samples} samples and is said to have {length}")
    if leads is None:
        raise InputError("its segments are gaps only")
    return leads, headers


def _check_units(header: Header, layout: FrameLayout, units: dict[str, str], lead_names: LeadNames) -> None:
    arranged = arrange(layout.leads, lead_names)
    if not arranged.columns:
        return
    check_calibrated(layout, lead_names)
    columns = {column for _, column in (*arranged.columns, *arranged.repeated)}
    for signal in (signal for column, signal in enumerate(header.signals) if column in columns):
        before = units.setdefault(signal.lead, signal.units.lower())
        if signal.units.lower() != before:
            raise InputError(f"lead {signal.lead} is in {signal.units} and in another segment in {before}")


def _segment_header(master: Header, folder: str | Path | DataFolder, path: str) -> tuple[Header, FrameLayout]:
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
