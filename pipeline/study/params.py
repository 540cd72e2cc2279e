"""params.yaml: what it may say, checked. Unknown keys are refused by name; every key is described in docs/params.md."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AliasChoices, BaseModel, Field, ValidationError

from cache.errors import MissingFileError, UsageError
from stages.evaluate.settings import EvaluateSection
from stages.fit_heads.settings import FitHeadsSection
from stages.ingest.settings import CohortSection
from stages.settings import NOT_ALLOWED, Machine, Settings, allowed
from stages.synthetic.settings import GenerateSettings

PARAMS_FILE = "params.yaml"
DEFAULT_WEIGHTS = "weights/default"
"""Marker file of a study: this expert takes no weights, or the published ones from the model hub."""
SIGNALS, EMBEDDINGS = "signals.zarr", "embeddings"
"""Where the stores lie if params.yaml does not say: in the study's folder."""


class ExpertParams(Settings):
    """One expert of the ensemble."""

    weights: str = DEFAULT_WEIGHTS
    config: dict[str, Any] = Field(default_factory=dict)
    preprocessing: str | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    dtype: Literal["float16", "float32"] | None = None
    accept_licence: bool = Field(default=False, validation_alias=AliasChoices("accept_licence", "accept_license"))
    views: tuple[Literal["segments", "std", "max", "last"], ...] = ()


class Embed(Settings):
    """How stores of embeddings are written; none of it changes a vector."""

    shard_records: int = Field(default=1024, ge=1)
    max_bad: int | None = Field(default=None, ge=0)


class TrainingSection(Settings):
    """How a network is trained: what `pretrain` and `posttrain` share."""

    epochs: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=256, ge=1)
    learning_rate: float | None = Field(default=None, gt=0)
    weight_decay: float | None = Field(default=None, ge=0)
    seed: int | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    micro_batch: int | None = Field(default=None, ge=1)
    gradient_checkpointing: bool = False
    checkpoint_seconds: float = Field(default=60, ge=0)
    config: dict[str, Any] = Field(default_factory=dict)


class PretrainSection(TrainingSection):
    """One version to pretrain; see docs/pretraining.md."""

    expert: str = "stmem"
    variant: str = ""
    size: str = ""
    preprocessing: str = ""
    leads: str = ""
    warmup_epochs: float | None = Field(default=None, ge=0)


class PosttrainSection(TrainingSection):
    """One version to post-train; see docs/pretraining.md."""

    expert: str = ""
    task: str = ""
    weights: str | None = None
    preprocessing: str | None = None
    batch_size: int = Field(default=64, ge=1)
    min_learning_rate: float | None = Field(default=None, ge=0)
    probing: bool = True
    drop_path: float = Field(default=0.5, ge=0, lt=1)
    drop_path_schedule: Literal["constant", "linear"] = "constant"
    dropout: float | None = Field(default=None, ge=0, lt=1)
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    ema: float = Field(default=0.0, ge=0, lt=1)
    select: Literal["best", "last"] = "best"
    fractions: tuple[float, ...] = (1.0,)
    seeds: tuple[int, ...] | None = None


def _is_tasks(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and all(isinstance(name, str) for name in value)
    return bool(value == "all")


class Params(Settings):
    """The whole file."""

    seed: int = 0
    machine: Machine = Machine()
    generate: GenerateSettings = GenerateSettings()
    cohort: CohortSection
    signals: str = SIGNALS
    embeddings: str = EMBEDDINGS
    experts: dict[str, ExpertParams]
    pretrain: dict[str, PretrainSection] = Field(default_factory=dict)
    posttrain: dict[str, PosttrainSection] = Field(default_factory=dict)
    embed: Embed = Embed()
    tasks: Annotated[
        tuple[str, ...] | Literal["all"], allowed(_is_tasks, "all, or a list of target columns such as [age, sex]")
    ] = "all"
    fit_heads: FitHeadsSection = FitHeadsSection()
    evaluate: EvaluateSection = EvaluateSection()


def read_params(folder: Path = Path()) -> Params:
    """Read and check params.yaml of a study.

    Raises
    ------
    MissingFileError
        No params.yaml there.
    UsageError
        Not YAML, an unknown key (with the nearest known one), or a value that is not allowed.
    """
    path = folder / PARAMS_FILE
    if not path.is_file():
        raise MissingFileError(f"no {PARAMS_FILE} in {folder.resolve()}; make a study with `ensemble init FOLDER`")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected keys such as cohort and experts, found {type(content).__name__}")
    for name, entry in (content.get("experts") or {}).items() if isinstance(content.get("experts"), dict) else ():
        if entry is None:
            content["experts"][name] = {}
    _refuse_moved(path, content)
    try:
        params = Params.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"{path}: {_one_line(error)}") from error
    for key, default in (("signals", SIGNALS), ("embeddings", EMBEDDINGS)):
        _check_location(path, key, getattr(params, key), default)
    return params


