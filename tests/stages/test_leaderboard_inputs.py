"""Features in files: rows read by number are those that were written, and heads read the same as from memory."""

import tracemalloc

import numpy as np
import pytest
import torch

from cache.embeddings import Identity, Layout, Shard
from cache.errors import InputError, StoreError
from cache.upkeep.resume import create_embeddings
from stages.experts import load_expert
from stages.leaderboard.crops import crop_seconds
from stages.leaderboard.inputs import VectorInputs, native_inputs
from stages.leaderboard.row_files import NumberedRows, write_rows

RNG = np.random.default_rng(0)


def test_rows_are_those_that_were_written(tmp_path, monkeypatch):
    values = RNG.normal(size=(37, 3, 5)).astype(np.float16)
    rows = write_rows(tmp_path / "rows.npy", values.shape, np.float16, (values[k : k + 10] for k in range(0, 37, 10)))
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), values)
    chosen = np.array([36, 0, 5, 5])
    np.testing.assert_array_equal(rows.read(chosen), values[chosen])
    assert rows.read(chosen[:0]).shape == (0, 3, 5)
    monkeypatch.setattr("stages.leaderboard.row_files.BLOCK_BYTES", 4 * 30)
    parts = list(rows.blocks())
    assert [part.start for part, _ in parts] == list(range(0, 37, 4))
    np.testing.assert_array_equal(np.concatenate([part for _, part in parts]), values)


def test_a_file_that_is_none_is_told(tmp_path):
    (tmp_path / "rows.npy").write_bytes(b"half")
    with pytest.raises(StoreError, match=r"rows\.npy: not an array"):
        NumberedRows.open(tmp_path / "rows.npy")


def test_a_killed_write_leaves_no_file(tmp_path):
    def parts():
        yield np.ones((1, 2))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rows(tmp_path / "rows.npy", (2, 2), np.float32, parts())
    assert list(tmp_path.iterdir()) == []


def test_vectors_in_a_file_are_read_and_filled_as_those_in_memory(tmp_path, monkeypatch):
    vectors = RNG.normal(size=(50, 4, 6)).astype(np.float32)
    vectors[3] = np.nan
    vectors[5:20, 1:, 2] = np.nan
    monkeypatch.setattr("stages.leaderboard.row_files.BLOCK_BYTES", 4 * 24 * 7)
    train = np.arange(0, 40)
    kept = VectorInputs.of(write_rows(tmp_path / "v.npy", vectors.shape, np.float32, [vectors])).filled(train)
    held = VectorInputs.of(vectors).filled(train)
    np.testing.assert_array_equal(kept.present, held.present)
    assert not kept.present[3].any()
    assert kept.present.sum() == 49 * 4
    np.testing.assert_allclose(kept.fill, np.nanmean(vectors[:40].reshape(-1, 6), axis=0), rtol=1e-5)
    rows, crops = np.array([7, 30, 49]), np.array([1, 0, 3])
    torch.testing.assert_close(kept.read(rows, crops), held.read(rows, crops))
    assert kept.read(rows, crops)[0, 2] == kept.fill[2]
    whole = VectorInputs.of(vectors[20:])
    assert whole.filled(np.arange(5)) is whole


def test_native_inputs_are_the_stores_shard_after_shard(tmp_path):
    layout = Layout(10, ("embed",), (3,), 3, 0, "float16", 4, views={"segments": (10, 3)})
    store = create_embeddings(tmp_path / "s.zarr", layout, Identity({"expert": "mine", "version": "1"}, "s", "r"))
    vectors = RNG.normal(size=(10, 3)).astype(np.float16)
    segments = RNG.normal(size=(10, 10, 3)).astype(np.float16)
    segments[2] = np.nan
    for shard in range(store.n_shards):
        rows = store.rows_of(shard)
        views = {"segments": segments[rows]}
        store.write(shard, Shard(vectors[rows][:, None], vectors[rows], None, views=views))
    for _ in range(2):  # the second time from the files of the first
        inputs = native_inputs(store, tmp_path / "native")
        rows, crops = np.array([9, 0, 4]), np.zeros(3, np.int64)
        np.testing.assert_array_equal(inputs.vectors.read(rows, crops), vectors[rows].astype(np.float32))
        np.testing.assert_array_equal(inputs.tokens.read(rows, crops), segments[rows].astype(np.float32))
        assert np.flatnonzero(~inputs.tokens.present[:, 0]).tolist() == [2]
        assert inputs.vectors.present.all()


def test_crops_are_as_long_as_the_benchmarks():
    assert crop_seconds(load_expert("jepa", config=_small("jepa"), random_weights=True)) == 10.0
    with pytest.raises(InputError, match=r"2\.4 s are shorter than 9 s"):
        crop_seconds(load_expert("stmem", config=_small("stmem"), random_weights=True))
    assert crop_seconds(load_expert("ecgcpc", config=_small("ecgcpc"), random_weights=True)) == 2.5


def _small(name):
    from stages.experts import expert_class

    cls, variant = expert_class(name)
    return dict(cls.small_config(variant))


def test_a_stores_features_are_never_held_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.leaderboard.row_files.BLOCK_BYTES", 2**16)
    n, width = 768, 256
    layout = Layout(n, ("embed",), (width,), width, 0, "float16", 64, views={"segments": (10, width)})
    store = create_embeddings(tmp_path / "s.zarr", layout, Identity({"expert": "mine", "version": "1"}, "s", "r"))
    part = RNG.normal(size=(64, 10, width)).astype(np.float16)
    for shard in range(store.n_shards):
        store.write(shard, Shard(part[:, :1], part[:, 0], None, views={"segments": part}))
    tracemalloc.start()
    inputs = native_inputs(store, tmp_path / "native")
    inputs.vectors.filled(np.arange(n))
    inputs.tokens.read(np.arange(n - 64, n), np.zeros(64, np.int64))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e6 < n * 10 * width * 2 / 1.9
