"""The TRIPOD+AI checklist (Collins et al. 2024, BMJ 385:e078378), filled from the run as far as the run knows.

Lives here: the items, in our words, and what the run says to each. Not here: the page, files (`files`). An item that
no output can answer says so and names what the authors have to write.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stages.report.journal.external_items import external_answer
from stages.report.journal.flow import ALL
from stages.report.journal.run_facts import RunFacts
from stages.scoring.comparison import main_method
from stages.scoring.metrics import HEADLINE, METRICS, METRICS_OF
from stages.scoring.table import number

Json = dict[str, Any]
FILLED, PARTLY, AUTHORS = "from the run", "partly from the run", "for the authors"


Answer = Callable[[RunFacts], str]


@dataclass(frozen=True)
class ChecklistItem:
    """One line of the checklist.

    Attributes
    ----------
    answer
        What the run says; empty where it cannot know.
    missing
        What the authors add; empty where nothing is missing.
    """

    number: str
    section: str
    topic: str
    answer: str
    missing: str

    @property
    def status(self) -> str:
        """Who answers: the run, the run and the authors, or the authors."""
        if not self.answer:
            return AUTHORS
        return PARTLY if self.missing else FILLED


def tripod_checklist(run: RunFacts) -> list[ChecklistItem]:
    """Return all items in the order of the checklist."""
    return [
        ChecklistItem(item, section, topic, _answer(run, item, answer), missing)
        for item, section, topic, answer, missing in _ITEMS
    ]


def _answer(run: RunFacts, item: str, answer: Answer | None) -> str:
    """Return what this study's fit and the fits of others that were judged here say to an item."""
    parts = [answer(run) if answer else "", external_answer(item, run.external)]
    return " ".join(part for part in parts if part)


def _tasks(run: RunFacts) -> str:
    return ", ".join(run.metrics["tasks"])


def _sources(run: RunFacts) -> list[str]:
    return sorted(set(run.records["source"].dropna().astype(str)))


def _experts(run: RunFacts) -> str:
    return ", ".join(expert["name"] for expert in run.facts.get("experts", [])) or ", ".join(run.fit.get("experts", []))


def _sources_apart(run: RunFacts) -> bool:
    """Whether each source is held out in turn."""
    return bool(run.fit.get("provenance", {}).get("folds") == "source")


def _title(run: RunFacts) -> str:
    held_out = "sources" if _sources_apart(run) else "patients"
    return f"Frozen ECG models as an ensemble, for {_tasks(run)}: development and validation on held-out {held_out}."


def _objectives(run: RunFacts) -> str:
    held_out = "held-out sources" if _sources_apart(run) else "held-out patients of the same sources"
    return f"Development, and validation on {held_out}, for {_tasks(run)}."


def _data(run: RunFacts) -> str:
    listed = [
        f"{group.source} ({group.records:,} records, {group.patients:,} patients)"
        for group in run.flow.groups
        if group.split == ALL and group.source != ALL
    ]
    return "Sources: " + ("; ".join(listed) or f"{_sources(run)[0]} ({run.flow.whole.records:,} records)") + "."


def _eligibility(run: RunFacts) -> str:
    whole = run.flow.whole
    return f"All {whole.records:,} records that were given; {whole.bad:,} could not be read and were left out."


def _preparation(run: RunFacts) -> str:
    options = run.records.attrs.get("row_options") or {}
    seconds = options.get("seconds", 10)
    kept = "whole records" if seconds is None else f"the first {seconds:g} s of each record"
    derived = "computed where they were missing" if options.get("derive_leads") else "as in the files"
    return (
        f"Leads placed by name, samples as whole microvolts, {kept}; limb leads {derived}; each expert resamples and "
        "scales as its authors do. Missing leads, flat leads, clipping and missing samples are counted (Cohort)."
    )


def _outcome(run: RunFacts) -> str:
    targets = run.records.attrs.get("targets", {})
    words = []
    for name, found in run.metrics["tasks"].items():
        of_classes = f" of {', '.join(found['classes'])}" if 0 < len(found["classes"]) <= 8 else ""
        unit = f", {found['unit']}" if found.get("unit") else ""
        described = targets[name].description if name in targets else ""
        words.append(f"{name}: {found['kind']}{of_classes}{unit}{f' ({described})' if described else ''}")
    return "; ".join(words) + "."


