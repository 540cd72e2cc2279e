"""The report's page: which sections there are and what each task shows.

Lives here: the template's context. Not here: drawings (`figures`, `gate_figures`, `training_figures`), tables
(`tables`), reading files (`stages.report`).
"""

from __future__ import annotations

from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from cache.records import Target
from stages.plots.thumbnail import grid_symbol
from stages.report import figures, gate_figures, tables, training_figures
from stages.report.attention_figures import attention_pictures
from stages.report.decisions.section import decision_section
from stages.report.external.section import external_sections
from stages.report.glossary import TERMS, method_meaning, method_title
from stages.report.survival import section
from stages.scoring.blocks import PredictionBlock
from stages.scoring.comparison import EXPERT_PREFIX, labelled_test_block, main_method
from stages.scoring.curves import class_columns
from stages.scoring.metrics import METRICS
from stages.scoring.plots import file_name
from stages.scoring.predictions import Predictions
from stages.scoring.subgroups import SEX_NAMES
from stages.scoring.table import decimals, ordered_methods

Json = dict[str, Any]
_MAX_PANELS = 12
_KINDS = {
    "regression": "a value",
    "binary": "one of two classes",
    "multiclass": "one of several classes",
    "multilabel": "any of several findings",
    "survival": "the time to an event",
}


