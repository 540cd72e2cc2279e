"""An explanation drawn on the ECG: red grounds speak for the answer, blue ones against it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stages.explain.settings import ExplainSettings, ExplainSummary
from stages.plots import Shade, plot_ecg, save_picture, scale_of

DRAWN = "gate"
LEAST = 0.1
"""Share of the strongest effect below which nothing is shaded."""


def draw(settings: ExplainSettings, found: ExplainSummary, path: Path) -> None:
    """Draw the gate's beat parts lead by lead, or the seconds where no beats were found."""
    source = found.sources.get(DRAWN) or next(iter(found.sources.values()))
    shades = [
        Shade(lead, first, last, effect)
        for part, by_lead in source.parts_by_lead.items()
        for lead, effect in by_lead.items()
        for first, last in found.bounds_s[part]
    ]
    shades = shades or [Shade(None, s, s + 1, effect) for s, effect in enumerate(source.seconds)]
    strongest = max((abs(shade.strength) for shade in shades if np.isfinite(shade.strength)), default=0.0)
    shown = [
        shade._replace(strength=shade.strength / strongest)
        for shade in shades
        if strongest and np.isfinite(shade.strength) and abs(shade.strength) >= LEAST * strongest
    ]
    what = f"{settings.task} {settings.label}".strip()
    title = f"{settings.record}: what the answer to {what} rests on"
    scale = f"red speaks for it, blue against it; the strongest ground is {strongest:.3g} ({settings.scale})"
    figure = plot_ecg(
        settings.signals_mv,
        settings.rate_hz,
        layout="12x1",
        title=title,
        notes=(scale, *found.warnings),
        shades=shown,
        scale=scale_of(settings.amplitude),
    )
    save_picture(figure, path)
