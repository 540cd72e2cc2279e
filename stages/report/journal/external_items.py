"""What external validation says to items of the checklist: fits of other studies, judged on these patients.

Lives here: sentences from external/NAME/metrics.json. Not here: the items (`checklist`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from stages.scoring.comparison import main_method
from stages.scoring.metrics import HEADLINE, METRICS
from stages.scoring.table import number

Json = dict[str, Any]


def external_answer(item: str, judged: Sequence[Json]) -> str:
    """Return what the external validations add to an item; empty where they add nothing.

    Parameters
    ----------
    item
        Number of the item, such as "23a".
    judged
        The metrics.json of every fit of another study that was judged here.
    """
    answer = _ANSWERS.get(item)
    return " ".join(answer(metrics) for metrics in judged) if answer else ""


def _title(metrics: Json) -> str:
    return f"External validation of the fit '{metrics['fit']}' of another study, for {', '.join(metrics['tasks'])}."


def _partition(metrics: Json) -> str:
    return (
        f"'{metrics['fit']}' was fitted in another study: every record here is a test record of it, no label was seen."
    )


def _measures(metrics: Json) -> str:
    return (
        f"For '{metrics['fit']}' also calibration in the large, calibration intercept and slope, and the difference to "
        "the test figures of its own study, the patients of both studies redrawn independently."
    )


def _updating(metrics: Json) -> str:
    sizes = sorted({each["patients"] for found in metrics["recalibration"].values() for each in found})
    if not sizes:
        return ""
    listed = ", ".join(f"{size:,}" for size in sizes)
    return (
        f"'{metrics['fit']}' recalibrated (intercept; intercept and slope) on {listed} patients, judged on all others."
    )


def _updated(metrics: Json) -> str:
    """Say what recalibration on the most patients does to the error of each task."""
    words = []
    for task, found in metrics["recalibration"].items():
        if not found:
            continue
        most = max(found, key=lambda each: each["patients"])
        error = next(name for name in ("brier", "mae") if name in most)
        before, after = (most[error][way]["value"] for way in ("before", "intercept_and_slope"))
        if before is not None and after is not None:
            words.append(
                f"{task} on {most['patients']:,} patients: {METRICS[error].title} {number(before, 3)} before, "
                f"{number(after, 3)} after intercept and slope"
            )
    return f"'{metrics['fit']}': {'; '.join(words)}." if words else ""


def _settings(metrics: Json) -> str:
    notes = " ".join(f"{note}." for note in metrics.get("notes", []))
    return f"'{metrics['fit']}' was fitted on the patients of another study. {notes}".strip()


def _events(metrics: Json) -> str:
    words = [
        f"{task} {found['n']['test']:,} records of {found['n']['patients_test']:,} patients"
        for task, found in metrics["tasks"].items()
    ]
    return f"'{metrics['fit']}': {'; '.join(words)}."


def _performance(metrics: Json) -> str:
    words = []
    for task, found in metrics["tasks"].items():
        metric = HEADLINE[found["kind"]][0]
        moved = metrics["transfer"].get(task, {}).get(metric)
        method = main_method(list(found["methods"]))
        parts = {"external": moved["external"] if moved else found["methods"][method][metric]}
        said = f"{task}: {METRICS[metric].title} {_interval(parts['external'])}"
        words.append(f"{said}, {_interval(moved['internal'])} in its own study" if moved else said)
        slope = metrics["calibration"].get(task, {}).get("slope")
        if slope and slope["value"] is not None:
            words[-1] += f", calibration slope {_interval(slope)}"
    return f"'{metrics['fit']}' here: {'; '.join(words)}."


def _interval(found: Json) -> str:
    if found["value"] is None:
        return "undefined"
    words = number(found["value"], 3)
    return words if found["low"] is None else f"{words} ({number(found['low'], 3)} to {number(found['high'], 3)})"


_ANSWERS: dict[str, Callable[[Json], str]] = {
    "1": _title,
    "4": _title,
    "12a": _partition,
    "12e": _measures,
    "12f": _updating,
    "16": _settings,
    "21": _events,
    "23a": _performance,
    "24": _updated,
}
