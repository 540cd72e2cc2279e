"""Merging architecture overrides (official names) with what an expert's published configuration or its weights say.

Lives here: what several experts' `build` share. Not here: the options of any one expert.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from cache.errors import ExpertCodeError, UsageError


def architecture_overrides(
    expert: str, config: Mapping[str, Any] | None, names: Iterable[str], other_names: Iterable[str] = ()
) -> dict[str, Any]:
    """Keep the overrides that shape the network; official options of training alone are passed over.

    Parameters
    ----------
    names
        The architecture options.
    other_names
        Official options that look like a misspelt architecture option and are none.

    Raises
    ------
    UsageError
        An option whose name is nearly, but not quite, an architecture option: a misspelling would change nothing.
    """
    known, ignored = set(names), set(other_names)
    kept: dict[str, Any] = {}
    for name, value in (config or {}).items():
        if name in known:
            kept[name] = value
        elif name not in ignored and (near := difflib.get_close_matches(name, known, 1, cutoff=0.9)):
            raise UsageError(f"expert '{expert}': unknown config option '{name}'; did you mean '{near[0]}'?")
    return kept


def plain_options(expert: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as JSON holds them: tuples and arrays as lists, numpy's numbers as Python's.

    Raises
    ------
    ExpertCodeError
        A value that JSON cannot hold, such as a function: it could not be told apart from another one.

    Examples
    --------
    >>> plain_options("mine", {"bands_hz": ((0.5, 5.0), (5.0, 15.0))})
    {'bands_hz': [[0.5, 5.0], [5.0, 15.0]]}
    """

    def as_plain(value: Any) -> Any:
        if isinstance(value, np.ndarray | np.generic):
            return value.tolist()
        raise TypeError(f"a {type(value).__name__}")

    try:
        return dict(json.loads(json.dumps(dict(options), default=as_plain)))
    except (TypeError, ValueError) as error:
        raise ExpertCodeError(
            f"expert '{expert}': spec.preprocessing holds what JSON cannot ({error}); give numbers, text and lists"
        ) from error
