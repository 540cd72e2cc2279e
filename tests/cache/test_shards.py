"""Shards are written and read without zarr; zarr must agree about every one of them."""

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.embeddings import Identity, Layout, Shard, open_embeddings
from cache.errors import StoreError
from cache.upkeep.resume import create_embeddings

IDENTITY = Identity({"expert": "toy", "version": "1"}, signals_digest="s", records_digest="r")


def content(n, layout, seed):
    rng = np.random.default_rng(seed)
    width = max(layout.layer_dims)
    layers = rng.normal(size=(n, len(layout.layer_names), width)).astype(layout.dtype)
    return Shard(layers, rng.normal(size=(n, layout.embedding_dim)).astype(layout.dtype))


layouts = st.builds(
    lambda n, n_layers, width, dim, dtype, shard: Layout(
        n, tuple(f"l{k}" for k in range(n_layers)), (width,) * n_layers, dim, 0, dtype, shard
    ),
    st.integers(1, 300),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from(["float16", "float32"]),
    st.sampled_from([1, 4, 7, 64, 260, 521, 1024]),
)


@given(layouts, st.data())
@settings(deadline=None, max_examples=20)
def test_zarr_reads_what_is_written_and_slices_agree(tmp_path_factory, layout, data):
    path = tmp_path_factory.mktemp("shards") / "toy.zarr"
    store = create_embeddings(path, layout, IDENTITY)
    parts = []
    for shard in range(store.n_shards):
        rows = store.rows_of(shard)
        parts.append(content(rows.stop - rows.start, layout, shard))
        store.write(shard, parts[-1])
    layers, embedding = np.concatenate([p.layers for p in parts]), np.concatenate([p.embedding for p in parts])
    group = zarr.open_group(path, mode="r")
    np.testing.assert_array_equal(group["layers"][:], layers)
    np.testing.assert_array_equal(group["embedding"][:], embedding)
    assert group["done"][:].all()
    start = data.draw(st.integers(0, layout.n_records))
    stop = data.draw(st.integers(start, layout.n_records))
    store = open_embeddings(path)
    np.testing.assert_array_equal(store.read_layers(slice(start, stop)), layers[start:stop])
    np.testing.assert_array_equal(store.read_layer("l0", slice(start, stop)), layers[start:stop, 0])
    np.testing.assert_array_equal(store.read_embedding(slice(start, stop)), embedding[start:stop])
    assert store.pending() == []


def test_what_zarr_writes_is_read(tmp_path):
    layout = Layout(600, ("a", "b"), (8, 8), 8, shard_records=512)
    store = create_embeddings(tmp_path / "toy.zarr", layout, IDENTITY)
    whole = content(600, layout, 0)
    store.layers[:], store.embedding[:], store.done[:], store.has_vector[:] = whole.layers, whole.embedding, True, True
    store = open_embeddings(tmp_path / "toy.zarr")
    assert store.pending() == []
    np.testing.assert_array_equal(store.read_layers(), whole.layers)
    np.testing.assert_array_equal(store.read_layer("b", slice(500, 520)), whole.layers[500:520, 1])


def test_a_shard_without_a_single_vector_counts_as_written(tmp_path):
    layout = Layout(8, ("a",), (3,), 3, shard_records=4)
    store = create_embeddings(tmp_path / "toy.zarr", layout, IDENTITY)
    store.write(1, Shard(np.full((4, 1, 3), np.nan), np.full((4, 3), np.nan)))
    assert store.pending() == [0]
    assert np.isnan(open_embeddings(tmp_path / "toy.zarr").read_embedding(slice(4, 8))).all()


def test_a_shard_that_was_never_written_does_not_read_as_nan(tmp_path):
    store = create_embeddings(tmp_path / "toy.zarr", Layout(8, ("a",), (3,), 3, shard_records=4), IDENTITY)
    with pytest.raises(StoreError, match="shard 0: No such file"):
        store.read_embedding(slice(0, 4))


@pytest.mark.parametrize("sharded", [False, True])
def test_a_store_of_another_tool_needs_three_arrays_and_the_row_digest(tmp_path, sharded):
    rng = np.random.default_rng(0)
    layers, embedding = rng.normal(size=(10, 2, 5)).astype("f4"), rng.normal(size=(10, 6)).astype("f4")
    group = zarr.create_group(tmp_path / "other.zarr", attributes={"records_digest": "r"})
    for name, values in (("layers", layers), ("embedding", embedding), ("done", np.ones(10, dtype=bool))):
        chunks = (4, *values.shape[1:])
        group.create_array(name, data=values, chunks=chunks, shards=chunks if sharded else None)
    store = open_embeddings(tmp_path / "other.zarr")
    store.require_records("r")
    store.require_complete()
    assert store.layer_names == ("layer_0", "layer_1")
    np.testing.assert_array_equal(store.read_layer("layer_1"), layers[:, 1])
    np.testing.assert_array_equal(store.read_embedding(slice(3, 9)), embedding[3:9])
    with pytest.raises(StoreError, match="written by another tool and can only be read"):
        open_embeddings(tmp_path / "other.zarr", mode="r+").write(0, Shard(layers[:4], embedding[:4]))
