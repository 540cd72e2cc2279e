"""Stores of objects, on servers on loopback that speak as S3, Google's and Azure's storage: the same bytes.

Claims on them: `test_leases`.
"""

import os

import fsspec
import numpy as np
import pytest

from cache.embeddings import Identity, Layout, Shard, open_embeddings
from cache.errors import MissingFileError, StorageError, StoreError, UsageError
from cache.signals import create_signals, open_signals
from cache.storage.locations import location_of, remove, stores_in
from cache.storage.objects import ObjectPath, client_for
from cache.upkeep.checks import embedding_faults, repair_embeddings, repair_signals, signal_faults
from cache.upkeep.resume import create_embeddings, resume_or_create
from tests.clouds import BY_AZURES, SLOW


def layout(n=10):
    return Layout(n, ("embed", "block_1"), (3, 4), 4, output_dim=2, shard_records=4)


def identity(n=10, version="1"):
    return Identity({"expert": "toy", "version": version}, f"signals of {n}", f"rows of {n}")


def content(store, shard, seed=0):
    rows = store.rows_of(shard)
    rng = np.random.default_rng(seed)
    drawn = rng.normal(size=(99, 14))[rows]
    return Shard(drawn[:, :8].reshape(-1, 2, 4), drawn[:, 8:12], drawn[:, 12:])


def fill(store, seed=0):
    for shard in store.pending():
        store.write(shard, content(store, shard, seed))
    return store


def bytes_of(store):
    if isinstance(store, ObjectPath):
        return {name: (store / name).read_bytes() for name in store.files()}
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in store.rglob("*") if p.is_file()}


