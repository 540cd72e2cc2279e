"""The report of many records with pictures: seconds and bytes.

    python -m benchmarks.report --records 3000

Predictions of four tasks and seven methods are made up; signals are generated ECGs.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np

from cache.records import write_records
from cache.signals import create_signals, to_microvolts
from stages.experts.signals.reference_ecgs import reference_signals
from stages.report import ReportPaths, ReportSettings, run
from stages.scoring.predictions import open_predictions
from stages.scoring.summary import summarise, write_metrics
from tests.stages.synthetic_predictions import TARGETS, write_study

SHARD_RECORDS = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=3000)
    parser.add_argument("--cases", type=int, default=ReportSettings().cases)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), options.records)
        processor, started = time.process_time(), time.perf_counter()
        size = written(Path(folder), options.cases)
        seconds, used = time.perf_counter() - started, time.process_time() - processor
    print(f"{options.records:,} records, {options.cases} cases a kind: {size / 1e6:.2f} MB, ", end="")
    print(f"{seconds:.1f} s ({used:.1f} s of processor)")


def write(folder: Path, n: int) -> None:
    """Write records, predictions, metrics and signals."""
    frame = write_study(folder, n=n)
    write_records(folder / "records.parquet", frame, list(TARGETS.values()))
    metrics = summarise(open_predictions(folder / "predictions.parquet"), frame, n_resamples=100)
    write_metrics(folder / "metrics.json", metrics, folder / "predictions.parquet")
    ecgs = to_microvolts(reference_signals(32, 5000, 500.0, seed=0))
    store = create_signals(folder / "signals.zarr", n, shard_records=SHARD_RECORDS)
    for shard in range(store.n_shards):
        rows = np.arange(store.rows_of(shard).start, store.rows_of(shard).stop)
        store.write_shard(shard, ecgs[rows % len(ecgs)], np.full(len(rows), 5000))


def written(folder: Path, cases: int) -> int:
    """Write the report and return its bytes."""
    inputs = (folder / name for name in ("records.parquet", "metrics.json", "predictions.parquet"))
    paths = ReportPaths(*inputs, folder / "report.html", folder / "gate_weights.parquet")
    paths = dataclasses.replace(paths, signals=folder / "signals.zarr")
    return run(ReportSettings(cases=cases), paths).report.stat().st_size


if __name__ == "__main__":
    main()