def _predictors(run: RunFacts) -> str:
    named = _experts(run) or "the experts"
    return f"The ECG's samples alone, as the embeddings of {named}; nothing was selected beforehand."


def _predictor_definition(run: RunFacts) -> str:
    rates = run.records["sampling_rate_hz"].dropna().astype(float)
    said = ", ".join(f"{rate:g}" for rate in sorted(rates.unique())[:6])
    return f"Standard 12-lead ECGs recorded at {said or 'unknown'} Hz."


def _no_interpretation(run: RunFacts) -> str:  # noqa: ARG001
    return "None: predictors are computed from the samples."


def _sample_size(run: RunFacts) -> str:
    return f"All available records were used: {_events(run)}"


def _events(run: RunFacts) -> str:
    words = []
    for name, found in run.metrics["tasks"].items():
        n, positives = found["n"], found["n"].get("positives")
        listed = f"{positives:,} positive" if isinstance(positives, int) else ""
        if isinstance(positives, dict) and len(positives) <= 8:
            listed = ", ".join(f"{label} {count:,}" for label, count in positives.items())
        if "events" in n:
            listed = f"{n['events']:,} events"
        learnt = (
            f"{n['train']:,} training, {n['val']:,} validation, " if n.get("train") and not run.flow.rotated else ""
        )
        words.append(f"{name}: {learnt}{n['test']:,} test records{f' ({listed})' if listed else ''}")
    return "; ".join(words) + "."


def _missing_data(run: RunFacts) -> str:
    missing = ", ".join(f"{name} {found['n']['missing']:,}" for name, found in run.metrics["tasks"].items())
    return (
        "A missing label has no weight in any loss and is not judged (test records without one: "
        f"{missing}). Missing leads and samples stay missing, by each expert's policy; where one has no vector, "
        "the gate gives its weight to the others. No outcome was imputed."
    )


def _partition(run: RunFacts) -> str:
    if _sources_apart(run):
        return (
            "Each source is tested by one fit that has learnt from the other sources alone; patients are in one source."
        )
    if run.flow.rotated:
        return "Folds of whole patients: each fold is tested by one fit, another fold validates, the others train."
    listed = ", ".join(f"{group.split} {group.readable_patients:,}" for group in run.flow.splits)
    return f"Whole patients in training, validation and test ({listed} patients); test records chose nothing."


def _handling(run: RunFacts) -> str:
    mixed = run.options.get("layer_mix", "unknown")
    return f"Per expert: layers mixed ({mixed}), standardised by the training rows' medians and quartiles."


def _model(run: RunFacts) -> str:
    found = run.options
    adapters = f"low-rank adapters of rank {found['rank']}" if found.get("lora") else "no adapters"
    strengths = len(found.get("strengths", ()))
    return (
        f"Per expert and task a penalised linear head (of {strengths} penalties, chosen out of sample), {adapters}; "
        f"a gate over experts that reads {found.get('gate_input', 'unknown')}; temperature scaling out of sample. "
        "Internal validation by held-out patients; every choice by validation records and grouped inner folds."
    )


def _heterogeneity(run: RunFacts) -> str:
    several = "; mean and standard deviation over folds" if run.flow.rotated else ""
    return f"Metrics in age bands and by sex{several}. Sources: {len(_sources(run))}."


def _measures(run: RunFacts) -> str:
    kinds = {found["kind"] for found in run.metrics["tasks"].values()}
    used = [METRICS[name].title for name in METRICS if any(name in METRICS_OF.get(kind, ()) for kind in kinds)]
    more = (
        " Sensitivity, specificity, predictive values, likelihood ratios at thresholds; decision curves; coverage of "
        "conformal sets and intervals."
        if run.decisions
        else ""
    )
    return (
        f"{', '.join(used)}; ROC, precision-recall and calibration plots; 95 % patient-bootstrap intervals; paired "
        f"differences to the best single expert and reference methods.{more}"
    )


def _no_update(run: RunFacts) -> str:  # noqa: ARG001
    return "The model was not updated after it was fitted."


