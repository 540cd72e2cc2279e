"""Building an expert from a checkpoint file, and saying what is in a file that does not fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from cache.errors import EnsembleError, WeightsError
from stages.experts.checkpoint_files import WRAPPERS, read_checkpoint, unwrap

if TYPE_CHECKING:
    from stages.experts.contract import Expert

MAX_CANDIDATES = 6
"""Parts of a file that are tried where the whole does not fit."""
MIN_ALIKE = 0.5
"""Share of a file's keys that another expert must have for the file to be taken for that expert's."""
DEPTH = 3

Build = Callable[[Mapping[str, Tensor]], "Expert"]


class Part(NamedTuple):
    """Tensors in a checkpoint that might be the weights: under the names `path`, their keys beginning with `prefix`."""

    path: tuple[str, ...]
    prefix: str
    state: dict[str, Tensor]

    def __str__(self) -> str:
        """Name the part as a person finds it in the file."""
        where = "".join(f"[{name!r}]" for name in self.path)
        return " with ".join(part for part in (where, f"the prefix '{self.prefix}'" if self.prefix else "") if part)


def build_from_file(
    cls: type[Expert],
    path: Path,
    config: Mapping[str, Any] | None,
    *,
    variant: str | None = None,
    preprocessing: str | None = None,
) -> Expert:
    """Build an expert from a checkpoint file under its official keys, strictly.

    Raises
    ------
    WeightsError
        A file that does not fit. The message says which keys there are, which part of the file would fit and how to
        take it, or whose weights they look like.
    """
    content = read_checkpoint(path)

    def build(state: Mapping[str, Tensor]) -> Expert:
        return cls.build(config, state, variant=variant, preprocessing=preprocessing)

    state, name = unwrap(content), cls.published_spec(variant).name
    try:
        if not state:
            raise WeightsError(f"expert '{name}': holds no tensors under {', '.join(WRAPPERS)}")
        return build(state)
    except WeightsError as error:
        raise WeightsError(f"expert '{name}': {_explained(error, name, content, path, build)}") from error


def _explained(error: WeightsError, name: str, content: Mapping[str, Any], path: Path, build: Build) -> str:
    """Say what is in the file, and what of it fits or whose it looks like; the error itself where neither is known."""
    parts = list(_parts(content))
    fitting = [part for part in parts[:MAX_CANDIDATES] if _fits(build, part.state)]
    if fitting:
        found = " and ".join(f"what is under {part}" for part in fitting)
        return f"{path} does not fit as it is ({_listed(content)}), but {found} would: {_recipe(fitting[0], path)}"
    reason = re.sub(r"^expert '[^']+': ", "", str(error))
    named = whose(max(unwrap(content), *(part.state for part in parts), key=len) if parts else unwrap(content))
    if named and named != name:
        return f"{path} looks like weights of expert '{named}' ({_listed(content)}); give that expert's ({reason})"
    return f"{path} ({_listed(content)}): {reason}"


def _fits(build: Build, state: Mapping[str, Tensor]) -> bool:
    try:
        build(state)
    except Exception:  # noqa: BLE001 - a part that is not the weights may provoke anything
        return False
    return True


def _parts(content: Mapping[str, Any]) -> Iterator[Part]:
    """Give the mappings of tensors in a checkpoint, each also without a first part that many of its keys share."""
    for path, state in _mappings(content, ()):
        if path:
            yield Part(path, "", state)
        for prefix in _prefixes(state):
            yield Part(path, prefix, {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})


def _mappings(content: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    state = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if state:
        yield path, state
    for key, value in content.items():
        if isinstance(value, Mapping) and isinstance(key, str) and len(path) < DEPTH:
            yield from _mappings(value, (*path, key))


def _prefixes(state: Mapping[str, Tensor]) -> list[str]:
    """Return first parts of keys, such as `model.` or `student.backbone.`, those of most keys first."""
    counts: dict[str, int] = {}
    for key in state:
        names = key.split(".")
        for k in range(1, min(len(names), DEPTH + 1)):
            prefix = ".".join(names[:k]) + "."
            counts[prefix] = counts.get(prefix, 0) + 1
    ordered = sorted(counts, key=lambda prefix: (-counts[prefix], prefix.count(".")))
    return [prefix for prefix in ordered if counts[prefix] >= max(2, len(state) // 10)][:DEPTH]


def _listed(content: Mapping[str, Any]) -> str:
    """Say which keys a file has: a few names of tensors, or what they lie under."""
    found = list(_mappings(content, ()))
    if not found:
        return f"no tensors, but {', '.join(map(str, list(content)[:8])) or 'nothing'}"
    described = []
    for path, state in found[:4]:
        where = "".join(f"[{name!r}]" for name in path)
        described.append(f"{'under ' + where + ' ' if where else ''}{len(state)} key(s) such as {next(iter(state))}")
    return ", ".join(described)


def _recipe(part: Part, path: Path) -> str:
    """Return the line of Python that writes a part as a file of its own."""
    n = len(part.prefix)
    taken = f"read_checkpoint({str(path)!r})" + "".join(f"[{name!r}]" for name in part.path)
    if n:
        taken = f"{{k[{n}:]: v for k, v in {taken}.items() if k.startswith({part.prefix!r})}}"
    return (
        f"write it to a file with torch.save({taken}, 'weights.pt') and give that (read_checkpoint is in "
        "stages.experts.checkpoint_files)"
    )


def whose(state: Mapping[str, Tensor]) -> str:
    """Return the name of the expert whose keys a state dict has, "" where it is none's."""
    from stages.experts.registry import list_experts

    best, most = "", (MIN_ALIKE * max(1, len(state)), 0)
    for name in list_experts():
        keys = _official_keys(name)
        shared = [key for key in keys if key in state]
        found = (len(shared), sum(state[key].shape == keys[key] for key in shared))
        if found > most:
            best, most = name, found
    return best


def _official_keys(name: str) -> dict[str, torch.Size]:
    """Return the keys and shapes of an expert's published weights; none where it has no weights of its own."""
    from stages.experts.registry import expert_class

    try:
        cls, variant = expert_class(name)
        if not cls.published_spec(variant).needs_weights or "+" in name:
            return {}
        with torch.device("meta"):
            module = cls.build(None, None, variant=variant).module
    except EnsembleError:
        return {}
    return {} if module is None else {key: value.shape for key, value in module.state_dict().items()}
