"""params.yaml: what it may say, checked. Unknown keys are refused by name; every key is described in docs/params.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError

from cache.errors import MissingFileError, UsageError
from pipeline.study.cohorts import as_one_cohort
from stages.ecg_map.settings import MapSection
from stages.embed.settings import EmbedSection, ExpertSection
from stages.evaluate.settings import EvaluateSection
from stages.external.settings import ExternalFit
from stages.fit_heads.settings import FitHeadsSection
from stages.ingest.settings import CohortSection
from stages.leaderboard.settings import LeaderboardSection
from stages.posttrain.settings import PosttrainSection, refused_crop
from stages.pretrain.settings import PretrainSection
from stages.report.settings import ReportSection
from stages.robustness.settings import RobustnessSection
from stages.settings import Machine, Settings, allowed, first_fault, nearest
from stages.synthetic.settings import GenerateSettings

PARAMS_FILE = "params.yaml"
RECORDS, SIGNALS, EMBEDDINGS = "records.parquet", "signals.zarr", "embeddings"
"""Where the stores lie if params.yaml does not say: in the study's folder."""
INGESTED = "ingested.json"
"""Stands in a study for what `ingest` has written into a bucket."""


def _is_tasks(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and all(isinstance(name, str) for name in value)
    return bool(value == "all")


class EvaluateParams(EvaluateSection):
    """Section `evaluate`: of this study's own fit, and of the fits of others that are judged here."""

    fits: dict[str, ExternalFit] = Field(default_factory=dict)


class Params(Settings):
    """The whole file."""

    seed: int = 0
    machine: Machine = Machine()
    generate: GenerateSettings = GenerateSettings()
    cohort: CohortSection
    records: str = RECORDS
    signals: str = SIGNALS
    embeddings: str = EMBEDDINGS
    experts: dict[str, ExpertSection]
    pretrain: dict[str, PretrainSection] = Field(default_factory=dict)
    posttrain: dict[str, PosttrainSection] = Field(default_factory=dict)
    embed: EmbedSection = EmbedSection()
    tasks: Annotated[
        tuple[str, ...] | Literal["all"], allowed(_is_tasks, "all, or a list of target columns such as [age, sex]")
    ] = "all"
    fit_heads: FitHeadsSection = FitHeadsSection()
    evaluate: EvaluateParams = EvaluateParams()
    report: ReportSection = ReportSection()
    robustness: dict[str, RobustnessSection] = Field(default_factory=dict)
    maps: dict[str, MapSection] = Field(default_factory=dict)
    leaderboard: dict[str, LeaderboardSection] = Field(default_factory=dict)


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
    content = as_one_cohort(path, content)
    try:
        params = Params.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"{path}: {_one_line(error)}") from error
    for key, default in (("records", RECORDS), ("signals", SIGNALS), ("embeddings", EMBEDDINGS)):
        _check_location(path, key, getattr(params, key), default)
    for name, section in params.posttrain.items():
        if section.crop_s is not None:
            _check_crop(f"{path}: posttrain.{name}.crop_s", section, params.experts.get(section.expert))
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
        raise UsageError(option_fault(error)) from error


def option_fault(error: ValidationError) -> str:
    """Return the line that says what is wrong with an option of the command line."""
    fault = first_fault(error)
    words = f"it must be {fault.words}" if fault.kind == "not allowed" else fault.words
    return f"--{str(fault.location[0]).replace('_', '-')} {fault.value}: {words}"


def _check_crop(key: str, section: PosttrainSection, expert: ExpertSection | None) -> None:
    """Refuse a crop that its expert does not take, as published; `posttrain` asks a network of another kind."""
    from stages.experts import expert_class  # which imports torch: only a study with crops pays for it

    try:
        cls, variant = expert_class(section.expert)
    except UsageError:  # a version that is yet to be made, or a misspelt expert, which its stage names
        return
    path = section.preprocessing or (expert.preprocessing if expert else None)
    if section.config or (expert and expert.config) or path not in (None, cls.preprocessing_variants[0]):
        return
    if reason := refused_crop(cls.published_spec(variant), section.crop_s):
        raise UsageError(f"{key} {reason}")


def _check_location(path: Path, key: str, location: str, default: str) -> None:
    """Refuse a place that dvc.yaml does not name: `dvc repro` would watch the default one, and find nothing there."""
    if "://" not in location and Path(location) != Path(default):
        raise UsageError(
            f"{path}: {key}: {location} is nothing that dvc.yaml watches; leave the key out, or give a URL "
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
    "robustness.records": "robustness.all.records",
    "robustness.kinds": "robustness.all.kinds",
    "robustness.mains_hz": "robustness.all.mains_hz",
    **{f"leaderboard.{name}": f"leaderboard.fm-benchmark.{name}" for name in LeaderboardSection.model_fields},
}
"""Keys of older versions that lie elsewhere now: what changes no result is in a section that DVC does not watch."""


def _refuse_moved(path: Path, content: dict[str, Any]) -> None:
    for old, new in MOVED.items():
        for found in matches(content, old.split(".")):
            raise UsageError(f"{path}: {found} is {new} now; move it there, or run `ensemble upgrade` (docs/params.md)")


def matches(content: Any, parts: list[str], above: str = "") -> Iterator[str]:
    """Give the full names of the keys that a pattern with `*` means."""
    if not isinstance(content, dict):
        return
    names = list(content) if parts[0] == "*" else [name for name in (parts[0],) if name in content]
    for name in names:
        if len(parts) == 1:
            yield f"{above}{name}"
        else:
            yield from matches(content[name], parts[1:], f"{above}{name}.")


def _one_line(error: ValidationError) -> str:
    fault = first_fault(error)
    more = f" (and {fault.n_more} more)" if fault.n_more else ""
    if fault.kind == "unknown":
        return f"unknown key '{fault.name}'{_suggestion(fault.location)}{more}"
    if fault.kind == "not allowed":
        return f"{fault.name} {fault.value!r} is not allowed; it must be {fault.words}{more}"
    return f"{fault.name}: {fault.words}, got {fault.value!r}{more}"


_NAMED: dict[str, type[BaseModel]] = {
    "experts": ExpertSection,
    "pretrain": PretrainSection,
    "posttrain": PosttrainSection,
    "maps": MapSection,
    "robustness": RobustnessSection,
    "leaderboard": LeaderboardSection,
}
"""Sections whose keys are names that the user chose."""


def _suggestion(location: tuple[int | str, ...]) -> str:
    section: type[BaseModel] = Params
    for part in location[:-1]:
        if section is Params and part in _NAMED:
            section = _NAMED[str(part)]
        elif str(part) in section.model_fields:
            inner = section.model_fields[str(part)].annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                section = inner
    near = nearest(str(location[-1]), section.model_fields)
    return f"; did you mean '{near}'?" if near else f"; known: {', '.join(section.model_fields)}"