def _calculation(run: RunFacts) -> str:  # noqa: ARG001
    return (
        "By the saved fit (heads/) through `ensemble predict`; every prediction judged here is in predictions.parquet."
    )


def _imbalance(run: RunFacts) -> str:
    if run.options.get("balanced"):
        return (
            "Classes weighted alike in training; probabilities recalibrated to the cohort's prevalence out of sample."
        )
    return "No reweighting or resampling: probabilities are those of the cohort."


def _fairness(run: RunFacts) -> str:
    groups = sorted({grouping for found in run.metrics["tasks"].values() for grouping in found.get("subgroups", {})})
    listed = " and ".join(groups).replace("age_years", "age")
    return f"Performance{' and coverage' if run.decisions else ''} by {listed}." if groups else ""


def _output(run: RunFacts) -> str:
    rules = sorted(
        {found["operating_points"]["rule"] for found in run.decisions.values() if "operating_points" in found}
    )
    promised = sorted({found["conformal"]["coverage"] for found in run.decisions.values() if "conformal" in found})
    words = "Calibrated probabilities, or values."
    if rules:
        words += f" Thresholds by rule ({', '.join(rules)}) on held-out training and validation records."
    if promised:
        words += f" Conformal sets and intervals at a coverage of {', '.join(f'{value:g}' for value in promised)}."
    return words


def _same_setting(run: RunFacts) -> str:
    listed = ", ".join(_sources(run))
    if _sources_apart(run):
        return f"Training and test records come from different sources, each of {listed} held out once."
    return f"Training and test records come from the same source{'s' if len(_sources(run)) > 1 else ''}: {listed}."


def _sharing(run: RunFacts) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(run.facts.get("versions", {}).items()))
    commands = "; ".join(str(command).split("#")[0].strip() for command in run.facts.get("commands", []))
    return f"Repeated by: {commands}. Package versions: {versions or 'not recorded'}."


def _participants(run: RunFacts) -> str:
    whole = run.flow.whole
    splits = "".join(f"; {group.split} {group.readable:,} records" for group in run.flow.splits)
    return (
        f"{whole.records:,} records of {whole.patients:,} patients, {whole.readable:,} readable{splits}. "
        "Labels per task: flow of participants."
    )


def _characteristics(run: RunFacts) -> str:  # noqa: ARG001
    return "Table of characteristics: labels, age and sex where the source has them, per split."


def _comparison(run: RunFacts) -> str:
    return "" if run.flow.rotated else "Table of characteristics, training beside test."


def _specification(run: RunFacts) -> str:
    sums = [
        f"{expert['name']} {expert['sha256'][:12]}"
        for expert in run.facts.get("experts", [])
        if expert.get("sha256") not in (None, "", "none")
    ]
    weights = f" Weights of the experts (sha256): {', '.join(sums)}." if sums else ""
    return f"Folder heads/ holds every coefficient, scaler, gate, temperature, threshold and limit.{weights}"


def _performance(run: RunFacts) -> str:
    words = []
    for name, found in run.metrics["tasks"].items():
        metric = HEADLINE[found["kind"]][0]
        value = found["methods"][main_method(list(found["methods"]))][metric]
        if value["value"] is not None:
            interval = f" ({number(value['low'], 3)} to {number(value['high'], 3)})" if value["low"] is not None else ""
            words.append(f"{name}: {METRICS[metric].title} {number(value['value'], 3)}{interval}")
    return "; ".join(words) + ". All metrics with intervals, and subgroups, are in the report."


def _input_quality(run: RunFacts) -> str:  # noqa: ARG001
    return (
        "`predict` refuses what it cannot read and says why; it warns of missing and flat leads, short records, "
        "exchanged limb leads, amplitudes that look wrong and absent experts."
    )


