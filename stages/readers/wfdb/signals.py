"""Reads the samples of a record without segments: directly where all lie in one file of two bytes a sample.

The direct way (.dat or 16x1 .mat) gives exactly what wfdb gives, some tens of times faster, because wfdb spends its
time on the header. All other formats are read through wfdb.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from cache.errors import InputError
from cache.signals import MISSING
from stages.readers.lead_names import LeadNames, arrange, no_standard_lead
from stages.readers.paths import DataFolder, open_file
from stages.readers.recording import Counts, Recording, at_limit
from stages.readers.wfdb.checksums import as_stated, says_sums, sums_agree
from stages.readers.wfdb.header import FrameLayout, Header
from stages.readers.wfdb.limits import MAX_SAMPLES, beside, check_size, frames_wanted
from stages.readers.wfdb.mat_file import check_mat, is_mat
from stages.readers.wfdb.through_wfdb import read_with_wfdb


def read_signals(
    header: Header, folder: str | Path | DataFolder, above: str, seconds: float | None, lead_names: LeadNames
) -> Recording | Counts:
    """Read the beginning of a record that has no segments; `above` is the folder of its header.

    Raises
    ------
    InputError
        A standard lead is not calibrated or no voltage, or header and samples disagree.
    """
    layout = header.layout
    if layout is None:
        raise InputError("its header describes no signals")
    if layout.plain and header.file_names.count(header.file_names[0]) == len(header.file_names):
        return _read_direct(header, layout, folder, above, seconds, lead_names)
    check_calibrated(layout, lead_names)
    return read_with_wfdb(header, folder, above, seconds, lead_names)


def check_calibrated(layout: FrameLayout, lead_names: LeadNames) -> None:
    """Refuse a record without standard leads, or with one that cannot be turned into mV; others may be anything."""
    leads = arrange(layout.leads, lead_names)
    if not leads.columns:
        raise no_standard_lead(layout.leads)
    if not any(layout.faults):
        return
    for _, column in sorted((*leads.columns, *leads.repeated), key=lambda pair: pair[1]):
        if (fault := layout.faults[column]) is not None:
            raise InputError(fault)


def _read_direct(
    header: Header,
    layout: FrameLayout,
    folder: str | Path | DataFolder,
    above: str,
    seconds: float | None,
    lead_names: LeadNames,
) -> Counts:
    file_name, offset, n_signals = header.file_names[0], layout.offset, len(layout.leads)
    descriptor, size = open_file(folder, beside(above, file_name))
    try:
        if is_mat(file_name):
            check_mat(descriptor, file_name, offset, n_signals)
        held = size - offset
        n_samples = header.n_samples or held // (2 * n_signals)
        promised = n_samples * 2 * n_signals
        if held < promised:
            raise InputError(f"{file_name} is cut short: it holds {max(held, 0)} of {promised} bytes of samples")
        if n_samples <= 0:
            raise InputError(f"{file_name} holds no samples")
        wanted = min(n_samples, frames_wanted(header.rate_hz, seconds))
        check_size(wanted * n_signals)
        samples = _samples(descriptor, header, layout, wanted)
        if not as_stated(header, samples, n_samples, longer=held - promised >= 2 * n_signals):
            _check_sums(header, layout, descriptor, n_samples)
    finally:
        os.close(descriptor)
    check_calibrated(layout, lead_names)
    counts = Counts(
        samples, layout.leads, layout.gains_per_mv, layout.baselines, header.rate_hz, n_samples, notes=layout.notes
    )
    if layout.converters is not None and at_limit(samples.T, samples.T != MISSING, layout.converters).any():
        return counts._replace(converters=layout.converters)
    return counts


def _samples(descriptor: int, header: Header, layout: FrameLayout, n_samples: int) -> np.ndarray:
    """Read int16 [time, lead]."""
    samples = np.empty((n_samples, len(layout.leads)), dtype="<i2")
    if os.preadv(descriptor, [samples.data.cast("B")], layout.offset) != samples.nbytes:
        raise InputError(f"{header.file_names[0]} could not be read to its end")
    return samples.byteswap(inplace=True) if layout.plain == ">" else samples


def _check_sums(header: Header, layout: FrameLayout, descriptor: int, n_samples: int) -> None:
    """Refuse samples that are not those the header was written for: then their checksums are not those it states."""
    file_name, n_signals = header.file_names[0], len(header.file_names)
    if not (
        says_sums(header)
        and n_samples * n_signals <= MAX_SAMPLES
        and sums_agree(header, _samples(descriptor, header, layout, n_samples))
    ):
        raise InputError(f"header and {file_name} disagree (size or first values, and checksums)")
