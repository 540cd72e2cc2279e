"""How decisions are chosen: `fit_heads.operating_points` and `fit_heads.conformal` of params.yaml.

Light: neither arrays nor torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from stages.settings import Settings, allowed

RuleName = Literal["youden", "sensitivity", "specificity", "alarm_rate"]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
"""A share above 0 and below 1."""


def _is_share(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1)


class OperatingRule(Settings):
    """How the threshold of a class is chosen.

    Attributes
    ----------
    rule
        "youden": where sensitivity + specificity is largest. "sensitivity", "specificity": the threshold that gives the
        other one the most while this one is at least `value`. "alarm_rate": the one
        of the highest sensitivity at which at most the share `value` of all records is above it.
    value
        What the rule asks for, above 0 and below 1; none for youden.

    Examples
    --------
    >>> OperatingRule(rule="sensitivity", value=0.95).value
    0.95
    """

    rule: RuleName = "youden"
    value: Annotated[float | None, allowed(_is_share, "a share above 0 and below 1, such as 0.9")] = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.rule == "youden") != (self.value is None):
            words = "takes no value" if self.rule == "youden" else "needs a value, such as 0.9"
            raise ValueError(f"rule '{self.rule}' {words}")
        return self


class OperatingPointsSection(OperatingRule):
    """`fit_heads.operating_points`: the rule of every task, and other rules of some tasks.

    Examples
    --------
    >>> OperatingPointsSection(tasks={"flag": {"rule": "sensitivity", "value": 0.95}}).of("flag").rule
    'sensitivity'
    """

    tasks: dict[str, OperatingRule] = Field(default_factory=dict)

    def of(self, task: str) -> OperatingRule:
        """Return the rule of one task."""
        return self.tasks.get(task, OperatingRule(rule=self.rule, value=self.value))


class ConformalSection(Settings):
    """`fit_heads.conformal`: what sets of classes and intervals promise.

    Attributes
    ----------
    coverage
        Share of new patients whose truth lies in the set or interval.
    by_class
        Keep the promise for the records of each class, not only for all together.
    """

    coverage: OpenShare = 0.9
    by_class: bool = True
