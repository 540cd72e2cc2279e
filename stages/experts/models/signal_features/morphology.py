"""Expert `morphology`: rhythm, intervals, axes and wave measurements of a 12-lead ECG, as a cardiograph prints them.

Lives here: what a cardiograph prints, the names of all measurements (`FEATURES`), the expert. Not here: finding beats
(`signals.beats`), wave bounds (`signals.waves`), and the further measurements of version 2: the vectorcardiogram
(`signals.vectorcardiogram`), the course of the beat and signs over regions (`signals.beat_shape`), differences between
beats (`signals.beat_by_beat`).

`prepare` does all the work, on the CPU; `encode` hands the measurements on. A measurement that cannot be made is
NaN. Which feature is the RR interval: `RR_FEATURE`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache.errors import UsageError
from stages.experts.contract import STANDARD_LEADS, Encoding, Expert, ExpertSpec
from stages.experts.registry import register
from stages.experts.signals import beat_by_beat, beat_shape, vectorcardiogram
from stages.experts.signals.beats import BEFORE, RATE_HZ, SAME_CLASS, SAMPLE_MS, Beats, find_beats
from stages.experts.signals.dsp import as_signals, resample_rate
from stages.experts.signals.waves import Waves, delineate

RHYTHM = (
    "quality",
    "beats",
    "rr_mean_ms",
    "rr_median_ms",
    "rr_sd_ms",
    "rr_min_ms",
    "rr_max_ms",
    "rmssd_ms",
    "pnn50",
    "heart_rate_bpm",
    "rr_irregularity",
    "alike_share",
    "noise_mv",
)
INTERVALS = (
    "p_present",
    "p_duration_ms",
    "pr_interval_ms",
    "qrs_duration_ms",
    "qt_interval_ms",
    "qtc_bazett_ms",
    "qtc_fridericia_ms",
    "t_peak_to_end_ms",
)
SPATIAL = (
    *(f"{wave}_axis_{part}" for wave in ("p", "qrs", "t") for part in ("deg", "cos", "sin")),
    "qrs_t_angle_deg",
    "sokolow_lyon_mv",
    "cornell_mv",
    "p_terminal_force_v1_mv_ms",
)
PER_LEAD = (
    "p_mv",
    "q_mv",
    "r_mv",
    "s_mv",
    "j_mv",
    "st60_mv",
    "t_mv",
    "st_slope_mv_per_s",
    "upslope_mv_per_s",
    "downslope_mv_per_s",
    "r_peak_ms",
    "p_area_mv_ms",
    "qrs_area_mv_ms",
    "t_area_mv_ms",
)
FEATURES: tuple[str, ...] = (
    *RHYTHM,
    *INTERVALS,
    *SPATIAL,
    *(f"{lead}_{name}" for name in PER_LEAD for lead in STANDARD_LEADS),
    *vectorcardiogram.NAMES,
    *beat_shape.NAMES,
    *beat_by_beat.NAMES,
)
"""Names of the embedding's columns, in their order. Amplitudes are against the level just before the QRS complex."""
RR_FEATURE = "rr_mean_ms"
"""The RR interval: the mean over whole beats of the record."""


def measure(signals_mv: np.ndarray) -> dict[str, float]:
    """Measure one record.

    Parameters
    ----------
    signals_mv
        [12, time] in mV, standard lead order, 500 Hz; a missing lead or sample is NaN.

    Returns
    -------
    Value by name of `FEATURES`. Without a detectable beat `quality` and `beats` are 0 and all others are missing.
    """
    beats = find_beats(signals_mv)
    if beats is None:
        return {"quality": 0.0, "beats": 0.0}
    values = _rhythm(beats)
    present = np.isfinite(beats.template).all(-1)
    residual_mv = beats.noise_mv / np.sqrt(max(1, (beats.similarity >= SAME_CLASS).sum()))
    waves = delineate(beats.template[present], values.get("rr_median_ms", np.nan), residual_mv)
    values |= beat_by_beat.measure_beats(beats, waves)
    if not np.isfinite(waves.qrs_on):
        return values
    on = int(waves.qrs_on)
    levelled = beats.template - beats.template[:, on - 6 : on - 1].mean(-1, keepdims=True)
    values |= _intervals(waves, values.get("rr_median_ms", np.nan))
    leads = _per_lead(levelled, waves)
    values |= {f"{lead}_{name}": row[i] for name, row in leads.items() for i, lead in enumerate(STANDARD_LEADS)}
    values |= vectorcardiogram.measure_vectors(levelled, waves) | beat_shape.measure_shape(levelled, waves)
    return values | _spatial(leads, levelled, waves)


