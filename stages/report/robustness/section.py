"""What the page shows of robustness/NAME.json.

Lives here: the template's context and the pictures. Not here: HTML (`robustness.html`), numbers (`stages.robustness`).
"""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from stages.report.figures import interval_figure
from stages.report.glossary import method_title
from stages.report.svg import Axes, nice_ticks
from stages.scoring.metrics import METRICS
from stages.scoring.table import DASH, number

Json = dict[str, Any]
TITLES = {
    "noise": "Noise, signal to noise in dB",
    "wander": "Baseline wander, signal to wander in dB",
    "mains": "Mains, signal to mains in dB",
    "leads": "Fewer leads",
    "seconds": "Shorter records, seconds",
    "rate": "Other rates, Hz",
    "lead": "One lead gone",
    "exchange": "Limb electrodes exchanged",
}
NAMED = ("lead", "exchange")
"""Kinds whose levels have names: drawn row by row, the others as curves."""
_STYLES = ("s0", "s1", "s2", "s3")
_PLACES = 3


def robustness_section(name: str, results: Json) -> Json | None:
    """Return the template's context of one run; None where there are no results."""
    if not results.get("tasks"):
        return None
    return {
        "name": name,
        "records": f"{results['records']:,}",
        "patients": f"{results['patients']:,}",
        "absent": results.get("absent", []),
        "tasks": [_task(name, found) for name, found in results["tasks"].items()],
    }


def _task(name: str, found: Json) -> Json:
    methods = list(found["methods"])
    styles = {method: _STYLES[k] if k < len(_STYLES) else "s9" for k, method in enumerate(methods)}
    first = found["methods"][methods[0]]
    kinds = dict.fromkeys(each["kind"] for each in first["disturbed"])
    return {
        "name": name,
        "metric": METRICS[found["metric"]].title,
        "legend": [(method_title(method), css) for method, css in styles.items()],
        "curves": [
            (TITLES[k], Markup(curve_figure(f"{k} of {name}", k, found, styles))) for k in kinds if k not in NAMED
        ],
        "named": [(TITLES[k], Markup(_named_figure(f"{k} of {name}", k, found, styles))) for k in kinds if k in NAMED],
        "main": method_title(methods[0]),
        "rows": [_row(each) for each in first["disturbed"]],
    }


def _of_kind(judged: Json, kind: str) -> list[Json]:
    return [each for each in judged["disturbed"] if each["kind"] == kind]


def curve_figure(title: str, kind: str, found: Json, styles: dict[str, str]) -> str:
    """Return the metric over the levels of one kind, the undisturbed records first; bars are 95 % intervals."""
    levels = [each["level"] for each in _of_kind(found["methods"][next(iter(styles))], kind)]
    points = {method: [judged["undisturbed"], *_of_kind(judged, kind)] for method, judged in found["methods"].items()}
    known = [each[key] for of in points.values() for each in of for key in ("value", "low", "high")]
    numbers = [value for value in known if value is not None]
    if not numbers:
        return ""
    low, high = min(numbers), max(numbers)
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    axes = Axes(
        (300, 240),
        (-0.4, len(levels) + 0.4),
        (low - pad, high + pad),
        title=title,
        labels=("", METRICS[found["metric"]].title),
        margins=(58, 12, 10, 26),
        ticks=((), nice_ticks(low - pad, high + pad, 5)),
    )
    for k, words in enumerate(["none", *levels]):
        axes.drawing.text(axes.px(k), 232, words, "label middle")
    for number_of, (method, css) in enumerate(styles.items()):
        shift = 0.07 * (number_of - (len(styles) - 1) / 2)
        drawn = [(k + shift, each) for k, each in enumerate(points[method]) if each["value"] is not None]
        axes.line([x for x, _ in drawn], [each["value"] for _, each in drawn], f"curve thin {css}")
        for x, each in drawn:
            if each["low"] is not None:
                axes.line((x, x), (each["low"], each["high"]), f"whisker {css}")
            axes.drawing.circle(axes.px(x), axes.py(each["value"]), 3, f"dot {css}")
    return axes.svg()


def _named_figure(title: str, kind: str, found: Json, styles: dict[str, str]) -> str:
    methods = list(styles)[:2]
    judged = [found["methods"][method] for method in methods]
    rows = [("undisturbed", [(styles[m], j["undisturbed"]) for m, j in zip(methods, judged, strict=True)])]
    for k, each in enumerate(_of_kind(judged[0], kind)):
        marks = [(styles[m], _of_kind(j, kind)[k]) for m, j in zip(methods, judged, strict=True)]
        rows.append((each["words"], marks))
    return interval_figure(title, rows, found["metric"], _PLACES, judged[0]["undisturbed"]["value"])


def _row(each: Json) -> list[str]:
    change = each["difference"]
    interval = ""
    if change["low"] is not None:
        interval = f"{number(change['low'], _PLACES, True)} to {number(change['high'], _PLACES, True)}"
    within = "" if each["low"] is None else f"{number(each['low'], _PLACES)}{DASH}{number(each['high'], _PLACES)}"
    return [each["words"], number(each["value"], _PLACES), within, number(change["value"], _PLACES, True), interval,
            f"{each['records']:,}", f"{each['without']:,}"]  # fmt: skip
