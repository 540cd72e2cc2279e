"""EDF and EDF+: channels by label, gaps between the records of EDF+D stay gaps."""

from __future__ import annotations

import itertools
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import InputError
from stages.readers.formats.parts.assemble import assemble
from stages.readers.formats.parts.contract import Beginning, Facts, FileLead, Format, Reading
from stages.readers.formats.parts.datakit import leads_of, parse
from stages.readers.formats.parts.xml_file import moment, number, sex_of, words_of
from stages.readers.recording import Recording
from stages.readers.wfdb.limits import check_size

MAX_BYTES = 256 << 20
HEAD_BYTES = 256
_PREFILTER = {
    "filter_high_pass_hz": re.compile(r"HP:?\s*(\d*\.?\d+)\s*HZ"),
    "filter_low_pass_hz": re.compile(r"LP:?\s*(\d*\.?\d+)\s*HZ"),
    "filter_notch_hz": re.compile(r"(?:NOTCH|\bN):?\s*(\d*\.?\d+)\s*HZ"),
}


def _knows(beginning: Beginning) -> bool:
    content = beginning.content
    if len(content) < HEAD_BYTES or content[:8] not in (b"0       ", b"\xffBIOSEMI"):
        return False
    n_records, n_signals = content[236:244].strip(b" \0"), content[252:256].strip(b" \0")
    return n_signals.isdigit() and n_records.lstrip(b"-").isdigit()


def _read(path: str, reading: Reading) -> Recording:
    record, notes = parse("edf:EDFParser", path)
    rates = {lead.label: rate for lead, rate in zip(record.leads, _rates(path), strict=True)}
    leads = leads_of(record, rates, limit=None)
    onsets_s = record.raw_metadata.get("record_onsets") or []
    if _has_gaps(onsets_s, record.raw_metadata):
        leads = [_apart(lead, onsets_s) for lead in leads]
        notes = (*notes, "there are gaps between the file's data records; they stay missing")
    return assemble([_at_limits(lead, record.leads[k]) for k, lead in enumerate(leads)], reading, notes)


def _rates(path: str) -> list[float]:
    """Return the rate of every channel but the annotations: of records of 0.3 s it is no whole number."""
    with Path(path).open("rb") as file:
        head = file.read(HEAD_BYTES)
        duration_s, n_signals = float(head[244:252].strip(b" \0")), int(head[252:256].strip(b" \0"))
        rest = file.read(256 * n_signals)
    labels = [rest[16 * k : 16 * k + 16].strip(b" \0") for k in range(n_signals)]
    counts = [int(rest[216 * n_signals + 8 * k :][:8].strip(b" \0")) for k in range(n_signals)]
    return [n / duration_s for n, label in zip(counts, labels, strict=True) if label != b"EDF Annotations"]


def _has_gaps(onsets_s: list[float], head: dict[str, Any]) -> bool:
    if len(onsets_s) != head["num_records"]:
        return False
    expected = onsets_s[0] + head["record_duration"] * np.arange(len(onsets_s))
    return not np.allclose(onsets_s, expected, atol=1e-6)


def _apart(lead: FileLead, onsets_s: list[float]) -> FileLead:
    """Put the samples of each data record where they were recorded."""
    size = len(lead.samples) // len(onsets_s)
    starts = [round((onset - onsets_s[0]) * lead.rate_hz) for onset in onsets_s]
    if any(later < earlier + size for earlier, later in itertools.pairwise(starts)):
        raise InputError("its data records overlap in time")
    check_size(starts[-1] + size)
    samples = np.full(starts[-1] + size, np.nan)
    for k, start in enumerate(starts):
        samples[start : start + size] = lead.samples[k * size : (k + 1) * size]
    return lead._replace(samples=samples)


def _at_limits(lead: FileLead, found: Any) -> FileLead:
    """Mark samples at the limits of the digital range that the file states."""
    low, high = (float(found.annotations[f"digital_{name}"]) for name in ("minimum", "maximum"))
    return lead._replace(clipped=(lead.samples <= low) | (lead.samples >= high))


def _facts(path: str) -> Facts:
    with Path(path).open("rb") as file:
        head = file.read(HEAD_BYTES).decode("latin-1").ljust(HEAD_BYTES)
        n_signals = number(head[252:256])
        rest = file.read(256 * int(n_signals or 0)).decode("latin-1")
    plus = head[192:196] == "EDF+"
    patient = head[8:88].split() if plus else []
    recording = head[88:168].split() if plus else []
    when = _start(head, recording)
    birth = moment(patient[2], "00:00") if len(patient) > 2 else None
    age = {} if birth is None or when is None else {"age_years": float(int((when - birth).days / 365.25))}
    return Facts(
        test_id=_known(recording, 2),
        # A patient's id has no place of its own in plain EDF, whose whole field may be a name.
        patient_id=_known(patient, 0),
        acquired=when,
        sex=sex_of(_known(patient, 1)),
        measurements={**age, **_filters(rest, int(n_signals or 0))},
        private=words_of(*patient[3:4]),
    )


def _known(parts: list[str], place: int) -> str | None:
    return parts[place] if len(parts) > place and parts[place] != "X" else None


def _start(head: str, recording: list[str]) -> datetime | None:
    clock = head[176:184].replace(".", ":")
    if len(recording) > 1 and recording[0] == "Startdate" and recording[1] != "X":
        return moment(recording[1], clock)
    day, month, year = [*head[168:176].split("."), "", "", ""][:3]
    # Two digits of a year: 85 to 99 are of the century before, by the format's own rule.
    return moment(f"{day}.{month}.{'19' if year >= '85' else '20'}{year}", clock)


def _filters(rest: str, n_signals: int) -> dict[str, float]:
    """Return the filters that the first channel states."""
    text = rest[136 * n_signals :][:80].upper()
    found = {name: form.search(text) for name, form in _PREFILTER.items()}
    return {name: float(match[1]) for name, match in found.items() if match is not None}


FORMAT = Format("EDF/EDF+", "ecgdatakit", _knows, _read, _facts, MAX_BYTES)