_ITEMS: tuple[tuple[str, str, str, Answer | None, str], ...] = (
    ("1", "Title", "Prediction model study, target population, outcome", _title, "the target population"),
    ("2", "Abstract", "Structured abstract", None, "the abstract (TRIPOD+AI for abstracts)"),
    ("3a", "Background", "Healthcare context, rationale, existing models", None, "all of it"),
    ("3b", "Background", "Target population, purpose in the care pathway, users", None, "all of it"),
    ("3c", "Background", "Known health inequalities between groups", None, "all of it"),
    ("4", "Objectives", "Development, evaluation, or both", _objectives, "the clinical question"),
    ("5a", "Data", "Sources, rationale, representativeness", _data, "rationale and representativeness"),
    ("5b", "Data", "Dates of the data", None, "start and end of recruitment, and of follow-up"),
    ("6a", "Participants", "Setting, number and place of centres", None, "all of it"),
    ("6b", "Participants", "Eligibility", _eligibility, "how the sources chose their records"),
    ("6c", "Participants", "Treatments received", None, "all of it"),
    ("7", "Data preparation", "Pre-processing and quality checks", _preparation, ""),
    ("8a", "Outcome", "Definition, time horizon, how it was assessed", _outcome, "how and when it was assessed"),
    ("8b", "Outcome", "Who assessed it, where that takes judgement", None, "qualifications of the assessors"),
    ("8c", "Outcome", "Blinding of the assessment", None, "whether assessors knew the predictors"),
    ("9a", "Predictors", "Choice of predictors", _predictors, ""),
    ("9b", "Predictors", "Definition, how and when measured", _predictor_definition, "devices, and when recorded"),
    ("9c", "Predictors", "Who assessed them, where that takes judgement", _no_interpretation, ""),
    ("10", "Sample size", "How it was arrived at", _sample_size, "a justification that it is enough"),
    ("11", "Missing data", "How missing data were handled", _missing_data, ""),
    ("12a", "Analysis", "How data were partitioned and used", _partition, ""),
    ("12b", "Analysis", "How predictors were handled", _handling, ""),
    ("12c", "Analysis", "Model, building steps, tuning, internal validation", _model, ""),
    ("12d", "Analysis", "Heterogeneity across clusters", _heterogeneity, "hospitals or countries, where known"),
    ("12e", "Analysis", "Measures and plots of performance", _measures, ""),
    ("12f", "Analysis", "Updating of the model", _no_update, ""),
    ("12g", "Analysis", "How predictions were calculated", _calculation, ""),
    ("13", "Class imbalance", "Methods, and recalibration", _imbalance, ""),
    ("14", "Fairness", "Approaches to fairness, and why", _fairness, "which groups matter, and why"),
    ("15", "Model output", "Output, and how thresholds were found", _output, "why this rule suits the use"),
    ("16", "Training and evaluation", "Differences between both", _same_setting, ""),
    ("17", "Ethics", "Approval, consent", None, "committee, and consent or its waiver"),
    ("18a", "Open science", "Funding", None, "funders and their role"),
    ("18b", "Open science", "Conflicts of interest", None, "all of it"),
    ("18c", "Open science", "Protocol", None, "where it is"),
    ("18d", "Open science", "Registration", None, "register and number, or that there is none"),
    ("18e", "Open science", "Data sharing", None, "how the data can be had"),
    ("18f", "Open science", "Code sharing", _sharing, "where the code and the fit can be had"),
    ("19", "Involvement", "Patients and public", None, "their part, or that they had none"),
    ("20a", "Participants", "Flow, with and without the outcome", _participants, "follow-up, if there is any"),
    ("20b", "Participants", "Characteristics", _characteristics, "treatments, key dates"),
    ("20c", "Participants", "Evaluation against development data", _comparison, "what differs, and why"),
    ("21", "Model development", "Participants and events in each analysis", _events, ""),
    ("22", "Model specification", "The full model", _specification, "how others get it"),
    ("23a", "Performance", "Estimates with intervals, subgroups", _performance, ""),
    ("23b", "Performance", "Heterogeneity across clusters", _heterogeneity, "hospitals or countries, where known"),
    ("24", "Model updating", "Results of updating", _no_update, ""),
    ("25", "Interpretation", "Main results, with fairness, beside other studies", None, "all of it"),
    ("26", "Limitations", "Of the study, and what they do to the results", None, "all of it"),
    ("27a", "Usability", "Poor or missing input", _input_quality, ""),
    ("27b", "Usability", "What users do, and need to know", None, "all of it"),
    ("27c", "Usability", "Next steps", None, "all of it"),
)
