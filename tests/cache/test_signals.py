import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.errors import MissingFileError, StoreError
from cache.signals import MISSING, create_signals, open_signals, to_microvolts, to_millivolts


def fill(store, seed=0):
    rng = np.random.default_rng(seed)
    signals = rng.integers(-3000, 3000, (len(store), 12, 5000)).astype(np.int16)
    for shard in range(store.n_shards):
        rows = store.rows_of(shard)
        store.write_shard(shard, signals[rows], np.full(rows.stop - rows.start, 5000))
    return signals


def test_signals_read_back_exactly(tmp_path):
    signals = fill(create_signals(tmp_path / "s.zarr", 10, shard_records=16))
    store = open_signals(tmp_path / "s.zarr")
    np.testing.assert_array_equal(store.read_uv(slice(3, 7)), signals[3:7])
    assert all(store.written(shard) for shard in range(store.n_shards))


@given(st.lists(st.floats(-32.767, 32.767), min_size=1, max_size=50))
@settings(deadline=None)
def test_a_microvolt_survives_the_round_trip(values):
    signals_mv = np.array(values)
    back = to_millivolts(to_microvolts(signals_mv))
    assert np.abs(back - signals_mv).max() <= 0.000501


def test_missing_stays_visible_and_over_range_is_held():
    packed = to_microvolts(np.array([np.nan, np.inf, 40.0, -40.0, 0.5]))
    assert packed.tolist() == [MISSING, MISSING, 32767, -32767, 500]
    assert np.isnan(to_millivolts(packed)).tolist() == [True, True, False, False, False]


def test_rows_that_were_never_written_are_missing_not_zero(tmp_path):
    store = create_signals(tmp_path / "s.zarr", 3, shard_records=16)
    assert np.isnan(store.read_mv(slice(0, 3))).all()
    assert not store.written(0)
    with pytest.raises(StoreError, match="3 records are not written yet"):
        store.content_digest()


def test_the_digest_of_the_first_rows_does_not_depend_on_later_ones(tmp_path):
    short, long = create_signals(tmp_path / "a", 16, 16), create_signals(tmp_path / "b", 40, 16)
    fill(short), fill(long)
    assert short.content_digest() == long.content_digest(16)
    assert long.content_digest() != long.content_digest(16)


def test_a_flipped_byte_never_reads_as_a_signal(tmp_path):
    fill(create_signals(tmp_path / "s.zarr", 4, shard_records=16))
    file = tmp_path / "s.zarr/signals/c/0/0/0"
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        open_signals(tmp_path / "s.zarr").read_uv(slice(0, 4))


def test_a_missing_store_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(MissingFileError, match="run `ensemble ingest` first"):
        open_signals(tmp_path / "s.zarr")
