"""The page's part for a journal, and the tables that go with it.

Lives here: which tables there are, and the template's context. Not here: counts (`flow`, `characteristics`), the items
of the checklist (`checklist`), formats (`files`), HTML (`journal.html`).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pandas as pd
from markupsafe import Markup

from stages.report.decisions.section import RATES, cell
from stages.report.glossary import method_title
from stages.report.journal.characteristics import characteristics
from stages.report.journal.checklist import AUTHORS, FILLED, PARTLY, tripod_checklist
from stages.report.journal.files import JournalTable
from stages.report.journal.flow import Flow, participant_flow
from stages.report.journal.flow_figure import flow_figure
from stages.report.journal.run_facts import RunFacts
from stages.scoring.metrics import METRICS
from stages.scoring.table import columns, decimals, number, ordered_methods

Json = dict[str, Any]


def run_facts(metrics: Json, records: pd.DataFrame, fit: Json, facts: Json) -> RunFacts:
    """Gather what the outputs of earlier stages say."""
    rotated = any("folds" in found for found in metrics["tasks"].values())
    flow = participant_flow(records, metrics["tasks"], rotated=rotated)
    return RunFacts(metrics, records, flow, fit, facts)


def journal_tables(run: RunFacts) -> list[JournalTable]:
    """Return every table, for tables/ and for the page."""
    head, rows = characteristics(run.records, run.metrics["tasks"], rotated=run.flow.rotated)
    found = [
        *_flow_tables(run.flow),
        JournalTable("characteristics", "Readable records: counts with shares, or medians with quartiles", head, rows),
        _performance_table(run),
        *_decision_tables(run.decisions),
        _checklist_table(run),
    ]
    return [table for table in found if table.rows]


def journal_section(run: RunFacts, tables: list[JournalTable]) -> Json:
    """Return the template's context."""
    by_name = {table.name: table for table in tables}
    items = tripod_checklist(run)
    counts = Counter(item.status for item in items)
    return {
        "flow_figure": Markup(flow_figure(run.flow)),
        "flow": [by_name[name] for name in ("flow", "labels") if name in by_name],
        "characteristics": by_name["characteristics"],
        "checklist": items,
        "counts": [(status, counts[status]) for status in (FILLED, PARTLY, AUTHORS)],
    }


def _flow_tables(flow: Flow) -> list[JournalTable]:
    head = ["split", "source", "records", "patients", "not readable", "readable", "readable patients"]
    counted = ("records", "patients", "bad", "readable", "readable_patients")
    rows = [[g.split, g.source, *(str(getattr(g, name)) for name in counted)] for g in flow.groups]
    labels = [
        [group.split, group.source, name, str(group.labelled[name]), str(group.readable - group.labelled[name])]
        for group in flow.groups
        for name in flow.tasks
    ]
    return [
        JournalTable("flow", "Flow of participants; 'all' are those together", head, rows, 2),
        JournalTable(
            "labels", "Readable records by label", ["split", "source", "task", "labelled", "no label"], labels, 3
        ),
    ]


def _performance_table(run: RunFacts) -> JournalTable:
    metrics, described = run.metrics, run.facts.get("methods", {})
    rows = []
    for task, metric in columns(metrics):
        unit = metrics["tasks"][task]["unit"] if METRICS[metric].has_unit else ""
        places = decimals(metrics, task, metric)
        for method in ordered_methods(metrics):
            value = metrics["tasks"][task]["methods"].get(method, {}).get(metric)
            if value:
                texts = [number(value[key], places) for key in ("value", "low", "high")]
                rows.append([task, METRICS[metric].title, unit, method_title(method, described.get(method)), *texts])
    head = ["task", "metric", "unit", "method", "value", "95 % low", "95 % high"]
    return JournalTable("performance", "Test records, with 95 % patient-bootstrap intervals", head, rows, 4)


def _decision_tables(decisions: Json) -> list[JournalTable]:
    return [_operating_table(decisions), _coverage_table(decisions)]


def _operating_table(decisions: Json) -> JournalTable:
    rows = []
    for task, found in decisions.items():
        points = found.get("operating_points", {"classes": {}})
        for name, judged in points["classes"].items():
            given = judged.get("given") or {}
            cells = [_joined(cell(judged.get(rate))) for rate, _ in RATES]
            more = [f"{given['prevalence']:g}" if given else "", *(_joined(cell(given.get(k))) for k in ("ppv", "npv"))]
            rows.append([task, name, points["rule"], number(judged["threshold"], 3), str(judged["positives"]),
                         str(judged["n"]), *cells, *(more if given else ["", "", ""])])  # fmt: skip
    head = ["task", "class", "rule", "threshold", "positive", "records", *(title for _, title in RATES)]
    head += ["given prevalence", "PPV there", "NPV there"]
    return JournalTable("operating_points", "Thresholds on test records, with 95 % intervals", head, rows, 2)


def _coverage_table(decisions: Json) -> JournalTable:
    rows = []
    for task, found in decisions.items():
        for answer, measured in found.get("conformal", {"answers": {}})["answers"].items():
            groups = [("all", measured["all"]), *measured["true_class"].items()]
            groups += [
                (f"{g} {name}", part) for g, parts in measured["subgroups"].items() for name, part in parts.items()
            ]
            rows += [
                [task, answer, name, f"{found['conformal']['coverage']:g}", _joined(cell(part)), str(part["patients"]),
                 str(part["records"])]
                for name, part in groups if part["records"]
            ]  # fmt: skip
    head = ["task", "answer", "records of", "promised", "coverage", "patients", "records"]
    return JournalTable(
        "coverage", "Coverage of conformal sets and intervals by patient, with 95 % intervals", head, rows, 3
    )


def _joined(found: tuple[str, str]) -> str:
    return f"{found[0]} ({found[1]})" if found[1] else found[0]


def _checklist_table(run: RunFacts) -> JournalTable:
    rows = [[i.number, i.section, i.topic, i.status, i.answer, i.missing] for i in tripod_checklist(run)]
    head = ["item", "section", "topic", "answered", "what the run says", "what the authors add"]
    return JournalTable("tripod_ai", "TRIPOD+AI checklist (Collins et al. 2024), filled from the run", head, rows)
