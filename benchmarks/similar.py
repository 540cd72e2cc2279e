"""Neighbours among many records: seconds to build an index, to ask it and to compare with all; recall@10.

    python -m benchmarks.similar --records 100000 --width 768

Vectors are made up, in memory: `--axes` directions of falling variance, 200 clouds, and noise in all
directions, as embeddings of networks have them. Recall: share of the 10 exact neighbours that the index's answer has.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from stages.similar.index import SPARE, build, candidates
from stages.similar.stage import cosine_distances
from stages.spaces import NewEcg
from stages.spaces.sample import blocks

K = 10


class MadeUp:
    """A space in memory."""

    fingerprint = "made up"

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = vectors

    def __len__(self) -> int:
        return len(self.vectors)

    def read(self, rows: slice) -> np.ndarray:
        """Return vectors of contiguous rows, float32 [b, width]."""
        return self.vectors[rows].astype(np.float32)

    def place(self, _: NewEcg) -> np.ndarray:
        """Return the vector of a new ECG: missing, since these vectors are of no ECGs."""
        return np.full(self.vectors.shape[1], np.nan, np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--axes", type=int, default=64)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    space = MadeUp(made_up(options.records, options.width, options.axes))
    processor, started = time.process_time(), time.perf_counter()
    index = build(space, options.threads)
    seconds, used = time.perf_counter() - started, time.process_time() - processor
    print(f"index of {options.records:,} x {options.width}: {seconds:.1f} s ({used:.1f} s of processor)")
    with tempfile.TemporaryDirectory() as folder:
        index.save(str(Path(folder, "index")))
        print(f"file: {Path(folder, 'index').stat().st_size / 1e6:.0f} MB")
    chosen = np.random.default_rng(2).choice(options.records, options.queries, replace=False)
    asked = [timed(lambda row=row: near(index, space, row)) for row in chosen]
    exact = [timed(lambda row=row: all_compared(space, row)) for row in chosen]
    for name, found in (("index", asked), ("exact", exact)):
        print(f"{name}: median {1000 * np.median([seconds for _, seconds in found]):.1f} ms a query")
    recall = np.mean([len(set(a) & set(e)) / K for (a, _), (e, _) in zip(asked, exact, strict=True)])
    print(f"recall@{K}: {recall:.4f} over {options.queries} queries")


def made_up(n: int, width: int, axes: int) -> np.ndarray:
    """Return float16 vectors [n, width]."""
    rng = np.random.default_rng(0)
    spread = np.linspace(2.0, 0.5, axes).astype(np.float32)
    directions = np.linalg.qr(rng.normal(size=(width, axes)))[0].T.astype(np.float32)
    centres = (rng.normal(size=(200, axes)) * spread).astype(np.float32)
    found = np.empty((n, width), np.float16)
    for rows in blocks(n):
        size = rows.stop - rows.start
        inner = centres[rng.integers(0, 200, size)] + rng.normal(size=(size, axes)).astype(np.float32) * spread
        found[rows] = inner @ directions + 0.05 * rng.normal(size=(size, width)).astype(np.float32)
    return found


def timed(ask):
    started = time.perf_counter()
    return ask(), time.perf_counter() - started


def near(index, space: MadeUp, row: int) -> list[int]:
    """Ask the index as the stage does: candidates, then exact distances."""
    query = space.read(slice(row, row + 1))[0]
    found = candidates(space, query, K + 1, None, 1, None, index=index).rows
    distances = cosine_distances(space.vectors[found].astype(np.float32), query)
    return [int(k) for k in found[np.argsort(distances)] if k != row][:K]


def all_compared(space: MadeUp, row: int) -> list[int]:
    query = space.read(slice(row, row + 1))[0]
    distances = np.concatenate([cosine_distances(space.read(rows), query) for rows in blocks(len(space))])
    distances[row] = np.inf
    return np.argpartition(distances, K)[:K].tolist()


if __name__ == "__main__":
    print(f"candidates a neighbour: {SPARE}")
    main()