Section = TypeVar("Section", bound=Settings)


def overridden(kind: type[Section], section: Section | None, options: Mapping[str, Any]) -> Section:
    """Lay the options that were given on the command line over a section of params.yaml, checked.

    Raises
    ------
    UsageError
        A value that is not allowed, under the name of its option.
    """
    given = {key: value for key, value in options.items() if value is not None}
    try:
        return kind.model_validate({**(section.model_dump() if section else {}), **given})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise UsageError(f"{option} {first['input']}: {first['msg'].lower()}") from error


def _check_location(path: Path, key: str, location: str, default: str) -> None:
    """Refuse a folder that dvc.yaml does not name: `dvc repro` would watch the default one, and find nothing there."""
    if "://" not in location and Path(location) != Path(default):
        raise UsageError(
            f"{path}: {key}: {location} is a folder that dvc.yaml does not watch; leave the key out, or give a URL "
            "such as s3://bucket/study (docs/scaling.md)"
        )


MOVED = {
    "cohort.workers": "machine.workers",
    "embed.device": "machine.device",
    "embed.workers": "machine.workers",
    "embed.threads": "machine.threads",
    "embed.batch_size": "machine.batch_size",
    "fit_heads.options.device": "machine.device",
    "fit_heads.options.memory_gb": "machine.memory_gb",
    "pretrain.*.device": "machine.device",
    "posttrain.*.device": "machine.device",
}
"""Keys of version 0.1 that lie elsewhere now: what changes no result is in a section that DVC does not watch."""


def _refuse_moved(path: Path, content: dict[str, Any]) -> None:
    for old, new in MOVED.items():
        for found in _matches(content, old.split(".")):
            raise UsageError(f"{path}: {found} is {new} now; move it there (docs/params.md)")


def _matches(content: Any, parts: list[str], above: str = "") -> Iterator[str]:
    """Give the full names of the keys that a pattern with `*` means."""
    if not isinstance(content, dict):
        return
    names = list(content) if parts[0] == "*" else [name for name in (parts[0],) if name in content]
    for name in names:
        if len(parts) == 1:
            yield f"{above}{name}"
        else:
            yield from _matches(content[name], parts[1:], f"{above}{name}.")


def _one_line(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"unknown key '{where}'{_suggestion(first['loc'])}{more}"
    if first["type"] == NOT_ALLOWED:
        return f"{where} {first['input']!r} is not allowed; it must be {first['msg']}{more}"
    return f"{where}: {first['msg'].lower()}, got {first['input']!r}{more}"


_NAMED: dict[str, type[BaseModel]] = {
    "experts": ExpertParams,
    "pretrain": PretrainSection,
    "posttrain": PosttrainSection,
}
"""Sections whose keys are names of one's own."""


def _suggestion(location: tuple[int | str, ...]) -> str:
    section: type[BaseModel] = Params
    for part in location[:-1]:
        if section is Params and part in _NAMED:
            section = _NAMED[str(part)]
        elif str(part) in section.model_fields:
            inner = section.model_fields[str(part)].annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                section = inner
    near = difflib.get_close_matches(str(location[-1]), section.model_fields, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(section.model_fields)}"
