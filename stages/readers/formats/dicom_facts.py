"""What a DICOM waveform says of its ECG beside the samples: ids, time, measurements, filters."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from stages.readers.formats.parts.contract import Facts
from stages.readers.formats.parts.xml_file import moment, number, sex_of, words_of

_CODES = {
    "heart_rate_bpm": ("2:16770", "8867-4", "MDC_ECG_HEART_RATE"),
    "rr_ms": ("2:16168", "MDC_ECG_TIME_PD_RR", "MDC_ECG_TIME_PD_RR_GL", "5.10.2.1-3"),
    "pr_ms": ("2:15872", "MDC_ECG_TIME_PD_PR", "MDC_ECG_TIME_PD_PR_GL", "5.13.5-7"),
    "qrs_ms": ("2:16156", "MDC_ECG_TIME_PD_QRS", "MDC_ECG_TIME_PD_QRS_GL", "5.13.5-9"),
    "qt_ms": ("2:16160", "MDC_ECG_TIME_PD_QT", "MDC_ECG_TIME_PD_QT_GL", "5.13.5-11"),
    "qtc_ms": ("2:15880", "MDC_ECG_TIME_PD_QTcB", "MDC_ECG_TIME_PD_QTc"),
    "p_axis_deg": ("2:16128", "MDC_ECG_ANGLE_P_FRONT", "5.10.3-11"),
    "qrs_axis_deg": ("2:16132", "MDC_ECG_ANGLE_QRS_FRONT", "5.10.3-13"),
    "t_axis_deg": ("2:16136", "MDC_ECG_ANGLE_T_FRONT", "5.10.3-15"),
}
_NAME_OF = {code: name for name, codes in _CODES.items() for code in codes}
_UNIT_MS = {"ms": 1.0, "s": 1000.0, "us": 1e-3}
_AGE = re.compile(r"(\d{3})([DWMY])")
_YEARS = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0}
_FILTERS = {
    "filter_high_pass_hz": "FilterLowFrequency",
    "filter_low_pass_hz": "FilterHighFrequency",
    "filter_notch_hz": "NotchFilterFrequency",
}


def facts_of(data: Any) -> Facts:
    """Return the facts of a data set of pydicom; its comments and unformatted texts are not looked at."""
    return Facts(
        test_id=_text(data, "SOPInstanceUID"),
        patient_id=_text(data, "PatientID"),
        acquired=_acquired(data),
        sex=sex_of(_text(data, "PatientSex")),
        measurements={**dict(_measurements(data)), **_filters(data), **_age(_text(data, "PatientAge"))},
        private=words_of(_text(data, "PatientName")),
    )


def _text(data: Any, name: str) -> str | None:
    value = data.get(name)
    return None if value is None else str(value).strip() or None


def _acquired(data: Any) -> datetime | None:
    whole = _text(data, "AcquisitionDateTime")
    if whole:
        return moment(whole[:8], whole[8:14])
    pairs = (("AcquisitionDate", "AcquisitionTime"), ("ContentDate", "ContentTime"), ("StudyDate", "StudyTime"))
    found = (moment(_text(data, day), (_text(data, clock) or "")[:6]) for day, clock in pairs)
    return next((when for when in found if when is not None), None)


def _age(text: str | None) -> dict[str, float]:
    found = _AGE.fullmatch(text or "")
    return {} if found is None else {"age_years": int(found[1]) * _YEARS[found[2]]}


def _measurements(data: Any) -> Iterator[tuple[str, float]]:
    for one in data.get("WaveformAnnotationSequence") or ():
        code = next(iter(one.get("ConceptNameCodeSequence") or ()), None)
        name = None if code is None else _NAME_OF.get(str(code.get("CodeValue") or ""))
        value = number(str(one.get("NumericValue")))
        if name is None or value is None:
            continue
        unit = next(iter(one.get("MeasurementUnitsCodeSequence") or ()), None)
        shown = "" if unit is None else str(unit.get("CodeValue") or "")
        if not name.endswith("_ms"):
            yield name, value
        elif shown in _UNIT_MS:
            yield name, value * _UNIT_MS[shown]


def _filters(data: Any) -> dict[str, float]:
    for group in data.get("WaveformSequence") or ():
        for channel in group.get("ChannelDefinitionSequence") or ():
            values = {name: number(str(channel.get(tag))) for name, tag in _FILTERS.items()}
            return {name: value for name, value in values.items() if value is not None}
    return {}
