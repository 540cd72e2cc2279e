"""What a second worker gives, what a Dask task costs, and whether a worker's memory grows with the cohort.

    python benchmarks/scale/workers.py [--scaling] [--dask] [--memory] [--records N] [--rounds N]

Every figure stands beside its reference, measured in turns in the same run; of each, the median of the rounds. Starting
processes and loading networks is not counted.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from cache.embeddings import open_embeddings
from cache.records import BASE_COLUMNS, write_records
from cache.signals import RATE_HZ, create_signals, open_signals, to_microvolts
from stages.embed import Embedder, EmbedPaths, EmbedSettings
from stages.experts import load_expert
from stages.experts.run import run_expert

SLOW = ("ecgfm", {"encoder_layers": 2})
"""Nearly all of its time is the network's."""
FAST = ("dlinear", {})
TASK_RECORDS, TASKS = 500, 2
COHORTS = (20_000, 200_000)
BATCH = 16

SPAWN = multiprocessing.get_context("spawn")


def write_cohort(folder: Path, n_records: int, n_real: int | None = None) -> None:
    """Write records.parquet and signals.zarr; after the first `n_real` records there are digests without samples."""
    folder.mkdir(exist_ok=True)
    frame = pd.DataFrame({name: [None] * n_records for name in BASE_COLUMNS})
    frame["record_id"] = frame["patient_id"] = [f"files/p{i // 1000:04d}/s{i:08d}" for i in range(n_records)]
    frame["status"], frame["fold"], frame["split"] = "ok", 0, "train"
    write_records(folder / "records.parquet", frame, [])
    store = create_signals(folder / "signals.zarr", n_records)
    rng = np.random.default_rng(0)
    for shard in range(store.n_shards if n_real is None else -(-n_real // store.shard_records)):
        n = store.rows_of(shard).stop - store.rows_of(shard).start
        store.write_shard(shard, to_microvolts(rng.normal(0, 0.3, (n, 12, 5000))), np.full(n, 5000))
    if n_real is not None:
        digest = open_signals(folder / "signals.zarr", mode="r+").digest
        for start in range(-(-n_real // store.shard_records) * store.shard_records, n_records, 65_536):
            digest[start : start + 65_536] = 1


def settings_of(expert: tuple[str, dict[str, Any]], folder: Path, shard_records: int) -> EmbedSettings:
    """Write random weights, and ask for them as a user would."""
    name, config = expert
    torch.manual_seed(0)
    module = load_expert(name, config=config, random_weights=True).module
    assert module is not None
    weights = folder / f"{name}.safetensors"
    save_file({key: value.clone().contiguous() for key, value in module.state_dict().items()}, weights)
    return EmbedSettings(name, weights, config or None, batch_size=BATCH, shard_records=shard_records)


def paths_of(folder: Path, name: str) -> EmbedPaths:
    store = folder / "embeddings" / f"{name}.zarr"
    return EmbedPaths(folder / "records.parquet", folder / "signals.zarr", store, folder / ".ensemble")


# ---- processes that wait for work ------------------------------------------------------------------------------------


def serve(pipe: Connection, settings: EmbedSettings, paths: EmbedPaths) -> None:
    """Load the expert, then do what is asked: embed the whole store, or only compute."""
    torch.set_num_threads(1)
    embedder = Embedder(settings, paths)
    x = embedder.expert.prepare(embedder.signals.read_mv(slice(0, BATCH)), RATE_HZ)
    run_expert(embedder.expert, x)
    pipe.send(None)
    while (asked := pipe.recv()) is not None:
        kind, amount = asked
        started = time.perf_counter()
        if kind == "compute":
            for _ in range(amount // BATCH):
                run_expert(embedder.expert, x)
        else:
            embedder.run(amount)
        pipe.send((started, time.perf_counter()))  # one clock for all processes of a machine


class Processes:
    """Some processes with one expert loaded."""

    def __init__(self, n: int, settings: EmbedSettings, paths: EmbedPaths) -> None:
        pairs = [SPAWN.Pipe() for _ in range(n)]
        self.pipes = [mine for mine, _ in pairs]
        self.running = [SPAWN.Process(target=serve, args=(theirs, settings, paths)) for _, theirs in pairs]
        for process in self.running:
            process.start()
        for pipe in self.pipes:
            pipe.recv()

    def seconds(self, asked: Sequence[tuple[str, Any]]) -> float:
        """Ask the first processes, one thing each, and return the time from the first start to the last end."""
        for pipe, what in zip(self.pipes, asked, strict=False):
            pipe.send(what)
        times = [pipe.recv() for pipe, _ in zip(self.pipes, asked, strict=False)]
        return max(end for _, end in times) - min(start for start, _ in times)

    def close(self) -> None:
        """End them."""
        for pipe, process in zip(self.pipes, self.running, strict=True):
            pipe.send(None)
            process.join()


def fresh(settings: EmbedSettings, paths: EmbedPaths) -> None:
    """Make the store anew."""
    shutil.rmtree(paths.store, ignore_errors=True)
    Embedder(settings, paths).prepare_store()


def shown(values: Sequence[float], unit: str = "") -> str:
    return f"{median(values):.3g}{unit} ({', '.join(f'{value:.3g}' for value in values)})"


# ---- the three questions ---------------------------------------------------------------------------------------------


def scaling(folder: Path, n_records: int, rounds: int) -> None:
    """Two workers against one; beside it, two processes that do nothing but the same forward passes."""
    write_cohort(folder, n_records)
    settings, paths = settings_of(SLOW, folder, 8), paths_of(folder, SLOW[0])
    processes = Processes(2, settings, paths)
    speedups, possible = [], []
    for _ in range(rounds):
        seconds = {}
        for n in (1, 2):
            seconds["compute", n] = processes.seconds([("compute", n_records // n)] * n)
            fresh(settings, paths)
            seconds["embed", n] = processes.seconds([("embed", None)] * n)
        speedups.append(seconds["embed", 1] / seconds["embed", 2])
        possible.append(seconds["compute", 1] / seconds["compute", 2])
    processes.close()
    print(f"{settings.expert} {SLOW[1]}, {n_records} records, one thread a process")
    print(f"  2 workers over 1: {shown(speedups)}")
    print(f"  the same forward passes in 2 bare processes over 1: {shown(possible)}")
    print(f"  of what is possible: {shown([a / b for a, b in zip(speedups, possible, strict=True)])}")


def dask_overhead(folder: Path, rounds: int) -> None:
    """Embed the same shards as Dask tasks and without Dask, by one worker each; then time tasks with nothing to do."""
    from distributed import Client, LocalCluster

    from pipeline.compute.cluster import _embed_shard

    write_cohort(folder, TASKS * TASK_RECORDS)
    settings, paths = settings_of(FAST, folder, TASK_RECORDS), paths_of(folder, FAST[0])
    plain = Processes(1, settings, paths)
    fresh(settings, paths)
    ratios, costs, rates, cpu_ratios = [], [], [], []
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):

        def tasks(shards: Sequence[int], made_from: str) -> float:
            given = {"settings": settings, "paths": paths, "fingerprint": made_from}
            return timed(lambda: client.gather(client.map(_embed_shard, shards, **given, pure=False)))

        tasks([0], Embedder(settings, paths).identity.fingerprint)
        for _ in range(rounds):
            of_dask, of_plain = [os.getpid(), next(iter(cluster.workers.values())).pid], [plain.running[0].pid]
            fresh(settings, paths)
            made_from = Embedder(settings, paths).identity.fingerprint
            before = cpu_seconds(of_dask)
            with_dask = tasks(range(TASKS), made_from)
            cpu_with = cpu_seconds(of_dask) - before
            fresh(settings, paths)
            before = cpu_seconds(of_plain)
            without = plain.seconds([("embed", None)])
            cpu_ratios.append(cpu_with / (cpu_seconds(of_plain) - before) - 1)
            ratios.append(with_dask / without - 1)
            rates.append(TASKS * TASK_RECORDS / without)
            costs.append(tasks([0] * 50, made_from) / 50)
    plain.close()
    share = [cost * rate / TASK_RECORDS for cost, rate in zip(costs, rates, strict=True)]
    print(f"{settings.expert}, {TASKS} tasks of {TASK_RECORDS} records, {shown(rates, ' records/s')} without Dask")
    print(f"  longer with Dask, %: {shown([100 * ratio for ratio in ratios])}")
    print(f"  more CPU seconds with Dask (worker, scheduler and client), %: {shown([100 * r for r in cpu_ratios])}")
    print(f"  a task with nothing to do, ms: {shown([1e3 * cost for cost in costs])}")
    print(f"  ... of the time of a task here, %: {shown([100 * s for s in share])}")
    print(f"  ... of one at 1,000 records/s, %: {shown([100 * cost / (TASK_RECORDS / 1000) for cost in costs])}")


def cpu_seconds(pids: Sequence[int | None]) -> float:
    """Return what processes have used so far: unlike the clock, it says the same on a machine that others use too."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(f[11]) + int(f[12]) for f in fields) / os.sysconf("SC_CLK_TCK")


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def peak_of(settings: EmbedSettings, paths: EmbedPaths, shards: Sequence[int], pipe: Connection) -> None:
    torch.set_num_threads(1)
    embedder = Embedder(settings, paths)
    embedder.run(shards)
    lines = Path("/proc/self/status").read_text().splitlines()
    pipe.send(next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")))


def memory(folder: Path) -> None:
    """Embed the first shards of a small and of a ten times larger cohort, each in a fresh process; its peak memory."""
    peaks = {}
    for n_records in COHORTS:
        place = folder / str(n_records)
        write_cohort(place, n_records, n_real=1024)
        settings, paths = settings_of(FAST, place, 128), paths_of(place, FAST[0])
        Embedder(settings, paths).prepare_store()
        mine, theirs = SPAWN.Pipe()
        process = SPAWN.Process(target=peak_of, args=(settings, paths, range(8), theirs))
        process.start()
        peaks[n_records] = mine.recv()
        process.join()
        done = open_embeddings(paths.store)
        assert sum(done.complete(shard) for shard in range(16)) == 8
    (small, less), (large, more) = peaks.items()
    print(f"peak memory of a worker ({FAST[0]}): {less:.0f} MiB at {small:,} records, {more:.0f} MiB at {large:,}")
    print(f"  ratio {more / less:.3f}, {1024**2 * (more - less) / (large - small):.0f} bytes a record")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scaling", action="store_true", help="only two workers against one")
    parser.add_argument("--dask", action="store_true", help="only the cost of a Dask task")
    parser.add_argument("--memory", action="store_true", help="only the memory of a worker")
    parser.add_argument("--records", type=int, default=256, help="records that the workers embed")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    everything = not (options.scaling or options.dask or options.memory)
    torch.set_num_threads(1)
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f} at the start")
    with tempfile.TemporaryDirectory() as name:
        if options.scaling or everything:
            scaling(Path(name) / "scaling", options.records, options.rounds)
        if options.dask or everything:
            dask_overhead(Path(name) / "dask", options.rounds)
        if options.memory or everything:
            (Path(name) / "memory").mkdir()
            memory(Path(name) / "memory")


if __name__ == "__main__":
    main()
