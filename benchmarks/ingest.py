"""Ingest against a `wfdb.rdrecord` loop and against `np.fromfile` + writing the same bytes, in one run, one process.

    python -m benchmarks.ingest --records 5000

Prints records a second and ratios; with `--memory 1000 100000` also the peak memory of ingesting lists of so many rows
(of the same files over and over), each in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import wfdb

from stages.ingest import ingest
from stages.readers import read_wfdb, standardise
from stages.synthetic import generate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--memory", type=int, nargs="*", default=[], help="also ingest lists of so many rows, and print the peaks"
    )
    parser.add_argument("--rounds", type=int, default=2, help="each way is timed this often; the fastest counts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cohort, out = Path(folder, "cohort"), Path(folder, "out")
        generate(cohort, options.records, defect_rate=0.0)
        paths = [line for line in (cohort / "RECORDS").read_text().splitlines() if line]
        ways: dict[str, Callable[[], object]] = {
            "np.fromfile + write": lambda: _copy(cohort, paths, Path(folder, "copy.bin")),
            "read + standardise": lambda: _read(cohort, paths),
            "ingest": lambda: _ingest(cohort, out, options.workers),
            "wfdb.rdrecord loop": lambda: _wfdb(cohort, paths),
        }
        seconds = {name: _fastest(way, options.rounds) for name, way in ways.items()}
        for name, (taken, used) in seconds.items():
            print(f"{name:22s} {len(paths) / taken:10.0f} records/s  {taken:7.2f} s  {used:7.2f} s of processor")
        for kind, unit in enumerate(("by the clock", "of processor time")):
            loop, copy = seconds["wfdb.rdrecord loop"][kind], seconds["np.fromfile + write"][kind]
            for name in ("read + standardise", "ingest"):
                own = seconds[name][kind]
                told = f"{loop / own:.1f} x as fast as wfdb.rdrecord, {own / copy:.2f} x np.fromfile + write"
                print(f"{name}: {told}, {unit}")
        for rows in options.memory:
            _memory(cohort, Path(folder, "long"), out, rows)


def _timed(way: Callable[[], object]) -> tuple[float, float]:
    """Return seconds by the clock and of the processor (all threads); the latter hardly feels other work beside it."""
    start, used = time.perf_counter(), time.process_time()
    way()
    return time.perf_counter() - start, time.process_time() - used


def _fastest(way: Callable[[], object], rounds: int) -> tuple[float, float]:
    times = [_timed(way) for _ in range(rounds)]
    return min(t for t, _ in times), min(used for _, used in times)


def _wfdb(cohort: Path, paths: list[str]) -> None:
    for path in paths:
        wfdb.rdrecord(str(cohort / path))


def _copy(cohort: Path, paths: list[str], to: Path) -> None:
    with to.open("wb") as file:
        for path in paths:
            np.fromfile(f"{cohort}/{path}.dat", dtype="<i2").tofile(file)


def _read(cohort: Path, paths: list[str]) -> None:
    row = np.empty((12, 5000), dtype=np.int16)
    for path in paths:
        standardise(read_wfdb(cohort, path), row)


def _ingest(cohort: Path, out: Path, workers: int) -> None:
    ingest(
        "mimic-iv-ecg",
        cohort,
        {},
        records_path=out / "records.parquet",
        signals_path=out / "signals.zarr",
        workers=workers,
    )


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
