import dataclasses

import numpy as np
import pytest
import zarr

from cache.embeddings import Identity, Layout, Shard, open_embeddings
from cache.errors import FingerprintError, MissingFileError, StoreError
from cache.storage import writing
from cache.upkeep.resume import create_embeddings, resume_or_create

LAYOUT = Layout(
    n_records=10, layer_names=("embed", "block_1"), layer_dims=(3, 4), embedding_dim=4, output_dim=2, shard_records=4
)
IDENTITY = Identity({"expert": "toy", "version": "1"}, signals_digest="s", records_digest="r", facts={"licence": "MIT"})


def content(n: int, seed: int = 0) -> Shard:
    rng = np.random.default_rng(seed)
    layers = rng.normal(size=(n, 2, 4)).astype(np.float32)
    layers[:, 0, 3:] = np.nan
    return Shard(layers, rng.normal(size=(n, 4)), rng.normal(size=(n, 2)))


def fill(store):
    for shard in store.pending():
        rows = store.rows_of(shard)
        store.write(shard, content(rows.stop - rows.start, shard))


def test_vectors_read_back_in_half_precision(tmp_path):
    fill(create_embeddings(tmp_path / "toy.zarr", LAYOUT, IDENTITY))
    store = open_embeddings(tmp_path / "toy.zarr")
    expected = content(4, 1)
    np.testing.assert_array_equal(store.read_embedding(slice(4, 8)), expected.embedding.astype(np.float16))
    np.testing.assert_array_equal(store.read_layers(slice(4, 8)), expected.layers.astype(np.float16))
    np.testing.assert_array_equal(store.read_layer("embed", slice(4, 8)), expected.layers[:, 0, :3].astype(np.float16))
    np.testing.assert_array_equal(store.read_output(slice(4, 8)), expected.output.astype(np.float16))


def test_a_shard_counts_only_when_its_flags_are_written(tmp_path):
    store = create_embeddings(tmp_path / "toy.zarr", LAYOUT, IDENTITY)
    assert store.pending() == [0, 1, 2]
    store.write(1, content(4))
    assert store.pending() == [0, 2]
    (tmp_path / "toy.zarr/embedding/c/1/0").unlink()
    assert store.pending() == [0, 1, 2]
    with pytest.raises(StoreError, match="3 of 3 shards missing; run `ensemble embed --expert toy`"):
        store.require_complete()


def test_a_matching_store_is_resumed_and_another_one_replaced(tmp_path):
    store = create_embeddings(tmp_path / "toy.zarr", LAYOUT, IDENTITY)
    store.write(0, content(4))
    again, why = resume_or_create(tmp_path / "toy.zarr", LAYOUT, IDENTITY)
    assert (again.pending(), why) == ([1, 2], "")
    newer = dataclasses.replace(IDENTITY, expert={"expert": "toy", "version": "2"})
    fresh, why = resume_or_create(tmp_path / "toy.zarr", LAYOUT, newer)
    assert (fresh.pending(), why) == ([0, 1, 2], "changed: version")


@pytest.mark.parametrize("change", [{"signals_digest": "x"}, {"records_digest": "x"}, {"expert": {"expert": "toy"}}])
def test_everything_that_changes_the_numbers_changes_the_fingerprint(change):
    assert dataclasses.replace(IDENTITY, **change).fingerprint != IDENTITY.fingerprint


def test_facts_do_not_change_the_fingerprint():
    assert dataclasses.replace(IDENTITY, facts={}).fingerprint == IDENTITY.fingerprint


def test_rows_of_other_records_are_refused(tmp_path):
    store = create_embeddings(tmp_path / "toy.zarr", LAYOUT, IDENTITY)
    store.require_records("r")
    with pytest.raises(FingerprintError, match="made for other records or another row order"):
        store.require_records("shuffled")


def test_a_value_too_large_for_the_store_is_refused(tmp_path):
    store = create_embeddings(tmp_path / "toy.zarr", LAYOUT, IDENTITY)
    too_large = content(4)
    too_large.embedding[0, 0] = 1e6
    with pytest.raises(StoreError, match="does not fit float16; set `dtype: float32`"):
        store.write(0, too_large)


def test_two_stores_of_the_same_content_are_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        fill(create_embeddings(tmp_path / name / "toy.zarr", LAYOUT, IDENTITY))
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path / "b") for p in (tmp_path / "b").rglob("*") if p.is_file())
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_what_a_killed_writer_left_is_swept_up(tmp_path):
    store = create_embeddings(tmp_path / "toy.zarr", LAYOUT, IDENTITY)
    store.write(0, content(4))
    left = tmp_path / "toy.zarr/layers/c/0/0/0.0123abcd.partial"
    left.write_bytes(b"half")
    store.write(0, content(4))
    assert not left.exists()


def test_a_truncated_shard_is_an_error_not_nan(tmp_path):
    fill(create_embeddings(tmp_path / "toy.zarr", LAYOUT, IDENTITY))
    file = tmp_path / "toy.zarr/embedding/c/0/0"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(StoreError, match="embedding is damaged"):
        open_embeddings(tmp_path / "toy.zarr").read_embedding(slice(0, 4))


def test_a_folder_that_is_no_store_is_named(tmp_path):
    with pytest.raises(MissingFileError, match="ensemble embed --expert toy"):
        open_embeddings(tmp_path / "toy.zarr")
    (tmp_path / "toy.zarr").mkdir()
    with pytest.raises(StoreError, match="not a Zarr v3 group"):
        open_embeddings(tmp_path / "toy.zarr")


def test_a_store_without_fingerprint_is_known_by_its_values(tmp_path):
    def written(name, values, **attributes):
        group = zarr.create_group(tmp_path / f"{name}.zarr", attributes={"records_digest": "r", **attributes})
        for array, data in (("layers", values[:, None]), ("embedding", values), ("done", np.ones(9, dtype=bool))):
            group.create_array(array, data=data, chunks=(4 if name == "chunked" else 9, *data.shape[1:]))
        return open_embeddings(tmp_path / f"{name}.zarr")

    values = np.random.default_rng(0).normal(size=(9, 3)).astype("f4")
    values[2] = np.nan
    whole, chunked = written("whole", values), written("chunked", values)
    assert whole.fingerprint == chunked.fingerprint, "how the values are cut does not matter"
    others = [
        written("turned", values[::-1]),
        written("narrow", values.astype("f2")),
        written("named", values, layer_names=["a"]),
    ]
    assert len({store.fingerprint for store in [whole, *others]}) == 4
    assert written("told", values, fingerprint="f").fingerprint == "f"
    zarr.open_group(whole.path, mode="r+")["layers"][8, 0, 1] = 0
    assert open_embeddings(whole.path).fingerprint != chunked.fingerprint


def test_a_killed_write_over_a_lost_file_never_counts_with_the_older_files(tmp_path, monkeypatch):
    store = create_embeddings(tmp_path / "toy.zarr", LAYOUT, IDENTITY)
    fill(store)
    (tmp_path / "toy.zarr/layers/c/0/0/0").unlink()
    assert store.pending() == [0]
    whole, done = writing.write_pieces, []

    def full(handle, pieces):
        if done:
            raise OSError(28, "No space left on device")
        done.append(handle)
        whole(handle, pieces)

    monkeypatch.setattr(writing, "write_pieces", full)
    with pytest.raises(OSError, match="No space"):
        store.write(0, content(4, 7))
    assert (tmp_path / "toy.zarr/layers/c/0/0/0").exists()
    assert store.pending() == [0]
