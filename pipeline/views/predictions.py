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
        return f"{found['value']:.1f} {found['unit']} (90 %: {found['low']:.1f} to {found['high']:.1f})"
    if found["kind"] == "binary":
        return f"{found['positive']}: {found['probability']:.2f}"
    ranked = sorted(found["probabilities"].items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {probability:.2f}" for name, probability in ranked[:N_SHOWN])
