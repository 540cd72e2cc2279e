"""How many files a second ingest reads of each format of carts and archives, in one process, beside WFDB.

    python -m benchmarks.formats --records 40

Files are those of the tests' own writers: twelve or eight leads, ten seconds. `facts` is what the list needs of a file
(ids, time, measurements), `row` is reading it and making its row, `ingest` the whole of it with one process.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import wfdb

from cache.signals import LEADS
from stages.ingest import IngestPaths, IngestSettings, run
from stages.readers import read_wfdb
from stages.readers.files import facts_of, read_file
from stages.readers.rows import RowMaker, RowOptions
from stages.settings import Machine
from tests.hospital.cases import WAYS
from tests.hospital.ecgs import Ecg, beats_uv, ecg_of

ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=40)
    options = parser.parse_args()
    print(f"{'format':36s} {'kB':>5s} {'facts/s':>8s} {'rows/s':>7s} {'ingest/s':>8s}")
    with tempfile.TemporaryDirectory() as folder:
        for name, way in WAYS.items():
            files = Path(folder, "files")
            for k in range(options.records):
                ecg = ecg_of(beats_uv(way.rate_hz, seed=k % 4), way.step_uv, way.rate_hz, way.leads, test_id=f"1.2.{k}")
                _write(files / f"{k}", lambda path, ecg=ecg, way=way: way.write(ecg, path))
            facts = [partial(facts_of, str(files), f"{k}") for k in range(options.records)]
            rows = [partial(read_file, str(files), f"{k}") for k in range(options.records)]
            _print(name, files, facts, rows, "files")
            shutil.rmtree(files)
        files = Path(folder, "files")
        for k in range(options.records):
            _write(files / f"r{k}", lambda path, k=k: _wfdb(ecg_of(beats_uv(seed=k % 4), 5.0), path))
        names = [f"r{k}" for k in range(options.records)]
        _print("WFDB, format 16", files, [], [partial(read_wfdb, str(files), name) for name in names], "wfdb")


def _write(path: Path, write: Callable[[Path], None]) -> None:
    path.parent.mkdir(exist_ok=True)
    write(path)


def _wfdb(ecg: Ecg, path: Path) -> None:
    signals = ecg.signals_uv.T / 1000
    wfdb.wrsamp(path.name, 500, ["mV"] * 12, list(LEADS), p_signal=signals, fmt=["16"] * 12, write_dir=str(path.parent))


def _print(name: str, files: Path, facts: list[partial], rows: list[partial], source: str) -> None:
    size = sum(path.stat().st_size for path in files.iterdir()) / len(rows) / 1000
    maker = RowMaker(8)
    made = [partial(maker.make, 0, rows[start : start + 8], RowOptions()) for start in range(0, len(rows), 8)]
    of_facts = f"{len(facts) / _seconds(facts):8.0f}" if facts else f"{'-':>8s}"
    whole = len(rows) / _seconds([partial(_ingest, files, source)])
    print(f"{name:36s} {size:5.0f} {of_facts} {len(rows) / _seconds(made):7.0f} {whole:8.0f}", flush=True)


def _ingest(files: Path, source: str) -> None:
    out = files.parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    settings = IngestSettings(source=source, path=str(files))
    run(settings, IngestPaths(out / "records.parquet", out / "signals.zarr"), machine=Machine(workers=1))


def _seconds(calls: list[partial]) -> float:
    """Return the shortest processor time of some rounds: it hardly feels other work beside it."""
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for call in calls:
            call()
        times.append(time.process_time() - start)
    return min(times)


if __name__ == "__main__":
    main()
