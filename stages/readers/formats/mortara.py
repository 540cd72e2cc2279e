"""Mortara (Welch Allyn, Hillrom) ELI XML (`ECG`): the `CHANNEL`s, never the mean beats of `TYPICAL_CYCLE`."""

from __future__ import annotations

from xml.etree.ElementTree import Element

from stages.readers.formats.parts.assemble import assemble
from stages.readers.formats.parts.contract import Beginning, Facts, Format, Reading
from stages.readers.formats.parts.datakit import leads_of, parse
from stages.readers.formats.parts.xml_file import (
    MAX_XML_BYTES,
    check_file,
    check_root,
    lines_of_text,
    moment,
    number,
    sex_of,
    words_of,
)
from stages.readers.recording import Recording

ROOT = "ECG"
_MARKS = (b"CHANNEL", b"ACQUISITION_TIME", b"SUBJECT", b"TYPICAL_CYCLE")
_OF_ECG = {"heart_rate_bpm": "VENT_RATE", "rr_ms": "AVERAGE_RR"}
_OF_CYCLE = {
    "p_ms": "P_DURATION",
    "pr_ms": "PR_DURATION",
    "qrs_ms": "QRS_DURATION",
    "qt_ms": "QT",
    "qtc_ms": "QTC",
    "p_axis_deg": "P_AXIS",
    "qrs_axis_deg": "QRS_AXIS",
    "t_axis_deg": "T_AXIS",
}
_OF_SOURCE = {
    "filter_high_pass_hz": "HIGH_PASS_FILTER",
    "filter_low_pass_hz": "LOW_PASS_FILTER",
    "filter_notch_hz": "NOTCH_FILTER",
}
_YEARS = {"YEARS": 1.0, "MONTHS": 1 / 12, "WEEKS": 7 / 365.25, "DAYS": 1 / 365.25}
NO_VALUE = 29999


def _knows(beginning: Beginning) -> bool:
    # Other makers call their first element so as well.
    plain = beginning.content.replace(b"\0", b"")
    return beginning.root == ROOT and any(mark in plain for mark in _MARKS)


def _read(path: str, reading: Reading) -> Recording:
    check_file(path)
    record, notes = parse("mortara_el250:MortaraEL250Parser", path)
    return assemble(leads_of(record), reading, notes)


def _facts(path: str) -> Facts:
    root = check_root(path, ROOT)
    subject, cycle, source = root.find("SUBJECT"), root.find("TYPICAL_CYCLE"), root.find("SOURCE")
    when = root.get("ACQUISITION_TIME") or ""
    statements = root.findall("AUTOMATIC_INTERPRETATION/STATEMENT")
    names = [_attribute(subject, name) for name in ("LAST_NAME", "FIRST_NAME")]
    return Facts(
        patient_id=_attribute(subject, "ID"),
        acquired=moment(when[:8], when[8:14]),
        sex=sex_of(_attribute(subject, "GENDER")),
        measurements={
            **_numbers(root, _OF_ECG),
            **_numbers(cycle, _OF_CYCLE),
            **_numbers(source, _OF_SOURCE),
            **_age(root),
        },
        statements=lines_of_text([statement.get("TEXT") for statement in statements]),
        private=words_of(*names),
    )


def _attribute(element: Element | None, name: str) -> str | None:
    return None if element is None else (element.get(name) or "").strip() or None


def _numbers(element: Element | None, names: dict[str, str]) -> dict[str, float]:
    found = {name: number(_attribute(element, attribute)) for name, attribute in names.items()}
    return {name: value for name, value in found.items() if value is not None and abs(value) != NO_VALUE}


def _age(root: Element) -> dict[str, float]:
    age, unit = number(root.get("AGE")), (root.get("AGE_UNITS") or "").upper()
    return {} if not age or unit not in _YEARS else {"age_years": age * _YEARS[unit]}


FORMAT = Format("Mortara ELI XML", "ecgdatakit", _knows, _read, _facts, MAX_XML_BYTES)
