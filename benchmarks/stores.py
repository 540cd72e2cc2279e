"""Stores against plain numpy on the same disk.

    python benchmarks/stores.py [--records 200000] [--folder DIR]

Both sides are flushed to the disk and take turns; of each, the median of the rounds.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from cache.embeddings import Identity, Layout, Shard, open_embeddings
from cache.upkeep.resume import create_embeddings

LAYERS, DIM, SHARD = 13, 768, 1024
ROUNDS = 3


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def shards_of(n_records: int) -> list[slice]:
    return [slice(start, min(start + SHARD, n_records)) for start in range(0, n_records, SHARD)]


def write_store(path: Path, n_records: int, block: np.ndarray) -> None:
    names = tuple(f"block_{k}" for k in range(LAYERS))
    layout = Layout(n_records, names, (DIM,) * LAYERS, 1, shard_records=SHARD)
    store = create_embeddings(path, layout, Identity({"expert": "benchmark"}, "", ""))
    for shard, rows in enumerate(shards_of(n_records)):
        n = rows.stop - rows.start
        store.write(shard, Shard(block[:n], np.zeros((n, 1), dtype=np.float16)))


def write_memmap(path: Path, n_records: int, block: np.ndarray, flush_each: bool) -> None:
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(n_records, LAYERS, DIM))
    for rows in shards_of(n_records):
        array[rows] = block[: rows.stop - rows.start]
        if flush_each:
            array.flush()
    array.flush()


def read_store(path: Path) -> np.ndarray:
    return open_embeddings(path).read_layer("block_6")


def read_memmap(path: Path) -> np.ndarray:
    return np.array(np.load(path, mmap_mode="r")[:, 6])


def forget(path: Path) -> None:
    """Let the kernel drop what it holds of a file, or of all files below a folder."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def against_memmap(folder: Path, n_records: int) -> None:
    block = np.random.default_rng(0).normal(size=(SHARD, LAYERS, DIM)).astype(np.float16)
    store, plain = folder / "store.zarr", folder / "plain.npy"
    seconds: dict[str, list[float]] = {}

    def clock(name: str, work: Callable[[], object]) -> None:
        seconds.setdefault(name, []).append(timed(work))

    for _ in range(ROUNDS):
        plain.unlink(missing_ok=True)
        clock("write memmap, flushed once", lambda: write_memmap(plain, n_records, block, flush_each=False))
        plain.unlink()
        clock("write memmap", lambda: write_memmap(plain, n_records, block, flush_each=True))
        clock("write store", lambda: write_store(store, n_records, block))
    for _ in range(ROUNDS):
        for path, kind, read in ((plain, "memmap", read_memmap), (store, "store", read_store)):
            forget(path)
            clock(f"read {kind} from the disk", partial(read, path))
            read(path)
            clock(f"read {kind}", partial(read, path))
    size = n_records * LAYERS * DIM * 2 / 1e6
    typical = {name: median(values) for name, values in seconds.items()}
    print(f"({n_records}, {LAYERS}, {DIM}) float16, {size:.0f} MB, median of {ROUNDS}")
    compared = (
        ("write all, each shard flushed", size, "write store", "write memmap"),
        ("... memmap flushed once, at the end", size, "write store", "write memmap, flushed once"),
        (
            "read one layer of all rows, from the disk",
            size / LAYERS,
            "read store from the disk",
            "read memmap from the disk",
        ),
        ("... from the page cache", size / LAYERS, "read store", "read memmap"),
    )
    for label, amount, ours, theirs in compared:
        rates = amount / typical[ours], amount / typical[theirs]
        print(f"  {label}: store {rates[0]:.0f} MB/s, memmap {rates[1]:.0f} MB/s, ratio {rates[0] / rates[1]:.2f}")
    store_done = open_embeddings(store)
    print(f"  looking for pending shards: {timed(store_done.pending) / store_done.n_shards * 1e6:.0f} us a shard")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=8192, help="rows of the store that is written and read")
    parser.add_argument("--folder", type=Path, default=None, help="where to write; the disk that is measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        against_memmap(Path(name), options.records)


if __name__ == "__main__":
    main()
