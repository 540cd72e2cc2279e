"""What the report says that no output file holds: experts, licences, costs, warnings, and how to repeat it."""

from __future__ import annotations

import json
from typing import Any

from cache.embeddings import open_embeddings
from cache.errors import UsageError
from cache.records import open_records
from pipeline.runs import versions
from pipeline.study import Study

COMMANDS = ["dvc repro", "dvc metrics show", "ensemble report --show"]


def report_facts(study: Study) -> dict[str, Any]:
    """Collect the facts of one study, as `stages.report.write_report` takes them."""
    experts = [_expert(study, name) for name in study.fitted_experts()]
    sources = sorted(set(open_records(study.records)["source"]))
    return {
        "title": f"{study.params.cohort.source}: {', '.join(expert['name'] for expert in experts)}",
        "warnings": [*_overlaps(experts, sources), *_patients_seen(study)],
        "commands": COMMANDS,
        "versions": versions(),
        "experts": experts,
        "methods": _costs(study),
        "learning_curve": _run(study, "evaluate").get("learning_curve", {}),
    }


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
        "pretrained_on": list(spec.pretrained_on),
        "non_commercial": spec.non_commercial,
    }


def _overlaps(experts: list[dict[str, Any]], sources: list[str]) -> list[str]:
    """Warn where an expert's published weights have seen the cohort that it is judged on."""
    return [
        f"{expert['name']} was pretrained on {source}: its numbers here may be too good"
        for expert in experts
        for source in sources
        if source in expert["pretrained_on"]
    ]


def _patients_seen(study: Study) -> list[str]:
    """Warn where a version made here has seen patients that it is judged on (with folds, that is every patient)."""
    from stages.experts._versions import is_version, list_versions
    from stages.training.versions import patients_seen

    records = open_records(study.records)
    judged = records[records["split"] == "test"] if study.params.fit_heads.folds == "split" else records
    made = [name for name in study.fitted_experts() if is_version(name) and name in list_versions()]
    counts = {name: patients_seen(name, judged) for name in made}
    advice = "" if study.params.fit_heads.folds == "split" else "; set fit_heads.folds: split"
    return [
        f"{name} was trained on {n} of the patients it is judged on: its numbers here are too good{advice}"
        for name, n in counts.items()
        if n
    ]


def _costs(study: Study) -> dict[str, dict[str, float]]:
    """Return method -> trainable parameters, seconds and peak memory, as far as the runs have told them."""
    costs = {name: dict(told) for name, told in _run(study, "evaluate").get("costs", {}).items()}
    fit = _run(study, "fit-heads")
    if "gate" in costs:
        costs["gate"] |= {key: fit.get(key) for key in ("seconds", "peak_memory_mb")}
    if "enecg" in costs and fit.get("enecg"):
        costs["enecg"] |= {key: fit["enecg"].get(key) for key in ("seconds", "peak_memory_mb")}
    for name, seconds in fit.get("expert_seconds", {}).items():
        if f"expert:{name}" in costs:
            costs[f"expert:{name}"]["seconds"] = seconds
    return {name: {key: value for key, value in told.items() if value is not None} for name, told in costs.items()}


def _run(study: Study, name: str) -> dict[str, Any]:
    path = study.state / "runs" / f"{name}.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