def _rhythm(beats: Beats) -> dict[str, float]:
    rr = beats.rr_ms
    present = np.isfinite(beats.template).all(-1).mean()
    values = {
        "quality": float(present * np.clip(beats.similarity, 0, 1).mean()),
        "beats": float(len(beats.peaks)),
        "alike_share": float((beats.similarity >= SAME_CLASS).mean()),
        "noise_mv": beats.noise_mv,
    }
    if rr.size:
        values |= {"rr_mean_ms": rr.mean(), "rr_median_ms": np.median(rr), "heart_rate_bpm": 60_000 / rr.mean()}
        values |= {"rr_min_ms": rr.min(), "rr_max_ms": rr.max()}
    if rr.size > 1:
        steps = np.diff(rr)
        rmssd = np.sqrt(np.mean(steps**2))
        values |= {"rr_sd_ms": rr.std(ddof=1), "rmssd_ms": rmssd, "pnn50": (np.abs(steps) > 50).mean()}
        values["rr_irregularity"] = rmssd / rr.mean()
    return values


def _intervals(waves: Waves, rr_ms: float) -> dict[str, float]:
    qt = (waves.t_off - waves.qrs_on) * SAMPLE_MS
    return {
        "p_present": float(np.isfinite(waves.p_peak)),
        "p_duration_ms": (waves.p_off - waves.p_on) * SAMPLE_MS,
        "pr_interval_ms": (waves.qrs_on - waves.p_on) * SAMPLE_MS,
        "qrs_duration_ms": (waves.qrs_off - waves.qrs_on) * SAMPLE_MS,
        "qt_interval_ms": qt,
        "qtc_bazett_ms": qt / np.sqrt(rr_ms / 1000),
        "qtc_fridericia_ms": qt / np.cbrt(rr_ms / 1000),
        "t_peak_to_end_ms": (waves.t_off - waves.t_peak) * SAMPLE_MS,
    }


def _slice(start: float, stop: float) -> slice | None:
    """Select samples from `start` to `stop`, both included; None where a bound is missing."""
    return slice(int(start), int(stop) + 1) if np.isfinite(start + stop) and stop > start else None


def _extreme(part: np.ndarray) -> np.ndarray:
    """Value of the largest deflection of either sign, [lead]."""
    return np.take_along_axis(part, np.abs(part).argmax(-1)[:, None], -1)[:, 0]


def _per_lead(beat: np.ndarray, waves: Waves) -> dict[str, np.ndarray]:
    """Measurements of `PER_LEAD`, each [12]."""
    values = _qrs(beat[:, int(waves.qrs_on) : int(waves.qrs_off) + 1], BEFORE - int(waves.qrs_on))
    values |= _st(beat, int(waves.qrs_off))
    if (p := _slice(waves.p_on, waves.p_off)) is not None:
        part = beat[:, p] - np.linspace(beat[:, p.start], beat[:, p.stop - 1], p.stop - p.start, axis=-1)
        values |= {"p_mv": _extreme(part), "p_area_mv_ms": part.sum(-1) * SAMPLE_MS}
    if (t := _slice(waves.t_on, waves.t_off)) is not None:
        values |= {"t_mv": _extreme(beat[:, t]), "t_area_mv_ms": beat[:, t].sum(-1) * SAMPLE_MS}
    return values


def _qrs(part: np.ndarray, r_sample: int) -> dict[str, np.ndarray]:
    """Measure the QRS complex [lead, time]; `r_sample` is the common R peak, to which `r_peak_ms` refers."""
    peak = part.argmax(-1)
    time = np.arange(part.shape[-1])
    missing = np.where(np.isnan(part[:, 0]), np.nan, 0.0)
    slope = np.diff(part, axis=-1) * RATE_HZ
    return {
        "q_mv": np.minimum(np.where(time <= peak[:, None], part, 0).min(-1), 0) + missing,
        "r_mv": np.maximum(part.max(-1), 0),
        "s_mv": np.minimum(np.where(time >= peak[:, None], part, 0).min(-1), 0) + missing,
        "upslope_mv_per_s": slope.max(-1),
        "downslope_mv_per_s": slope.min(-1),
        "r_peak_ms": (np.abs(part).argmax(-1) - r_sample) * SAMPLE_MS + missing,
        "qrs_area_mv_ms": part.sum(-1) * SAMPLE_MS,
    }


