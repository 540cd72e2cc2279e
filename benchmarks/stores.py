"""Stores against plain numpy on the same disk, workers against one process, and what a Dask task costs.

    python benchmarks/stores.py [--records 200000] [--folder DIR]

Every figure is a ratio measured in this run; both sides are flushed to the disk, and take turns.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.pop(0)  # this folder: the file's own name would hide the package `cache`

from cache.embeddings import EmbeddingStore, Identity, Layout, Shard, open_embeddings
from cache.records import BASE_COLUMNS, write_records
from cache.resume import create_embeddings
from cache.signals import create_signals, to_microvolts
from stages.embed import EmbedPaths, EmbedSettings

LAYERS, DIM, SHARD = 13, 768, 1024
ROUNDS = 3
EXPERT = "rocket"


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


def write_memmap(path: Path, n_records: int, block: np.ndarray) -> None:
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(n_records, LAYERS, DIM))
    for rows in shards_of(n_records):
        array[rows] = block[: rows.stop - rows.start]
        array.flush()


def read_store(path: Path) -> np.ndarray:
    return open_embeddings(path).read_layer("block_6")


def read_memmap(path: Path) -> np.ndarray:
    return np.array(np.load(path, mmap_mode="r")[:, 6])


def against_memmap(folder: Path, n_records: int) -> None:
    block = np.random.default_rng(0).normal(size=(SHARD, LAYERS, DIM)).astype(np.float16)
    store, plain = folder / "store.zarr", folder / "plain.npy"
    seconds: dict[str, list[float]] = {"write store": [], "write memmap": [], "read store": [], "read memmap": []}
    for _ in range(ROUNDS):
        plain.unlink(missing_ok=True)
        seconds["write memmap"].append(timed(lambda: write_memmap(plain, n_records, block)))
        seconds["write store"].append(timed(lambda: write_store(store, n_records, block)))
    for _ in range(ROUNDS):
        seconds["read memmap"].append(timed(lambda: read_memmap(plain)))
        seconds["read store"].append(timed(lambda: read_store(store)))
    size = n_records * LAYERS * DIM * 2 / 1e6
    best = {name: min(values) for name, values in seconds.items()}
    print(f"({n_records}, {LAYERS}, {DIM}) float16, {size:.0f} MB, best of {ROUNDS}")
    for what, amount in (("write", size), ("read", size / LAYERS)):
        ours, theirs = best[f"{what} store"], best[f"{what} memmap"]
        label = "write all, flushed" if what == "write" else "read one layer of all rows"
        print(
            f"  {label}: store {amount / ours:.0f} MB/s, memmap {amount / theirs:.0f} MB/s, ratio {theirs / ours:.2f}"
        )
    store_done = open_embeddings(store)
    print(f"  looking for pending shards: {timed(store_done.pending) / store_done.n_shards * 1e6:.0f} us a shard")


def make_cohort(folder: Path, n_records: int) -> EmbedPaths:
    import pandas as pd

    frame = pd.DataFrame({name: [None] * n_records for name in BASE_COLUMNS})
    frame["record_id"] = frame["patient_id"] = [f"r{i}" for i in range(n_records)]
    frame["status"], frame["fold"], frame["split"] = "ok", 0, "train"
    write_records(folder / "records.parquet", frame, [])
    store = create_signals(folder / "signals.zarr", n_records, shard_records=64)
    rng = np.random.default_rng(0)
    for shard in range(store.n_shards):
        n = store.rows_of(shard).stop - store.rows_of(shard).start
        store.write_shard(shard, to_microvolts(rng.normal(0, 0.3, (n, 12, 5000))), np.full(n, 5000))
    return EmbedPaths(
        folder / "records.parquet", folder / "signals.zarr", folder / f"embeddings/{EXPERT}.zarr", folder / ".ensemble"
    )


def rate(store: EmbeddingStore) -> float:
    """Return records a second between the first and the last shard's completion: without starting the processes."""
    times = sorted(store.shard_files(shard)[-1].stat().st_mtime_ns for shard in range(store.n_shards))
    return (len(times) - 1) * store.shard_records / (times[-1] - times[0]) * 1e9


def workers(folder: Path, n_records: int) -> float:
    from pipeline.workers import run_embed

    paths = make_cohort(folder, n_records)
    rates = {}
    for count in (1, 2):
        if paths.store.exists():
            paths.store.rename(folder / f"store-of-{count}")
        run_embed(EmbedSettings(EXPERT, shard_records=8), paths, workers=count, scheduler=None)
        rates[count] = rate(open_embeddings(paths.store))
    print(f"{EXPERT}, one thread each: 1 worker {rates[1]:.0f} records/s, 2 workers {rates[2]:.0f}")
    print(f"  ratio {rates[2] / rates[1]:.2f}")
    return rates[1]


def dask_overhead(folder: Path, records_per_second: float) -> None:
    """Time tasks whose shards are done already: everything that a task costs besides embedding."""
    from distributed import Client, LocalCluster

    from pipeline.cluster import _embed_shard

    paths = EmbedPaths(
        folder / "records.parquet", folder / "signals.zarr", folder / f"embeddings/{EXPERT}.zarr", folder / ".ensemble"
    )
    settings = EmbedSettings(EXPERT, shard_records=8)
    n_tasks = open_embeddings(paths.store).n_shards
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.submit(_embed_shard, 0, settings, paths, pure=False).result()
        seconds = timed(
            lambda: client.gather(client.map(_embed_shard, range(n_tasks), settings=settings, paths=paths, pure=False))
        )
    cost = seconds / n_tasks
    share = cost / (500 / records_per_second)
    print(
        f"Dask: {cost * 1e3:.1f} ms a task, {share:.2%} of embedding 500 records here, "
        f"{cost / 0.5:.1%} at 1,000 records/s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=8192, help="rows of the store that is written and read")
    parser.add_argument("--embedded", type=int, default=256, help="records that the workers embed")
    parser.add_argument("--folder", type=Path, default=None, help="where to write; the disk that is measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        against_memmap(Path(name), options.records)
        dask_overhead(Path(name), workers(Path(name), options.embedded))


if __name__ == "__main__":
    main()
