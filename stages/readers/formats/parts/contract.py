"""What is read of one ECG file of a cart or an archive, and what a reader of one format is.

No name, birth date or free text of a file gets into any of these: what is not here cannot leave the reader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

import numpy as np

from stages.readers.lead_names import LeadNames
from stages.readers.recording import Recording

EXTRA = "pip install 'ecg-ensemble[hospital]'"

MEASUREMENTS = {
    "age_years": "years",
    "heart_rate_bpm": "1/min",
    "rr_ms": "ms",
    "p_ms": "ms",
    "pr_ms": "ms",
    "qrs_ms": "ms",
    "qt_ms": "ms",
    "qtc_ms": "ms",
    "p_axis_deg": "degrees",
    "qrs_axis_deg": "degrees",
    "t_axis_deg": "degrees",
    "filter_high_pass_hz": "Hz",
    "filter_low_pass_hz": "Hz",
    "filter_notch_hz": "Hz",
}
"""What carts measure and how they filter -> its unit."""


@dataclass(frozen=True)
class Facts:
    """What a file says of its ECG beside the samples.

    Attributes
    ----------
    test_id
        The file's own name of the ECG, unique over files; None where the format has none.
    patient_id
        As the file has it.
    acquired
        Local time of the recording.
    sex
        "male" or "female", None where the file says neither.
    measurements
        Names of `MEASUREMENTS` -> value in that unit.
    statements
        The machine's own statements, never those that a person has written or changed.
    private
        Words of the file that must not be written anywhere (the patient's names): statements with them are left out.
    """

    test_id: str | None = None
    patient_id: str | None = None
    acquired: datetime | None = None
    sex: str | None = None
    measurements: Mapping[str, float] = field(default_factory=dict)
    statements: tuple[str, ...] = ()
    private: tuple[str, ...] = ()


class Beginning(NamedTuple):
    """What a format is known by.

    Attributes
    ----------
    content
        The first bytes of the file.
    root
        Name of the first XML element, without its prefix; empty where the file is no XML.
    """

    content: bytes
    root: str


class FileLead(NamedTuple):
    """One channel of a file.

    Attributes
    ----------
    samples
        float64 [time] in the file's own counts or units; missing = NaN.
    mv_per_count
        None where the file states no voltage.
    offset_mv
        mV of count 0.
    clipped
        bool [time]: at the limit of the numbers that the file can hold; None where that is not known.
    """

    name: str
    samples: np.ndarray
    mv_per_count: float | None
    offset_mv: float
    rate_hz: float
    clipped: np.ndarray | None = None


class Reading(NamedTuple):
    """What a reader is asked for beside the file: what is kept (None: all), and the study's own names of leads."""

    seconds: float | None
    lead_names: LeadNames = ()


@dataclass(frozen=True)
class Format:
    """A reader of one format.

    Attributes
    ----------
    name
        As people call it.
    package
        What must be importable to read it; None: nothing.
    knows
        Whether a file that begins so is of this format.
    read
        Reads the rhythm of the file at a path that may be opened; raises InputError with the reason.
    facts
        Reads all else of it, likewise.
    largest_bytes
        Larger files are refused before they are read.
    """

    name: str
    package: str | None
    knows: Callable[[Beginning], bool]
    read: Callable[[str, Reading], Recording]
    facts: Callable[[str], Facts]
    largest_bytes: int
