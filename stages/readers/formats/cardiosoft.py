"""GE CardioSoft and CASE XML (`CardiologyXML`): `StripData`, or the full disclosure of an exercise test.

No library under an open licence reads it. Samples are whole numbers parted by commas, `Resolution` is in uV of each.
"""

from __future__ import annotations

import warnings
from datetime import datetime
from xml.etree.ElementTree import Element

import numpy as np

from cache.errors import InputError
from stages.readers.formats.parts.assemble import assemble
from stages.readers.formats.parts.contract import Beginning, Facts, FileLead, Format, Reading
from stages.readers.formats.parts.xml_file import (
    MAX_XML_BYTES,
    check_root,
    number,
    numbers_of,
    sex_of,
    text_of,
    words_of,
)
from stages.readers.recording import Recording
from stages.readers.units import millivolts_per

ROOT = "CardiologyXML"
_MEASURED = {
    "heart_rate_bpm": "VentricularRate",
    "rr_ms": "RRInterval",
    "p_ms": "PDuration",
    "pr_ms": "PQInterval",
    "qrs_ms": "QRSDuration",
    "qt_ms": "QTInterval",
    "qtc_ms": "QTCInterval",
    "p_axis_deg": "PAxis",
    "qrs_axis_deg": "RAxis",
    "t_axis_deg": "TAxis",
}
_YEARS = {"years": 1.0, "year": 1.0, "months": 1 / 12, "weeks": 7 / 365.25, "days": 1 / 365.25}
_CLOCK = ("Year", "Month", "Day", "Hour", "Minute", "Second")


def _knows(beginning: Beginning) -> bool:
    return beginning.root == ROOT


def _read(path: str, reading: Reading) -> Recording:
    root = check_root(path, ROOT)
    strips, whole = (root.find("StripData"), root.find("Strip/StripData")), root.find("FullDisclosure")
    for strip in strips:
        if strip is not None and strip.find("WaveformData") is not None:
            return assemble(_leads(strip), reading)
    if whole is not None:
        return assemble(_disclosed(whole), reading, ("the full disclosure of an exercise test",))
    raise InputError("it holds neither StripData nor FullDisclosure: only mean beats or no samples at all")


def _leads(strip: Element) -> list[FileLead]:
    step_mv, rate_hz = _scale(strip), _rate(strip)
    n_stated = number(text_of(strip, "ChannelSampleCountTotal"))
    leads = []
    for waveform in strip.findall("WaveformData"):
        samples = _samples(waveform.text)
        if n_stated and len(samples) < n_stated:
            raise InputError(f"a lead is cut short: it has {len(samples)} of {n_stated:g} samples")
        leads.append(FileLead(waveform.get("lead") or "?", samples, step_mv, 0.0, rate_hz, np.abs(samples) >= 32767))
    return leads


def _disclosed(whole: Element) -> list[FileLead]:
    """Return the leads of a full disclosure, whose samples lie side by side: the first of each lead, the second ..."""
    names = [name.strip() for name in (text_of(whole, "LeadOrder") or "").split(",") if name.strip()]
    n_leads = int(number(text_of(whole, "NumberOfChannels")) or len(names))
    samples = _samples(_text_without_children(whole.find("FullDisclosureData")))
    n_stated = number(text_of(whole, "FullDisclosureData/SampleCountTotal"))
    if n_stated and len(samples) < n_stated:  # of all leads or of each, which no document says: not fewer in any case
        raise InputError(f"its full disclosure is cut short: {len(samples)} of {n_stated:g} samples are there")
    if n_leads != len(names) or len(samples) % max(n_leads, 1) or not names:
        raise InputError("its full disclosure contradicts itself: samples and leads do not go together")
    step_mv, rate_hz = _scale(whole), _rate(whole)
    rows = samples.reshape(-1, n_leads).T
    return [FileLead(name, row, step_mv, 0.0, rate_hz, None) for name, row in zip(names, rows, strict=True)]


def _text_without_children(element: Element | None) -> str:
    """Return the text of an element before, between and behind its children, without theirs."""
    return "" if element is None else (element.text or "") + "".join(child.tail or "" for child in element)


def _samples(text: str | None) -> np.ndarray:
    """Read whole numbers parted by commas; one may stand behind the last."""
    plain = (text or "").strip().rstrip(", \t\n")
    with warnings.catch_warnings():
        # NumPy reads up to what is no number, and only warns of it.
        warnings.simplefilter("error", DeprecationWarning)
        try:
            samples = np.fromstring(plain, dtype=np.float64, sep=",") if plain else np.empty(0)
        except (DeprecationWarning, ValueError) as error:
            raise InputError("its samples are damaged: they are no numbers") from error
    if len(samples) != plain.count(",") + bool(plain):
        raise InputError("its samples are damaged: some are no numbers")
    return samples


def _scale(block: Element) -> float | None:
    """Return mV of a count; None where the file does not say in which unit its resolution is."""
    found = block.find("Resolution")
    step = number(None if found is None else found.text)
    if found is None or step is None:
        return None
    unit, _, per = (found.get("units") or "").partition("per")
    unit_mv = millivolts_per(unit) if per.lower() == "lsb" else None
    return None if unit_mv is None else step * unit_mv


def _rate(block: Element) -> float:
    found = block.find("SampleRate")
    rate = number(None if found is None else found.text)
    unit = "Hz" if found is None else found.get("units") or "Hz"
    if rate is None or unit.lower() != "hz":
        raise InputError("its sampling rate is not known: the file states none in Hz")
    return rate


def _facts(path: str) -> Facts:
    root = check_root(path, ROOT)
    patient = root.find("PatientInfo")
    return Facts(
        test_id=text_of(root, "UID/DICOMStudyUID"),
        patient_id=text_of(patient, "PID"),
        acquired=_moment(root.find("ObservationDateTime")),
        sex=sex_of(text_of(patient, "Gender")),
        measurements={**numbers_of(root.find("RestingECGMeasurements"), _MEASURED), **_age(patient), **_filters(root)},
        private=words_of(text_of(patient, "Name/FamilyName"), text_of(patient, "Name/GivenName")),
    )


def _moment(element: Element | None) -> datetime | None:
    values = [int(value) for name in _CLOCK if (value := number(text_of(element, name))) is not None]
    if len(values) < len(_CLOCK):
        return None
    year, month, day, hour, minute, second = values
    try:
        return datetime(year, month, day, hour, minute, second)
    except (ValueError, OverflowError):
        return None


def _age(patient: Element | None) -> dict[str, float]:
    found = None if patient is None else patient.find("Age")
    age = number(None if found is None else found.text)
    factor = None if found is None else _YEARS.get((found.get("units") or "years").lower())
    return {} if age is None or factor is None else {"age_years": age * factor}


def _filters(root: Element) -> dict[str, float]:
    found = numbers_of(root.find("FilterSetting"), {"filter_low_pass_hz": "LowPass"})
    for hz in (50.0, 60.0):
        if (text_of(root, f"FilterSetting/Filter{hz:g}Hz") or "").lower() == "yes":
            found["filter_notch_hz"] = hz
    return found


FORMAT = Format("GE CardioSoft XML", "defusedxml", _knows, _read, _facts, MAX_XML_BYTES)