def render(
    metrics: Json, predictions: Predictions, weights: pd.DataFrame | None, records: pd.DataFrame, facts: Json
) -> str:
    """Return the whole page as HTML that needs no other file."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stages.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    style = Markup(environment.loader.get_source(environment, "style.css")[0])  # type: ignore[union-attr]
    return environment.get_template("report.html").render(
        style=style, **context(metrics, predictions, weights, records, facts)
    )


def context(
    metrics: Json, predictions: Predictions, weights: pd.DataFrame | None, records: pd.DataFrame, facts: Json
) -> Json:
    """Return everything the template lays out."""
    cohort = tables.cohort_tables(records)
    experts = [n for n in ordered_methods(metrics) if n.startswith(EXPERT_PREFIX)]
    described = facts.get("methods", {})
    return {
        "title": facts.get("title", "ECG ensemble report"),
        "warnings": facts.get("warnings", []),
        "cards": _cards(metrics, cohort, len(facts.get("experts", [])) or len(experts)),
        "bootstrap": metrics["bootstrap"],
        "headline": tables.headline_table(metrics, facts),
        "tasks": [_task(name, metrics, predictions, weights, facts) for name in metrics["tasks"]],
        "external": external_sections(facts.get("external", [])),
        "cohort": cohort,
        "grid": Markup(grid_symbol()) if facts.get("cases") else "",
        "bad_records": tables.bad_records(records) if facts.get("cases") and not facts["hide_ids"] else [],
        "journal": facts.get("journal"),
        "robustness": facts.get("robustness"),
        "leaderboard": facts.get("leaderboard", []),
        "experts": facts.get("experts", []),
        "trainings": [training_figures.training(version) for version in facts.get("trainings", [])],
        "commands": facts.get("commands", ["dvc repro"]),
        "versions": sorted(facts.get("versions", {}).items()),
        "methods": [
            (n, method_title(n, described.get(n)), method_meaning(n, described.get(n)))
            for n in ordered_methods(metrics)
        ],
        "terms": TERMS,
        "metric_terms": [(m.title, m.meaning, m.higher_is_better) for m in _used_metrics(metrics)],
    }


def _used_metrics(metrics: Json) -> list[Any]:
    used = {name for task in metrics["tasks"].values() for found in task["methods"].values() for name in found}
    return [metric for name, metric in METRICS.items() if name in used]


def _cards(metrics: Json, cohort: Json, n_experts: int) -> list[tuple[str, str]]:
    counted = [(cohort["records"], "records"), (cohort["patients"], "patients"), (n_experts, "experts")]
    counted += [(len(metrics["tasks"]), "tasks"), (cohort["n_bad"], "unreadable records")]
    return [(f"{value:,}", label) for value, label in counted]


def shown_methods(found: Json) -> list[str]:
    """Return the methods a picture shows: the main one, the best single expert, concatenation, the mean."""
    methods = list(found["methods"])
    wanted = (main_method(methods), found["best_single_expert"], "concat", "mean")
    return [name for name in dict.fromkeys(wanted) if name in methods]


def _task(name: str, metrics: Json, predictions: Predictions, weights: pd.DataFrame | None, facts: Json) -> Json:
    found, target = metrics["tasks"][name], predictions.tasks[name]
    series = {method: f"s{k}" for k, method in enumerate(shown_methods(found))}
    blocks = {method: labelled_test_block(predictions, name, method) for method in series}
    main = next(iter(series))
    titles = {method: method_title(method, facts.get("methods", {}).get(method)) for method in found["methods"]}
    return {
        "name": name,
        "anchor": file_name(name),
        "about": _about(target, found["n"], found["methods"][main], rotated="folds" in found),
        "verdict": tables.verdict(metrics, name, main, facts),
        "legend": [(titles[method], css) for method, css in series.items()],
        "main": titles[main],
        "methods_figure": Markup(_methods_figure(name, metrics, titles)),
        "table": tables.metrics_rows(metrics, name, facts),
        "folds": tables.fold_rows(metrics, name, facts),
        "horizons": section.horizon_table(found, titles),
        "pictures": [(caption, Markup(svg)) for caption, svg in _pictures(target, blocks, series)],
        "panels": _panels(target, blocks, series),
        "classes": Markup(_classes_figure(name, found, series)),
        "subgroups": Markup(_subgroups_figure(name, metrics, series)),
        "gate": _gate(target, blocks[main], weights),
        "curves": _curves_note(target),
        "attention": attention_pictures(name, facts.get("attention", {})),
        "decisions": decision_section(facts.get("decisions", {}).get(name)),
        "cases": facts.get("cases", {}).get(name, []),
        "scale": facts.get("scale"),
        "learning": Markup(_learning(name, found, series, facts)),
        "learning_missing": [
            (f"{float(fraction):.3g}", reason.rstrip("."))
            for fraction, reason in facts.get("missing_points", {}).get(name, {}).items()
        ],
        "learning_legend": [(titles[m], css) for m, css in series.items() if m in _learned(name, facts)],
    }


def _about(target: Target, n: Json, values: Json, *, rotated: bool) -> str:
    """Say what a task is and on how many records; `rotated`: each record is a test record of one fold's fit."""
    train = f"{n['train']:,} training, {n['val']:,} validation and " if n.get("train") and not rotated else ""
    folds = " Each is judged by the one fit, of several, that has not seen its patient." if rotated else ""
    unit = f" in {target.unit}" if target.unit else ""
    missing = f" {n['missing']:,} test records have no label." if n["missing"] else ""
    defined = values.get("auroc_macro", {}).get("n_classes", len(target.classes))
    if defined < len(target.classes):
        missing += f" AUROC is defined for {defined} of {len(target.classes)} classes."
    events = section.about(n) if target.kind == "survival" else ""
    described = f"{target.description[0].upper()}{target.description[1:]}. " if target.description else ""
    return (
        f"{described}Predicts {_KINDS[target.kind]}{unit}. "
        f"{train}{n['test']:,} labelled test records of {n['patients_test']:,} patients.{events}{folds}{missing}"
    )


def _curves_note(target: Target) -> str:
    """Return how the curves are to be read; nothing for a regression."""
    if target.kind == "regression":
        return ""
    if target.kind == "survival":
        return section.NOTE
    whose = {"binary": "", "multiclass": " (of the most probable class)", "multilabel": " (over all classes)"}[
        target.kind
    ]
    means = "" if target.kind == "binary" else "ROC and precision are means of the classes' curves. "
    return f"{means}Calibration{whose} is that of the first two methods; larger dots stand for more records."


def _methods_figure(name: str, metrics: Json, titles: dict[str, str]) -> str:
    found = metrics["tasks"][name]
    metric, best = found["headline"][0], found["best_single_expert"]
    main = main_method(list(found["methods"]))
    style = {main: "s0", best: "s1"}
    rows = [
        (titles[m], [(style.get(m, "s9"), found["methods"][m][metric])])
        for m in ordered_methods(metrics)
        if m in found["methods"]
    ]
    reference = found["methods"][best][metric]["value"] if best else None
    return figures.interval_figure(f"Methods of {name}", rows, metric, decimals(metrics, name, metric), reference)


