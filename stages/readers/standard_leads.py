"""Keeps of a recording the standard leads, under their standard names, and says what was left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from cache.errors import InputError
from cache.signals import LEADS, MISSING
from stages.readers.lead_names import LeadNames, Leads, arrange, no_standard_lead
from stages.readers.recording import Counts, Recording

LEFT_OUT = "leads left out: "
LONGEST_NOTE = 200


def keep_standard(recording: Recording | Counts, lead_names: LeadNames = ()) -> Recording | Counts:
    """Return a recording of standard leads only, in standard order; the same one where nothing is to be done.

    Parameters
    ----------
    lead_names
        A study's own spellings: (name in the files, standard lead).

    Raises
    ------
    InputError
        No standard lead at all, or two of one name that differ.
    """
    leads = arrange(recording.leads, lead_names)
    if not leads.columns:
        raise no_standard_lead(recording.leads)
    if not leads.others and not leads.repeated and not lead_names and len(leads.columns) == len(recording.leads):
        return recording
    columns, notes = _resolved(recording, leads)
    names = tuple(LEADS[place] for place, _ in leads.columns)
    notes = (*recording.notes, *left_out(leads.others), *notes)
    if isinstance(recording, Counts):
        return recording._replace(
            samples=np.ascontiguousarray(recording.samples[:, columns]),
            leads=names,
            gains_per_mv=tuple(recording.gains_per_mv[k] for k in columns),
            baselines=tuple(recording.baselines[k] for k in columns),
            converters=None if recording.converters is None else tuple(recording.converters[k] for k in columns),
            notes=notes,
        )
    clipped = None if recording.clipped is None else recording.clipped[columns]
    signals_mv = recording.signals_mv[columns]
    return dataclasses.replace(recording, signals_mv=signals_mv, leads=names, clipped=clipped, notes=notes)


def scaled(recording: Recording | Counts, scale: float) -> Recording | Counts:
    """Return a recording with its amplitudes multiplied by `scale`."""
    if scale == 1.0:
        return recording
    if isinstance(recording, Counts):
        return recording._replace(gains_per_mv=tuple(gain / scale for gain in recording.gains_per_mv))
    return dataclasses.replace(recording, signals_mv=recording.signals_mv * scale)


def left_out(names: Sequence[str]) -> tuple[str, ...]:
    """Return the note that names leads which were left out; nothing where there are none."""
    return (f"{LEFT_OUT}{', '.join(dict.fromkeys(names))[:LONGEST_NOTE]}",) if names else ()


def _resolved(recording: Recording | Counts, leads: Leads) -> tuple[list[int], tuple[str, ...]]:
    """Return the column of each standard lead; of two columns of one name the one that has samples."""
    chosen, notes = dict(leads.columns), []
    for place, column in leads.repeated:
        first, second = _wave_mv(recording, chosen[place]), _wave_mv(recording, column)
        if not np.isfinite(first).any():
            chosen[place] = column
        elif np.isfinite(second).any() and not np.array_equal(first, second, equal_nan=True):
            raise InputError(f"two leads are named {LEADS[place]} and differ; nobody can say which is which")
        notes.append(f"two leads are named {LEADS[place]} and are alike: one is taken")
    return [chosen[place] for place, _ in leads.columns], tuple(dict.fromkeys(notes))


def _wave_mv(recording: Recording | Counts, column: int) -> np.ndarray:
    if isinstance(recording, Recording):
        return recording.signals_mv[column]
    counts = recording.samples[:, column]
    wave_mv = (counts - float(recording.baselines[column])) / recording.gains_per_mv[column]
    return np.where(counts == MISSING, np.nan, wave_mv)
