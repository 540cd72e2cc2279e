"""GE MUSE XML (`RestingECG`, restecg.dtd): the waveform `Rhythm`; eight leads by design, at 250, 500 or 1000 Hz."""

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
    numbers_of,
    sex_of,
    text_of,
    words_of,
)
from stages.readers.recording import Recording

_YEARS = {"YEARS": 1.0, "MONTHS": 1 / 12, "WEEKS": 7 / 365.25, "DAYS": 1 / 365.25, "HOURS": 1 / 8766}
_MEASURED = {
    "heart_rate_bpm": "VentricularRate",
    "pr_ms": "PRInterval",
    "qrs_ms": "QRSDuration",
    "qt_ms": "QTInterval",
    "qtc_ms": "QTCorrected",
    "p_axis_deg": "PAxis",
    "qrs_axis_deg": "RAxis",
    "t_axis_deg": "TAxis",
}
_NAMES = ("PatientLastName", "PatientFirstName")


def _knows(beginning: Beginning) -> bool:
    return beginning.root == "RestingECG"


def _read(path: str, reading: Reading) -> Recording:
    check_file(path)
    record, notes = parse("ge_muse_xml:GEMuseXMLParser", path)
    return assemble(leads_of(record), reading, notes)


def _facts(path: str) -> Facts:
    root = check_root(path, "RestingECG")
    test, patient = root.find("TestDemographics"), root.find("PatientDemographics")
    measured = root.find("RestingECGMeasurements")
    measured = root.find("OriginalRestingECGMeasurements") if measured is None else measured
    return Facts(
        test_id=text_of(root, "PharmaData/PharmaUniqueECGID"),
        patient_id=text_of(patient, "PatientID"),
        acquired=moment(text_of(test, "AcquisitionDate"), text_of(test, "AcquisitionTime")),
        sex=sex_of(text_of(patient, "Gender")),
        measurements={**numbers_of(measured, _MEASURED), **_age(patient), **_filters(root)},
        statements=_statements(root, test),
        private=words_of(*(text_of(patient, name) for name in _NAMES)),
    )


def _age(patient: Element | None) -> dict[str, float]:
    age, unit = number(text_of(patient, "PatientAge")), (text_of(patient, "AgeUnits") or "").upper()
    return {} if age is None or unit not in _YEARS else {"age_years": age * _YEARS[unit]}


def _filters(root: Element) -> dict[str, float]:
    """Return the filters of the rhythm; the high-pass one is written in hundredths of 1 Hz."""
    for waveform in root.findall("Waveform"):
        if (text_of(waveform, "WaveformType") or "rhythm").lower() == "rhythm":
            paths = {"filter_high_pass_hz": "HighPassFilter", "filter_low_pass_hz": "LowPassFilter"}
            found = numbers_of(waveform, {**paths, "filter_notch_hz": "ACFilter"})
            if "filter_high_pass_hz" in found:
                found["filter_high_pass_hz"] /= 100
            return found
    return {}


def _statements(root: Element, test: Element | None) -> tuple[str, ...]:
    """Return the machine's statements: the original ones, else those that nobody has confirmed."""
    diagnosis = root.find("OriginalDiagnosis")
    if diagnosis is None:
        confirmed = (text_of(test, "Status") or "").upper() == "CONFIRMED" or text_of(test, "OverreaderID")
        diagnosis = None if confirmed else root.find("Diagnosis")
    lines: list[str] = []
    parts: list[str] = []
    for statement in () if diagnosis is None else diagnosis.findall("DiagnosisStatement"):
        parts.append(text_of(statement, "StmtText") or "")
        flags = [(flag.text or "").strip().upper() for flag in statement.findall("StmtFlag")]
        if "ENDSLINE" in flags or not flags:
            lines.append(" ".join(parts))
            parts = []
    return lines_of_text([*lines, " ".join(parts)])


FORMAT = Format("GE MUSE XML", "ecgdatakit", _knows, _read, _facts, MAX_XML_BYTES)
