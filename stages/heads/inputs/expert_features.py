"""What an expert's cached features may look like, and how they become one matrix per expert.

Lives here: reading the caller's arrays, layer mixing without parameters (authors' embedding, last, PPA), which records
an expert is absent for. Not here: the trained mixing of layers (`layers.pma`), standardisation (`inputs.scaler`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cache.errors import InputError, UsageError
from stages.heads.inputs.lazy_rows import READ_ROWS, ChosenRows, LazyRows, all_missing, has_infinity

PARTS = ("embedding", "last", "ppa", "pma", "std", "max", "last_token", "attention")
VIEWS = {"segments": 3, "std": 2, "max": 2, "last": 2}
"""Views of the tokens beside the means, and their axes; in `layer_mix`, the view `last` is `last_token`."""


@dataclass(frozen=True)
class ExpertFeatures:
    """One expert's arrays: `embedding` [n, d] and, where its layers are cached, `layers` [n, L, D], `embed` [n, D]."""

    embedding: np.ndarray | None
    layers: np.ndarray | None = None
    embed: np.ndarray | None = None
    """Mean of the tokens before block 1, which the PMA gate reads."""
    views: Mapping[str, Any] = field(default_factory=dict)
    """Of `VIEWS`, those that are cached: `segments` [n, second, D], the others [n, D]; may lie on disk."""

    def __len__(self) -> int:
        array = self.embedding if self.embedding is not None else self.layers
        return 0 if array is None else len(array)

    @property
    def size(self) -> int:
        """Number of values."""
        return sum(a.size for a in (self.embedding, self.layers, self.embed) if a is not None)

    @property
    def lazy(self) -> bool:
        """Whether any of the arrays lies on disk."""
        return any(isinstance(a, LazyRows) for a in (self.embedding, self.layers, self.embed))

    @property
    def present(self) -> np.ndarray:
        """Tell, bool [n], where the expert saw the record: False where every value is NaN."""
        array = self.embedding if self.embedding is not None else self.layers
        if array is None:
            return np.zeros(0, bool)
        parts = [all_missing(array[i : i + READ_ROWS]) for i in range(0, len(array), READ_ROWS)]
        return ~np.concatenate(parts) if parts else np.zeros(0, bool)

    def take(self, rows: Any) -> ExpertFeatures:
        """Select records."""
        embedding, layers, embed = (None if a is None else a[rows] for a in (self.embedding, self.layers, self.embed))
        views = {
            name: ChosenRows(view, rows) if isinstance(view, LazyRows) else view[rows]
            for name, view in self.views.items()
        }
        return ExpertFeatures(embedding, layers, embed, views)


