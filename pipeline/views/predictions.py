"""What `ensemble predict` prints for one ECG."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from stages.predict import Prediction

N_SHOWN = 3
"""Classes of a multiclass or multilabel task that the table shows; --json has all."""


def prediction_table(prediction: Prediction) -> Table:
    """Return tasks down; prediction and gate weights across; warnings below."""
    warnings = "; ".join(prediction.warnings) or "no warnings"
    table = Table(title=prediction.record, caption=warnings, title_justify="left", caption_justify="left")
    table.add_column("task")
    table.add_column("prediction")
    table.add_column("gate weights")
    for task, found in prediction.tasks.items():
        weights = ", ".join(f"{name} {weight:.2f}" for name, weight in prediction.gate[task].items())
        table.add_row(task, _in_words(found), weights)
    return table


def _in_words(found: dict[str, Any]) -> str:
    if found["kind"] == "regression":
        percent = 100 * found.get("coverage", 0.9)
        return f"{found['value']:.1f} {found['unit']} ({percent:g} %: {found['low']:.1f} to {found['high']:.1f})"
    if found["kind"] == "survival":
        chances = (f"{horizon} {found['unit']} {chance:.2f}".strip() for horizon, chance in found["survival"].items())
        return f"free of it until {', '.join(chances)} (log-hazard {found['log_hazard']:+.2f})"
    if found["kind"] == "binary":
        words = f"{found['positive']}: {found['probability']:.2f}"
        return words + _beside(found.get("above"), found.get("threshold")) + _doubt(found)
    ranked = sorted(found["probabilities"].items(), key=lambda item: -item[1])
    above, limits = (found.get(key, {}) for key in ("above", "thresholds"))
    unsure = set(found["uncertain"]) if isinstance(found.get("uncertain"), list) else set()
    words = ", ".join(
        f"{name} {probability:.2f}{_beside(above.get(name), limits.get(name))}{' uncertain' if name in unsure else ''}"
        for name, probability in ranked[:N_SHOWN]
    )
    return words + _doubt(found)


def _beside(above: bool | None, threshold: float | None) -> str:
    """Say on which side of its threshold a probability lies."""
    if above is None or threshold is None:
        return ""
    return f" ({'above' if above else 'below'} {threshold:.2f})"


def _doubt(found: dict[str, Any]) -> str:
    """Say that a conformal set does not hold one class alone; of several findings each says it for itself."""
    if found.get("uncertain") is not True:
        return ""
    held = f"{' or '.join(found['set'])}" if found["set"] else "no class"
    return f"; uncertain: {held} at {100 * found['coverage']:g} %"
