"""Named expert versions made here: `stmem+ipastmem`, `ecgfm+ptbxl_super`. Each is a folder under weights/versions.

A version is its base expert with other weights: model.safetensors under the official keys, and version.json, which says
what it was made from. Lives here: finding and reading them. Not here: making them (`stages.training.versions`).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cache.errors import StoreError, UsageError
from stages.experts.contract import Expert, ExpertSpec, WeightsSource

VERSIONS = Path("weights/versions")
"""Where versions lie, relative to the study (the current folder)."""
WEIGHTS_FILE, FACTS_FILE = "model.safetensors", "version.json"
SCHEMA_VERSION = 1
_NAME = re.compile(r"[a-z0-9][A-Za-z0-9_-]*(\+[A-Za-z0-9][A-Za-z0-9_.-]*)+")
SPEC_FACTS = (
    "sampling_rate_hz",
    "seconds",
    "leads",
    "normalisation",
    "layer_names",
    "layer_dims",
    "embedding_dim",
    "output_dim",
    "parameters",
    "windows",
    "missing_leads",
)
"""What of a version's spec its configuration changes; kept in version.json so that the table needs no network."""


@dataclass(frozen=True)
class Version:
    """What version.json says of how to load one."""

    name: str
    base: str
    folder: Path
    config: Mapping[str, Any]
    preprocessing: str | None
    facts: Mapping[str, Any]
    """The whole of version.json."""


def is_version(name: str) -> bool:
    """Whether `name` means a version rather than an expert."""
    return "+" in name


def version_folder(name: str) -> Path:
    """Return the folder of a version, there or not.

    Raises
    ------
    UsageError
        A name that is none.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"--name {name}: a version is named EXPERT+TAG, such as stmem+ipastmem; write it so")
    return VERSIONS / name


def check_version_name(name: str, expert: str) -> None:
    """Refuse a name that a version of `expert` cannot have, before anything is trained.

    Raises
    ------
    UsageError
        Not EXPERT+TAG, of another expert, or the name of the expert itself that is adapted.
    """
    base = expert.partition("+")[0]
    version_folder(name)
    if name.partition("+")[0] != base:
        raise UsageError(f"--name {name}: a version of '{expert}' is named after it; write {base}+TAG")
    if name == expert:
        raise UsageError(f"--name {name}: that is the version to start from; write {expert}+TAG")


def list_versions() -> list[str]:
    """Names of the versions in this study."""
    found = VERSIONS.glob(f"*/{FACTS_FILE}") if VERSIONS.is_dir() else ()
    return sorted(path.parent.name for path in found if _NAME.fullmatch(path.parent.name))


def read_version(name: str) -> Version:
    """Read a version's facts.

    Raises
    ------
    UsageError
        There is no such version; the message lists those that are.
    StoreError
        A version.json that cannot be used.
    """
    folder = version_folder(name)
    path = folder / FACTS_FILE
    if not path.is_file():
        there = ", ".join(list_versions()) or "none"
        raise UsageError(f"no expert version '{name}' in {VERSIONS} (there: {there}); make it with pretrain/posttrain")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts["schema_version"] != SCHEMA_VERSION:
            raise StoreError(f"{path}: has schema_version {facts['schema_version']}; this program reads 1")
        return Version(name, facts["base"], folder, facts["config"], facts["preprocessing"], facts)
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: cannot be used ({type(error).__name__}: {error}); make the version again") from error


def version_class(
    name: str, base_of: Callable[[str], tuple[type[Expert], str | None]]
) -> tuple[type[Expert], str | None]:
    """Return the class of a version, and the size of its base."""
    version = read_version(name)
    if is_version(version.base):
        raise StoreError(f"{version.folder / FACTS_FILE}: its base '{version.base}' is a version itself; make it again")
    base, variant = base_of(version.base)
    return _subclass(base, version), variant


def _subclass(base: type[Expert], version: Version) -> type[Expert]:
    first = version.preprocessing or base.preprocessing_variants[0]

    class VersionOf(base):  # type: ignore[misc, valid-type]
        preprocessing_variants = (first, *(n for n in base.preprocessing_variants if n != first))

        @classmethod
        def published_spec(cls, variant: str | None = None) -> ExpertSpec:
            spec = super().published_spec(variant)
            told = {n: _tuples(v) for n, v in version.facts["spec"].items() if n in SPEC_FACTS}
            return _renamed(dataclasses.replace(spec, **told), version)

        @classmethod
        def build(
            cls,
            config: Mapping[str, Any] | None,
            state: Mapping[str, Tensor] | None,
            *,
            variant: str | None = None,
            preprocessing: str | None = None,
        ) -> Expert:
            merged = {**version.config, **(config or {})} or None
            expert = super().build(merged, state, variant=variant, preprocessing=preprocessing or first)
            expert.spec = _renamed(expert.spec, version)
            return expert

    VersionOf.__name__ = VersionOf.__qualname__ = base.__name__
    return VersionOf


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _renamed(spec: ExpertSpec, version: Version) -> ExpertSpec:
    """Tell a base's spec as the version's: its own name, parameters, weights and training."""
    made_by, n_parameters = version.facts["made_by"], version.facts["spec"]["parameters"]
    published = n_parameters == spec.published_parameters
    size = spec.title if published else f"{version.base} of {n_parameters:,} parameters"
    return dataclasses.replace(
        spec,
        name=version.name,
        title=f"{size}, {made_by}ed here",
        licence=version.facts["licence"],
        non_commercial=version.facts["non_commercial"],
        published_parameters=n_parameters,
        weights=WeightsSource("", WEIGHTS_FILE, "", note=f"made by `ensemble {made_by}` in {version.folder}"),
        pretrained_on=tuple(version.facts["pretrained_on"]),
    )
