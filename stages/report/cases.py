"""The cases of a task as small ECGs: what the main method says of a record, beside its label.

Lives here: captions and pictures. Not here: which records are shown (`stages.scoring.cases`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup

from cache.record_columns import names_of
from cache.records import Target
from cache.signals import SignalStore
from stages.plots.scale import SignalScale, scale_of
from stages.plots.thumbnail import thumbnail
from stages.report.settings import ReportSection
from stages.scoring.blocks import PredictionBlock
from stages.scoring.cases import choose
from stages.scoring.comparison import EXPERT_PREFIX, labelled_test_block, main_method
from stages.scoring.predictions import Predictions
from stages.scoring.record_parts import Records, row_options_in, rows_by_name
from stages.scoring.table import DASH

Json = dict[str, Any]
TITLES = {
    "right": "Most certain, and right",
    "wrong": "Most certain, and wrong",
    "unsure": "Least certain",
    "mislabelled": "Probably mislabelled",
}
_OF_VALUES = {"right": "Smallest errors", "wrong": "Largest errors", "unsure": "Experts differ the most"}


def case_groups(
    metrics: Json, predictions: Predictions, records: Records, store: SignalStore, settings: ReportSection
) -> dict[str, list[Json]]:
    """Return task -> groups {"title", "cases": [(caption, SVG)]}, groups without a record left out."""
    chosen = {task: _chosen(metrics, predictions, task, settings.cases) for task in metrics["tasks"]}
    names = names_of(block.records for block, _ in chosen.values())
    drawer = _Drawer(store, rows_by_name(records, names), settings.hide_ids, signal_scale(records))
    found = {}
    for task, (block, kinds) in chosen.items():
        target = predictions.tasks[task]
        titles = TITLES | (_OF_VALUES if target.kind == "regression" else {})
        found[task] = [
            {"title": titles[kind], "cases": [drawer.case(target, block, int(row)) for row in rows]}
            for kind, rows in kinds.items()
        ]
    return found


def _chosen(
    metrics: Json, predictions: Predictions, task: str, count: int
) -> tuple[PredictionBlock, dict[str, np.ndarray]]:
    """Choose the cases of a task: their block, and kind -> its rows."""
    target, methods = predictions.tasks[task], list(metrics["tasks"][task]["methods"])
    block = labelled_test_block(predictions, task, main_method(methods))
    names = [name for name in methods if name.startswith(EXPERT_PREFIX)] if target.kind == "regression" else []
    experts = [labelled_test_block(predictions, task, name) for name in names]
    kinds = {kind: rows for kind, rows in choose(target, block, experts, count)._asdict().items() if len(rows)}
    shown = np.unique(np.concatenate([np.empty(0, np.int64), *kinds.values()]))
    return block.take(shown), {kind: np.searchsorted(shown, rows) for kind, rows in kinds.items()}


def signal_scale(records: Records) -> SignalScale:
    """Return the scale that the signals of a study are drawn on."""
    return scale_of(row_options_in(records).get("amplitude", "mV"))


class _Drawer:
    """Reads and draws each record once, however many tasks show it."""

    def __init__(self, store: SignalStore, row_of: dict[str, int], hide_ids: bool, scale: SignalScale) -> None:
        self._store, self._row_of, self._hide_ids, self._scale = store, row_of, hide_ids, scale
        self._drawn: dict[str, Markup] = {}

    def case(self, target: Target, block: PredictionBlock, row: int) -> tuple[str, Markup]:
        record = str(block.record_ids[row])
        if record not in self._drawn:
            self._drawn[record] = Markup(self._draw(record))
        words = f"labelled {_label(target, block.y_true[row])}; says {_said(target, block.y_pred[row])}"
        return words if self._hide_ids else f"{record}: {words}", self._drawn[record]

    def _draw(self, record: str) -> str:
        label = "ECG" if self._hide_ids else f"ECG {record}"
        row = self._row_of.get(record)
        if row is not None:
            for _, signals_mv, rate_hz in self._store.read_groups(slice(row, row + 1)):
                return thumbnail(signals_mv[0], rate_hz, label, self._scale)
        return ""


def _label(target: Target, value: Any) -> str:
    if target.kind == "regression":
        return f"{value:.4g} {target.unit}".strip()
    if target.kind == "binary":
        return _binary_name(target, int(value))
    if target.kind == "multiclass":
        return target.classes[int(value)]
    return ", ".join(name for name, one in zip(target.classes, value, strict=True) if one == 1) or DASH


def _binary_name(target: Target, value: int) -> str:
    return target.classes[value] if target.classes else str(value)


def _said(target: Target, value: Any) -> str:
    if target.kind == "regression":
        return f"{value:.4g} {target.unit}".strip()
    if target.kind == "binary":
        return f"{_binary_name(target, 1)} {value:.2f}"
    order = np.argsort(-value, kind="stable")[:2]
    return ", ".join(f"{target.classes[k]} {value[k]:.2f}" for k in order)
