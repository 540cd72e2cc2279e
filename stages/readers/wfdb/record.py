"""Reads one WFDB record, whatever it is made of."""

from __future__ import annotations

import os
from pathlib import Path

from cache.errors import InputError
from stages.readers.lead_names import LeadNames
from stages.readers.paths import DataFolder
from stages.readers.recording import RATES_HZ, SECONDS_KEPT, Counts, Recording, check_rate
from stages.readers.wfdb.header import read_header
from stages.readers.wfdb.segments import read_segments
from stages.readers.wfdb.signals import read_signals


def read_wfdb(
    folder: str | Path | DataFolder, path: str, seconds: float | None = SECONDS_KEPT, lead_names: LeadNames = ()
) -> Recording | Counts:
    """Read a record from its beginning: what is kept of it, and a second more.

    Of several samples a frame each is a sample: the rate is that of the frames times their number.

    Parameters
    ----------
    folder
        The cohort's folder; nothing outside of it is opened, unless links are followed.
    path
        Of the record within it, with or without `.hea`.
    seconds
        What is kept of a record; None: all.
    lead_names
        A study's own names of leads. Channels that are no standard lead may be in any unit, and may be left out.

    Raises
    ------
    InputError
        The record is not there, is damaged or not calibrated, or header and samples disagree.
    """
    relative = path.removesuffix(".hea").removesuffix(".dat").removesuffix(".mat")
    if not relative:
        raise InputError("its path is empty: the list names no file")
    header = read_header(folder, relative)
    above = os.path.dirname(relative)
    check_rate(max(header.rate_hz, RATES_HZ[0]))  # a frame may have several samples
    read = read_segments if header.n_segments else read_signals
    recording = read(header, folder, above, seconds, lead_names)
    check_rate(recording.rate_hz)
    return recording
