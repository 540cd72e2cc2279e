"""What the report says that no output file holds: experts, licences, costs, warnings, and how to repeat it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from cache.embeddings import open_embeddings
from cache.errors import UsageError
from cache.records import open_records
from pipeline.study.folder import Study
from pipeline.study.runs import versions
from stages.cohorts import shared_collections


def report_facts(study: Study) -> dict[str, Any]:
    """Collect the facts of one study, as `stages.report.write_report` takes them."""
    experts = [_expert(study, name) for name in study.fitted_experts()]
    trainings = [_training(study, name) for name in _made_here(study)]
    return {
        "title": f"{study.params.cohort.source}: {', '.join(expert['name'] for expert in experts)}",
        "warnings": [*_overlaps(study, experts), *_seen_warnings(study, trainings)],
        "commands": commands(study),
        "versions": versions(),
        "experts": experts,
        "trainings": trainings,
        "methods": _costs(study),
        **{key: _run(study, "evaluate").get(key, {}) for key in ("left_out", "learning_curve", "missing_points")},
    }


def evaluate_words(compare: bool, fractions: Sequence[float]) -> str:
    """Return what params.yaml says of an evaluation, in one line."""
    listed = ", ".join(f"{fraction:g}" for fraction in fractions)
    return f"evaluate: {{compare: {str(compare).lower()}, fractions: [{listed}]}}"


def commands(study: Study) -> list[str]:
    """Return what repeats the study: also an evaluation that was asked for otherwise than params.yaml says."""
    asked, told = study.params.evaluate, _run(study, "evaluate")
    compare, fractions = told.get("compare", asked.compare), told.get("fractions", asked.fractions)
    found = ["dvc repro"]
    if (compare, fractions) != (asked.compare, asked.fractions):
        shares = ",".join(f"{fraction:g}" for fraction in fractions)
        options = "--compare" if compare else "--no-compare"
        found += [f'ensemble evaluate {options} --fractions "{shares}"', "ensemble report"]
    elif compare or fractions:
        found = [f"dvc repro                # params.yaml: {evaluate_words(compare, fractions)}"]
    return [*found, "dvc metrics show", "ensemble report --show"]


def _expert(study: Study, name: str) -> dict[str, Any]:
    from stages.experts import expert_class

    attributes = open_embeddings(study.embedding(name)).attributes
    try:
        cls, variant = expert_class(name)
    except UsageError:  # vectors that another tool has made: the store is all that is known
        return {
            "name": name,
            "title": "imported embeddings",
            "version": attributes.get("version", ""),
            "licence": attributes.get("licence", "not stated"),
            "pretrained_on": list(attributes.get("pretrained_on", ())),
        }
    spec = cls.published_spec(variant)
    return {
        "name": name,
        "title": spec.title,
        "version": attributes["version"],
        "licence": spec.licence,
        "source": spec.source,
        "sha256": attributes.get("weights_sha256", ""),
        "revision": attributes.get("weights_revision", ""),
        "pretrained_on": list(attributes.get("pretrained_on") or spec.pretrained_on),
        "non_commercial": spec.non_commercial,
    }


def overlap_warnings(study: Study) -> list[str]:
    """Warn where an expert, or a version made here, has seen what it is judged on."""
    experts = [_expert(study, name) for name in study.fitted_experts()]
    return [
        *_overlaps(study, experts),
        *_seen_warnings(study, [_training(study, name) for name in _made_here(study)]),
    ]


def _overlaps(study: Study, experts: list[dict[str, Any]]) -> list[str]:
    """Warn where an expert's published weights have seen records of the cohort that it is judged on."""
    sources = sorted(set(open_records(study.records)["source"].astype(str)))
    return [
        overlap_warning(expert["name"], source, seen)
        for expert in experts
        for source in sources
        if (seen := shared_collections(source, expert["pretrained_on"]))
    ]


def overlap_warning(expert: str, source: str, seen: list[str]) -> str:
    """Say that an expert has seen a source; `seen`: the collections of its pretraining that hold records of it."""
    held = "" if seen == [source] else f", which {'holds' if len(seen) == 1 else 'hold'} records of {source}"
    return f"{expert} was pretrained on {', '.join(seen)}{held}: its numbers here may be too good"


def _made_here(study: Study) -> list[str]:
    """Return the versions in use that were made here, each behind the version it came from."""
    from stages.experts.versions import is_version, list_versions, read_version

    there, found = list_versions(), []
    for expert in study.fitted_experts():
        line: list[str] = []
        name: str | None = expert
        while name is not None and is_version(name) and name in there:
            line.insert(0, name)
            name = read_version(name).facts["parent"]
        found += [name for name in line if name not in found]
    return found


def _training(study: Study, name: str) -> dict[str, Any]:
    """Say how a version was made, and how many of the patients that are judged it has seen (with folds, all are)."""
    from stages.experts.versions import read_version
    from stages.training.versions import patient_digests, patients_seen

    records = open_records(study.records)
    judged = records[records["split"] == "test"] if study.params.fit_heads.folds == "split" else records
    facts = read_version(name).facts
    told = {key: facts.get(key) for key in ("made_by", "parent", "task", "kept_epoch", "curve")}
    cohort = {key: facts["cohort"][key] for key in ("sources", "n_records", "n_patients")}
    seen = {"n_seen": patients_seen(name, judged), "n_judged": len(patient_digests(judged))}
    return {"name": name, **told, **cohort, **seen}


def _seen_warnings(study: Study, trainings: list[dict[str, Any]]) -> list[str]:
    """Warn where a version made here has seen patients that it is judged on."""
    advice = "" if study.params.fit_heads.folds == "split" else "; set fit_heads.folds: split"
    fitted = study.fitted_experts()
    return [
        f"{told['name']} was trained on {told['n_seen']} of the patients it is judged on: its numbers here are too "
        f"good{advice}"
        for told in trainings
        if told["n_seen"] and told["name"] in fitted
    ]


ON_HEADS = ("mean", "stacking")
"""Methods that read the experts' fitted heads; what they train themselves is next to nothing."""


def _costs(study: Study) -> dict[str, dict[str, float]]:
    """Return method -> trainable parameters, seconds and peak memory, as far as the runs have told them.

    Methods that stand on the experts' heads count these ("counts_heads" says so).
    """
    costs = {name: dict(told) for name, told in _run(study, "evaluate").get("costs", {}).items()}
    fit = _run(study, "fit-heads")
    if "gate" in costs:
        costs["gate"] |= {key: fit.get(key) for key in ("seconds", "peak_memory_mb")}
    if "enecg" in costs and fit.get("enecg"):
        costs["enecg"] |= {key: fit["enecg"].get(key) for key in ("seconds", "peak_memory_mb")}
    for name, seconds in fit.get("expert_seconds", {}).items():
        if f"expert:{name}" in costs:
            costs[f"expert:{name}"]["seconds"] = seconds
    heads = [told for name, told in costs.items() if name.startswith("expert:")]
    for name in [name for name in ON_HEADS if name in costs]:
        for key in ("parameters", "seconds"):
            parts = [told.get(key) for told in (costs[name], *heads)]
            costs[name][key] = None if None in parts else sum(parts)
        costs[name]["counts_heads"] = True
    return {name: {key: value for key, value in told.items() if value is not None} for name, told in costs.items()}


def _run(study: Study, name: str) -> dict[str, Any]:
    path = study.state / "runs" / f"{name}.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
