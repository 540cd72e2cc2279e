"""Records of any rate and length side by side in signals.zarr."""

import numpy as np
import pytest

from cache.errors import StoreError
from cache.signals import MISSING, create_signals, open_signals, to_millivolts
from cache.upkeep.checks import repair_signals, signal_faults
from cache.upkeep.signal_growth import grow_signals, lengthen_signals

LENGTHS = {0: (1000, 100.0), 1: (2570, 257.0), 2: (10_000, 1000.0), 3: (15_000, 500.0), 4: (0, 0.0), 5: (5000, 500.0)}
"""Row -> samples and rate."""


def drawn(n: int, n_samples: int) -> np.ndarray:
    return np.random.default_rng(n).integers(-3000, 3000, (n, 12, n_samples)).astype(np.int16)


def written(path, n_records=40, shard_records=16):
    """Write a store of ten-second records at 500 Hz, but for the first rows, which are those of `LENGTHS`."""
    signals, valid, rates = drawn(n_records, 15_000), np.full(n_records, 5000), np.full(n_records, 500.0)
    for row, (length, rate_hz) in LENGTHS.items():
        valid[row], rates[row] = length, rate_hz
    signals[np.arange(15_000) >= valid[:, None, None].repeat(12, axis=1)] = MISSING
    store = create_signals(path, n_records, shard_records)
    for shard in range(store.n_shards):
        rows = store.rows_of(shard)
        longest = 15_000 if shard == 0 else 5000
        store.write_shard(shard, signals[rows, :, :longest], valid[rows], rates[rows])
    return lengthen_signals(path), signals, valid, rates


def test_every_record_reads_as_long_and_as_fast_as_it_is(tmp_path):
    store, signals, valid, rates = written(tmp_path / "s.zarr")
    assert store.n_samples == 15_000
    assert np.array_equal(store.read_uv(slice(0, 40)), signals)
    found = {}
    for positions, signals_mv, rate_hz in store.read_groups(slice(0, 40)):
        found |= {int(at): (mv, rate_hz) for at, mv in zip(positions, signals_mv, strict=True)}
    assert sorted(found) == [row for row in range(40) if row != 4]
    for row, (signals_mv, rate_hz) in found.items():
        assert rate_hz == rates[row]
        np.testing.assert_array_equal(signals_mv, to_millivolts(signals[row, :, : valid[row]]))


def test_only_the_rows_that_are_wanted_are_grouped(tmp_path):
    store = written(tmp_path / "s.zarr")[0]
    wanted = np.zeros(10, dtype=bool)
    wanted[[2, 4, 7]] = True
    groups = [(at.tolist(), mv.shape, rate) for at, mv, rate in store.read_groups(slice(0, 10), wanted)]
    assert groups == [([2], (1, 12, 10_000), 1000.0), ([7], (1, 12, 5000), 500.0)]


def test_ten_seconds_at_500_hz_have_the_digest_and_the_bytes_they_always_had(tmp_path):
    store, signals, *_ = written(tmp_path / "s.zarr")
    plain = create_signals(tmp_path / "plain.zarr", 40, 16)
    plain.write_shard(1, signals[16:32, :, :5000], np.full(16, 5000))
    assert np.array_equal(plain.row_digests_of(slice(16, 32)), store.row_digests_of(slice(16, 32)))
    one, other = (path / "signals/c/1/0/0" for path in (store.path, plain.path))
    assert one.read_bytes() == other.read_bytes()
    assert not (store.path / "signals/c/1/0/1").exists()


def test_rate_and_length_are_part_of_a_record_s_digest(tmp_path):
    store = create_signals(tmp_path / "s.zarr", 4, 16)
    row = drawn(1, 5000)
    row[:, :, 2500:] = MISSING
    one = store.digests_of(row, np.array([5000]), np.array([500.0]))
    assert not np.array_equal(one, store.digests_of(row, np.array([2500]), np.array([500.0])))
    assert not np.array_equal(one, store.digests_of(row, np.array([5000]), np.array([250.0])))


def test_a_whole_store_verifies_and_a_lost_piece_is_found_refused_and_dropped(tmp_path):
    store = written(tmp_path / "s.zarr")[0]
    assert not list(signal_faults(store.path))
    (store.path / "signals/c/0/0/2").unlink()
    with pytest.raises(StoreError, match="shard 0 is missing"):
        open_signals(store.path).read_uv(slice(0, 4))
    assert {fault.shard for fault in signal_faults(store.path)} == {0}
    assert list(repair_signals(store.path))
    assert [p.name for p in (store.path / "signals/c").iterdir() if any(p.rglob("0"))] != []
    assert {fault.missing for fault in signal_faults(store.path)} == {True}


def test_a_wrong_rate_is_found(tmp_path):
    store = written(tmp_path / "s.zarr")[0]
    writable = open_signals(store.path, mode="r+")
    rates = np.full(16, 250.0)
    writable.rate_hz[16:32] = rates
    assert {fault.shard for fault in signal_faults(store.path)} == {1}


def test_a_shard_written_again_with_shorter_records_leaves_nothing_of_the_longer_ones(tmp_path):
    store, signals, *_ = written(tmp_path / "s.zarr")
    writable = open_signals(store.path, mode="r+")
    writable.write_shard(0, signals[:16, :, :5000], np.full(16, 5000))
    assert not (store.path / "signals/c/0/0/1").exists()
    assert lengthen_signals(store.path).n_samples == 5000
    assert not list(signal_faults(store.path))


def test_a_store_of_several_rates_grows_and_keeps_the_digest_of_its_first_rows(tmp_path):
    store, signals, *_ = written(tmp_path / "s.zarr")
    before = store.content_digest()
    grown = grow_signals(store.path, 40, 50)
    more = np.concatenate([signals[32:40, :, :5000], drawn(10, 5000)])
    grown.write_shard(2, more[:16], np.full(16, 5000))
    grown.write_shard(3, more[16:], np.full(2, 5000))
    assert grown.content_digest(40) == before
    assert grown.rates_of(slice(0, 6)).tolist() == [rate for _, rate in LENGTHS.values()]
    assert not list(signal_faults(store.path))
