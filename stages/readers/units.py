"""What a unit of a signal is in millivolts, as headers, DICOM and people write it: `mV`, `microvolts`, `counts/mV`."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_PREFIXES = {"": 1e3, "m": 1.0, "milli": 1.0, "u": 1e-3, "μ": 1e-3, "micro": 1e-3, "n": 1e-6, "nano": 1e-6}
_VOLTS = re.compile(r"(?P<prefix>|m|milli|u|μ|micro|n|nano)[\s_-]*(?:v|volts?)\.?")
_COUNTS = r"(?:adu|adc|adcu|counts?|lsb|units?|digits?)"
_PER = re.compile(rf"(?:{_COUNTS}|1)?\s*/\s*(?P<volts>.+)")
_RAW = re.compile(_COUNTS)
_BRACKETS = re.compile(r"^[\[(](.*)[\])]$")


@lru_cache(maxsize=1024)
def millivolts_per(unit: str) -> float | None:
    """Return how many millivolts one unit is; None for what is no voltage.

    Examples
    --------
    >>> millivolts_per("microvolts"), millivolts_per("[mV]"), millivolts_per("adu/mV"), millivolts_per("mmHg")
    (0.001, 1.0, 1.0, None)
    """
    plain = unicodedata.normalize("NFKC", unit).strip().lower()
    plain = _BRACKETS.sub(r"\1", plain).strip()
    per = _PER.fullmatch(plain)
    found = _VOLTS.fullmatch(per["volts"].strip() if per else plain)
    return None if found is None else _PREFIXES[found["prefix"]]


def is_raw(unit: str) -> bool:
    """Whether a unit means counts of the converter (`adu`)."""
    return _RAW.fullmatch(unit.strip().lower()) is not None
