"""What each option of `EnsembleHeads` may be, checked before anything is read.

Lives here: the table and the check. Not here: what an option does (docs/methods.md), names that only data can judge
(an expert, a device that this machine has).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from cache.errors import UsageError

Rule = tuple[Callable[[Any], bool], str]
"""Whether a value is allowed, and what is, in words."""


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, Integral) and not _is_flag(value) and int(value) >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not _is_flag(value) and math.isfinite(value)


def _whole(least: int) -> Rule:
    return lambda v: _is_whole(v, least), f"a whole number from {least}"


def _is_flag(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_))


def _is_strengths(value: Any) -> bool:
    if isinstance(value, str) or not isinstance(value, (Sequence, np.ndarray)) or np.ndim(value) != 1:
        return False
    return len(value) > 0 and all(_is_number(v) and v > 0 for v in value)


def _is_names(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, (tuple, list)) and all(isinstance(v, str) for v in value))


FLAG: Rule = (_is_flag, "true or false")
POSITIVE: Rule = (lambda v: _is_number(v) and v > 0, "a number above 0")
NOT_NEGATIVE: Rule = (lambda v: _is_number(v) and v >= 0, "a number from 0")
AUTO = "auto"
NAME: Rule = (lambda v: isinstance(v, str), "a name")

RULES: dict[str, Rule] = {
    "layer_mix": (lambda v: isinstance(v, str), "embedding, last, ppa, pma, joined by '+'"),
    "lora": FLAG,
    "rank": _whole(1),
    "alpha": POSITIVE,
    "lora_epochs": _whole(0),
    "lora_learning_rate": POSITIVE,
    "gate_input": (_is_names, "embedding, predictions, signal joined by '+', or both, all, none"),
    "gate_epochs": _whole(0),
    "gate_hidden": _whole(1),
    "gate_learning_rate": POSITIVE,
    "top_k": _whole(0),
    "expert_dropout": (lambda v: _is_number(v) and 0 <= v < 1, "a number from 0 to below 1"),
    "entropy": (_is_number, "a number"),
    "load_balance": NOT_NEGATIVE,
    "huber": FLAG,
    "balanced": FLAG,
    "strengths": (_is_strengths, "one or more numbers above 0"),
    "inner_folds": (
        lambda v: (isinstance(v, str) and v == AUTO) or (_is_whole(v, 0) and v != 1),
        "auto, 0, or a whole number from 2",
    ),
    "calibrate": FLAG,
    "on_unusable": (lambda v: isinstance(v, str) and v in ("error", "skip"), "error or skip"),
    "lora_patience": _whole(1),
    "gate_patience": _whole(1),
    "device": NAME,
    "memory_gb": (
        lambda v: (isinstance(v, str) and v == AUTO) or (_is_number(v) and v >= 0),
        "auto, or a number from 0",
    ),
    "seed": _whole(0),
}


def check_options(options: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse the first option whose value is not allowed.

    Parameters
    ----------
    prefix
        What the user calls the place of these options, such as "fit_heads.options.".

    Raises
    ------
    UsageError
        One line: the option, its value, what is allowed.
    """
    for name, value in options.items():
        if name in RULES and not RULES[name][0](value):
            raise UsageError(f"{prefix}{name} {value!r} is not allowed; it must be {RULES[name][1]}")
