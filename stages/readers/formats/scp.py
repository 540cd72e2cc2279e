"""SCP-ECG (EN 1064, ISO 11073-91064): the rhythm of section 6, with Huffman codes, differences and beat subtraction."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import InputError
from stages.readers.formats.parts.assemble import assemble
from stages.readers.formats.parts.contract import Beginning, Facts, FileLead, Format, Reading
from stages.readers.formats.parts.datakit import leads_of, parse
from stages.readers.formats.parts.xml_file import words_of
from stages.readers.recording import Recording
from stages.readers.wfdb.limits import check_size

MAX_BYTES = 64 << 20
RECORD_HEAD, SECTION_HEAD, POINTER = 6, 16, 10
MAX_PACKED_SAMPLES = 2_000_000
"""Of all leads of a file packed by Huffman codes, which are unpacked bit by bit: five minutes of twelve at 500 Hz."""
_NO_VALUE = (0, 29999, 0xFFFF)
_NO_AXIS = (999, 29999)
_YEARS = {1: 1.0, 2: 1 / 12, 3: 7 / 365.25, 4: 1 / 365.25, 5: 1 / 8766}
_NAMES = (0, 1, 3)
_PATIENT, _AGE, _SEX, _DATE, _TIME, _HIGH_PASS, _LOW_PASS, _NOTCH, _END = 2, 4, 8, 25, 26, 27, 28, 29, 255


def _knows(beginning: Beginning) -> bool:
    content = beginning.content
    if len(content) < RECORD_HEAD + SECTION_HEAD + POINTER:
        return False
    section, length = struct.unpack_from("<HI", content, RECORD_HEAD + 2)
    if section or length < SECTION_HEAD + POINTER or (length - SECTION_HEAD) % POINTER:
        return False
    first, _, place = struct.unpack_from("<HII", content, RECORD_HEAD + SECTION_HEAD)
    return first == 0 and place == RECORD_HEAD + 1


def _read(path: str, reading: Reading) -> Recording:
    _check_promises(path)
    record, notes = parse("scp_ecg:SCPECGParser", path)
    rate_hz = 1e6 / record.raw_metadata["rhythm_sample_interval_us"]
    leads = [_placed(lead, found) for lead, found in zip(leads_of(record, rate_hz), record.leads, strict=True)]
    return assemble(leads, reading, notes)


def _check_promises(path: str) -> None:
    """Refuse lead lengths that the bytes of the file cannot hold, before anything is made of that length."""
    content = Path(path).read_bytes()
    body, total = _section(content, 3), 0
    for k in range(min(body[0], (len(body) - 2) // 9) if len(body) > 1 else 0):
        first, last = struct.unpack_from("<II", body, 2 + 9 * k)
        check_size(last)
        total += max(last - first + 1, 0)
    if _section(content, 2) and total > MAX_PACKED_SAMPLES:
        raise InputError(f"its packed leads have {total} samples, more than {MAX_PACKED_SAMPLES}")


def _placed(lead: FileLead, found: Any) -> FileLead:
    """Put a lead that begins later than the record where it belongs."""
    ahead = int(found.annotations.get("start_sample", 1)) - 1
    if not ahead:
        return lead
    check_size(ahead)
    clipped = None if lead.clipped is None else np.concatenate([np.zeros(ahead, dtype=bool), lead.clipped])
    return lead._replace(samples=np.concatenate([np.full(ahead, np.nan), lead.samples]), clipped=clipped)


def _section(content: bytes, wanted: int) -> bytes:
    """Return the content of a section; empty where the file has none, or it lies outside of the file."""
    try:
        length = struct.unpack_from("<I", content, RECORD_HEAD + 4)[0]
        first = RECORD_HEAD + SECTION_HEAD
        for place in range(first, min(RECORD_HEAD + length, len(content)) - POINTER + 1, POINTER):
            section, size, start = struct.unpack_from("<HII", content, place)
            if section == wanted and size > SECTION_HEAD and 0 < start <= len(content):
                return content[start - 1 + SECTION_HEAD : start - 1 + size]
    except struct.error:
        pass
    return b""


def _facts(path: str) -> Facts:
    content = Path(path).read_bytes()
    tags = dict(_tags(_section(content, 1)))
    day, clock = tags.get(_DATE, b""), tags.get(_TIME, b"")
    return Facts(
        patient_id=_text(tags.get(_PATIENT, b"")),
        acquired=_moment(day, clock),
        sex={1: "male", 2: "female"}.get((tags.get(_SEX) or b"\0")[0]),
        measurements={**dict(_measurements(_section(content, 7))), **dict(_settings(tags))},
        private=words_of(*(_text(tags.get(tag, b"")) for tag in _NAMES)),
    )


def _tags(body: bytes) -> Iterator[tuple[int, bytes]]:
    place = 0
    while place + 3 <= len(body):
        tag, length = body[place], struct.unpack_from("<H", body, place + 1)[0]
        if tag == _END:
            return
        yield tag, body[place + 3 : place + 3 + length]
        place += 3 + length


def _text(value: bytes) -> str | None:
    plain = value.split(b"\0", 1)[0]
    try:
        return plain.decode("utf-8").strip() or None
    except UnicodeDecodeError:
        return plain.decode("latin-1").strip() or None


def _moment(day: bytes, clock: bytes) -> datetime | None:
    try:
        return datetime(*struct.unpack_from("<HBB", day), *struct.unpack_from("<BBB", clock))
    except (struct.error, ValueError):
        return None


def _settings(tags: dict[int, bytes]) -> Iterator[tuple[str, float]]:
    """Give age and filters as section 1 has them."""
    age = tags.get(_AGE, b"")
    if len(age) >= 3 and age[2] in _YEARS and (years := struct.unpack_from("<H", age)[0]):
        yield "age_years", years * _YEARS[age[2]]
    for tag, name, step in ((_HIGH_PASS, "filter_high_pass_hz", 0.01), (_LOW_PASS, "filter_low_pass_hz", 1.0)):
        value = tags.get(tag, b"")
        if len(value) >= 2 and (steps := struct.unpack_from("<H", value)[0]):
            yield name, steps * step
    notch = (tags.get(_NOTCH) or b"\0")[0]
    if notch & 3:
        yield "filter_notch_hz", 60.0 if notch & 1 else 50.0


def _measurements(body: bytes) -> Iterator[tuple[str, float]]:
    """Give the intervals and axes of the first block of section 7, which holds the ends of waves."""
    if len(body) < 22:
        return
    n_blocks, _, rr_ms = struct.unpack_from("<BBH", body)
    if rr_ms not in _NO_VALUE:
        yield "rr_ms", float(rr_ms)
    if not n_blocks:
        return
    p_on, p_off, qrs_on, qrs_off, t_off = struct.unpack_from("<5H", body, 6)
    for name, first, last in (
        ("p_ms", p_on, p_off),
        ("pr_ms", p_on, qrs_on),
        ("qrs_ms", qrs_on, qrs_off),
        ("qt_ms", qrs_on, t_off),
    ):
        if last > first and not {first, last} & {29999, 0xFFFF}:
            yield name, float(last - first)
    for name, axis in zip(
        ("p_axis_deg", "qrs_axis_deg", "t_axis_deg"), struct.unpack_from("<3h", body, 16), strict=True
    ):
        if abs(axis) not in _NO_AXIS:
            yield name, float(axis)


FORMAT = Format("SCP-ECG", "ecgdatakit", _knows, _read, _facts, MAX_BYTES)
