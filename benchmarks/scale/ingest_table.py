"""Memory of the end of an ingest: list of records and what reading showed of each file in, records.parquet out.

    python -m benchmarks.scale.ingest_table [--rows N ...]

Nothing is read of signals: the quality columns of each shard are written as its worker would have left them. Each size
runs in a process of its own, which first makes the list and folds as ingest does.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.scale.records_table import TARGETS, peak_mb
from benchmarks.scale.workers import SPAWN
from cache.signals import SHARD_RECORDS
from stages.cohorts import Entries
from stages.ingest.outputs import write_tables
from stages.ingest.record_table import Rows, new_rows
from stages.readers.rows import RowOptions


def listed(n_records: int) -> Rows:
    """List records, two a patient, and deal their folds."""
    rng, numbers = np.random.default_rng(0), range(n_records)
    frame = pd.DataFrame(
        {
            "record_id": [f"files/p{k // 2000:04d}/p{k // 2:08d}/s{k:08d}" for k in numbers],
            "patient_id": [f"{k // 2:08d}" for k in numbers],
            "path": [f"files/p{k // 2000:04d}/p{k // 2:08d}/s{k:08d}/{k:08d}" for k in numbers],
            "age": rng.uniform(20, 90, n_records),
            "sex": rng.integers(0, 2, n_records),
            "superclass": [[TARGETS[2].classes[k]] for k in rng.integers(0, 5, n_records)],
        }
    )
    return new_rows(Entries(frame, list(TARGETS)), "list", None, 0)


def quality_file(n: int, shard: int) -> str:
    """Return what a worker leaves of a shard: some records have computed leads, notes or are bad."""
    bad = [k % 500 == 7 for k in range(n)]
    return json.dumps(
        {
            "sampling_rate_hz": [500.0] * n,
            "n_samples": [5000] * n,
            "nan_fraction": [k / 1e4 for k in range(n)],
            "flat_leads": [["V6"] if k % 50 == 0 else [] for k in range(n)],
            "missing_leads": [[] for _ in range(n)],
            "clipped_fraction": [0.0] * n,
            "status": ["bad" if b else "ok" for b in bad],
            "reason": [f"s{shard}-{k}.dat is cut short" if b else None for k, b in enumerate(bad)],
            "derived_leads": [["III", "aVR", "aVL", "aVF"] if k % 9 == 0 else [] for k in range(n)],
            "limb_swap": [None] * n,
            "pace_spikes": [0] * n,
            "notes": [["the gain is not given; 200 per mV is assumed"] if k % 20 == 0 else [] for k in range(n)],
        }
    )


def ended(folder: Path, n_records: int, pipe: Connection) -> None:
    """End an ingest, and tell the peaks before and after in MB, and seconds."""
    rows = listed(n_records)
    files = sorted(folder.glob("*.json"))
    before, started = peak_mb(), time.process_time()
    quality = (json.loads(file.read_bytes()) for file in files)
    summary = write_tables(folder / "records.parquet", rows, quality, RowOptions())
    assert summary.n_bad > 0
    pipe.send((before, peak_mb(), time.process_time() - started))


def measured(folder: Path, n_records: int) -> None:
    for shard, start in enumerate(range(0, n_records, SHARD_RECORDS)):
        (folder / f"{shard:08d}.json").write_text(quality_file(min(SHARD_RECORDS, n_records - start), shard))
    receiving, sending = SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=ended, args=(folder, n_records, sending))
    process.start()
    sending.close()
    before, after, cpu = receiving.recv()
    process.join()
    digest = hashlib.sha256((folder / "records.parquet").read_bytes()).hexdigest()[:12]
    print(
        f"{n_records:,} rows: {before:.0f} MB for the list, {after:.0f} MB at the end, {cpu:.1f} s of CPU; {digest}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    options = parser.parse_args()
    for n_records in options.rows:
        with tempfile.TemporaryDirectory() as name:
            measured(Path(name), n_records)


if __name__ == "__main__":
    main()
