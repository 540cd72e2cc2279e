"""Which experts exist, and how one is loaded. An expert is found by its file (or by the entry point `ensemble.experts`)."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch

from cache.errors import UsageError, WeightsError
from stages.experts._base import Expert
from stages.experts._weights import read_state

ENTRY_POINT_GROUP = "ensemble.experts"
_REGISTRY: dict[str, type[Expert]] = {}


def register(name: str) -> Callable[[type[Expert]], type[Expert]]:
    """Class decorator: make an expert known under `name` (and `name-variant` for each of its variants)."""

    def wrap(cls: type[Expert]) -> type[Expert]:
        _REGISTRY[name] = cls
        return cls

    return wrap


def _modules() -> dict[str, str]:
    """Map expert file name -> module path, without importing any of them."""
    package = importlib.import_module("stages.experts")
    found = {m.name: f"stages.experts.{m.name}" for m in pkgutil.iter_modules(package.__path__) if m.name[0] != "_"}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        found.setdefault(point.name, point.value)
    return found


def list_experts() -> list[str]:
    """Names of every expert that `load_expert` knows, sizes included (`moment`, `moment-base`, ...)."""
    names: list[str] = []
    for name in sorted(_modules()):
        cls, _ = expert_class(name)
        names.append(name)
        names += [f"{name}-{variant}" for variant in cls.variants[1:]]
    return names


def expert_class(name: str) -> tuple[type[Expert], str | None]:
    """Find the class and the size that `name` means.

    Raises
    ------
    UsageError
        No such expert; the message lists those that exist.
    """
    modules = _modules()
    base, _, variant = name.partition("-")
    if name in modules:
        base, variant = name, ""
    if base in modules:
        module_path, _, attribute = modules[base].partition(":")
        module = importlib.import_module(module_path)
        cls = getattr(module, attribute) if attribute else _REGISTRY[base]
        if not variant or variant in cls.variants:
            return cls, variant or (cls.variants[0] if cls.variants else None)
    raise UsageError(f"unknown expert '{name}'; there are: {', '.join(list_experts())}")


def load_expert(
    name: str,
    weights: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    device: str | torch.device = "cpu",
    *,
    preprocessing: str | None = None,
    random_weights: bool = False,
) -> Expert:
    """Load one expert, frozen, in eval mode, on `device`.

    Parameters
    ----------
    name
        One of `list_experts()`.
    weights
        An official checkpoint (.pt, .pth, .ckpt, .bin, .safetensors) with the official key names, or a folder that holds
        one. None: where the expert needs weights, the model hub's file at the pinned revision (from the local hub
        cache, or downloaded).
    config
        Architecture overrides under the official names.
    preprocessing
        One of the expert's `preprocessing_variants`.
    random_weights
        Take random weights (torch's current seed) instead of published ones: for tests and benchmarks only.

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
    state = None
    if spec.needs_weights and not random_weights:
        state = read_state(spec, weights)
    elif weights is not None:
        raise WeightsError(f"expert '{name}' takes no weights; remove the option (got {weights})")
    expert = cls.build(config, state, variant=variant, preprocessing=preprocessing)
    expert.device = torch.device(device)
    if expert.module is not None:
        expert.module.to(expert.device).eval().requires_grad_(False)
    return expert
