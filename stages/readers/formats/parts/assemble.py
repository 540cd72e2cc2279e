"""Makes one recording of the channels of a file: in mV, at one rate, of one length, or says why it cannot be made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from cache.errors import InputError
from cache.signals import LEADS
from stages.readers.at_500_hz import resample
from stages.readers.formats.parts.contract import FileLead, Reading
from stages.readers.lead_names import arrange, no_standard_lead
from stages.readers.limbs import DERIVED
from stages.readers.recording import READ_MARGIN_S, Recording, check_rate, samples_kept
from stages.readers.standard_leads import left_out
from stages.readers.wfdb.limits import check_size

STORED_BY_DESIGN = frozenset(LEADS) - frozenset(DERIVED)
"""The eight leads that many carts store: the other four follow from I and II."""


def assemble(leads: Sequence[FileLead], reading: Reading, notes: Sequence[str] = ()) -> Recording:
    """Return the standard leads of a file as one recording.

    Files that hold I, II and V1 to V6 and none of the four leads that follow from I and II have these derived.

    Raises
    ------
    InputError
        No standard lead, one without a known scale, or a rate or size that no ECG has.
    """
    found = arrange(tuple(lead.name for lead in leads), reading.lead_names)
    columns = sorted({column for _, column in (*found.columns, *found.repeated)})
    if not columns:
        raise no_standard_lead([lead.name for lead in leads])
    kept = [leads[column] for column in columns]
    for lead in kept:
        _check(lead)
    rate_hz = max(lead.rate_hz for lead in kept)
    check_size(len(kept) * max(len(lead.samples) for lead in kept))
    lower = [lead.name for lead in kept if lead.rate_hz != rate_hz]
    n_samples = max(round(len(lead.samples) * rate_hz / lead.rate_hz) for lead in kept)
    n_read = n_samples if reading.seconds is None else samples_kept(n_samples, rate_hz, reading.seconds + READ_MARGIN_S)
    signals_mv, clipped = np.full((len(kept), n_read), np.nan), np.zeros((len(kept), n_read), dtype=bool)
    for row, lead in enumerate(kept):
        wave_mv = _wave_mv(lead, rate_hz, n_read)
        signals_mv[row, : len(wave_mv)] = wave_mv
        if lead.clipped is not None and lead.rate_hz == rate_hz:
            clipped[row, : len(lead.clipped)] = lead.clipped[:n_read]
    standard = {LEADS[place] for place, _ in found.columns}
    all_notes = [*notes, *left_out(found.others)]
    if lower:
        all_notes.append(f"leads of a lower rate are resampled to {rate_hz:g} Hz: {', '.join(lower)}")
    return Recording(
        signals_mv,
        tuple(lead.name for lead in kept),
        rate_hz,
        n_samples,
        clipped,
        tuple(dict.fromkeys(all_notes)),
        derive_leads=standard == STORED_BY_DESIGN,
    )


def _check(lead: FileLead) -> None:
    check_rate(lead.rate_hz)
    if lead.mv_per_count is None:
        raise InputError(f"the scale of lead {lead.name} is not known: the file states no voltage of a count")
    if not (math.isfinite(lead.mv_per_count) and lead.mv_per_count and math.isfinite(lead.offset_mv)):
        raise InputError(f"lead {lead.name} has {lead.mv_per_count:g} mV a count: it is not calibrated")
    if not len(lead.samples):
        raise InputError(f"lead {lead.name} has no samples")


def _wave_mv(lead: FileLead, rate_hz: float, n_read: int) -> np.ndarray:
    if lead.mv_per_count is None:
        raise InputError(f"the scale of lead {lead.name} is not known")
    ratio = Fraction(rate_hz / lead.rate_hz).limit_denominator(1000)
    samples = lead.samples[: math.ceil(n_read / ratio)] * lead.mv_per_count + lead.offset_mv
    return samples if ratio == 1 else resample(samples[None], ratio)[0, :n_read]