def choose_rows(features: Mapping[str, Any], rows: np.ndarray) -> dict[str, Any]:
    """Select records of what `read_features` reads, without reading it: rows on disk stay there until asked for.

    >>> {name: x.tolist() for name, x in choose_rows({"a": np.arange(3.0)[:, None]}, np.array([2, 0])).items()}
    {'a': [[2.0], [0.0]]}
    """

    def chosen(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {part: None if array is None else chosen(array) for part, array in value.items()}
        if isinstance(value, LazyRows):
            return ChosenRows(value, rows)
        return value.take(rows) if isinstance(value, ExpertFeatures) else np.asarray(value)[rows]

    return {name: chosen(value) for name, value in features.items()}


def read_features(features: Mapping[str, Any]) -> dict[str, ExpertFeatures]:
    """Read a dict expert -> [n, d] array, or expert -> {"layers", "embedding", "embed", views} (any of them absent).

    Raises
    ------
    InputError
        No expert, shapes that do not fit, experts of different numbers of records, infinite values.
    """
    if not features:
        raise InputError("no features: give a dict of expert name -> array")
    out = {name: _read_expert(name, value) for name, value in features.items()}
    sizes = {name: len(f) for name, f in out.items()}
    if len(set(sizes.values())) != 1:
        listed = ", ".join(f"{k} {v}" for k, v in sizes.items())
        raise InputError(f"experts disagree on the number of records: {listed}")
    return out


def _read_expert(name: str, value: Any) -> ExpertFeatures:
    arrays = {"embedding": value}
    if isinstance(value, ExpertFeatures):
        arrays = {**{k: getattr(value, k) for k in ("embedding", "layers", "embed")}, **value.views}
    elif isinstance(value, Mapping):
        unknown = set(value) - {"layers", "embedding", "embed", *VIEWS}
        if unknown:
            known = ", ".join(("layers", "embedding", "embed", *VIEWS))
            raise InputError(f"expert '{name}': features have no part '{sorted(unknown)[0]}'; there are {known}")
        arrays = dict(value)
    elif np.ndim(value) == 3:
        arrays = {"layers": value}
    read = {k: None if v is None else _float_array(name, k, v) for k, v in arrays.items()}
    for part, dims in (("embedding", 2), ("layers", 3), ("embed", 2), *VIEWS.items()):
        array = read.get(part)
        if array is not None and array.ndim != dims:
            raise InputError(f"expert '{name}': {part} has shape {array.shape}, expected {dims} dimensions")
    if read.get("embedding") is None and read.get("layers") is None:
        raise InputError(f"expert '{name}': neither embedding nor layers are given")
    views = {part: read[part] for part in VIEWS if read.get(part) is not None}
    return ExpertFeatures(read.get("embedding"), read.get("layers"), read.get("embed"), views)


def _float_array(name: str, part: str, value: Any) -> Any:
    array = value if isinstance(value, LazyRows) else np.asarray(value)
    if array.dtype.kind != "f":
        array = np.asarray(array).astype(np.float32)
    if part in VIEWS and isinstance(array, LazyRows):
        return array  # read by the methods that ask for it alone
    if any(has_infinity(array[i : i + READ_ROWS]) for i in range(0, len(array), READ_ROWS)):
        raise InputError(f"expert '{name}': {part} holds infinite values; write NaN for what is missing")
    return array


def parse_mix(layer_mix: str) -> tuple[str, ...]:
    """Read "ppa", "embedding+ppa" ... ("authors" means the embedding alone).

    Raises
    ------
    UsageError
        A part that does not exist.
    """
    parts = tuple(p.strip() for p in layer_mix.replace("authors", "embedding").split("+"))
    wrong = [p for p in parts if p not in PARTS]
    if wrong:
        raise UsageError(f"layer_mix '{layer_mix}': '{wrong[0]}' is none of {', '.join(PARTS)} (joined by +)")
    return parts


def mix_layers(
    name: str,
    features: ExpertFeatures,
    parts: tuple[str, ...],
    trained: Mapping[str, np.ndarray] | None = None,
) -> np.ndarray:
    """Build the feature matrix [n, d] of one expert: the parts asked for that it has, side by side.

    An expert without cached layers gives its embedding, and one without an embedding its layers' mean. `trained`
    holds what was trained, "pma" and "attention" [n, D], where they are asked for.
    """
    columns = []
    for part in parts:
        if part == "embedding" and features.embedding is not None:
            columns.append(np.asarray(features.embedding, np.float32))
        elif trained is not None and part in trained:
            columns.append(trained[part])
        elif part in ("std", "max", "last_token") and (view := part.removesuffix("_token")) in features.views:
            columns.append(np.asarray(features.views[view], np.float32))
        elif part in ("last", "ppa") and features.layers is not None:
            layers = np.asarray(features.layers, np.float32)
            columns.append(layer_norm(layers[:, -1] if part == "last" else layers.mean(1)))
    if not columns and features.embedding is not None:
        columns = [np.asarray(features.embedding, np.float32)]
    if not columns and features.layers is not None:
        columns = [layer_norm(np.asarray(features.layers, np.float32).mean(1))]
    if not columns:
        raise InputError(f"expert '{name}': no features for layer_mix '{'+'.join(parts)}'")
    return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)


class SideBySide(LazyRows):
    """Experts' feature matrices beside each other, float32 [n, d1 + d2 ...], made of the rows that are asked for."""

    def __init__(self, features: Mapping[str, ExpertFeatures], parts: tuple[str, ...]) -> None:
        self._features, self._parts = features, parts
        self.lazy = any(expert.lazy for expert in features.values())
        self.shape = (len(next(iter(features.values()))), self.read(slice(0, 0)).shape[1])
        self.dtype = np.dtype(np.float32)

    def read(self, rows: slice) -> np.ndarray:
        """Return contiguous rows."""
        return np.concatenate(
            [mix_layers(name, expert.take(rows), self._parts) for name, expert in self._features.items()], axis=1
        )


def layer_norm(x: np.ndarray) -> np.ndarray:
    """LayerNorm without affine part (eps 1e-5, biased variance), over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + np.float32(1e-5))
