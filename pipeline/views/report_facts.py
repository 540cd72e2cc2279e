"""What the report says that no output of a stage holds: experts and licences, warnings, how to repeat the study."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache.embeddings import open_embeddings
from cache.errors import UsageError
from cache.patients import People
from cache.record_members import RecordMembers
from cache.record_rows import RecordRows
from pipeline.study.folder import Study
from stages.cohorts import shared_collections
from stages.report import ExpertFacts, ReportPaths, ReportSettings, TrainingFacts
from stages.report.stage import read_facts

if TYPE_CHECKING:
    from stages.experts.contract import ExpertSpec


def report_settings(study: Study) -> ReportSettings:
    """Collect what the page of one study says beside the outputs."""
    experts = [_expert(study, name) for name in study.fitted_experts()]
    trainings = [_training(study, name) for name in _trained_versions(study)]
    return ReportSettings(
        title=f"{', '.join(_sources(study))}: {', '.join(expert.name for expert in experts)}",
        warnings=(*_overlaps(study, experts), *_seen_warnings(study, trainings)),
        commands=tuple(commands(study)),
        experts=tuple(experts),
        trainings=tuple(trainings),
        **study.params.report.model_dump(),
    )


def report_paths(study: Study, tables: Path | None = None) -> ReportPaths:
    """Return where the report of a study reads and writes; `tables`: where else the tables go."""
    return ReportPaths(
        study.records,
        study.metrics,
        study.predictions,
        study.report,
        study.gate_weights,
        study.evaluation,
        study.fit_costs,
        study.plots,
        study.evaluate_costs,
        study.signals,
        study.decisions,
        study.heads / "config.json",
        (study.tables,) if tables is None else (study.tables, tables),
        study.robustness,
        study.external,
        study.leaderboard,
    )


def evaluate_words(compare: bool, fractions: Sequence[float]) -> str:
    """Return what params.yaml says of an evaluation, in one line."""
    listed = ", ".join(f"{fraction:g}" for fraction in fractions)
    return f"evaluate: {{compare: {str(compare).lower()}, fractions: [{listed}]}}"


def commands(study: Study) -> list[str]:
    """Return what repeats the study: also an evaluation that was asked for otherwise than params.yaml says."""
    asked, evaluation = study.params.evaluate, read_facts(study.evaluation)
    compare = evaluation.get("compare", asked.compare)
    fractions = tuple(evaluation.get("fractions", asked.fractions))
    found = ["dvc repro"]
    if (compare, fractions) != (asked.compare, asked.fractions):
        shares = ",".join(f"{fraction:g}" for fraction in fractions)
        options = "--compare" if compare else "--no-compare"
        found += [f'ensemble evaluate {options} --fractions "{shares}"', "ensemble report"]
    elif compare or fractions:
        found = [f"dvc repro                # params.yaml: {evaluate_words(compare, fractions)}"]
    return [*found, "dvc metrics show", "ensemble report --show"]


def _expert(study: Study, name: str) -> ExpertFacts:
    from stages.experts import expert_class

    attributes = open_embeddings(study.embedding(name)).attributes
    try:
        cls, variant = expert_class(name)
    except UsageError:  # vectors that another tool has made: the store is all that is known
        return ExpertFacts(
            name=name,
            title="imported embeddings",
            version=str(attributes.get("version", "")),
            licence=attributes.get("licence", "not stated"),
            pretrained_on=tuple(attributes.get("pretrained_on", ())),
        )
    spec = cls.published_spec(variant)
    return ExpertFacts(
        name=name,
        title=spec.title,
        version=attributes["version"],
        licence=spec.licence,
        source=spec.source,
        sha256=attributes.get("weights_sha256", ""),
        revision=attributes.get("weights_revision", ""),
        pretrained_on=tuple(attributes.get("pretrained_on") or spec.pretrained_on),
        non_commercial=spec.non_commercial,
        # Of another input path the published spec does not tell it.
        windows=spec.windows if attributes.get("preprocessing") in (None, cls.preprocessing_variants[0]) else "",
    )


def overlap_warnings(study: Study, names: Sequence[str] | None = None) -> list[str]:
    """Warn where an expert, or a version made in this study, has seen what it is judged on.

    Parameters
    ----------
    names
        Experts judged without a fit, whose published weights alone are asked about; None: those of the fit.
    """
    experts = [_expert(study, name) for name in (study.fitted_experts() if names is None else names)]
    if names is not None:
        return _overlaps(study, experts)
    trainings = [_training(study, name) for name in _trained_versions(study)]
    return [*_overlaps(study, experts), *_seen_warnings(study, trainings), *_fit_notes(study)]


def _sources(study: Study) -> list[str]:
    """Return the sources of the records, sorted."""
    return RecordRows(study.records).sources()


def _overlaps(study: Study, experts: Sequence[ExpertFacts]) -> list[str]:
    """Warn where an expert's published weights have seen records of the cohort that it is judged on."""
    kinds = {name: kind for name, (kind, _) in study.source_folders().items()}
    found = []
    for expert in experts:
        for source in _sources(study):
            if seen := shared_collections(kinds.get(source, source), expert.pretrained_on):
                found += _of_source(study, expert, source, seen)
    return found


