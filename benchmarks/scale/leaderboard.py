"""Peak memory of the published protocol over the size of the cohort: made-up vectors and seconds of two experts.

    python benchmarks/scale/leaderboard.py [--records N ...] [--width N]

Each size runs in a process of its own, which first makes the stores in another: what is read is the resident size at
its peak. Training is cut to two epochs: memory does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pandas as pd

from cache import open_records
from cache.embeddings import Identity, Layout, Shard
from cache.records import BASE_COLUMNS, Target, records_digest, write_records
from cache.upkeep.resume import create_embeddings
from stages.leaderboard import ExpertRun, LeaderboardPaths, LeaderboardSettings, run

EXPERTS = ("one", "two")
EPOCHS, RESAMPLES = 2, 200
MB = 1024


def main() -> None:
    """Measure every size and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, nargs="+", default=[2_000, 20_000])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--child", choices=("make", "judge"))
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    if asked.child:
        {"make": make, "judge": judge}[asked.child](asked.folder, asked.records[0], asked.width)
        return
    for n_records in asked.records:
        with tempfile.TemporaryDirectory() as folder:
            for child in ("make", "judge"):
                options = ["--records", str(n_records), "--width", str(asked.width), "--folder", folder]
                subprocess.run([sys.executable, __file__, "--child", child, *options], check=True)


def make(folder: Path, n_records: int, width: int) -> None:
    """Write records.parquet with a binary target and a regression, and a store of each expert."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({name: [None] * n_records for name in BASE_COLUMNS})
    frame["record_id"] = [f"r{row:07d}" for row in range(n_records)]
    frame["patient_id"] = [f"p{row // 2:07d}" for row in range(n_records)]
    frame["fold"] = np.arange(n_records) // 2 % 10
    frame["split"] = frame["fold"].map(lambda fold: {9: "test", 8: "val"}.get(fold, "train"))
    frame["status"], frame["source"], frame["sampling_rate_hz"], frame["n_samples"] = "ok", "made-up", 500.0, 5000
    frame["nan_fraction"], frame["clipped_fraction"] = 0.0, 0.0
    frame["flat_leads"], frame["missing_leads"] = [[[] for _ in range(n_records)] for _ in range(2)]
    frame["sex"], frame["age"] = rng.integers(0, 2, n_records), rng.uniform(20, 90, n_records)
    targets = [Target("sex", "binary", classes=("male", "female")), Target("age", "regression", unit="years")]
    write_records(folder / "records.parquet", frame, targets)
    for name in EXPERTS:
        _write_store(folder / f"{name}.zarr", name, frame, width, rng)


def _write_store(path: Path, name: str, frame: pd.DataFrame, width: int, rng: np.random.Generator) -> None:
    identity = Identity({"expert": name, "version": "1"}, "made-up", records_digest(frame["record_id"].tolist()))
    views = {"segments": (10, width)}
    layout = Layout(len(frame), ("embed",), (width,), width, 0, "float16", 1024, views=views)
    store = create_embeddings(path, layout, identity)
    for shard in range(store.n_shards):
        rows = store.rows_of(shard)
        segments = rng.normal(size=(rows.stop - rows.start, 10, width)).astype(np.float16)
        segments[:, :, 0] += frame["sex"].to_numpy()[rows, None]
        vectors = segments.mean(1).astype(np.float16)
        store.write(shard, Shard(vectors[:, None], vectors, None, views={"segments": segments}))


def judge(folder: Path, n_records: int, width: int) -> None:
    """Judge both experts on both tasks, and print the size at its peak."""
    experts = {name: ExpertRun(folder / f"{name}.zarr") for name in EXPERTS}
    (folder / "board").mkdir()
    assert len(open_records(folder / "records.parquet", columns=["record_id"])) == n_records
    paths = LeaderboardPaths.of(
        folder / "board", folder / "records.parquet", folder / "signals.zarr", experts, folder / "state"
    )
    started = time.monotonic()
    run(LeaderboardSettings(epochs=EPOCHS, bootstrap=RESAMPLES, inputs=("native",)), paths)
    seconds = round(time.monotonic() - started, 1)
    peak_mb = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MB)
    print(json.dumps({"records": n_records, "width": width, "peak_mb": peak_mb, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
