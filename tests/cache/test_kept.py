"""What another store replaces is kept under its fingerprint, and comes back."""

import pytest

from cache.embeddings import open_embeddings
from cache.storage.locations import remove, store_exists, stores_in
from cache.storage.objects import ObjectPath
from cache.upkeep.kept import kept_path, kept_stores, replaced_by
from cache.upkeep.resume import create_embeddings, resume_or_create
from tests.cache.test_resume import fill, identity, layout


@pytest.fixture(params=["folder", "gs", "az", pytest.param("s3", marks=pytest.mark.slow)])
def path(request, tmp_path):
    if request.param == "folder":
        return tmp_path / "toy.zarr"
    return ObjectPath(f"{request.getfixturevalue(request.param)}/study/embeddings/toy.zarr")


def content(store):
    return store.read_layers(slice(None)).tolist()


def made(path, version, scale):
    store, why = resume_or_create(path, layout(10), identity(10, version))
    if store.pending():
        fill(store, scale)
    return open_embeddings(path), why


def test_a_replaced_store_is_kept_and_comes_back(path):
    first, _ = made(path, "1", 1.0)
    old, fingerprint = content(first), first.fingerprint
    second, why = made(path, "2", 2.0)
    assert why == "changed: version"
    assert content(second) != old
    assert [kept.name for kept in kept_stores(path.parent)] == [kept_path(path, fingerprint).name]
    assert content(open_embeddings(kept_path(path, fingerprint))) == old
    assert [store.name for store in stores_in(path.parent)] == ["toy.zarr"]
    back, _ = resume_or_create(path, layout(10), identity(10, "1"))
    assert back.pending() == []
    assert content(open_embeddings(path)) == old
    assert [replaced_by(kept) for kept in kept_stores(path.parent)] == [path]
    again, _ = resume_or_create(path, layout(10), identity(10, "2"))
    assert again.pending() == []
    remove(kept_stores(path.parent)[0])
    assert kept_stores(path.parent) == []


def test_a_store_that_holds_nothing_is_not_kept(path):
    create_embeddings(path, layout(10), identity(10, "1"))
    made(path, "2", 1.0)
    assert kept_stores(path.parent) == []


def test_a_copy_that_was_interrupted_leaves_the_old_store_and_is_made_again(path, monkeypatch):
    if not isinstance(path, ObjectPath):
        pytest.skip("folders are renamed")
    first, _ = made(path, "1", 1.0)
    old, fingerprint = content(first), first.fingerprint
    copy = ObjectPath.copy

    def part_of(self, names, target):
        copy(self, names[: len(names) // 2], target)
        raise KeyboardInterrupt

    monkeypatch.setattr(ObjectPath, "copy", part_of)
    with pytest.raises(KeyboardInterrupt):
        resume_or_create(path, layout(10), identity(10, "2"))
    assert content(open_embeddings(path)) == old
    assert not store_exists(kept_path(path, fingerprint))
    monkeypatch.setattr(ObjectPath, "copy", copy)
    made(path, "2", 2.0)
    assert content(open_embeddings(kept_path(path, fingerprint))) == old
