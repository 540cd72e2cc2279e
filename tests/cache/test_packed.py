"""signals.zarr is written without zarr; zarr reads it, and would have written the same bytes."""

import hashlib

import numpy as np
import pytest
import xxhash
import zarr
from zarr.codecs import BloscCodec

from cache.errors import StoreError
from cache.signals import _CODEC, MISSING, SignalStore, add_signal_arrays, create_signals, open_signals
from cache.upkeep.checks import signal_faults
from cache.upkeep.signal_growth import grow_signals
from cache.zarr_io.groups import create_group, shard_file, write_shard


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


def first_kind(path, n_records: int) -> SignalStore:
    """Make a store as the first version did: bit-shuffled, digested by BLAKE2b without saying so."""
    codec = BloscCodec(typesize=2, cname="lz4", clevel=5, shuffle="bitshuffle")

    def fill(group, folder):
        add_signal_arrays(group, n_records, 32, codec)
        del group["rate_hz"]

    create_group(path, {"schema_version": 1}, fill)
    return open_signals(path, mode="r+")


def test_a_store_of_the_first_kind_is_read_written_verified_and_grows(tmp_path):
    path = tmp_path / "signals.zarr"
    store, signals = first_kind(path, 40), waves(60)
    for shard in range(2):
        rows = store.rows_of(shard)
        store.write_shard(shard, signals[rows], np.full(rows.stop - rows.start, 5000))
    expected = hashlib.blake2b(signals[3].tobytes(), digest_size=16).digest()
    assert np.asarray(store.digest[3]).tobytes() == expected
    assert not list(signal_faults(path))
    before = store.content_digest()
    grown = grow_signals(path, 40, 60)
    shuffle = getattr(grown.codec.shuffle, "value", grown.codec.shuffle)  # a string since zarr 3.4
    assert (grown.row_digest, shuffle) == ("blake2b_128", "bitshuffle")
    grown.write_shard(1, signals[32:60], np.full(28, 5000))
    assert np.array_equal(grown.read_uv(slice(0, 60)), signals)
    assert grown.content_digest(40) == before
    assert not list(signal_faults(path))


def test_short_records_of_a_store_of_the_first_kind_count_by_their_length(tmp_path):
    path, signals = tmp_path / "signals.zarr", waves(40)
    store = first_kind(path, 40)
    valid = np.full(40, 5000)
    digests = []
    for length in (5000, 2500):
        valid[35], signals[35, :, 2500:] = length, MISSING
        store.write_shard(0, signals[:32], valid[:32])
        store.write_shard(1, signals[32:], valid[32:])
        digests.append(store.content_digest())
    assert digests[0] != digests[1]
    assert [(len(at), mv.shape[2], rate) for at, mv, rate in store.read_groups(slice(32, 40))] == [
        (7, 5000, 500.0),
        (1, 2500, 500.0),
    ]
    grown = grow_signals(path, 40, 50)
    expected = hashlib.blake2b(np.ascontiguousarray(signals[35, :, :2500]).tobytes(), digest_size=16).digest()
    assert np.asarray(grown.digest[35]).tobytes() == expected
    assert grown.rates_of(slice(30, 50)).tolist() == [500.0] * 10 + [0.0] * 10
    assert not grown.written(1)  # its new rows are still to come
    assert not [fault for fault in signal_faults(path) if fault.shard == 0]


def test_a_new_store_says_how_its_rows_are_digested(tmp_path):
    store = create_signals(tmp_path / "signals.zarr", 1)
    signals = waves(1)
    store.write_shard(0, signals, np.array([5000]))
    assert dict(store.group.attrs)["row_digest"] == "xxh3_128"
    assert np.asarray(store.digest[0]).tobytes() == xxhash.xxh3_128_digest(signals[0].tobytes())


def test_rows_packed_in_parts_give_the_bytes_of_rows_packed_at_once(tmp_path):
    signals, valid = waves(40), np.full(40, 5000)
    whole, parts = create_signals(tmp_path / "a", 40, 48), create_signals(tmp_path / "b", 40, 48)
    whole.write_shard(0, signals, valid)
    packed = [parts.pack(rows, parts.digests_of(rows)) for rows in (signals[:32], signals[32:])]
    parts.write_packed(0, packed, valid)
    for array in (whole.signals, whole.valid, whole.digest):
        assert shard_file(whole.path, array, 0).read_bytes() == shard_file(parts.path, array, 0).read_bytes()


def test_a_store_that_another_tool_laid_out_is_read_and_never_written(tmp_path):
    path = tmp_path / "signals.zarr"
    signals = waves(2)
    group = zarr.create_group(path, zarr_format=3)
    group.create_array("signals", data=signals)
    group.create_array("valid", data=np.full(2, 5000, dtype=np.int32))
    group.create_array("digest", data=np.ones((2, 16), dtype=np.uint8))
    store = open_signals(path, mode="r+")
    assert np.array_equal(store.read_uv(slice(0, 2)), signals)
    with pytest.raises(StoreError, match="another tool"):
        store.write_shard(0, signals, np.full(2, 5000))
    with pytest.raises(StoreError, match="another tool"):
        grow_signals(path, 2, 3)


def test_an_unknown_way_of_digesting_is_named(tmp_path):
    path = tmp_path / "signals.zarr"
    create_group(path, {"row_digest": "md6"}, lambda group, _: add_signal_arrays(group, 1, 16, _CODEC))
    with pytest.raises(StoreError, match="row_digest is 'md6'"):
        open_signals(path)