def _pictures(target: Target, blocks: dict[str, PredictionBlock], series: dict[str, str]) -> list[tuple[str, str]]:
    main = next(iter(series))
    if target.kind == "survival":
        return section.pictures(target, blocks, series)
    if target.kind == "regression":
        return [
            ("Predicted against true values", figures.predicted_figure(target, blocks[main])),
            ("Errors", figures.error_figure(target, blocks[main])),
        ]
    first_two = {method: series[method] for method in list(series)[:2]}
    found = [
        ("ROC", figures.roc_figure(target, blocks, series)),
        ("Precision and sensitivity", figures.pr_figure(target, blocks, series)),
        ("Calibration", figures.reliability_figure(target, blocks, first_two)),
    ]
    if target.kind == "multiclass" and len(target.classes) <= 2 * _MAX_PANELS:
        found.append(("Confusion matrix", figures.confusion_figure(target, blocks[main])))
    return found


def _panels(target: Target, blocks: dict[str, PredictionBlock], series: dict[str, str]) -> list[tuple[str, Markup]]:
    """Return a small ROC picture per class, where there are few enough classes for it."""
    if target.kind not in ("multiclass", "multilabel") or len(target.classes) > _MAX_PANELS:
        return []
    first_two = {method: series[method] for method in list(series)[:2]}
    positives = [int(y.sum()) for _, y, _ in class_columns(target, next(iter(blocks.values())))]
    drawn = figures.class_roc_figures(target, blocks, first_two)
    return [(f"{name} ({n:,})", Markup(svg)) for (name, svg), n in zip(drawn, positives, strict=True)]


def _classes_figure(name: str, found: Json, series: dict[str, str]) -> str:
    if "per_class" not in found:
        return ""
    rows = []
    for label in found["classes"]:
        marks = [(series[m], values[label]["auroc"]) for m, values in found["per_class"].items()]
        rows.append((f"{label} ({next(iter(found['per_class'].values()))[label]['n_positive']:,})", marks))
    return figures.interval_figure(f"AUROC of the classes of {name}", rows, "auroc", 3)


def _subgroups_figure(name: str, metrics: Json, series: dict[str, str]) -> str:
    found, metric = metrics["tasks"][name], metrics["tasks"][name]["headline"][0]
    rows = [
        (
            f"{_group_name(grouping, group)} ({part['n']:,})",
            [(series[m], v[metric]) for m, v in part["methods"].items()],
        )
        for grouping, groups in found.get("subgroups", {}).items()
        for group, part in groups.items()
        if any(values[metric]["value"] is not None for values in part["methods"].values())
    ]
    return (
        figures.interval_figure(f"Subgroups of {name}", rows, metric, decimals(metrics, name, metric)) if rows else ""
    )


def _group_name(grouping: str, group: str) -> str:
    if grouping == "age_years":
        return f"age {group}"
    return group if group in SEX_NAMES.values() else f"{grouping} {group}"


def _gate(target: Target, block: PredictionBlock, weights: pd.DataFrame | None) -> Json | None:
    if weights is None or not ((weights["task"] == target.name) & (weights["split"] == "test")).any():
        return None
    table = gate_figures.weight_table(weights, target.name)
    return {
        "figure": Markup(gate_figures.weights_figure(target.name, table)),
        "experts": list(table),
        "rows": gate_figures.weights_by_class(target, block, table),
        "groups": _group_words(target),
    }


def _group_words(target: Target) -> str:
    if target.kind == "regression":
        return "true value, in quarters"
    if target.kind == "survival":
        return "what was observed"
    shortened = len(target.classes) > gate_figures.MAX_GROUPS
    return f"true class, the {gate_figures.MAX_GROUPS} most frequent" if shortened else "true class"


def _learned(name: str, facts: Json) -> set[str]:
    return {point["method"] for point in facts.get("learning_curve", {}).get(name, [])}


def _learning(name: str, found: Json, series: dict[str, str], facts: Json) -> str:
    points = facts.get("learning_curve", {}).get(name, [])
    return gate_figures.learning_curve(name, found["headline"][0], points, series)
