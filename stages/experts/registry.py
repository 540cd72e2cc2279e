"""Which experts exist, and how one is loaded. One is found by its file, or by an entry point `ensemble.experts`."""

from __future__ import annotations

import importlib
import logging
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from cache.errors import UsageError, WeightsError
from stages.experts.checkpoints import find_weights
from stages.experts.contract import Expert, ExpertSpec
from stages.experts.versions import is_version, list_versions, version_class

ENTRY_POINT_GROUP = "ensemble.experts"
MODELS = "stages.experts.models"
"""Where the experts' files lie, each named as its expert (an underscore for a hyphen)."""
_REGISTRY: dict[str, type[Expert]] = {}
_LOG = logging.getLogger(__name__)


def register(name: str) -> Callable[[type[Expert]], type[Expert]]:
    """Class decorator: make an expert known under `name` (and `name-variant` for each of its variants).

    Raises
    ------
    UsageError
        Another package takes the name of an expert of this one.
    """

    def wrap(cls: type[Expert]) -> type[Expert]:
        if not cls.__module__.startswith(MODELS) and name in _built_in():
            raise UsageError(f"{cls.__module__} registers expert '{name}', which exists already; choose another name")
        _REGISTRY[name] = cls
        return cls

    return wrap


def _built_in() -> dict[str, str]:
    """Map the name that an expert's file has -> module path, without importing any of them."""
    package = importlib.import_module(MODELS)
    found = pkgutil.walk_packages(package.__path__, f"{MODELS}.")
    return {module.name.rpartition(".")[2].replace("_", "-"): module.name for module in found if not module.ispkg}


def _third_party() -> dict[str, EntryPoint]:
    """Map the names that installed packages announce -> entry point; the names of this package's experts are taken."""
    taken = _built_in()
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP) if point.name not in taken}


def list_experts() -> list[str]:
    """Names of every expert that `load_expert` knows: sizes (`moment-base`) and this study's versions included.

    An installed package whose expert cannot be imported is left out, with one line of warning.
    """
    names: list[str] = []
    for name in sorted({*_built_in(), *_third_party()}):
        try:
            cls = _class_of(name)
        except UsageError as error:
            _warn_once(str(error))
            continue
        names.append(name)
        names += [f"{name}-{variant}" for variant in cls.variants[1:]]
    return names + list_versions()


@cache
def _warn_once(message: str) -> None:
    _LOG.warning("%s", message)


def expert_class(name: str) -> tuple[type[Expert], str | None]:
    """Find the class and the size that `name` means.

    Raises
    ------
    UsageError
        No such expert; the message lists those that exist. Or one of another package that cannot be imported.
    """
    if is_version(name):
        return version_class(name, expert_class)
    known = {*_built_in(), *_third_party()}
    for base, variant in _readings(name):
        if base in known:
            cls = _class_of(base)
            if not variant or variant in cls.variants:
                return cls, variant or (cls.variants[0] if cls.variants else None)
    raise UsageError(f"unknown expert '{name}'; there are: {', '.join(list_experts())}")


def _readings(name: str) -> list[tuple[str, str]]:
    """Split a name into expert and size at each hyphen, longest expert first."""
    parts = name.split("-")
    return [("-".join(parts[:k]), "-".join(parts[k:])) for k in range(len(parts), 0, -1)]


def _class_of(name: str) -> type[Expert]:
    path = _built_in().get(name)
    if path is not None:
        module = importlib.import_module(path)
        if name not in _REGISTRY:
            raise UsageError(
                f"{module.__file__} registers no expert '{name}': write @register('{name}') before its class"
            )
        return _REGISTRY[name]
    return _load_third_party(_third_party()[name])


def _load_third_party(point: EntryPoint) -> type[Expert]:
    """Import another package's expert, and look at it as far as the table of experts will.

    Raises
    ------
    UsageError
        Whatever goes wrong in there, naming the package.
    """
    package = point.dist.name if point.dist else point.value
    try:
        cls = point.load()
        if isinstance(cls, ModuleType):
            cls = _REGISTRY[point.name]
        if not issubclass(cls, Expert):
            raise TypeError(f"{point.value} is no subclass of stages.experts.Expert")
        for variant in cls.variants or (None,):
            if not isinstance(cls.published_spec(variant), ExpertSpec):
                raise TypeError(f"{point.value}.published_spec gives no ExpertSpec")
    except Exception as error:  # somebody else's code: anything may happen
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(
            f"expert '{point.name}' of package '{package}' cannot be used ({reason}); update or uninstall that package"
        ) from error
    return cls


def load_expert(
    name: str,
    weights: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    device: str | torch.device = "cpu",
    *,
    preprocessing: str | None = None,
    random_weights: bool = False,
    trainable: bool = False,
) -> Expert:
    """Load one expert on `device`, frozen and in eval mode unless it is to be trained.

    Parameters
    ----------
    name
        One of `list_experts()`.
    weights
        An official checkpoint (.pt, .pth, .ckpt, .bin, .safetensors) with the official key names, or a folder that
        holds one. None: where the expert needs weights, the model hub's file at the pinned revision (from the local hub
        cache, or downloaded).
    config
        Architecture overrides under the official names.
    preprocessing
        One of the expert's `preprocessing_variants`.
    random_weights
        Take random weights (torch's current seed) instead of published ones: for tests and benchmarks only.
    trainable
        Leave the parameters to an optimiser, and the layers as they were built.

    Raises
    ------
    UsageError
        Unknown expert or preprocessing.
    WeightsError
        Weights that cannot be had or do not match, with the missing and unexpected keys.
    """
    cls, variant = expert_class(name)
    if preprocessing is not None and preprocessing not in cls.preprocessing_variants:
        known = ", ".join(cls.preprocessing_variants)
        raise UsageError(f"expert '{name}' has no preprocessing '{preprocessing}'; it has: {known}")
    spec = cls.published_spec(variant)
    if spec.needs_weights and not random_weights:
        path = find_weights(spec, weights)
        expert = cls.build_from_path(path, config, variant=variant, preprocessing=preprocessing)
        return _placed(expert, torch.device(device), trainable)
    if weights is not None and not random_weights:
        raise WeightsError(f"expert '{name}' takes no weights; remove the option (got {weights})")
    if weights is not None:
        raise UsageError(
            f"expert '{name}': random_weights and weights ({weights}) exclude each other; give one of them"
        )
    expert = cls.build(config, None, variant=variant, preprocessing=preprocessing)
    return _placed(expert, torch.device(device), trainable)


def _placed(expert: Expert, device: torch.device, trainable: bool) -> Expert:
    """Put an expert on a device, frozen unless it is to be trained."""
    expert.device = device
    if expert.module is not None and trainable:
        expert.module.to(expert.device)
    elif expert.module is not None:
        expert.module.to(expert.device).eval().requires_grad_(False)
        if expert.device.type == "cpu":
            from stages.experts.networks.parts.onednn import use_onednn

            use_onednn(expert.module)
    return expert
