"""MFER (ISO 22077): frames of blocks of channels, samples that equal the null value are missing."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Literal

from cache.errors import InputError
from stages.readers.formats.parts.assemble import assemble
from stages.readers.formats.parts.contract import Beginning, Facts, Format, Reading
from stages.readers.formats.parts.datakit import leads_of, parse
from stages.readers.formats.parts.xml_file import number, words_of
from stages.readers.recording import Recording
from stages.readers.wfdb.limits import check_size

MAX_BYTES = 256 << 20
PREAMBLE, ORDER, FILTER, WAVE, ATTRIBUTES, END = 0x40, 0x01, 0x11, 0x1E, 0x3F, 0x80
NAME, PATIENT, AGE, SEX, TIME, TEST = 0x81, 0x82, 0x83, 0x84, 0x85, 0x87
BLOCK, CHANNELS, SEQUENCES, INTERVAL, SENSITIVITY = 0x04, 0x05, 0x06, 0x0B, 0x0C
_LENGTHS = {
    ORDER: (1,),
    0x02: (3,),
    0x0A: (0, 1),
    INTERVAL: range(3, 7),
    SENSITIVITY: range(3, 7),
    CHANNELS: range(1, 5),
}
"""Of definitions by which a file without the preamble is known."""
_FILTERS = {"HPF": "filter_high_pass_hz", "LPF": "filter_low_pass_hz", "BEF": "filter_notch_hz"}
LEAST_KNOWN = 4
MAX_CHANNELS = 256


def _knows(beginning: Beginning) -> bool:
    content = beginning.content
    if content[:1] == bytes([PREAMBLE]) and content[2:6] == b"MFR ":
        return True
    if content[:1] not in (bytes([ORDER]), bytes([0x02])):
        return False
    n_known = 0
    for tag, value in _definitions(content):
        if tag in _LENGTHS and len(value) not in _LENGTHS[tag]:
            return False
        n_known += tag in _LENGTHS
    return n_known >= LEAST_KNOWN


def _definitions(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Give tag and value of each definition, as far as the content goes; those of single channels are passed over."""
    place = 0
    while place + 1 < len(content):
        tag = content[place]
        place += 1
        if tag == END:
            return
        if tag == 0:
            continue
        while tag == ATTRIBUTES and place < len(content) and content[place] & 0x80:
            place += 1
        place += tag == ATTRIBUTES
        length = content[place] if place < len(content) else 0
        place += 1
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(content[place : place + size], "big")
            place += size
            if not 0 < size <= 4:
                return
        if tag != ATTRIBUTES:
            yield tag, content[place : place + length]
        place += length


def _read(path: str, reading: Reading) -> Recording:
    _check_promises(path)
    record, notes = parse("mfer:MFERParser", path)
    rates = record.raw_metadata.get("sampling_rates") or []
    by_name = {lead.label: rate for lead, rate in zip(record.leads, rates, strict=False)}
    return assemble(leads_of(record, by_name), reading, notes)


def _check_promises(path: str) -> None:
    """Refuse frames of any size before anything is made of that size."""
    order: Literal["big", "little"] = "big"
    for tag, value in _definitions(Path(path).read_bytes()):
        if tag == ORDER:
            order = "little" if value == b"\1" else "big"
        elif tag in (BLOCK, SEQUENCES):
            check_size(int.from_bytes(value, order))
        elif tag == CHANNELS and int.from_bytes(value, order) > MAX_CHANNELS:
            raise InputError(f"it states {int.from_bytes(value, order)} channels, more than {MAX_CHANNELS}")


def _facts(path: str) -> Facts:
    found: dict[int, bytes] = {}
    filters: dict[str, float] = {}
    for tag, value in _definitions(Path(path).read_bytes()):
        if tag == FILTER:
            kind, _, rest = _text(value).partition("=")
            cutoff = number(rest.split("^")[0].strip(" Hz"))
            if kind.strip().upper() in _FILTERS and cutoff:
                filters[_FILTERS[kind.strip().upper()]] = cutoff
        elif tag != WAVE:
            found.setdefault(tag, value)
    order = "<" if found.get(ORDER) == b"\1" else ">"
    age = found.get(AGE, b"")
    return Facts(
        test_id=_text(found.get(TEST, b"")) or None,
        patient_id=_text(found.get(PATIENT, b"")).split("^")[0].strip() or None,
        acquired=_moment(found.get(TIME, b""), order),
        sex={b"\1": "male", b"\2": "female"}.get(found.get(SEX, b"")),
        measurements={**filters, **({"age_years": float(age[0])} if age[:1] not in (b"", b"\0", b"\xff") else {})},
        private=words_of(_text(found.get(NAME, b"")).replace("^", " ")),
    )


def _text(value: bytes) -> str:
    return value.decode("utf-8", errors="ignore").strip("\0 ")


def _moment(value: bytes, order: str) -> datetime | None:
    try:
        return datetime(*struct.unpack_from(f"{order}H5B", value))
    except (struct.error, ValueError):
        return None


FORMAT = Format("MFER", "ecgdatakit", _knows, _read, _facts, MAX_BYTES)
