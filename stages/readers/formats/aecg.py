"""HL7 annotated ECG (aECG, `AnnotatedECG`): the rhythm series, value = origin + scale x digit."""

from __future__ import annotations

from xml.etree.ElementTree import Element

from stages.readers.formats.parts.assemble import assemble
from stages.readers.formats.parts.contract import Beginning, Facts, Format, Reading
from stages.readers.formats.parts.datakit import leads_of, parse
from stages.readers.formats.parts.xml_file import (
    MAX_XML_BYTES,
    check_file,
    check_root,
    moment,
    number,
    sex_of,
    words_of,
)
from stages.readers.recording import Recording

_SUBJECT = "componentOf/timepointEvent/componentOf/subjectAssignment/subject/trialSubject"
_CODES = {
    "heart_rate_bpm": ("MDC_ECG_HEART_RATE",),
    "rr_ms": ("MDC_ECG_TIME_PD_RR", "MDC_ECG_TIME_PD_RR_GL"),
    "p_ms": ("MDC_ECG_TIME_PD_P", "MDC_ECG_TIME_PD_P_GL"),
    "pr_ms": ("MDC_ECG_TIME_PD_PR", "MDC_ECG_TIME_PD_PR_GL"),
    "qrs_ms": ("MDC_ECG_TIME_PD_QRS", "MDC_ECG_TIME_PD_QRS_GL"),
    "qt_ms": ("MDC_ECG_TIME_PD_QT", "MDC_ECG_TIME_PD_QT_GL"),
    "qtc_ms": ("MDC_ECG_TIME_PD_QTcB", "MDC_ECG_TIME_PD_QTC"),
    "p_axis_deg": ("MDC_ECG_ANGLE_P_FRONT", "MDC_ECG_ANGLE_P_FRONT_GL"),
    "qrs_axis_deg": ("MDC_ECG_ANGLE_QRS_FRONT", "MDC_ECG_ANGLE_QRS_FRONT_GL"),
    "t_axis_deg": ("MDC_ECG_ANGLE_T_FRONT", "MDC_ECG_ANGLE_T_FRONT_GL"),
}
_NAME_OF = {code: name for name, codes in _CODES.items() for code in codes}
_MS = {"ms": 1.0, "s": 1000.0, "us": 1e-3}
_FILTERS = {
    "MDC_ECG_CTL_VBL_ATTR_FILTER_HIGH_PASS": ("filter_high_pass_hz", "MDC_ECG_CTL_VBL_ATTR_FILTER_CUTOFF_FREQ"),
    "MDC_ECG_CTL_VBL_ATTR_FILTER_LOW_PASS": ("filter_low_pass_hz", "MDC_ECG_CTL_VBL_ATTR_FILTER_CUTOFF_FREQ"),
    "MDC_ECG_CTL_VBL_ATTR_FILTER_NOTCH": ("filter_notch_hz", "MDC_ECG_CTL_VBL_ATTR_FILTER_NOTCH_FREQ"),
}


def _knows(beginning: Beginning) -> bool:
    return beginning.root == "AnnotatedECG"


def _read(path: str, reading: Reading) -> Recording:
    check_file(path)
    record, notes = parse("hl7_aecg:HL7aECGParser", path)
    exact_hz = record.raw_metadata["rhythm_time"].get("sampling_rate_exact")
    return assemble(leads_of(record, exact_hz, limit=None), reading, notes)


def _facts(path: str) -> Facts:
    root = check_root(path, "AnnotatedECG")
    subject = root.find(_SUBJECT)
    person = None if subject is None else subject.find("subjectDemographicPerson")
    start = _value(root, "effectiveTime/low") or _value(root, "effectiveTime/center") or _value(root, "effectiveTime")
    return Facts(
        test_id=_id(root.find("id")),
        patient_id=None if subject is None else _known(_attribute(subject, "id", "extension")),
        acquired=None if start is None else moment(start[:8], start[8:14]),
        sex=sex_of(None if person is None else _attribute(person, "administrativeGenderCode", "code")),
        measurements={**_measurements(root), **_filters(root)},
        private=() if person is None else words_of("".join(_texts(person.find("name")))),
    )


def _id(element: Element | None) -> str | None:
    """Return an identifier's root, and its extension where it has one."""
    if element is None:
        return None
    parts = [_known(element.get("root")), _known(element.get("extension"))]
    return ".".join(part for part in parts if part) or None


def _known(text: str | None) -> str | None:
    plain = (text or "").strip()
    return None if plain in ("", "?", "UNK", "NA", "N/A") else plain


def _attribute(root: Element, path: str, name: str) -> str | None:
    found = root.find(path)
    return None if found is None else found.get(name)


def _value(root: Element, path: str) -> str | None:
    return _attribute(root, path, "value")


def _texts(element: Element | None) -> list[str]:
    return [] if element is None else [f"{text} " for text in element.itertext()]


def _measurements(root: Element) -> dict[str, float]:
    """Return the first of each measurement of the whole ECG; those of single leads have other codes."""
    found: dict[str, float] = {}
    for annotation in root.iter("annotation"):
        code, value = annotation.find("code"), annotation.find("value")
        name = None if code is None else _NAME_OF.get(code.get("code") or "")
        measured = None if value is None else number(value.get("value"))
        if name is None or value is None or measured is None or annotation.find("support/supportingROI") is not None:
            continue
        factor = _MS.get(value.get("unit") or "") if name.endswith("_ms") else 1.0
        if factor is not None:
            found.setdefault(name, measured * factor)
    return found


def _filters(root: Element) -> dict[str, float]:
    found: dict[str, float] = {}
    for variable in root.iter("controlVariable"):
        code = variable.find("code")
        name, cutoff = _FILTERS.get("" if code is None else code.get("code") or "", (None, ""))
        for inner in variable.iter("controlVariable") if name else ():
            inner_code = inner.find("code")
            value = number(_value(inner, "value"))
            if name and inner_code is not None and inner_code.get("code") == cutoff and value is not None:
                found.setdefault(name, value)
    return found


FORMAT = Format("HL7 aECG", "ecgdatakit", _knows, _read, _facts, MAX_XML_BYTES)
