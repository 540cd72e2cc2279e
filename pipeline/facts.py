"""What the report says that no output file holds: experts, licences, costs, warnings, and how to repeat it."""

from __future__ import annotations

import json
from typing import Any

from cache.embeddings import open_embeddings
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
        "warnings": _overlaps(experts, sources),
        "commands": COMMANDS,
        "versions": versions(),
        "experts": experts,
        "methods": {name: {"parameters": int(cost["parameters"])} for name, cost in _costs(study).items()},
    }


def _expert(study: Study, name: str) -> dict[str, Any]:
    from stages.experts import expert_class

    attributes = open_embeddings(study.embedding(name)).attributes
    cls, variant = expert_class(name)
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


def _costs(study: Study) -> dict[str, Any]:
    path = study.state / "runs" / "evaluate.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))["costs"]) if path.is_file() else {}