def _st(beat: np.ndarray, j: int) -> dict[str, np.ndarray]:
    """Level at the end of QRS (J), 60 ms later, and the slope between J and J + 80 ms."""
    steps = {ms: j + int(ms / SAMPLE_MS) for ms in (60, 80)}
    return {
        "j_mv": beat[:, j],
        "st60_mv": beat[:, steps[60]],
        "st_slope_mv_per_s": (beat[:, steps[80]] - beat[:, j]) / 0.08,
    }


def _spatial(leads: Mapping[str, np.ndarray], beat: np.ndarray, waves: Waves) -> dict[str, float]:
    """Frontal axes from the areas in leads I and aVF, and voltages used for hypertrophy."""
    at = STANDARD_LEADS.index
    values: dict[str, float] = {}
    for wave in ("p", "qrs", "t"):
        if (area := leads.get(f"{wave}_area_mv_ms")) is not None:
            angle = np.arctan2(2 / np.sqrt(3) * area[at("aVF")], area[at("I")])
            values |= {f"{wave}_axis_deg": np.degrees(angle)}
            values |= {f"{wave}_axis_cos": np.cos(angle), f"{wave}_axis_sin": np.sin(angle)}
    if "t_axis_deg" in values:
        turn = abs(values["qrs_axis_deg"] - values["t_axis_deg"])
        values["qrs_t_angle_deg"] = min(turn, 360 - turn)
    r, s, q = leads["r_mv"], leads["s_mv"], leads["q_mv"]
    deep = -np.minimum(s, q)
    values["sokolow_lyon_mv"] = deep[at("V1")] + np.maximum(r[at("V5")], r[at("V6")])
    values["cornell_mv"] = r[at("aVL")] + deep[at("V3")]
    if (p := _slice(waves.p_peak, waves.p_off)) is not None:
        values["p_terminal_force_v1_mv_ms"] = np.minimum(beat[at("V1"), p], 0).sum() * SAMPLE_MS
    return values


def _row(signals_mv: np.ndarray) -> np.ndarray:
    values = measure(signals_mv)
    return np.array([values.get(name, np.nan) for name in FEATURES], dtype=np.float32)


@register("morphology")
class Morphology(Expert):
    """Measurements of `FEATURES`; `prepare` makes them, `encode` is the identity."""

    @classmethod
    def published_spec(cls, variant: str | None = None) -> ExpertSpec:
        """Facts about this expert."""
        return ExpertSpec(
            name="morphology",
            title="Intervals, axes, waves and vectorcardiogram of the median beat, and how beats differ",
            version="2",
            source="R peaks: NeuroKit2 (Makowski et al., Behavior Research Methods 2021) on a 12-lead energy trace",
            sampling_rate_hz=float(RATE_HZ),
            seconds=10.0,
            leads=STANDARD_LEADS,
            normalisation="none (mV)",
            layer_names=("measurements",),
            layer_dims=(len(FEATURES),),
            embedding_dim=len(FEATURES),
            licence="Apache-2.0",
            parameters=0,
            windows="the whole record, of any length from 1 s",
            shortest_s=1.0,
            missing_leads="NaN in that lead's measurements; the other leads carry on",
            needs_weights=False,
            nan_features=True,
            store_dtype="float32",
            preprocessing={"features": FEATURES},
        )

    @classmethod
    def build(
        cls,
        config: Mapping[str, Any] | None,
        state: Mapping[str, Tensor] | None,
        *,
        variant: str | None = None,
        preprocessing: str | None = None,
    ) -> Morphology:
        """Construct; there is nothing to configure or to load."""
        if config or state:
            raise UsageError(
                f"expert 'morphology' has no options and no weights; got {sorted(config or state or ())[:3]}"
            )
        expert = cls(preprocessing=preprocessing)
        expert.spec = cls.published_spec(variant)
        return expert

    def prepare(self, signals_mv: np.ndarray | Tensor, rate_hz: float) -> Tensor:
        """Measure every record; [batch, 12, time] -> float32 [batch, 1, len(FEATURES)], missing values NaN."""
        signals = resample_rate(as_signals(signals_mv), rate_hz, RATE_HZ)
        rows = [_row(record) for record in signals]
        return torch.from_numpy(np.stack(rows) if rows else np.empty((0, len(FEATURES)), np.float32))[:, None]

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Encoding:
        """Hand the measurements [batch, len(FEATURES)] on, as the one layer and the embedding."""
        x = x.to(self.device)
        return Encoding(layers=x[:, None], embedding=x)
