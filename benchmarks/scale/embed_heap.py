"""Peak memory of one process of `embed` over the number of records, with a heap for each thread and with one for all.

    python -m benchmarks.scale.embed_heap [--records N ...] [--expert NAME]

The cohort's shards of signals are links to the first one. Each run is a process of its own; loading is not counted.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.scale.predict import write_replicated
from benchmarks.scale.records_table import peak_mb
from benchmarks.scale.workers import SPAWN, paths_of, settings_of
from pipeline.compute.allocator import share_one_heap
from stages.embed import Embedder


def embedded(folder: Path, expert: str, shared: bool, pipe: Connection) -> None:
    """Embed all records, and tell the peak when the expert was loaded and at the end, in MB."""
    if shared:
        share_one_heap()
    torch.set_num_threads(1)
    embedder = Embedder(settings_of((expert, {}), folder, 512), paths_of(folder, expert))
    embedder.prepare_store()
    loaded = peak_mb()
    embedder.run()
    pipe.send((loaded, peak_mb()))


def measured(folder: Path, expert: str, shared: bool) -> tuple[float, float]:
    receiving, sending = SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=embedded, args=(folder, expert, shared, sending))
    process.start()
    sending.close()
    found = receiving.recv()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[1_000, 20_000])
    parser.add_argument("--expert", default="dlinear")
    options = parser.parse_args()
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f} at the start", flush=True)
    for n_records in options.records:
        for shared in (False, True):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name) / "study"
                write_replicated(folder, n_records, signals=True)
                loaded, peak = measured(folder, options.expert, shared)
            heaps = "one heap" if shared else "a heap a thread"
            print(f"{n_records:,} records, {heaps}: {loaded:.0f} MB when loaded, {peak:.0f} MB at most", flush=True)


if __name__ == "__main__":
    main()
