"""gate_weights.parquet: how much the gate trusts each expert, one row per record, task and expert.

Lives here: writer and reader. Not here: the gate (`stages.heads`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cache.errors import InputError, MissingFileError, StoreError
from cache.files import replacing
from stages.scoring.predictions import TextArray, coded

_TEXT = pa.dictionary(pa.int32(), pa.string())
COLUMNS: dict[str, pa.DataType] = {
    "record_id": _TEXT,
    "task": _TEXT,
    "expert": _TEXT,
    "weight": pa.float32(),
    "split": _TEXT,
    "fold": pa.int16(),
}


class GateWeightWriter:
    """Appends blocks to an open gate_weights.parquet; use it through `writing_gate_weights`."""

    def __init__(self, sink: pq.ParquetWriter) -> None:
        self._sink = sink

    def add(
        self,
        task: str,
        split: str,
        fold: int,
        *,
        record_ids: TextArray,
        experts: Sequence[str],
        weights: np.ndarray,
    ) -> None:
        """Append the weights [records, experts] of one task, split and fold; each row sums to one.

        Raises
        ------
        InputError
            Weights of another shape, or rows that do not sum to one.
        """
        weights = np.asarray(weights, dtype=np.float32)
        if weights.shape != (len(record_ids), len(experts)):
            raise InputError(
                f"task '{task}': gate weights have the shape {weights.shape}, expected {len(record_ids), len(experts)}"
            )
        if not np.allclose(weights.sum(axis=1), 1, atol=1e-3):
            raise InputError(f"task '{task}': gate weights of a record do not sum to 1")
        n, width = weights.shape
        if n:
            columns = [
                coded(np.tile(np.arange(n, dtype=np.int32), width), record_ids),
                coded(np.zeros(n * width, np.int32), [task]),
                coded(np.repeat(np.arange(width, dtype=np.int32), n), experts),
                pa.array(weights.T.ravel()),
                coded(np.zeros(n * width, np.int32), [split]),
                pa.array(np.full(n * width, fold, dtype=np.int16)),
            ]
            self._sink.write_table(pa.table(columns, schema=pa.schema(COLUMNS)))


@contextlib.contextmanager
def writing_gate_weights(path: str | Path) -> Iterator[GateWeightWriter]:
    """Open a new gate_weights.parquet; it appears, whole, when the block ends without an error."""
    with (
        replacing(Path(path)) as temporary,
        pq.ParquetWriter(
            temporary,
            pa.schema(COLUMNS),
            compression="zstd",
            use_dictionary=[name for name, kind in COLUMNS.items() if kind == _TEXT],
            column_encoding={"weight": "BYTE_STREAM_SPLIT"},
        ) as sink,
    ):
        yield GateWeightWriter(sink)


def open_gate_weights(path: str | Path = "gate_weights.parquet", split: str | None = None) -> pd.DataFrame:
    """Read gate_weights.parquet, or one split of it, as a long DataFrame with the columns of `COLUMNS`."""
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist; run `ensemble evaluate` first")
    try:
        wanted = None if split is None else pc.equal(pc.field("split"), split)
        return pq.read_table(path, filters=wanted).unify_dictionaries().to_pandas()[list(COLUMNS)]
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise StoreError(f"{path}: not a table of gate weights ({str(error).splitlines()[0]})") from error