@pytest.fixture(params=["s3", "gs", "az"])
def bucket(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def url(bucket):
    return location_of(f"{bucket}/study/embeddings/toy.zarr")


@pytest.fixture
def local(tmp_path):
    return fill(create_embeddings(tmp_path / "toy.zarr", layout(), identity()))


def test_objects_are_the_files_of_a_local_store_and_read_the_same(url, local):
    fill(create_embeddings(url, layout(), identity()))
    assert bytes_of(url) == bytes_of(local.path)
    store = open_embeddings(str(url))
    assert store.pending() == []
    for rows in (slice(None), slice(3, 9), slice(5, 6), slice(4, 4)):
        for name in ("layers", "embedding", "output", "done"):
            np.testing.assert_array_equal(store.read(name, rows), local.read(name, rows))
        np.testing.assert_array_equal(store.read_layer("embed", rows), local.read_layer("embed", rows))
    assert stores_in(url.parent) == [url]


def test_a_store_of_another_tool_is_read(url, tmp_path):
    import zarr

    group = zarr.create_group(tmp_path / "other.zarr", attributes={"records_digest": "r"})
    layers = np.arange(60, dtype=np.float32).reshape(10, 2, 3)
    group.create_array("layers", data=layers)
    group.create_array("embedding", data=layers[:, 0])
    group.create_array("done", data=np.ones(10, dtype=bool))
    for name, raw in bytes_of(tmp_path / "other.zarr").items():
        (url / name).create(raw)
    store = open_embeddings(url)
    assert store.pending() == []
    np.testing.assert_array_equal(store.read_layers(slice(2, 7)), layers[2:7])


def test_any_url_that_fsspec_knows_can_be_read_but_not_written(local):
    files = fsspec.filesystem("memory")
    for name, raw in bytes_of(local.path).items():
        files.pipe_file(f"/held/toy.zarr/{name}", raw)
    store = open_embeddings("memory://held/toy.zarr")
    np.testing.assert_array_equal(store.read_layers(), local.read_layers())
    for change in (lambda: store.drop(0), lambda: store.write(0, content(store, 0))):
        with pytest.raises(UsageError, match=r"memory://held/toy\.zarr.*: can only be read"):
            change()
    assert open_embeddings("memory://held/toy.zarr").pending() == []


def test_a_file_url_is_a_folder_and_written_like_one(tmp_path):
    place = tmp_path / "of a study" / "toy.zarr"
    store = create_embeddings(place.as_uri(), layout(), identity())
    store.write(0, content(store, 0))
    assert location_of(place.as_uri()) == place
    read = [open_embeddings(where).read_layers(slice(0, 4)) for where in (place, place.as_uri())]
    np.testing.assert_array_equal(*read)


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:secret@bucket/study",
        "az://box/study?sv=2024&sig=secret",
        "abfss://box:secret@account.dfs.core.windows.net/study",
        "az://secret@box/study",
    ],
)
def test_a_url_that_holds_credentials_is_refused(url):
    with pytest.raises(UsageError, match="a URL holds credentials") as refused:
        location_of(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("url", ["az://{}/x", "abfs://{}/x", "abfss://{}@tester.dfs.core.windows.net/x"])
def test_azures_urls_are_written_in_its_ways(az, url):
    path = location_of(url.format(az.removeprefix("az://")))
    assert path.create(b"content")
    assert (location_of(az) / "x").read_bytes() == b"content"
    assert path.parent.children() == [path]


def test_gcs_is_another_word_for_gs(gs):
    assert location_of(gs.replace("gs://", "gcs://") + "/x").create(b"content")
    assert location_of(f"{gs}/x").read_bytes() == b"content"


def test_parts_of_objects_are_read_and_names_may_hold_any_letter(bucket):
    path = location_of(f"{bucket}/a b/ü#%20x")
    path.create(b"0123456789")
    parts = {(1, 3): b"12", (8, None): b"89", (-2, None): b"89", (-99, None): b"0123456789", (8, 99): b"89"}
    parts |= {(10, 12): b"", (3, 3): b""}
    assert {part: path.read_range(*part) for part in parts} == parts
    assert path.parent.files().keys() == {path.name}
    assert path.parent.parent.children() == [path.parent]
    empty = path / "empty"
    empty.create(b"")
    assert (empty.read_bytes(), empty.read_range(-3, None), empty.size()) == (b"", b"", 0)
    for read in (empty / "none").read_bytes, (empty / "none").size:
        with pytest.raises(FileNotFoundError):
            read()


def test_more_objects_than_a_page_are_listed_copied_and_deleted(bucket):
    folder, copied = location_of(f"{bucket}/from"), location_of(f"{bucket}/to")
    names = [f"c/{k}" for k in range(45)]
    for name in names:
        (folder / name).create(name.encode())
    folder.copy(names, copied)
    folder.delete([*names[:40], "gone already"])
    assert folder.files().keys() == set(names[40:])
    assert [path.read_bytes().decode() for path in (copied / "c").children()] == sorted(names)


def test_only_one_of_two_writers_gets_its_way(bucket):
    path = location_of(f"{bucket}/x")
    first = path.create(b"1")
    assert (bool(first), path.create(b"2"), path.replace(b"2", path.unused_tag)) == (True, "", "")
    second = path.replace(b"2", first)
    assert (path.replace(b"3", first), path.tag(), path.read_tagged().content) == ("", second, b"2")
    path.unlink()
    assert path.replace(b"4", second) == ""
    assert not path.exists()


@BY_AZURES
def test_signals_in_a_bucket_are_those_of_a_folder(bucket, tmp_path):
    made = create_signals(tmp_path / "signals.zarr", 20, shard_records=16)
    samples = np.random.default_rng(0).integers(-99, 99, (20, 12, 5000)).astype(np.int16)
    for shard in range(2):
        made.write_shard(shard, samples[made.rows_of(shard)], np.full(len(samples[made.rows_of(shard)]), 5000))
    target = location_of(f"{bucket}/signals.zarr")
    store = create_signals(str(target), 20, shard_records=16)
    for shard in range(2):
        store.write_shard(shard, samples[store.rows_of(shard)], np.full(len(samples[store.rows_of(shard)]), 5000))
    assert bytes_of(target) == bytes_of(tmp_path / "signals.zarr")
    store = open_signals(str(target))
    np.testing.assert_array_equal(store.read_uv(slice(10, 20)), samples[10:])
    assert store.content_digest() == made.content_digest()
    (target / "signals/c/1/0/0").unlink()
    assert [fault.shard for fault in signal_faults(target)] == [1]
    with pytest.raises(StoreError, match="shard 1 is missing"):
        open_signals(target).read_uv(slice(16, 20))
    assert "run `ensemble ingest`" in "".join(repair_signals(target))


# ---- damage ----------------------------------------------------------------------------------------------------------


@BY_AZURES
@pytest.mark.parametrize(
    "name",
    [
        "layers/c/1/0/0",
        *(pytest.param(f"{n}/c/1/0", marks=SLOW) for n in ("embedding", "output")),
        "done/c/1",
    ],
)
def test_a_flipped_bit_of_an_object_is_found_and_only_that_shard_dropped(url, local, name):
    fill(create_embeddings(url, layout(), identity()))
    raw = bytearray((url / name).read_bytes())
    raw[len(raw) // 3] ^= 4
    (url / name).replace(bytes(raw), (url / name).tag())
    assert [fault.shard for fault in embedding_faults(url)] == [1]
    assert len(list(repair_embeddings(url))) == 1
    store = open_embeddings(url)
    assert store.pending() == [1]
    fill(store)
    assert bytes_of(url) == bytes_of(local.path)


@BY_AZURES
def test_damaged_metadata_are_put_right(url, local):
    fill(create_embeddings(url, layout(), identity()))
    (url / "layers/zarr.json").unlink()
    (url / "zarr.json").replace(b"{", (url / "zarr.json").tag())
    assert {str(fault).split(": ")[1] for fault in embedding_faults(url)} == {
        "layers/zarr.json is damaged",
        "zarr.json is damaged",
    }
    assert len(list(repair_embeddings(url))) == 2
    assert bytes_of(url) == bytes_of(local.path)


@BY_AZURES
def test_objects_that_are_cut_off_or_lost_never_read_as_data(url, local):
    fill(create_embeddings(url, layout(), identity()))
    whole = (url / "layers/c/0/0/0").read_bytes()
    for raw in (whole[:-1], whole[:7], b""):
        (url / "layers/c/0/0/0").replace(raw, (url / "layers/c/0/0/0").tag())
        assert [fault.shard for fault in embedding_faults(url)] == [0]
    (url / "layers/c/0/0/0").unlink()
    assert open_embeddings(url).pending() == [0]
    assert [fault.what for fault in embedding_faults(url)] == ["layers/c/0/0/0 is missing"]


def test_a_storage_out_of_reach_is_no_damage(url, monkeypatch):
    fill(create_embeddings(url, layout(), identity()))
    store = open_embeddings(url)
    before = bytes_of(url)
    client = client_for(url.protocol, os.getpid())
    monkeypatch.setattr(client, "read", lambda *_: (_ for _ in ()).throw(PermissionError("no")))
    with pytest.raises(StorageError):
        store.read_embedding()
    with pytest.raises(StorageError):
        list(repair_embeddings(url))
    monkeypatch.undo()
    assert bytes_of(url) == before


# ---- making, replacing, growing --------------------------------------------------------------------------------------


@BY_AZURES
def test_a_store_that_a_killed_run_half_made_is_none(url, local):
    create_embeddings(url, layout(), identity(version="0"))
    (url / "zarr.json").unlink()
    with pytest.raises(MissingFileError):
        open_embeddings(url)
    assert stores_in(url.parent) == []
    store, why = resume_or_create(url, layout(), identity())
    assert why == "no store yet"
    fill(store)
    assert bytes_of(url) == bytes_of(local.path)


@BY_AZURES
def test_a_store_of_the_first_rows_grows_to_the_bytes_of_a_fresh_one(url, tmp_path):
    def prefix(n):
        return f"signals of {n}", f"rows of {n}"

    fill(create_embeddings(url, layout(10), identity(10)))
    first = (url / "layers/c/0/0/0").read_tagged().written
    store, why = resume_or_create(url, layout(19), identity(19), prefix)
    assert (why, store.pending()) == ("", [2, 3, 4])
    fill(store)
    fresh = fill(create_embeddings(tmp_path / "fresh.zarr", layout(19), identity(19)))
    assert bytes_of(url) == bytes_of(fresh.path)
    assert (url / "layers/c/0/0/0").read_tagged().written == first


@BY_AZURES
@pytest.mark.parametrize("n_written", [pytest.param(n, marks=[SLOW] * (n in (2, 4, 5))) for n in range(1, 7)])
def test_a_growth_that_was_killed_is_gone_on_with(url, tmp_path, n_written):
    def prefix(n):
        return f"signals of {n}", f"rows of {n}"

    class KilledError(Exception):
        pass

    left = [n_written]

    def guard():
        left[0] -= 1
        if left[0] < 0:
            raise KilledError

    fill(create_embeddings(url, layout(10), identity(10)))
    with pytest.raises(KilledError):
        resume_or_create(url, layout(19), identity(19), prefix, guard)
    store, why = resume_or_create(url, layout(19), identity(19), prefix)
    assert (why, store.pending()) == ("", [2, 3, 4])
    fill(store)
    fresh = fill(create_embeddings(tmp_path / "fresh.zarr", layout(19), identity(19)))
    assert bytes_of(url) == bytes_of(fresh.path)


@BY_AZURES
def test_removing_a_store_leaves_its_neighbours(url):
    create_embeddings(url, layout(), identity())
    create_embeddings(url.parent / "toy.zarr.zarr", layout(), identity())
    remove(url)
    assert stores_in(url.parent) == [url.parent / "toy.zarr.zarr"]
