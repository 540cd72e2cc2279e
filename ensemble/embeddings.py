"""One expert's vectors of some records, in memory or in a store, in the forms that other tools read.

Lives here: `Embeddings` and `open_embeddings`. Not here: how vectors are made (`computing`) or stored (`cache`), what
the other tools' objects look like (`tables`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from cache.errors import MissingFileError, UsageError

if TYPE_CHECKING:
    import anndata
    import pandas as pd
    import xarray

    from cache.embeddings import EmbeddingStore


class ArraySource(Protocol):
    """Where the arrays of an `Embeddings` come from."""

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Those of docs/store-format.md, as far as they are known: `expert`, `version`, `layer_names` ..."""

    def names(self) -> tuple[str, ...]:
        """Names of the arrays that there are: `layers`, `embedding`, perhaps `output`."""

    def read(self, name: str) -> np.ndarray:
        """Return an array whole."""

    def read_layer(self, name: str) -> np.ndarray:
        """Return one layer, [record, dim of that layer]."""

    def lazy(self, name: str) -> Any:
        """Return an array that Dask may read in parts, or a NumPy array."""


@dataclass(frozen=True, repr=False)
class Embeddings:
    """Vectors of one expert, row for row with `record_ids`; a row of NaN is a record that the expert could not embed.

    Made by `ensemble.embed` (in memory) and `ensemble.open_embeddings` (read from the store when asked for).

    Attributes
    ----------
    record_ids
        Name of each record, [record].
    records
        The records' table, indexed by `record_id`, where one is known.

    Examples
    --------
    >>> import numpy as np
    >>> import ensemble
    >>> rng = np.random.default_rng(0)
    >>> vectors = ensemble.embed(rng.normal(size=(2, 12, 5000)), rate_hz=500, expert="rocket")
    >>> vectors.numpy().shape, vectors.layer_names
    ((2, 5040), ('features',))
    """

    source: ArraySource
    record_ids: np.ndarray
    records: pd.DataFrame | None = None

    def __len__(self) -> int:
        return len(self.record_ids)

    def __repr__(self) -> str:
        """Say how many records, which expert and which arrays."""
        return f"Embeddings of {len(self)} records by expert '{self.expert}': {', '.join(self.source.names())}"

    @property
    def attributes(self) -> dict[str, Any]:
        """What the vectors were made from, see docs/store-format.md."""
        return dict(self.source.attributes)

    @property
    def expert(self) -> str:
        """Name of the expert."""
        return str(self.source.attributes["expert"])

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the layers, in the order of `layers`."""
        return tuple(self.source.attributes["layer_names"])

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names that `numpy` knows: `embedding`, `layers`, others that the store has, and every layer by its name."""
        return (*self.source.names(), *self.layer_names)

    def numpy(self, name: str = "embedding") -> np.ndarray:
        """Return an array of `arrays`: [record, dim], and `layers` [record, layer, dim].

        Raises
        ------
        UsageError
            A name that is not there.
        """
        if name in self.source.names():
            return self.source.read(name)
        if name not in self.layer_names:
            raise UsageError(f"expert '{self.expert}' has no array '{name}'; it has: {', '.join(self.arrays)}")
        return self.source.read_layer(name)

    def pandas(self, name: str = "embedding") -> pd.DataFrame:
        """Return an array as a float32 table: index `record_id`, columns `NAME_0`, `NAME_1` ..."""
        from ensemble.tables import to_pandas

        return to_pandas(self, name)

    def xarray(self) -> xarray.Dataset:
        """Return all arrays as a dataset with the axes `record`, `layer`, `layer_dim`, `embedding_dim` ...

        Arrays of a store stay there: Dask reads them shard by shard. Needs `pip install 'ecg-ensemble[xarray]'`.
        """
        from ensemble.tables import to_xarray

        return to_xarray(self)

    def anndata(self) -> anndata.AnnData:
        """Return `X` = the embedding, `obsm` = every layer, `obs` = the records' table, `uns` = the attributes.

        Needs `pip install 'ecg-ensemble[anndata]'`.
        """
        from ensemble.tables import to_anndata

        return to_anndata(self)


class ArraysInMemory:
    """Arrays that `embed` has made."""

    def __init__(self, attributes: Mapping[str, Any], content: Mapping[str, np.ndarray]) -> None:
        self._attributes, self._content = attributes, content

    @property
    def attributes(self) -> Mapping[str, Any]:
        """What the vectors were made from."""
        return self._attributes

    def names(self) -> tuple[str, ...]:
        """Names of the arrays."""
        return tuple(self._content)

    def read(self, name: str) -> np.ndarray:
        """Return an array."""
        return self._content[name]

    def read_layer(self, name: str) -> np.ndarray:
        """Return one layer without the padding up to the widest."""
        index = self._attributes["layer_names"].index(name)
        return self._content["layers"][:, index, : self._attributes["layer_dims"][index]]

    def lazy(self, name: str) -> np.ndarray:
        """Return an array."""
        return self._content[name]


class ArraysInStore:
    """Arrays of an embedding store, read when they are asked for."""

    def __init__(self, store: EmbeddingStore) -> None:
        self.store = store
        self._attributes = {
            "expert": store.path.stem,
            **store.attributes,
            "layer_names": list(store.layer_names),
            "layer_dims": list(store.layer_dims),
        }

    @property
    def attributes(self) -> Mapping[str, Any]:
        """The store's, with names and widths of layers also where the store gives none."""
        return self._attributes

    def names(self) -> tuple[str, ...]:
        """Names of the arrays of vectors."""
        return tuple(array.basename for array in self.store.data_arrays())

    def read(self, name: str) -> np.ndarray:
        """Read an array whole."""
        return self.store.read(name, slice(None))

    def read_layer(self, name: str) -> np.ndarray:
        """Read one layer; the bytes of the others are not touched."""
        return self.store.read_layer(name)

    def lazy(self, name: str) -> Any:
        """Return the Zarr array."""
        return self.store.group[name]


def open_embeddings(store: str | Path, records: str | Path | Sequence[str] | None = None) -> Embeddings:
    """Open one expert's store of a study for reading.

    Parameters
    ----------
    store
        A folder such as `embeddings/seed.zarr`, or a URL such as `s3://bucket/seed.zarr`.
    records
        The study's records.parquet, or the record ids in the order of the store. None: the records.parquet of the
        folder that holds `embeddings/`.

    Raises
    ------
    MissingFileError
        No store, or no records.parquet.
    StoreError
        A store with shards missing, or damaged.
    FingerprintError
        Records that the store was not made for.

    Examples
    --------
    >>> open_embeddings("embeddings/seed.zarr").pandas()  # doctest: +SKIP
    """
    from cache.embeddings import open_embeddings as open_store
    from cache.records import open_records, records_digest

    opened = open_store(store)
    if records is not None and not isinstance(records, str | Path):
        table, ids = None, np.asarray(records, dtype=str)
    else:
        frame = open_records(_records_beside(store) if records is None else records)
        table, ids = frame.set_index("record_id"), frame["record_id"].to_numpy(dtype=str)
    opened.require_records(records_digest(ids.tolist()))
    opened.require_complete()
    return Embeddings(ArraysInStore(opened), ids, table)


def _records_beside(store: str | Path) -> Path:
    path = Path(store)
    found = path.absolute().parent.parent / "records.parquet"
    if "://" in str(store) or not found.is_file():
        raise MissingFileError(f"{store}: no records.parquet beside its folder; name it in `records`")
    return found
