"""An index over the vectors of a space: near records without a look at every one (HNSW, by usearch).

Lives here: building, keeping and asking. Not here: exact distances (`stage`). An index is no output: it lies in the
study's state folder, is made when it is first asked for and again when the space changes, and may be deleted.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cache.files import replacing
from cache.fingerprint import fingerprint
from stages.spaces import Space
from stages.spaces.sample import blocks

CONNECTIVITY, EXPANSION_ADD, EXPANSION_SEARCH = 32, 128, 256
"""HNSW's M, efConstruction and ef: recall@10 of 0.95 and more on the vectors of benchmarks/similar.py."""
SPARE = 4
"""Candidates asked for, for each neighbour wanted; exact distances then choose among them."""
Progress = Callable[[int, int], None]


def index_available() -> bool:
    """Whether usearch is installed."""
    return find_spec("usearch") is not None


class Candidates(NamedTuple):
    """Rows that are near, int [k], and how many records the index holds."""

    rows: np.ndarray
    n_indexed: int


def candidates(
    space: Space,
    query: np.ndarray,
    count: int,
    folder: Path | None,
    threads: int,
    progress: Progress | None,
    *,
    index: Any = None,
) -> Candidates:
    """Return the rows nearest to a vector, by a kept index or by one that is built now.

    Parameters
    ----------
    folder
        Where indexes are kept; None: nowhere.
    index
        One that is built already.
    """
    index = _kept(space, folder) if index is None else index
    if index is None:
        index = build(space, threads, progress)
        _keep(index, space, folder)
    index.expansion_search = max(EXPANSION_SEARCH, SPARE * count)
    found = index.search(query.astype(np.float32), SPARE * count, threads=1)
    return Candidates(np.asarray(found.keys, dtype=np.int64), len(index))


def build(space: Space, threads: int, progress: Progress | None = None) -> Any:
    """Build an index of all records that have a vector; vectors are kept as float16."""
    from usearch.index import Index

    index: Any = None
    for rows in blocks(len(space)):
        vectors = space.read(rows)
        if index is None:
            index = Index(
                ndim=vectors.shape[1],
                metric="cos",
                dtype="f16",
                connectivity=CONNECTIVITY,
                expansion_add=EXPANSION_ADD,
                expansion_search=EXPANSION_SEARCH,
            )
        known = np.isfinite(vectors).all(axis=1)
        if known.any():
            index.add(np.flatnonzero(known) + rows.start, vectors[known], threads=threads)
        if progress is not None:
            progress(rows.stop, len(space))
    return index


def _file(space: Space, folder: Path) -> Path:
    from usearch import __version__

    settings = [CONNECTIVITY, EXPANSION_ADD, str(__version__)]
    return folder / f"{fingerprint({'space': space.fingerprint, 'index': settings})[:24]}.usearch"


def _kept(space: Space, folder: Path | None) -> Any:
    from usearch.index import Index

    if folder is None or not _file(space, folder).is_file():
        return None
    return Index.restore(str(_file(space, folder)), view=True)


def _keep(index: Any, space: Space, folder: Path | None) -> None:
    if folder is not None:
        with replacing(_file(space, folder)) as temporary:
            index.save(str(temporary))
