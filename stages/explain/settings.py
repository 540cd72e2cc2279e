"""What an explanation is asked for, where it writes, and what it found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Answer = Callable[[Sequence[np.ndarray]], Mapping[str, np.ndarray]]
"""ECGs, each [12, time] in mV -> source ("gate", "expert:NAME") -> one number an ECG, float [n]; NaN: no answer."""


@dataclass(frozen=True)
class ExplainSettings:
    """One ECG and who answers.

    Attributes
    ----------
    signals_mv
        float [12, time] in mV; missing = NaN.
    answer
        The frozen experts and the fit; larger = more of the class, or of the value.
    scale
        What the numbers are: log odds, or the task's unit.
    amplitude
        Unit of the signals: mV or z-score.
    records_at_once
        Occluded ECGs that are answered together.
    """

    signals_mv: np.ndarray
    rate_hz: float
    answer: Answer
    record: str = ""
    task: str = ""
    label: str = ""
    scale: str = "log odds"
    records_at_once: int = 16
    amplitude: str = "mV"


@dataclass(frozen=True)
class ExplainPaths:
    """Where the picture and the JSON go; None: nowhere."""

    picture: Path | None = None
    json: Path | None = None


@dataclass(frozen=True)
class Explanation:
    """What one source's answer rests on: the answer to the whole ECG minus that without the part; above 0 = for it.

    Attributes
    ----------
    answer
        To the whole ECG.
    leads
        Lead -> effect of moving all of it to its baseline.
    seconds
        Effect of each second, all leads together.
    parts
        P, QRS, ST, T -> effect in all beats and leads; a wave that is not there is left out.
    parts_by_lead
        Part -> lead -> effect in all beats of one lead.
    """

    answer: float
    leads: dict[str, float] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)
    parts_by_lead: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class ExplainSummary:
    """Source -> explanation, and how many ECGs were answered for it.

    Attributes
    ----------
    bounds_s
        Part -> (first, last) second of it in every beat.
    """

    sources: dict[str, Explanation]
    n_passes: int
    bounds_s: dict[str, list[tuple[float, float]]]
    warnings: tuple[str, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)
