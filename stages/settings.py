"""What stages are asked for, and what they are computed with: the models that params.yaml is made of.

Lives here: the base of every stage's settings, and `Machine`. Not here: any one stage's settings (its `settings.py`).
Light: nothing here, nor in those files, imports arrays, torch or stores.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

NOT_ALLOWED = "not_allowed"
"""Type of the error that `allowed` gives; its message says what is allowed."""


class Settings(BaseModel):
    """Base of settings: frozen, and without a key that is not named."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
Count = Annotated[int, Field(ge=1)]


def allowed(check: Callable[[Any], bool], words: str, convert: Callable[[Any], Any] = lambda value: value) -> Any:
    """Return a validator for a field that takes what `check` passes; `words` say what that is."""

    def validate(value: Any) -> Any:
        if not check(value):
            raise PydanticCustomError(NOT_ALLOWED, "{words}", {"words": words})
        return convert(value)

    return BeforeValidator(validate)


def number_or(*names: str, least: float, most: float = math.inf, whole: bool = False) -> Any:
    """Return a validator for a field that takes a number of a range, or one of some words.

    A union of types would do, but its error names pydantic's branches instead of what is allowed.
    """

    def number(value: Any) -> float | None:
        try:
            found = None if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            return None
        return found if found is not None and math.isfinite(found) and not (whole and found % 1) else None

    def check(value: Any) -> bool:
        found = number(value)
        return value in names if found is None else least <= found <= most

    def convert(value: Any) -> Any:
        found = number(value)
        return value if found is None else int(found) if whole else found

    spoken = f"{'a whole number' if whole else 'a number'} from {least:g}" + (
        f" to {most:g}" if most < math.inf else ""
    )
    return allowed(check, ", ".join(names) + f", or {spoken}", convert)


AutoCount = Annotated[int | Literal["auto"], number_or("auto", least=1, whole=True)]


class Machine(Settings):
    """What a run is computed with. Nothing in it changes a result, so DVC watches none of it.

    Attributes
    ----------
    device
        auto (a GPU if there is one), cpu, cuda (all GPUs) or cuda:i.
    workers
        Processes of `ingest` and `embed`; auto: one a GPU, or as many as there are cores.
    threads
        CPU threads of a worker of `embed`. The last bits of a sum depend on it, as on the processor.
    batch_size
        Records a forward pass; auto: chosen by the device, and halved when its memory is full.
    memory_gb
        Features of one expert that a fit may keep in memory, in 10^9 bytes; auto: half of what is free.
    """

    device: Device = "auto"
    workers: AutoCount = "auto"
    threads: Count = 1
    batch_size: AutoCount = "auto"
    memory_gb: Annotated[float | Literal["auto"], number_or("auto", least=0)] = "auto"


@dataclass(frozen=True)
class Refusal:
    """Why settings were refused: the first fault found in them.

    Attributes
    ----------
    location
        Names and positions that lead to the value.
    kind
        "unknown" (no setting has this name), "missing", "not allowed" (`words` say what is), or "other".
    words
        What is wrong, beginning with a small letter.
    n_more
        How many faults there are beside it.
    """

    location: tuple[int | str, ...]
    kind: Literal["unknown", "missing", "not allowed", "other"]
    words: str
    value: Any
    n_more: int

    @property
    def name(self) -> str:
        """The location with dots, as params.yaml's readers write it."""
        return ".".join(map(str, self.location))


def first_fault(error: ValidationError) -> Refusal:
    """Return the first fault of settings, for the one line that a command prints."""
    first = error.errors(include_url=False)[0]
    words = first["msg"].removeprefix("Value error, ")
    kinds: dict[str, Any] = {"extra_forbidden": "unknown", "missing": "missing", NOT_ALLOWED: "not allowed"}
    kind = kinds.get(first["type"], "other")
    return Refusal(first["loc"], kind, words[:1].lower() + words[1:], first["input"], error.error_count() - 1)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like a misspelt one, if any is like it."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def usable_cores() -> int:
    """Return how many cores this process may use; macOS does not say, and has them all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
