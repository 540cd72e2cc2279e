"""What a report says that no output of an earlier stage holds, and where it reads and writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from stages.settings import Settings

if TYPE_CHECKING:
    from cache.storage.locations import Location


class ExpertFacts(Settings):
    """One expert of the fit, as its spec and its store name it.

    Attributes
    ----------
    windows
        How it takes records of any length; empty where nothing says it.
    """

    name: str
    title: str = ""
    version: str = ""
    licence: str = ""
    source: str = ""
    sha256: str = ""
    revision: str = ""
    pretrained_on: tuple[str, ...] = ()
    non_commercial: bool = False
    windows: str = ""


class TrainingFacts(Settings):
    """How a version of an expert was made, and how many of the judged patients it has seen.

    Attributes
    ----------
    curve
        Points {"epoch", "loss", "validation_loss"}.
    """

    name: str
    made_by: str
    parent: str | None = None
    task: str | None = None
    kept_epoch: float | None = None
    curve: tuple[dict[str, float], ...] = ()
    sources: tuple[str, ...] = ()
    n_records: int = 0
    n_patients: int = 0
    n_seen: int = 0
    n_judged: int = 0


class ReportSection(Settings):
    """Section `report` of params.yaml.

    Attributes
    ----------
    cases
        Test records of each kind that are drawn for a task (most certain and right, most certain and wrong, least
        certain, probably mislabelled); 0: none.
    hide_ids
        Pictures and bad records have no record id.
    """

    cases: int = Field(default=3, ge=0, le=50)
    hide_ids: bool = False


class ReportSettings(ReportSection):
    """What the page says beside the outputs: title, experts, versions made in the study, warnings, how to repeat it."""

    title: str = "ECG ensemble report"
    warnings: tuple[str, ...] = ()
    commands: tuple[str, ...] = ("dvc repro",)
    experts: tuple[ExpertFacts, ...] = ()
    trainings: tuple[TrainingFacts, ...] = ()


@dataclass(frozen=True)
class ReportPaths:
    """Where a report reads and writes; None: there is no such file, and the page does without.

    Attributes
    ----------
    evaluation, fit_costs, evaluate_costs
        What `evaluate` and `fit-heads` found out beside the numbers (docs/outputs.md).
    plots
        Folder that `dvc plots` reads.
    signals
        signals.zarr, of which the cases are drawn.
    decisions
        decisions.json: thresholds, decision curves, conformal coverage.
    fit
        config.json of the fit, for the checklist.
    robustness
        Folder of what disturbances do; results of another evaluation are left out, with a warning.
    leaderboard
        Folder of leaderboards: NAME/leaderboard.json and NAME/leaderboard_costs.json.
    tables
        Folders of the tables as CSV and LaTeX.
    external
        Folder of what fits of other studies are worth here.
    """

    records: Location
    metrics: Path
    predictions: Path
    report: Path
    gate_weights: Path | None = None
    evaluation: Path | None = None
    fit_costs: Path | None = None
    plots: Path | None = None
    evaluate_costs: Path | None = None
    signals: Location | None = None
    decisions: Path | None = None
    fit: Path | None = None
    tables: tuple[Path, ...] = ()
    robustness: Path | None = None
    external: Path | None = None
    leaderboard: Path | None = None


@dataclass(frozen=True)
class ReportSummary:
    """What was written."""

    report: Path
    plots: tuple[Path, ...] = ()
    metrics: dict[str, Any] | None = None
