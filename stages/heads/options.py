"""What each option of `EnsembleHeads` may be: one model for the estimator, for params.yaml and for the docs.

Lives here: `FitOptions`, `EstimatorOptions`, their check. Not here: what an option does (docs/methods.md), names that
only data can judge (an expert, a device that this machine has).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Annotated, Any, TypeVar

from pydantic import ValidationError

from cache.errors import UsageError
from stages.settings import Settings, allowed, first_fault, nearest

AUTO = "auto"
LAYER_MIX = "embedding, last, ppa, pma, std, max, last_token, attention, joined by '+'"
STRENGTHS = tuple(10**exponent for exponent in (-2.75, -2.0, -1.25, -0.5, 0.25, 1.0, 1.75))
"""Penalties of the probe to choose from."""


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool) or type(value).__name__ == "bool"  # NumPy's, without importing it


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not _is_flag(value) and math.isfinite(value)


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, Integral) and not _is_flag(value) and int(value) >= least


def _values(value: Any) -> list[Any]:
    listed = value.tolist() if hasattr(value, "tolist") else value
    return list(listed) if isinstance(listed, (list, tuple)) else []


def _is_names(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, (tuple, list)) and all(isinstance(v, str) for v in value))


def _whole(least: int) -> Any:
    return allowed(lambda v: _is_whole(v, least), f"a whole number from {least}", int)


def _is_auto(value: Any) -> bool:
    return isinstance(value, str) and value == AUTO


FLAG = allowed(_is_flag, "true or false", bool)
NAME = allowed(lambda v: isinstance(v, str), "a name")
POSITIVE = allowed(lambda v: _is_number(v) and v > 0, "a number above 0", float)
NOT_NEGATIVE = allowed(lambda v: _is_number(v) and v >= 0, "a number from 0", float)
Flag = Annotated[bool, FLAG]
Positive = Annotated[float, POSITIVE]


class FitOptions(Settings):
    """What decides how heads and gate are learnt: `fit_heads.options` in params.yaml. docs/methods.md explains each.

    Examples
    --------
    >>> FitOptions(rank=4).rank
    4
    """

    layer_mix: Annotated[str, allowed(lambda v: isinstance(v, str), LAYER_MIX)] = "embedding+ppa"
    lora: Flag = True
    rank: Annotated[int, _whole(1)] = 8
    alpha: Positive = 32
    lora_epochs: Annotated[int, _whole(0)] = 30
    lora_learning_rate: Positive = 1e-3
    gate_input: Annotated[
        str | tuple[str, ...],
        allowed(_is_names, "embedding, predictions, signal joined by '+', or both, all, none"),
    ] = "embedding+predictions"
    gate_epochs: Annotated[int, _whole(0)] = 60
    gate_hidden: Annotated[int, _whole(1)] = 16
    gate_learning_rate: Positive = 3e-3
    top_k: Annotated[int, _whole(0)] = 0
    expert_dropout: Annotated[
        float, allowed(lambda v: _is_number(v) and 0 <= v < 1, "a number from 0 to below 1", float)
    ] = 0.1
    entropy: Annotated[float, allowed(_is_number, "a number", float)] = 0.0
    load_balance: Annotated[float, NOT_NEGATIVE] = 0.0
    huber: Flag = True
    balanced: Flag = False
    strengths: Annotated[
        tuple[float, ...],
        allowed(
            lambda v: bool(_values(v)) and all(_is_number(s) and s > 0 for s in _values(v)),
            "one or more numbers above 0",
            lambda v: tuple(map(float, _values(v))),
        ),
    ] = STRENGTHS
    inner_folds: Annotated[
        int | str,
        allowed(lambda v: _is_auto(v) or (_is_whole(v, 0) and v != 1), "auto, 0, or a whole number from 2"),
    ] = AUTO
    calibrate: Flag = True
    share_tasks: Flag = True
    hierarchy: Flag = True
    lora_patience: Annotated[int, _whole(1)] = 6
    gate_patience: Annotated[int, _whole(1)] = 10


class EstimatorOptions(FitOptions):
    """The parameters of `EnsembleHeads`: how it learns, and what a command settles for a study."""

    on_unusable: Annotated[str, allowed(lambda v: isinstance(v, str) and v in ("error", "skip"), "error or skip")] = (
        "error"
    )
    device: Annotated[str, NAME] = AUTO
    memory_gb: Annotated[
        float | str,
        allowed(lambda v: _is_auto(v) or (_is_number(v) and v >= 0), "auto, or a number from 0"),
    ] = AUTO
    seed: Annotated[int, _whole(0)] = 42


Options = TypeVar("Options", bound=Settings)


def checked(kind: type[Options], options: Mapping[str, Any], prefix: str = "") -> Options:
    """Return the options as a model.

    Parameters
    ----------
    prefix
        What the user calls the place of these options, such as "fit_heads.options.".

    Raises
    ------
    UsageError
        One line: an option that does not exist, with the nearest name; or a value, and what is allowed.
    """
    try:
        return kind.model_validate(dict(options))
    except ValidationError as error:
        fault = first_fault(error)
        name = str(fault.location[0])
        if fault.kind == "unknown":
            near = nearest(name, kind.model_fields)
            hint = f"; did you mean '{near}'?" if near else f"; there are: {', '.join(kind.model_fields)}"
            raise UsageError(f"{prefix}{name} is no option{hint}") from error
        raise UsageError(f"{prefix}{name} {fault.value!r} is not allowed; it must be {fault.words}") from error


def signature_of(kind: type[Settings]) -> inspect.Signature:
    """Return the signature of a constructor that takes the fields of a model by name."""
    parameter = inspect.Parameter
    return inspect.Signature(
        [
            parameter(name, parameter.KEYWORD_ONLY, default=field.default, annotation=field.annotation)
            for name, field in kind.model_fields.items()
        ]
    )
