"""What an embedding store is made of: shapes of its arrays, one shard's rows, what the vectors were made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cache.fingerprint import fingerprint

SHARD_RECORDS = 1024
VIEWS = ("segments", "std", "max", "last")
"""Arrays of the last layer's tokens that a store may have besides: mean over each second, spread, maximum, last one."""


@dataclass(frozen=True)
class Layout:
    """Shapes of one expert's store.

    Attributes
    ----------
    layer_names, layer_dims
        One entry a layer; narrower layers are padded with NaN up to the widest.
    output_dim
        Width of the expert's own head output; 0 where it has none.
    views
        Name of each further array (of `VIEWS`) -> its shape for one record.
    """

    n_records: int
    layer_names: tuple[str, ...]
    layer_dims: tuple[int, ...]
    embedding_dim: int
    output_dim: int = 0
    dtype: str = "float16"
    shard_records: int = SHARD_RECORDS
    views: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Shard:
    """One shard's worth of rows in memory; a row of NaN is a record the expert could not embed."""

    layers: np.ndarray
    embedding: np.ndarray
    output: np.ndarray | None = None
    views: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> Shard:
        """Return a shard of arrays by name."""
        views = {name: values for name, values in arrays.items() if name in VIEWS}
        return cls(arrays["layers"], arrays["embedding"], arrays.get("output"), views)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by name."""
        output = {} if self.output is None else {"output": self.output}
        return {"layers": self.layers, "embedding": self.embedding, **output, **self.views}


@dataclass(frozen=True)
class Identity:
    """What the vectors were made from.

    Attributes
    ----------
    expert
        Everything that changes the numbers but the records: expert, version, weights, preprocessing, precision.
    signals_digest, records_digest
        Content of signals.zarr and row order of records.parquet, over the store's own rows.
    facts
        Kept for the reader, without effect on reuse (licence, where the weights came from, ...).
    """

    expert: dict[str, Any]
    signals_digest: str
    records_digest: str
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """sha256 over everything that changes the numbers, rows included."""
        return fingerprint({**self.expert, "signals": self.signals_digest, "records": self.records_digest})
