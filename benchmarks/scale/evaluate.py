"""Time and memory of `evaluate` on as many records as you like, by part.

    python -m benchmarks.scale.evaluate [--rows N ...] [--width N] [--memory-gb X] [--tasks a,b] [--resamples N]

Table and store as in `fit_heads`, one fold: a tenth of the records tests, a tenth validates, patients have two records
each. The heads are fitted first, with one epoch of LoRA, in a process of their own; each evaluation is another one.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.scale.fit_heads import fit, write_store, write_table
from benchmarks.scale.records_table import peak_mb
from benchmarks.scale.workers import SPAWN
from stages.settings import Machine

PARTS = {
    "read_data": "reading",
    "load_heads": "reading",
    "make_splits": "reading",
    "state_key": "reading",
    "_predict": "predicting and writing",
    "summarise": "metrics",
    "judge_decisions": "decisions",
    "write_metrics": "metrics",
}
"""Function of the stage -> the part that it is."""


class Parts:
    """CPU seconds and peak memory of each part; what one part calls of another counts for the inner one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, float] = {}
        self._running: list[str] = []
        # Looked at every so often: the system's own peak is started anew by the stage, for each method's cost
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            if self._running:
                self._see(self._running[-1])
            time.sleep(0.02)

    def _see(self, name: str) -> None:
        self.peaks[name] = max(self.peaks.get(name, 0), resident_mb())

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens in the block."""
        self._count()
        self._running.append(name)
        try:
            yield
        finally:
            self._count()
            self._running.pop()

    def _count(self) -> None:
        """Give the running part what has come since the last count."""
        now = time.process_time()
        if self._running:
            name = self._running[-1]
            self.seconds[name] = self.seconds.get(name, 0) + now - self._since
            self._see(name)
        self._since = now

    def counted(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Count a function's calls as this part."""

        @wraps(work)
        def within(*args: Any, **options: Any) -> Any:
            with self.part(name):
                return work(*args, **options)

        return within


def resident_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def evaluated(folder: Path, store: Path, options: argparse.Namespace, pipe: Connection) -> None:
    """Evaluate, and tell seconds and peak of each part, the peak of the imports, and a digest of metrics.json."""
    from stages.evaluate import EvaluatePaths, EvaluateSettings, stage
    from stages.scoring.comparison import Resampling

    parts, before = Parts(), peak_mb()
    for name, part in PARTS.items():
        setattr(stage, name, parts.counted(part, getattr(stage, name)))

    def resample(asked: Sequence[Resampling]) -> Iterator[Any]:
        return (parts.counted("bootstrap", each)() for each in asked)

    names = ("predictions.parquet", "gate_weights.parquet", "metrics.json", "headline.json", "evaluation.json")
    common = folder / "records.parquet", folder / "signals.zarr", {"made-up": store}, folder / "heads"
    outputs = [folder / "out" / name for name in names]
    (folder / "out").mkdir(exist_ok=True)
    decisions = folder / "out" / "decisions.json"
    paths = EvaluatePaths(*common, *outputs, folder / "finished", decisions=decisions)
    settings = EvaluateSettings(bootstrap=options.resamples)
    started = time.perf_counter()
    with parts.part("all else"):
        stage.run_by(resample, settings, paths, machine=Machine(device="cpu", memory_gb=options.memory_gb))
    written = b"".join(path.read_bytes() for path in (*outputs, decisions))
    digest = hashlib.sha256(written).hexdigest()[:12]
    pipe.send((time.perf_counter() - started, before, parts.seconds, parts.peaks, digest))


def fitted(folder: Path, store: Path, options: argparse.Namespace) -> None:
    fit(folder, store, options)


def measured(options: argparse.Namespace, n_records: int) -> None:
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_table(folder / "records.parquet", n_records, options.width)
        store = write_store(folder, n_records, options.width)
        fitting = SPAWN.Process(target=fitted, args=(folder, store, options))
        fitting.start()
        fitting.join()
        receiving, sending = SPAWN.Pipe(duplex=False)
        process = SPAWN.Process(target=evaluated, args=(folder, store, options, sending))
        process.start()
        sending.close()
        wall, before, seconds, peaks, digest = receiving.recv()
        process.join()
    print(
        f"{n_records:,} rows x {options.width}, {options.tasks}, {options.resamples:,} resamples: {wall:.0f} s, ",
        end="",
    )
    print(f"{sum(seconds.values()):.0f} s of CPU, {max(peaks.values()):.0f} MB at most; {digest}")
    print(f"  imports {before:.0f} MB")
    for part, spent in seconds.items():
        print(f"  {part:<24}{spent:8.1f} s of CPU {peaks[part]:8.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--memory-gb", type=float, default=0.5, help="what features may take in memory")
    parser.add_argument("--tasks", default="age,sex")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--lora-epochs", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the table and the store are made")
    options = parser.parse_args()
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f} at the start", flush=True)
    for n_records in options.rows:
        measured(options, n_records)


if __name__ == "__main__":
    main()
