"""Embeddings as objects of pandas, xarray and AnnData; each library is imported when it is needed."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from cache.errors import UsageError

if TYPE_CHECKING:
    import anndata
    import pandas as pd
    import xarray

    from ensemble.embeddings import Embeddings


def to_pandas(embeddings: Embeddings, name: str) -> pd.DataFrame:
    """Return a table of one array, see `Embeddings.pandas`."""
    import pandas as pd

    values = embeddings.numpy(name)
    if values.ndim != 2:
        raise UsageError(f"'{name}' has {values.ndim} axes, a table has two; name one layer: {embeddings.layer_names}")
    index = pd.Index(embeddings.record_ids.astype(object), name="record_id")
    columns = [f"{name}_{k}" for k in range(values.shape[1])]
    return pd.DataFrame(values.astype(np.float32), index=index, columns=columns)


def to_xarray(embeddings: Embeddings) -> xarray.Dataset:
    """Return a dataset of all arrays, see `Embeddings.xarray`."""
    module = _extra("xarray")
    arrays = {}
    for name in embeddings.source.names():
        values = _lazy(embeddings.source.lazy(name))
        arrays[name] = (_axes(name, values.ndim), values)
    coordinates = {"record": embeddings.record_ids, "layer": list(embeddings.layer_names)}
    return module.Dataset(arrays, coords=coordinates, attrs=embeddings.attributes)


def _axes(name: str, n_axes: int) -> tuple[str, ...]:
    if name == "layers":
        return "record", "layer", "layer_dim"
    return ("record", f"{name}_dim") if n_axes == 2 else ("record", "second", f"{name}_dim")


def _lazy(array: Any) -> Any:
    """Let Dask read an array of a store, an outer chunk at a time; leave one in memory as it is."""
    if isinstance(array, np.ndarray):
        return array
    import dask.array

    return dask.array.from_array(array, chunks=array.shards or array.chunks)


def to_anndata(embeddings: Embeddings) -> anndata.AnnData:
    """Return one annotated matrix, see `Embeddings.anndata`."""
    import pandas as pd

    module = _extra("anndata")
    ids = embeddings.record_ids.astype(object)
    table = pd.DataFrame(index=pd.Index(ids)) if embeddings.records is None else embeddings.records.copy()
    table.index.name = "record_id"
    layers = {name: embeddings.numpy(name) for name in embeddings.layer_names}
    return module.AnnData(
        X=embeddings.numpy("embedding"), obs=_plain(table), obsm=layers, uns=_without_none(embeddings.attributes)
    )


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """Join lists of a column (leads, labels) by commas and name its values, so that an h5ad file can hold the table."""
    import pandas as pd

    for name, kind in table.dtypes.items():
        if kind.kind == "O" and not isinstance(kind, pd.CategoricalDtype):  # objects, and pandas 3's text
            table[name] = table[name].map(_joined).astype("category")
    table.attrs = {}
    return table


def _joined(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, list | tuple | np.ndarray) else value


def _without_none(value: Any) -> Any:
    """Leave out what is None, also inside: an h5ad file has no such value."""
    if isinstance(value, dict):
        return {name: _without_none(inner) for name, inner in value.items() if inner is not None}
    return value


def _extra(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise UsageError(f"{name} is not installed; run pip install 'ecg-ensemble[{name}]'") from error
