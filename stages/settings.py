"""What stages are asked for, and what they are computed with: the models that params.yaml is made of.

Lives here: the base of every stage's settings, and `Machine`. Not here: any one stage's settings (its `settings.py`).
Light: nothing here, nor in those files, imports arrays, torch or stores.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

NOT_ALLOWED = "not_allowed"
"""Type of the error that `allowed` gives; its message says what is allowed."""


class Settings(BaseModel):
    """Base of settings: frozen, and without a key that is not named."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
Count = Annotated[int, Field(ge=1)]


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
    workers: Count | Literal["auto"] = "auto"
    threads: Count = 1
    batch_size: Count | Literal["auto"] = "auto"
    memory_gb: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"


def allowed(check: Callable[[Any], bool], words: str, convert: Callable[[Any], Any] = lambda value: value) -> Any:
    """Return a validator for a field that takes what `check` passes, and is told in `words` what that is."""

    def validate(value: Any) -> Any:
        if not check(value):
            raise PydanticCustomError(NOT_ALLOWED, "{words}", {"words": words})
        return convert(value)

    return BeforeValidator(validate)


def usable_cores() -> int:
    """Return how many cores this process may use; macOS does not say, and has them all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