def _of_source(study: Study, expert: ExpertFacts, source: str, seen: list[str]) -> list[str]:
    """Warn of one source: by the number of patients where the weights came with a list of theirs."""
    from cache.patients import patient_digests
    from stages.training.versions import packaged_patients_seen

    spec = _listed_spec(expert)
    if spec is None or source not in seen or study.params.cohort.hash_patients:
        return [overlap_warning(expert.name, source, seen)]
    judged = _judged(study)
    judged = judged.take(judged.source.equal(source))
    if not (n_seen := packaged_patients_seen(spec, judged)):
        return []
    n_judged = len(patient_digests(judged))
    return [
        f"{expert.name} was trained on {n_seen} of the {n_judged} patients of {source} that it is judged on: its "
        "numbers here are too good"
    ]


def _listed_spec(expert: ExpertFacts) -> ExpertSpec | None:
    """Return the spec of an expert whose weights came with a list of patients, and made these vectors."""
    from stages.experts import expert_class

    try:
        spec = expert_class(expert.name)[0].published_spec()
    except UsageError:  # vectors that another tool has made
        return None
    source = spec.weights
    return spec if source is not None and source.patients and source.sha256 == expert.sha256 else None


def overlap_warning(expert: str, source: str, seen: list[str]) -> str:
    """Say that an expert has seen a source; `seen`: the collections of its pretraining that hold records of it."""
    held = "" if seen == [source] else f", which {'holds' if len(seen) == 1 else 'hold'} records of {source}"
    return f"{expert} was pretrained on {', '.join(seen)}{held}: its numbers here may be too good"


def _trained_versions(study: Study) -> list[str]:
    """Return the versions in use that were made in this study, each behind the version it came from."""
    from stages.experts.versions import is_version, list_versions, read_version

    known, found = list_versions(), []
    for expert in study.fitted_experts():
        line: list[str] = []
        name: str | None = expert
        while name is not None and is_version(name) and name in known:
            line.insert(0, name)
            name = read_version(name).facts["parent"]
        found += [name for name in line if name not in found]
    return found


def _training(study: Study, name: str) -> TrainingFacts:
    """Say how a version was made, and how many of the patients that are judged it has seen."""
    from cache.patients import patient_digests
    from stages.experts.versions import read_version
    from stages.training.versions import patients_seen

    judged = _judged(study)
    facts = read_version(name).facts
    made = {key: facts.get(key) for key in ("made_by", "parent", "task", "kept_epoch", "curve")}
    cohort = {key: facts["cohort"][key] for key in ("sources", "n_records", "n_patients")}
    seen = {"n_seen": patients_seen(name, judged), "n_judged": len(patient_digests(judged))}
    return TrainingFacts.model_validate({"name": name, **made, **cohort, **seen})


def _fit_notes(study: Study) -> list[str]:
    """Say which experts the fit did not weigh by what they say of patients that have trained them."""
    from stages.learning.saved_fit import seen_notes

    return seen_notes(json.loads((study.heads / "config.json").read_text(encoding="utf-8"))["history"])


def _fitted_folds(study: Study) -> Any:
    """Return the folds of the fit in heads/, from which follows what is judged; `split` where there is no fit."""
    path = study.heads / "config.json"
    if not path.is_file():  # a leaderboard needs no fit, and judges the test split
        return "split"
    config: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config["provenance"]["folds"]


def _judged(study: Study) -> People:
    """Return whose records the fit is judged on: those of the test split, or with folds all of every split."""
    records = RecordMembers.read(study.records)
    return records.people.take(records.split.equal("test")) if _fitted_folds(study) == "split" else records.people


def _seen_warnings(study: Study, trainings: Sequence[TrainingFacts]) -> list[str]:
    """Warn where a version made in this study has seen patients that it is judged on."""
    advice = "" if _fitted_folds(study) == "split" else "; set fit_heads.folds: split"
    fitted = study.fitted_experts()
    return [
        f"{training.name} was trained on {training.n_seen} of the patients it is judged on: its numbers here are too "
        f"good{advice}"
        for training in trainings
        if training.n_seen and training.name in fitted
    ]
