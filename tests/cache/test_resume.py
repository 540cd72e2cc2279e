import dataclasses

import numpy as np
import pytest

from cache.embeddings import Identity, Layout, Shard, open_embeddings
from cache.errors import StoreError
from cache.upkeep.resume import create_embeddings, resume_or_create


def layout(n):
    return Layout(n, ("a", "b"), (4, 4), 4, shard_records=4)


def identity(n, version="1"):
    return Identity({"expert": "toy", "version": version}, f"signals of {n}", f"rows of {n}")


def prefix(n):
    return f"signals of {n}", f"rows of {n}"


def fill(store, scale=1.0):
    for shard in store.pending():
        rows = np.arange(store.rows_of(shard).start, store.rows_of(shard).stop)[:, None] * scale
        store.write(shard, Shard(np.repeat(rows[:, None] * np.ones((1, 2, 1)), 4, axis=2), np.repeat(rows, 4, axis=1)))


def bytes_of(store):
    return {str(p.relative_to(store)): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


def test_a_store_of_the_first_rows_is_extended_to_the_bytes_of_a_fresh_one(tmp_path):
    path = tmp_path / "toy.zarr"
    fill(create_embeddings(path, layout(10), identity(10)))
    store, why = resume_or_create(path, layout(19), identity(19), prefix)
    assert (why, store.pending()) == ("", [2, 3, 4])
    fill(store)
    fresh = create_embeddings(tmp_path / "fresh.zarr", layout(19), identity(19))
    fill(fresh)
    assert bytes_of(path) == bytes_of(tmp_path / "fresh.zarr")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fresh.zarr", "toy.zarr"]


def test_shards_that_were_pending_stay_pending_when_a_store_is_extended(tmp_path):
    store = create_embeddings(tmp_path / "toy.zarr", layout(10), identity(10))
    fill(store)
    store.drop(0)
    assert resume_or_create(tmp_path / "toy.zarr", layout(19), identity(19), prefix)[0].pending() == [0, 2, 3, 4]


@pytest.mark.parametrize(
    ("wanted", "first", "why"),
    [
        (identity(19, version="2"), prefix, "changed: version, signals_digest, records_digest"),
        (identity(19), lambda n: ("other signals", f"rows of {n}"), "changed: signals_digest, records_digest"),
        (identity(19), lambda n: (f"signals of {n}", "other rows"), "changed: signals_digest, records_digest"),
    ],
)
def test_a_store_of_anything_else_is_not_extended(tmp_path, wanted, first, why):
    fill(create_embeddings(tmp_path / "toy.zarr", layout(10), identity(10)))
    store, said = resume_or_create(tmp_path / "toy.zarr", layout(19), wanted, first)
    assert (said, store.pending()) == (why, [0, 1, 2, 3, 4])


def test_another_precision_is_not_extended(tmp_path):
    fill(create_embeddings(tmp_path / "toy.zarr", layout(10), identity(10)))
    wide = dataclasses.replace(layout(19), dtype="float32")
    assert len(resume_or_create(tmp_path / "toy.zarr", wide, identity(19), prefix)[0].pending()) == 5


def test_a_store_that_cannot_be_opened_is_left_as_it_is(tmp_path):
    fill(create_embeddings(tmp_path / "toy.zarr", layout(10), identity(10)))
    (tmp_path / "toy.zarr/zarr.json").write_text("{")
    with pytest.raises(StoreError, match="run `ensemble cache repair`"):
        resume_or_create(tmp_path / "toy.zarr", layout(10), identity(10))
    assert (tmp_path / "toy.zarr/layers/c/0/0/0").exists()


def test_a_store_moved_aside_by_a_killed_run_comes_back(tmp_path):
    path = tmp_path / "toy.zarr"
    fill(create_embeddings(path, layout(10), identity(10)))
    whole = bytes_of(path)
    path.rename(tmp_path / ".toy.zarr.replaced")
    (tmp_path / ".toy.zarr.abc.partial").mkdir()
    store, _ = resume_or_create(path, layout(10), identity(10))
    assert store.pending() == []
    assert bytes_of(path) == whole
    assert [p.name for p in tmp_path.iterdir()] == ["toy.zarr"]


def test_reading_changes_no_byte(tmp_path):
    fill(create_embeddings(tmp_path / "toy.zarr", layout(10), identity(10)))
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.rglob("*") if p.is_file()}
    store = open_embeddings(tmp_path / "toy.zarr")
    store.require_complete()
    store.read_layers(), store.read_embedding()
    with pytest.raises(ValueError, match="read-only"):
        store.done[:] = False
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.rglob("*") if p.is_file()} == before
