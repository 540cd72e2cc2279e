"""Stage `report`: one self-contained report.html from what `evaluate` left on disk.

Lives here: reading the inputs and writing the page. Not here: its sections and drawings (`stages.report`), the
numbers (`stages.scoring`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cache.files import write_text
from cache.records import open_records
from stages.report.page import render
from stages.scoring.gate_weights import open_gate_weights
from stages.scoring.predictions import open_predictions
from stages.scoring.summary import read_metrics


def write_report(
    metrics_path: str | Path,
    predictions_path: str | Path,
    gate_weights_path: str | Path | None,
    records_path: str | Path,
    out_path: str | Path,
    facts: dict[str, Any] | None = None,
) -> Path:
    """Write report.html: no script, no other file, readable in light, in dark and on paper.

    Parameters
    ----------
    facts
        What the files do not say; every key is optional (docs/outputs.md): "title", "warnings" [str], "commands"
        [str], "versions" {name: version}, "experts" [{"name", "title", "version", "licence", "source", "sha256",
        "revision", "pretrained_on", "non_commercial"}], "methods" {METHOD: {"title", "description", "parameters",
        "seconds", "peak_memory_mb", "counts_heads"}}, "learning_curve" {TASK: [{"fraction", "method", "value", "low",
        "high"}]}, "missing_points" {TASK: {FRACTION: reason}}, "left_out" {METHOD or "METHOD on TASK": reason},
        "trainings" [{"name", "made_by", "parent", "task", "kept_epoch", "curve" [{"epoch", "loss", "validation_loss"}],
        "sources", "n_records", "n_patients", "n_seen", "n_judged"}].

    Returns
    -------
    The file. The same inputs give the same bytes.
    """
    page = render(
        read_metrics(metrics_path),
        open_predictions(predictions_path),
        open_gate_weights(gate_weights_path) if gate_weights_path else None,
        open_records(records_path),
        facts or {},
    )
    write_text(Path(out_path), page)
    return Path(out_path)
