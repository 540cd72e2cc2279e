"""Merging architecture overrides (official names) with what an expert's published configuration or its weights say.

Lives here: what several experts' `build` share. Not here: the options of any one expert.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from cache.errors import UsageError


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
