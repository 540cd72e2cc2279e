"""Experts with other weights, named EXPERT+TAG: versions made here, and files that a study gives.

A version made here (`stmem+ipastmem`, `ecgfm+ptbxl_super`) is a folder under weights/versions: model.safetensors under
the official keys, and version.json, which says what it was made from. Any other EXPERT+TAG is the expert with weights
that a study names: `ecgfm+mine: {weights: mine.pt}` beside `ecgfm`. Lives here: finding and reading them. Not here:
making them (`stages.training.versions`).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from cache.errors import StoreError, UsageError
from cache.patients import training_entry
from stages.experts.checkpoint_files import PACKAGE_FOLDER
from stages.experts.contract import Expert, ExpertSpec, WeightsSource, patients_key

VERSIONS = Path("weights/versions")
"""Where versions lie, relative to the study (the current folder)."""
WEIGHTS_FILE, FACTS_FILE = "model.safetensors", "version.json"
SEEN_FILE = "seen_patients.npy"
"""uint64, ascending: digests of the patients that the version was trained or selected on."""
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
    "shortest_s",
    "longest_s",
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
    """Whether `name` is EXPERT+TAG rather than an expert's own name."""
    return "+" in name


def is_trained_version(name: str) -> bool:
    """Whether `name` is a version that lies under weights/versions, rather than weights that a study names."""
    return is_version(name) and (version_folder(name) / FACTS_FILE).is_file()


def version_folder(name: str) -> Path:
    """Return the folder of a version, there or not.

    Raises
    ------
    UsageError
        A name that is none.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"'{name}': a version is named EXPERT+TAG, such as stmem+ipastmem")
    return VERSIONS / name


def check_version_name(name: str, expert: str) -> None:
    """Refuse a name that a version of `expert` cannot have, before anything is trained.

    Raises
    ------
    UsageError
        Not EXPERT+TAG, of another expert, or the name of the expert itself that is adapted.
    """
    base = expert.partition("+")[0]
    if not _NAME.fullmatch(name):
        raise UsageError(f"--name {name}: a version is named EXPERT+TAG, such as {base}+mine")
    if name.partition("+")[0] != base:
        raise UsageError(f"--name {name}: a version of '{expert}' is named after it; write {base}+TAG")
    if name == expert:
        raise UsageError(f"--name {name}: that is the version to start from; write {expert}+TAG")


def list_versions() -> list[str]:
    """Names of the versions in this study."""
    found = VERSIONS.glob(f"*/{FACTS_FILE}") if VERSIONS.is_dir() else ()
    return sorted(path.parent.name for path in found if _NAME.fullmatch(path.parent.name))


def unknown_version(name: str) -> UsageError:
    """Return the error for an EXPERT+TAG that is neither made here nor given weights."""
    made = ", ".join(list_versions()) or "none"
    return UsageError(
        f"no expert version '{name}' in {VERSIONS} (made here: {made}); make it with pretrain or posttrain, or name "
        f"its weights: experts.{name}.weights in params.yaml, or --weights"
    )


def read_version(name: str) -> Version:
    """Read the facts of a version that was made here.

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
        raise unknown_version(name)
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
    """Return the class of an EXPERT+TAG, and the size of its base."""
    if not is_trained_version(name):
        version_folder(name)
        base, variant = base_of(name.partition("+")[0])
        return _with_given_weights(base, name), variant
    version = read_version(name)
    if is_version(version.base):
        raise StoreError(f"{version.folder / FACTS_FILE}: its base '{version.base}' is a version itself; make it again")
    base, variant = base_of(version.base)
    return _subclass(base, version), variant


def _with_given_weights(base: type[Expert], name: str) -> type[Expert]:
    """Return an expert under another name, whose weights a study names."""

    class GivenWeights(base):  # type: ignore[misc, valid-type]
        @classmethod
        def published_spec(cls, variant: str | None = None) -> ExpertSpec:
            return _given(super().published_spec(variant), name)

        @classmethod
        def build(
            cls,
            config: Mapping[str, Any] | None,
            state: Mapping[str, Tensor] | None,
            *,
            variant: str | None = None,
            preprocessing: str | None = None,
        ) -> Expert:
            expert = super().build(config, state, variant=variant, preprocessing=preprocessing)
            expert.spec = _given(expert.spec, name)
            return expert

    GivenWeights.__name__ = GivenWeights.__qualname__ = base.__name__
    return GivenWeights


def _given(spec: ExpertSpec, name: str) -> ExpertSpec:
    """Return a spec under another name; licence and records seen stay the base's, which is the cautious reading."""
    source = spec.weights
    if source is not None:
        note = f"a file of your own: experts.{name}.weights in params.yaml"
        source = WeightsSource("", source.filename, "", note=note, companions=source.companions)
    return dataclasses.replace(spec, name=name, title=f"{spec.title} (weights of this study)", weights=source)


def _subclass(base: type[Expert], version: Version) -> type[Expert]:
    first = version.preprocessing or base.preprocessing_variants[0]

    class VersionOf(base):  # type: ignore[misc, valid-type]
        preprocessing_variants = (first, *(n for n in base.preprocessing_variants if n != first))

        @classmethod
        def published_spec(cls, variant: str | None = None) -> ExpertSpec:
            spec = super().published_spec(variant)
            facts = {n: _tuples(v) for n, v in version.facts["spec"].items() if n in SPEC_FACTS}
            return _renamed(dataclasses.replace(spec, **facts), version)

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


def labelled_training(name: str, published: ExpertSpec, weights_sha256: str) -> list[dict[str, Any]]:
    """Say whose labels have trained an expert, as its stores keep it; nothing where nobody knows.

    Parameters
    ----------
    published
        Spec of the expert that `name` is, or is a version of.
    weights_sha256
        Of the weights in use: others than the published ones have learnt from nobody knows whom.
    """
    found, source = [], published.weights
    in_use = source is not None and source.sha256 == weights_sha256
    if is_trained_version(name):
        version = read_version(name)
        in_use = bool(version.facts["pretrained_on"])  # else it began with random weights
        if "posttrain" in _made_by(version):
            digests = np.load(version.folder / SEEN_FILE, allow_pickle=False)
            found.append(training_entry(version.facts["cohort"]["sources"], digests))
    if source is not None and source.labelled and in_use:
        digests = np.load(PACKAGE_FOLDER / source.patients, allow_pickle=False)
        found.append(training_entry(published.pretrained_on, digests, patients_key(published)))
    return found


def _made_by(version: Version) -> list[str]:
    """Return by which stages a version and those before it were made."""
    stages, parent = [version.facts["made_by"]], version.facts["parent"]
    while parent is not None and is_trained_version(parent):
        facts = read_version(parent).facts
        stages.append(facts["made_by"])
        parent = facts["parent"]
    return stages
