"""params.yaml: what it may say, checked. Unknown keys are refused by name; every key is described in docs/params.md."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cache.errors import MissingFileError, UsageError

PARAMS_FILE = "params.yaml"
DEFAULT_WEIGHTS = "weights/default"
"""Marker file of a study: this expert takes no weights, or the published ones from the model hub."""
SIGNALS, EMBEDDINGS = "signals.zarr", "embeddings"
"""Where the stores lie if params.yaml does not say: in the study's folder."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Generate(_Section):
    """The embedded cohort (only the demonstration study generates one)."""

    records: int = Field(default=600, ge=1)
    seed: int = 0
    variety: float = Field(default=0.0, ge=0, le=2)


class Cohort(_Section):
    """Where the ECGs come from."""

    source: str
    path: str
    limit: int | None = Field(default=None, ge=1)
    workers: int = Field(default=1, ge=1)
    derive_leads: bool = False
    pace_spikes: bool = False
    seconds: Annotated[float, Field(ge=1, le=3600)] | Literal["all"] = 10.0
    options: dict[str, Any] = {}


class ExpertParams(_Section):
    """One expert of the ensemble."""

    weights: str = DEFAULT_WEIGHTS
    config: dict[str, Any] = {}
    preprocessing: str | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    dtype: Literal["float16", "float32"] | None = None
    accept_license: bool = False
    views: list[Literal["segments", "std", "max", "last"]] = []


class Embed(_Section):
    """How experts are run; none of it changes what they give, but `shard_records` changes the files."""

    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    shard_records: int = Field(default=1024, ge=1)
    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    threads: int = Field(default=1, ge=1)
    max_bad: int | None = Field(default=None, ge=0)


class Training(_Section):
    """How a network is trained: what `pretrain` and `posttrain` share."""

    epochs: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=256, ge=1)
    learning_rate: float | None = Field(default=None, gt=0)
    weight_decay: float | None = Field(default=None, ge=0)
    seed: int | None = None
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    micro_batch: int | None = Field(default=None, ge=1)
    gradient_checkpointing: bool = False
    checkpoint_seconds: float = Field(default=60, ge=0)
    config: dict[str, Any] = {}


class Pretrain(Training):
    """One version to pretrain; see docs/pretraining.md."""

    expert: str = "stmem"
    variant: str = ""
    size: str = ""
    preprocessing: str = ""
    leads: str = ""
    warmup_epochs: float | None = Field(default=None, ge=0)


class Posttrain(Training):
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
    fractions: list[float] = [1.0]
    seeds: list[int] | None = None


class FitHeads(_Section):
    """How heads and gate are trained; see docs/methods.md."""

    preset: Literal["default", "enecg"] = "default"
    folds: Literal["split", "all"] | Annotated[int, Field(ge=3)] = "split"
    options: dict[str, Any] = {}

    def folds_for(self, preset: str) -> str | int:
        """Return the folds asked for; the enecg preset has three, where params.yaml says nothing."""
        return 3 if preset == "enecg" and "folds" not in self.model_fields_set else self.folds


class Evaluate(_Section):
    """How the fit is judged."""

    bootstrap: int = Field(default=1000, ge=100)
    compare: bool = False
    fractions: list[Annotated[float, Field(gt=0, le=1)]] = []


class Params(_Section):
    """The whole file."""

    seed: int = 0
    generate: Generate = Generate()
    cohort: Cohort
    signals: str = SIGNALS
    embeddings: str = EMBEDDINGS
    experts: dict[str, ExpertParams]
    pretrain: dict[str, Pretrain] = {}
    posttrain: dict[str, Posttrain] = {}
    embed: Embed = Embed()
    tasks: list[str] | Literal["all"] = "all"
    fit_heads: FitHeads = FitHeads()
    evaluate: Evaluate = Evaluate()


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
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"{path}: {_one_line(error)}") from error


def _one_line(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"unknown key '{where}'{_suggestion(first['loc'])}{more}"
    return f"{where}: {first['msg'].lower()}, got {first['input']!r}{more}"


_NAMED: dict[str, type[BaseModel]] = {"experts": ExpertParams, "pretrain": Pretrain, "posttrain": Posttrain}
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
