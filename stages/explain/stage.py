"""Stage `explain`: answers without a part, subtracted from the answer to the whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

import numpy as np

from cache.errors import InputError
from cache.files import write_text
from cache.signals import LEADS
from stages.explain.occlusion import Occlusion, beat_bounds, parts_of, without
from stages.explain.picture import draw
from stages.explain.settings import ExplainPaths, ExplainSettings, ExplainSummary, Explanation

Progress = Callable[[int, int], None]
"""Called with (answered, all) occluded ECGs."""
NO_BEATS = "no beats were found: beat parts are left out"


def run(settings: ExplainSettings, paths: ExplainPaths, progress: Progress | None = None) -> ExplainSummary:
    """Explain one answer, and write the picture and the JSON.

    Raises
    ------
    InputError
        Nobody answers for the whole ECG.
    """
    found = explain(settings, progress)
    if paths.json is not None:
        write_text(paths.json, as_json(found) + "\n")
    if paths.picture is not None:
        draw(settings, found, paths.picture)
    return found


def explain(settings: ExplainSettings, progress: Progress | None = None) -> ExplainSummary:
    """Answer for the ECG without each part; the same ECG and fit give the same numbers.

    Examples
    --------
    >>> from stages.experts.signals.reference_ecgs import reference_signals
    >>> def height_of_v2(ecgs):
    ...     return {"gate": np.array([np.nanmax(ecg[7]) - np.nanmin(ecg[7]) for ecg in ecgs])}
    >>> ecg = reference_signals(1, 5000, 500.0, seed=1)[0]
    >>> found = explain(ExplainSettings(ecg, 500.0, height_of_v2)).sources["gate"]
    >>> max(found.leads, key=found.leads.get)
    'V2'
    """
    signals_mv, rate_hz = settings.signals_mv, settings.rate_hz
    bounds = beat_bounds(signals_mv, rate_hz)
    parts = parts_of(signals_mv, rate_hz, bounds)
    whole = {name: float(values[0]) for name, values in settings.answer([signals_mv]).items()}
    if not any(np.isfinite(value) for value in whole.values()):
        raise InputError(f"{settings.record or 'the record'}: no expert has an answer for it; nothing can be explained")
    effects: dict[str, list[float]] = {name: [] for name in whole}
    for start in range(0, len(parts), settings.records_at_once):
        some = parts[start : start + settings.records_at_once]
        answers = settings.answer([without(signals_mv, rate_hz, part) for part in some])
        for name, values in answers.items():
            effects[name] += [whole[name] - float(value) for value in values]
        if progress is not None:
            progress(min(start + len(some), len(parts)), len(parts))
    about = {"record": settings.record, "task": settings.task, "class": settings.label, "scale": settings.scale}
    sources = {name: _sorted_out(whole[name], parts, values) for name, values in effects.items()}
    return ExplainSummary(sources, 1 + len(parts), bounds, () if bounds else (NO_BEATS,), about)


def _sorted_out(answer: float, parts: list[Occlusion], effects: list[float]) -> Explanation:
    found = Explanation(answer)
    for part, effect in zip(parts, effects, strict=True):
        if part.kind == "lead":
            found.leads[part.name] = effect
        elif part.kind == "second":
            found.seconds.append(effect)
        elif part.kind == "part":
            found.parts[part.name] = effect
        else:
            found.parts_by_lead.setdefault(part.name, {})[LEADS[part.leads[0]]] = effect
    return found


def as_json(found: ExplainSummary) -> str:
    """Return the summary as JSON, undefined numbers as null."""
    content = {
        **found.about,
        "passes": found.n_passes,
        "warnings": list(found.warnings),
        "beat_parts_s": found.bounds_s,
        "sources": {name: asdict(source) for name, source in found.sources.items()},
    }
    return json.dumps(_plain(content), indent=1, ensure_ascii=False, allow_nan=False)


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
