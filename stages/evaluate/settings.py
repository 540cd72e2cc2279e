"""What an evaluation is asked for, where it reads and writes, and what it found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from stages.settings import Settings

if TYPE_CHECKING:
    from cache.storage.locations import Location

Share = Annotated[float, Field(gt=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]


class EvaluateSection(Settings):
    """Section `evaluate` of params.yaml.

    Attributes
    ----------
    bootstrap
        Patient resamples behind every interval.
    compare
        Fit every other method there is, too.
    fractions
        Shares of the training and validation patients for the learning curve; none, no curve.
    prevalence
        Task -> how frequent its positive class is where the fit shall be used, or class -> that of several findings;
        positive and negative predictive values are given for it, too.
    """

    bootstrap: int = Field(default=1000, ge=100)
    compare: bool = False
    fractions: tuple[Share, ...] = ()
    prevalence: dict[str, OpenShare | dict[str, OpenShare]] = Field(default_factory=dict)


class EvaluateSettings(EvaluateSection):
    """What one evaluation is asked for; the bootstrap, the learning curve's shares and refits follow from `seed`.

    Examples
    --------
    >>> EvaluateSettings(fractions=(0.1, 1.0)).bootstrap
    1000
    """

    seed: int = 0


@dataclass(frozen=True)
class EvaluatePaths:
    """Where an evaluation reads and writes.

    Attributes
    ----------
    stores
        Expert -> its store; those that the heads were fitted on.
    headline
        The first metric of each task and method: short enough for `dvc metrics show`.
    evaluation
        What was compared and left out, parameters, and the learning curve: equal for equal runs (docs/outputs.md).
    costs
        Seconds and peak memory of each method fitted for comparison, which differ from run to run; None: not written.
    decisions
        What thresholds and conformal limits are worth on test records; None: not written.
    finished
        Folder of finished methods, from which a killed evaluation goes on.
    """

    records: Location
    signals: Location
    stores: Mapping[str, Location]
    heads: Path
    predictions: Path
    gate_weights: Path
    metrics: Path
    headline: Path
    evaluation: Path
    finished: Path
    costs: Path | None = None
    decisions: Path | None = None


@dataclass
class EvaluateSummary:
    """What an evaluation found: the contents of metrics.json, evaluation.json and evaluate_costs.json.

    Attributes
    ----------
    costs
        Method -> trainable parameters of one fold, seconds of fitting, peak memory in MB; None where unknown.
    left_out
        Method, or "METHOD on TASK" -> why it could not be fitted on these data.
    learning_curve
        Task -> points {"fraction", "method", "metric", "value", "low", "high"}.
    missing_points
        Task -> fraction, such as "0.1" -> why the learning curve has no point there.
    decisions
        Content of decisions.json.
    attention
        Expert -> task -> mean attention of each second, of a fit that attends (`attention.mean_attention`).
    retrieval
        Task -> class -> how often the nearest records have it, where methods are compared (`retrieval`).
    """

    compare: bool
    fractions: tuple[float, ...]
    metrics: dict[str, Any] = field(default_factory=dict)
    costs: dict[str, dict[str, float | None]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    learning_curve: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    missing_points: dict[str, dict[str, str]] = field(default_factory=dict)
    decisions: dict[str, Any] = field(default_factory=dict)
    attention: dict[str, Any] = field(default_factory=dict)
    retrieval: dict[str, Any] = field(default_factory=dict)

    def evaluation(self, versions: Mapping[str, str]) -> dict[str, Any]:
        """Return the content of evaluation.json; `versions`: of the packages that the numbers depend on."""
        unasked = {name for name in ("attention", "retrieval") if not getattr(self, name)}
        elsewhere = {"metrics", "costs", "decisions"} | unasked
        content = {name: value for name, value in vars(self).items() if name not in elsewhere}
        parameters = {method: costs["parameters"] for method, costs in self.costs.items()}
        return {
            "schema_version": 1,
            **content,
            "fractions": list(self.fractions),
            "parameters": parameters,
            "versions": dict(versions),
        }

    def run_costs(self) -> dict[str, dict[str, float | None]]:
        """Return the content of evaluate_costs.json: method -> seconds and peak memory of this run."""
        return {
            method: {name: value for name, value in costs.items() if name != "parameters"}
            for method, costs in self.costs.items()
            if len(costs) > 1
        }
