"""signals.zarr is written without zarr; zarr reads it, and would have written the same bytes."""

import numpy as np
import pytest

from cache._zarr import shard_file, write_shard
from cache.signals import MISSING, create_signals


def waves(n: int) -> np.ndarray:
    steps = np.random.default_rng(n).integers(-8, 9, (n, 12, 5000))
    return (np.cumsum(steps, axis=2) // 4).astype(np.int16)


@pytest.mark.parametrize("n_records", [32, 37, 16, 1])
def test_the_bytes_are_those_that_zarr_writes(tmp_path, n_records):
    store = create_signals(tmp_path / "signals.zarr", n_records, shard_records=32)
    signals = waves(n_records)
    for shard in range(store.n_shards):
        rows = store.rows_of(shard)
        file = shard_file(store.path, store.signals, shard)
        store.write_shard(shard, signals[rows], np.full(rows.stop - rows.start, 5000))
        ours = file.read_bytes()
        write_shard(store.path, store.signals, shard, 32, signals[rows])
        assert file.read_bytes() == ours
    assert np.array_equal(np.asarray(store.signals[:]), signals)


def test_a_shard_of_unreadable_records_has_a_file(tmp_path):
    store = create_signals(tmp_path / "signals.zarr", 20, shard_records=16)
    store.write_shard(0, np.full((16, 12, 5000), MISSING, dtype=np.int16), np.zeros(16))
    assert shard_file(store.path, store.signals, 0).exists()
    assert (store.read_uv(slice(0, 16)) == MISSING).all()
