"""Stage `report`: one self-contained report.html, and the plots for DVC, from what `evaluate` left on disk.

Lives here: reading the inputs and writing the page. Not here: its sections and drawings (`page`), the numbers
(`stages.scoring`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cache.errors import StoreError
from cache.files import write_text
from cache.record_rows import RecordRows
from cache.records import open_records
from cache.signals import open_signals
from stages.report.cases import case_groups, signal_scale
from stages.report.costs import method_costs
from stages.report.external.section import read_external
from stages.report.journal.files import write_tables
from stages.report.journal.section import journal_section, journal_tables, run_facts
from stages.report.leaderboard.section import leaderboard_section
from stages.report.page import render
from stages.report.robustness.section import robustness_section
from stages.report.settings import ReportPaths, ReportSettings, ReportSummary
from stages.scoring.gate_weights import open_gate_weights
from stages.scoring.plots import write_plots
from stages.scoring.predictions import open_predictions
from stages.scoring.summary import read_metrics, require_pair

if TYPE_CHECKING:
    from cache.storage.locations import Location

Progress = Callable[[int, int], None]


def run(settings: ReportSettings, paths: ReportPaths, progress: Progress | None = None) -> ReportSummary:
    """Write report.html: no script, no other file, readable in light, in dark and on paper. Equal inputs, equal bytes.

    Parameters
    ----------
    progress
        Not called: a page takes seconds.

    Raises
    ------
    StoreError
        Metrics that were not computed from these predictions, or a file that is no JSON.
    """
    del progress
    metrics, predictions = read_metrics(paths.metrics), open_predictions(paths.predictions)
    require_pair(metrics, paths.metrics, paths.predictions)
    evaluation, fit, run_costs = (
        read_facts(path) for path in (paths.evaluation, paths.fit_costs, paths.evaluate_costs)
    )
    decisions = read_facts(paths.decisions)
    if decisions and paths.decisions is not None:
        require_pair(decisions, paths.decisions, paths.predictions)
    facts = {
        **settings.model_dump(exclude={"cases"}),
        "methods": method_costs(evaluation.get("parameters", {}), run_costs, fit),
        "decisions": decisions.get("tasks", {}),
        "versions": evaluation.get("versions", {}),
        "external": read_external(paths.external),
        "learning_curve": evaluation.get("learning_curve", {}),
        "attention": evaluation.get("attention", {}),
        "missing_points": evaluation.get("missing_points", {}),
        "left_out": {**evaluation.get("left_out", {}), **_unjudged(metrics)},
    }
    weights = open_gate_weights(paths.gate_weights, split="test") if paths.gate_weights else None
    records = read_records(paths.records)
    if settings.cases and paths.signals is not None and paths.signals.exists():
        store = open_signals(paths.signals)
        facts["cases"] = case_groups(metrics, predictions, RecordRows(paths.records), store, settings)
        facts["scale"] = signal_scale(records)
    _add_robustness(facts, paths)
    facts["leaderboard"] = _leaderboards(paths.leaderboard)
    of_run = run_facts(metrics, records, read_facts(paths.fit), facts)
    tables = journal_tables(of_run)
    facts["journal"] = journal_section(of_run, tables)
    write_text(paths.report, render(metrics, predictions, weights, records, facts))
    for folder in paths.tables:
        write_tables(tables, folder)
    plots = write_plots(predictions, metrics, paths.plots, facts["learning_curve"]) if paths.plots else ()
    return ReportSummary(paths.report, tuple(plots), metrics)


def read_records(path: Location) -> pd.DataFrame:
    """Read what the report counts: patients as numbers, and the names of those records alone that could not be read."""
    rows = RecordRows(path)
    patient = rows.texts("patient_id").codes
    records = open_records(path, without=("path", "notes", "record_id", "patient_id"))
    records.insert(0, "patient_id", pd.arrays.IntegerArray(patient, patient < 0))
    bad, names = np.flatnonzero(rows.equal("status", "bad")), np.full(len(rows), None, dtype=object)
    names[bad] = rows.picked("record_id", bad).to_pylist()
    records.insert(0, "record_id", names)
    return records


def _add_robustness(facts: dict[str, Any], paths: ReportPaths) -> None:
    """Add what disturbances do; results that stand beside other predictions are left out, and the page says so."""
    facts["robustness"] = []
    for path in sorted(paths.robustness.glob("*.json")) if paths.robustness else ():
        results = read_facts(path)
        try:
            require_pair(results, path, paths.predictions)
        except StoreError:
            name = f"{path.parent.name}/{path.name}"
            stale = f"{name} is of another evaluation and left out; run `ensemble evaluate --robustness` again"
            facts["warnings"] = (*facts["warnings"], stale)
            continue
        if section := robustness_section(path.stem, results):
            facts["robustness"].append(section)


def _leaderboards(folder: Path | None) -> list[dict[str, Any]]:
    """Return the sections of all boards NAME/leaderboard.json, in the order of their names."""
    boards = sorted(folder.glob("*/leaderboard.json")) if folder else []
    found = [
        leaderboard_section(path.parent.name, read_facts(path), read_facts(path.with_name("leaderboard_costs.json")))
        for path in boards
    ]
    return [section for section in found if section is not None]


def _unjudged(metrics: dict[str, Any]) -> dict[str, str]:
    whole = {f"every method on {task}": reason for task, reason in metrics.get("left_out", {}).items()}
    single = {
        f"{method} on {task}": reason
        for task, found in metrics["tasks"].items()
        for method, reason in found.get("left_out", {}).items()
    }
    return whole | single


def read_facts(path: Path | None) -> dict[str, Any]:
    """Read evaluation.json, fit_costs.json or evaluate_costs.json; empty where the file is not there."""
    if path is None or not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise StoreError(f"{path}: not JSON ({str(error).splitlines()[0]}); run its stage again") from error
