"""Ingest against a `wfdb.rdrecord` loop and against `np.fromfile` + writing the same bytes, in one run, one process.

    python -m benchmarks.ingest --records 5000

All ways are timed in turn, several times; printed are the medians, of the times and of the ratios within a turn. Ingest
does more than the others, in four threads: it reads lists and labels, judges, digests, packs and flushes.

With `--memory 1000 100000` also the peak memory of ingesting lists of so many rows (of the same files over and over),
each in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import wfdb

from stages.ingest import IngestPaths, IngestSettings, run
from stages.readers import read_wfdb
from stages.readers.rows import RowMaker, RowOptions
from stages.settings import Machine
from stages.synthetic import GeneratePaths, GenerateSettings
from stages.synthetic import run as generate

LOOP, COPY = "wfdb.rdrecord loop", "np.fromfile + write"
BLOCK = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--memory", type=int, nargs="*", default=[], help="also ingest lists of so many rows, and print the peaks"
    )
    parser.add_argument("--rounds", type=int, default=3, help="each way is timed this often")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cohort, out = Path(folder, "cohort"), Path(folder, "out")
        generate(GenerateSettings(records=options.records, defect_rate=0.0), GeneratePaths(cohort))
        paths = [line for line in (cohort / "RECORDS").read_text().splitlines() if line]
        ways: dict[str, Callable[[], object]] = {
            COPY: lambda: _copy(cohort, paths, Path(folder, "copy.bin")),
            "read + make rows": lambda: _read(cohort, paths),
            "ingest": lambda: _ingest(cohort, out, options.workers),
            LOOP: lambda: _wfdb(cohort, paths),
        }
        _print([{name: _timed(way) for name, way in ways.items()} for _ in range(options.rounds)], len(paths))
        for rows in options.memory:
            _memory(cohort, Path(folder, "long"), out, rows)


def _print(rounds: list[dict[str, tuple[float, float]]], n_records: int) -> None:
    for name in rounds[0]:
        taken, used = (statistics.median(times[name][kind] for times in rounds) for kind in (0, 1))
        print(f"{name:22s} {n_records / taken:10.0f} records/s  {taken:7.2f} s  {used:7.2f} s of processor")
    for kind, unit in enumerate(("by the clock", "of processor time")):
        for name in ("read + make rows", "ingest"):
            faster = statistics.median(times[LOOP][kind] / times[name][kind] for times in rounds)
            longer = statistics.median(times[name][kind] / times[COPY][kind] for times in rounds)
            print(f"{name}: {faster:.1f} x as fast as {LOOP}, {longer:.2f} x {COPY}, {unit}")


def _timed(way: Callable[[], object]) -> tuple[float, float]:
    """Return seconds by the clock and of the processor (all threads); the latter hardly feels other work beside it."""
    start, used = time.perf_counter(), time.process_time()
    way()
    return time.perf_counter() - start, time.process_time() - used


def _wfdb(cohort: Path, paths: list[str]) -> None:
    for path in paths:
        wfdb.rdrecord(str(cohort / path))


def _copy(cohort: Path, paths: list[str], to: Path) -> None:
    with to.open("wb") as file:
        for path in paths:
            np.fromfile(f"{cohort}/{path}.dat", dtype="<i2").tofile(file)


def _read(cohort: Path, paths: list[str]) -> None:
    maker, options = RowMaker(BLOCK), RowOptions()
    for start in range(0, len(paths), BLOCK):
        maker.make(0, [partial(read_wfdb, cohort, path) for path in paths[start : start + BLOCK]], options)


def _ingest(cohort: Path, out: Path, workers: int) -> None:
    shutil.rmtree(out, ignore_errors=True)
    settings = IngestSettings(source="mimic-iv-ecg", path=str(cohort))
    run(settings, IngestPaths(out / "records.parquet", out / "signals.zarr"), machine=Machine(workers=workers))


def _memory(cohort: Path, long: Path, out: Path, rows: int) -> None:
    """Ingest the cohort's files over and over under new ids; tables and files are linked, the two lists repeated."""
    long.mkdir(exist_ok=True)
    for name in ("files", "hosp"):
        if not (long / name).exists():
            shutil.copytree(cohort / name, long / name, copy_function=os.link)
    for name in ("record_list.csv", "machine_measurements.csv"):
        head, *lines = (cohort / name).read_text().splitlines()
        with (long / name).open("w") as file:
            file.write(head + "\n")
            for k in range(rows):
                subject, _, rest = lines[k % len(lines)].split(",", 2)
                file.write(f"{subject},{k + 1},{rest}\n")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        taken, peak_mb = pool.submit(_peak_of_ingest, long, out).result()
    print(f"{rows} rows: {rows / taken:.0f} records/s, peak memory {peak_mb} MB")


def _peak_of_ingest(cohort: Path, out: Path) -> tuple[float, int]:
    taken, _ = _timed(lambda: _ingest(cohort, out, 1))
    return taken, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
