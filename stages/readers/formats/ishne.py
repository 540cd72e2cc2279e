"""ISHNE Holter files (Badilini 1998): channels by the codes of the standard, nV of a count, -32768 is a lead fault."""

from __future__ import annotations

import struct
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

MAX_BYTES = 256 << 20
MAGIC, HEAD_BYTES = b"ISHNE1.0", 522
FAULT = -32768


def _knows(beginning: Beginning) -> bool:
    return beginning.content.startswith(MAGIC)


def _read(path: str, reading: Reading) -> Recording:
    record, notes = parse("ishne_holter:ISHNEHolterParser", path)
    _check_length(record.raw_metadata)
    return assemble([_without_faults(lead) for lead in leads_of(record)], reading, notes)


def _check_length(stated: dict[str, Any]) -> None:
    """Refuse a file that ends early: writers state the samples of a lead, or of all leads together."""
    n_held, n_stated = int(stated["samples_per_lead"]), int(stated["ecg_size"])
    if n_held * len(stated["lead_spec"]) < n_stated:
        raise InputError(f"it is cut short: {n_held} samples of each lead are there, it states {n_stated}")


def _without_faults(lead: FileLead) -> FileLead:
    fault = lead.samples == FAULT
    if not fault.any():
        return lead
    clipped = None if lead.clipped is None else lead.clipped & ~fault
    return lead._replace(samples=np.where(fault, np.nan, lead.samples), clipped=clipped)


def _facts(path: str) -> Facts:
    with Path(path).open("rb") as file:
        head = file.read(HEAD_BYTES)
    day, month, year = struct.unpack_from("<3h", head, 138)
    hour, minute, second = struct.unpack_from("<3h", head, 150)
    acquired, birth = _moment(year, month, day, hour, minute, second), _birth(head)
    age = {} if acquired is None or birth is None else {"age_years": float(int((acquired - birth).days / 365.25))}
    return Facts(
        patient_id=_text(head, 108, 20),
        acquired=acquired,
        sex={1: "male", 2: "female"}.get(struct.unpack_from("<h", head, 128)[0]),
        measurements=age,
        private=words_of(_text(head, 28, 40), _text(head, 68, 40)),
    )


def _birth(head: bytes) -> datetime | None:
    day, month, year = struct.unpack_from("<3h", head, 132)
    return _moment(year, month, day)


def _moment(*parts: int) -> datetime | None:
    try:
        return datetime(*parts)  # type: ignore[arg-type]
    except (ValueError, TypeError):
        return None


def _text(head: bytes, start: int, size: int) -> str | None:
    return head[start : start + size].split(b"\0")[0].decode("latin-1").strip() or None


FORMAT = Format("ISHNE Holter", "ecgdatakit", _knows, _read, _facts, MAX_BYTES)
