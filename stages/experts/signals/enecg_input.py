"""EnECG's published way from raw signals to model input, for the experts that exist for ECGs only there.

Lives here: gaps, the one z-score over all leads and time, 10 s windows, FFT resampling, the choice of leads. Not here:
what one expert alone does with the result (`dlinear`, `timesnet`, `tempo`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from cache.errors import UsageError
from stages.experts.contract import STANDARD_LEADS
from stages.experts.signals import dsp as _dsp

WINDOW_SECONDS = 10.0
DEFAULT_LEADS = {1: ("II",), 8: ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6"), 12: STANDARD_LEADS}

NORMALISATION = "one z-score over all leads and time of the record, then FFT resampling"
SHORTEST_S = 1.0
WINDOWS = "10 s windows, evenly placed so that they cover the record, mean of their vectors"
MISSING_LEADS = (
    "gaps are bridged linearly and a missing lead is zeros in the model input, left out of the z-score; a record "
    "shorter than 10 s is held at its last sample (`enecg`: every missing sample is 0 mV before the z-score, "
    "as published)"
)


def published_input(
    signals_mv: np.ndarray | Tensor, rate_hz: float, n_samples: int, leads: Sequence[str], variant: str
) -> np.ndarray:
    """Take raw signals to what EnECG's models see (data_loader.py, `read_and_preprocess_ecg`, `apply_downsample`).

    Parameters
    ----------
    signals_mv
        [batch, 12, time] in mV, standard lead order, missing = NaN.
    rate_hz
        Sampling rate of `signals_mv`.
    n_samples
        Length of one window after resampling.
    leads
        Which leads to keep. The published code let the row number choose; ours goes by name.
    variant
        "enecg" (missing samples become 0 mV, as published) or "authors" (they are bridged); equal where all is finite.

    Returns
    -------
    float64 [batch, windows, lead, n_samples].
    """
    window = max(1, round(WINDOW_SECONDS * rate_hz))
    signals = _lengthen(_dsp.as_signals(signals_mv), window)
    normalised = _zscore_with_zeros(signals) if variant == "enecg" else _zscore_of_present(signals)
    return _dsp.resample_fft(_dsp.even_windows(_dsp.pick_leads(normalised, tuple(leads)), window), n_samples)


def input_leads(expert: str, channels: int, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the leads that the `channels` inputs of a network are fed with; empty where nothing says it.

    `config["leads"]` names them; else 1 is lead II, 8 the independent leads, 12 all.
    """
    leads = tuple(config.get("leads") or DEFAULT_LEADS.get(channels, ()))
    unknown = [lead for lead in leads if lead not in STANDARD_LEADS]
    if unknown:
        raise UsageError(f"expert '{expert}': unknown lead '{unknown[0]}'; there are: {', '.join(STANDARD_LEADS)}")
    if leads and len(leads) != channels:
        raise UsageError(f"expert '{expert}': {len(leads)} leads named for {channels} channels; name as many as enc_in")
    return leads


def require_leads(expert: str, channels: int, leads: tuple[str, ...]) -> tuple[str, ...]:
    """Return `leads`, or say how to name them where a network has an unusual number of channels."""
    if not leads:
        raise UsageError(
            f"expert '{expert}': which leads are its {channels} channels? name them in the config's 'leads'"
        )
    return leads


def _lengthen(signals: np.ndarray, n_samples: int) -> np.ndarray:
    missing = n_samples - signals.shape[-1]
    return signals if missing <= 0 else np.pad(signals, ((0, 0), (0, 0), (0, missing)), constant_values=np.nan)


def _zscore_with_zeros(signals: np.ndarray) -> np.ndarray:
    finite = np.isfinite(signals)
    return _dsp.zscore(signals if finite.all() else np.where(finite, signals, 0.0), axis=(-2, -1))


def _zscore_of_present(signals: np.ndarray) -> np.ndarray:
    """Z-score over the leads that are there; a lead without any sample becomes zeros."""
    present = np.isfinite(signals).any(axis=-1, keepdims=True)
    filled = _dsp.fill_gaps(signals)
    count = np.maximum(present.sum(axis=1, keepdims=True), 1) * signals.shape[-1]
    centred = (filled - filled.sum(axis=(1, 2), keepdims=True) / count) * present
    scale = np.sqrt((centred**2).sum(axis=(1, 2), keepdims=True) / count)
    varies = scale > _dsp.ROUNDING * np.abs(filled).max(axis=(1, 2), keepdims=True)
    return np.divide(centred, scale, out=np.zeros_like(centred), where=varies)
