"""The door to ecgdatakit (Apache-2.0): runs one of its parsers, and refuses what it only warns of.

Its messages may repeat texts of the file, and so a name; they are passed on without what they quote.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np

from cache.errors import InputError
from stages.readers.formats.parts.contract import EXTRA, FileLead
from stages.readers.units import millivolts_per

_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|\bin /\S+|/\S+/\S*|\[.*?\]")
_LOST = re.compile(r"truncat|shorter than|incomplete|missing sample|mismatch", re.I)
"""What makes numbers wrong or missing that the file promises."""
_NOTES = (
    (re.compile(r"only the first is read|ignored in|not loaded|additional", re.I), "further waveforms are not read"),
    (re.compile(r"was not applied", re.I), "the file states a baseline of its counts that is not applied"),
    (re.compile(r"default of 1000 Hz", re.I), "the file states no rate; 1000 Hz is the format's default"),
)
LONGEST = 160


def parse(parser: str, path: str) -> tuple[Any, tuple[str, ...]]:
    """Run a parser, `module:class` of ecgdatakit's formats; returns its record and what is to be noted of it.

    Raises
    ------
    InputError
        The package is not installed, or the file is damaged, incomplete or of a kind that is not read.
    """
    module, _, name = parser.partition(":")
    try:
        found = getattr(import_module(f"ecgdatakit.parsing.parsers.{module}"), name)
    except ImportError as error:
        raise InputError(f"reading this file needs ecgdatakit; run {EXTRA}") from error
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            record = found().parse(path)
        except InputError:
            raise
        # Whatever a damaged file makes of a parser, it is the file's damage.
        except Exception as error:
            raise InputError(f"it cannot be read: {plain(error)}") from error
    messages = [str(one.message) for one in caught]
    lost = next((text for text in messages if _LOST.search(text)), None)
    if lost is not None:
        raise InputError(f"it is damaged or incomplete: {plain(lost)}")
    return record, tuple(note for form, note in _NOTES if any(form.search(text) for text in messages))


def plain(message: object) -> str:
    """Return a message without what it quotes of the file or its path.

    >>> plain("Lead II of '/a/SMITH.xml' has 3 samples")
    'Lead II of ... has 3 samples'
    """
    kind = f"{type(message).__name__}, " if isinstance(message, Exception) and not str(message) else ""
    return kind + " ".join(_QUOTED.sub("...", str(message)).split())[:LONGEST]


def leads_of(
    record: Any, rates_hz: Mapping[str, float] | float | None = None, *, limit: int | None = 32767
) -> list[FileLead]:
    """Return the leads of a record of ecgdatakit.

    Parameters
    ----------
    rates_hz
        The exact rate, of all leads or by name; None: as the record has it (whole numbers).
    limit
        Counts at and beyond it are clipped; None: it is not known.
    """
    return [_lead(lead, _rate(lead, rates_hz), limit) for lead in record.leads]


def _rate(lead: Any, rates_hz: Mapping[str, float] | float | None) -> float:
    if isinstance(rates_hz, Mapping):
        return float(rates_hz.get(lead.label, lead.sampling_rate))
    return float(lead.sampling_rate if rates_hz is None else rates_hz)


def _lead(lead: Any, rate_hz: float, limit: int | None) -> FileLead:
    samples = np.asarray(lead.samples, dtype=np.float64)
    unit_mv = millivolts_per(lead.resolution_unit if lead.is_raw else lead.units)
    clipped = None if limit is None else np.abs(samples) >= limit
    if unit_mv is None or not (lead.resolution_unit if lead.is_raw else lead.units):
        return FileLead(lead.label, samples, None, 0.0, rate_hz, clipped)
    step, offset = (lead.resolution, lead.offset) if lead.is_raw else (1.0, 0.0)
    return FileLead(lead.label, samples, step * unit_mv, offset * unit_mv, rate_hz, clipped)
