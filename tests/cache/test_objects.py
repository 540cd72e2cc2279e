"""Stores of objects, against an S3 server on loopback: the same bytes, leases, and no write over a successor's."""

import json
import os
import time
from contextlib import closing

import fsspec
import numpy as np
import pytest

from cache.claims import claims_on
from cache.embeddings import Identity, Layout, Shard, open_embeddings
from cache.errors import ClaimsLostError, MissingFileError, StorageError, StoreError, UsageError
from cache.signals import create_signals, open_signals
from cache.storage.locations import location_of, remove, stores_in
from cache.storage.objects import ObjectPath, file_system
from cache.upkeep.checks import embedding_faults, repair_embeddings, repair_signals, signal_faults
from cache.upkeep.resume import create_embeddings, resume_or_create
from tests.s3_server import LEASE_S


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


@pytest.fixture
def url(s3):
    return location_of(f"{s3}/study/embeddings/toy.zarr")


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


def test_any_url_that_fsspec_knows_can_be_read_but_only_s3_written(local):
    files = fsspec.filesystem("memory")
    for name, raw in bytes_of(local.path).items():
        files.pipe_file(f"/held/toy.zarr/{name}", raw)
    store = open_embeddings("memory://held/toy.zarr")
    np.testing.assert_array_equal(store.read_layers(), local.read_layers())
    store.drop(0)
    with pytest.raises(UsageError, match=r"memory://held/toy\.zarr.*: can only be read"):
        store.write(0, content(store, 0))


def test_a_file_url_is_a_folder_and_written_like_one(tmp_path):
    place = tmp_path / "of a study" / "toy.zarr"
    store = create_embeddings(place.as_uri(), layout(), identity())
    store.write(0, content(store, 0))
    assert location_of(place.as_uri()) == place
    read = [open_embeddings(where).read_layers(slice(0, 4)) for where in (place, place.as_uri())]
    np.testing.assert_array_equal(*read)


def test_a_url_that_holds_credentials_is_refused():
    with pytest.raises(UsageError, match="a URL holds credentials") as refused:
        location_of("s3://key:secret@bucket/study")
    assert "secret@" not in str(refused.value)


def test_signals_in_a_bucket_are_those_of_a_folder(s3, tmp_path):
    made = create_signals(tmp_path / "signals.zarr", 20, shard_records=16)
    samples = np.random.default_rng(0).integers(-99, 99, (20, 12, 5000)).astype(np.int16)
    for shard in range(2):
        made.write_shard(shard, samples[made.rows_of(shard)], np.full(len(samples[made.rows_of(shard)]), 5000))
    target = location_of(f"{s3}/signals.zarr")
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


@pytest.mark.parametrize(
    "name",
    [
        "layers/c/1/0/0",
        *(pytest.param(f"{n}/c/1/0", marks=pytest.mark.slow) for n in ("embedding", "output")),
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
    files = file_system("s3", os.getpid())
    monkeypatch.setattr(files, "cat_file", lambda *_, **__: (_ for _ in ()).throw(PermissionError("no")))
    with pytest.raises(StorageError):
        store.read_embedding()
    with pytest.raises(StorageError):
        list(repair_embeddings(url))
    monkeypatch.undo()
    assert bytes_of(url) == before


# ---- making, replacing, growing --------------------------------------------------------------------------------------


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


def test_a_store_of_the_first_rows_grows_to_the_bytes_of_a_fresh_one(url, tmp_path):
    def prefix(n):
        return f"signals of {n}", f"rows of {n}"

    fill(create_embeddings(url, layout(10), identity(10)))
    first = (url / "layers/c/0/0/0").read_with_headers()[1]["LastModified"]
    store, why = resume_or_create(url, layout(19), identity(19), prefix)
    assert (why, store.pending()) == ("", [2, 3, 4])
    fill(store)
    fresh = fill(create_embeddings(tmp_path / "fresh.zarr", layout(19), identity(19)))
    assert bytes_of(url) == bytes_of(fresh.path)
    assert (url / "layers/c/0/0/0").read_with_headers()[1]["LastModified"] == first


@pytest.mark.parametrize(
    "n_written", [pytest.param(n, marks=[pytest.mark.slow] * (n in (2, 4, 5))) for n in range(1, 7)]
)
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


def test_removing_a_store_leaves_its_neighbours(url):
    create_embeddings(url, layout(), identity())
    create_embeddings(url.parent / "toy.zarr.zarr", layout(), identity())
    remove(url)
    assert stores_in(url.parent) == [url.parent / "toy.zarr.zarr"]


# ---- leases ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def two(url, tmp_path):
    with closing(claims_on(url, tmp_path)) as first, closing(claims_on(url, tmp_path)) as second:
        yield first, second


def fall_silent(leases):
    """Do to leases what pausing their process does."""
    leases._stop.set()
    leases._heart.join()
    time.sleep(LEASE_S + 2.1)


def test_a_claimed_shard_is_not_given_to_another_process(two):
    first, second = two
    first.share(), second.share()
    with first.claim(7) as ours, second.claim(7) as theirs, second.claim(8) as other:
        assert (ours, theirs, other) == (True, False, True)
    with second.claim(7) as theirs:
        assert theirs


def test_nobody_owns_a_store_that_others_work_in(two):
    first, second = two
    first.share()
    assert not second.try_acquire()
    first.leave()
    assert second.try_acquire()
    assert not first.try_acquire()


def test_leases_are_kept_as_long_as_their_process_is_at_work(two):
    first, second = two
    first.share(), second.share()
    with first.claim(7):
        time.sleep(LEASE_S + 2.1)
        with second.claim(7) as theirs:
            assert not theirs
        first.confirm()


def test_claims_of_a_dead_process_pass_on_and_nothing_is_left(two, url):
    first, second = two
    first.share(), second.share()
    with first.claim(7):
        fall_silent(first)
        with second.claim(7) as theirs:
            assert theirs
        with pytest.raises(ClaimsLostError, match="paused or cut off for over 2 s"):
            first.confirm()
    second.close()
    assert (url.parent / ".claims").files() == {}


def test_what_was_put_by_mistake_of_another_store_never_counts(two, url, tmp_path):
    """A process whose lease ran out writes on, between its last check and a put, into a store that was replaced."""
    slow, fast = two
    other = fill(create_embeddings(tmp_path / "other.zarr", layout(), identity(version="2")), seed=2)
    slow.share()
    old = create_embeddings(url, layout(), identity())
    replaced = []

    def taken_over_right_after_the_check():
        slow.confirm()
        if not replaced:
            fall_silent(slow)
            assert fast.try_acquire()
            replaced.append(create_embeddings(url, layout(), identity(version="2"), guard=fast.confirm))
            fast.share()

    old.write(0, content(old, 0), taken_over_right_after_the_check)  # its flags land in the new store
    new = replaced[0]
    assert 0 in new.pending()
    new.write(1, content(new, 1, seed=2), fast.confirm)
    with pytest.raises(ClaimsLostError):  # over a finished shard, nothing lands
        old.write(1, content(old, 1), slow.confirm)
    with pytest.raises(ClaimsLostError):  # beside it, vectors do, but never flags
        old.write(2, content(old, 2), slow.confirm)
    assert open_embeddings(url).pending() == [0, 2]
    for shard in (0, 2):
        new.write(shard, content(new, shard, seed=2), fast.confirm)
    assert bytes_of(url) == bytes_of(other.path)


def never(given, there):
    return given in ("IfMatch", "IfNoneMatch")


def if_match_of_nothing(given, there):
    return given == "IfMatch" and not there


@pytest.mark.parametrize("ignored", [never, if_match_of_nothing])
def test_a_storage_without_conditional_requests_is_refused(url, tmp_path, monkeypatch, ignored):
    files = file_system("s3", os.getpid())
    call = files.call_s3

    def careless(method, Bucket, Key, **more):
        there = method == "put_object" and files.exists(f"{Bucket}/{Key}")
        heard = {name: value for name, value in more.items() if not ignored(name, there)}
        return call(method, Bucket=Bucket, Key=Key, **heard)

    monkeypatch.setattr(files, "call_s3", careless)
    with closing(claims_on(url, tmp_path)) as claims, pytest.raises(StorageError, match="ignores If-None-Match or If-"):
        claims.share()
    assert (url.parent / ".claims").files() == {}


def test_a_length_that_is_no_number_is_refused(url, tmp_path, monkeypatch):
    for wrong in ("soon", "0", "nan"):
        monkeypatch.setenv("ENSEMBLE_LEASE_SECONDS", wrong)
        with pytest.raises(UsageError, match=f"ENSEMBLE_LEASE_SECONDS={wrong}: expected a number of seconds from 2"):
            claims_on(url, tmp_path)


def test_what_a_lease_says_is_never_the_same_twice(two, url):
    first, _ = two
    first.share()
    session = next(iter((url.parent / ".claims/toy.zarr/sessions").children()))
    before = json.loads(session.read_bytes())
    first.confirm()
    after = json.loads(session.read_bytes())
    assert before.pop("turn") < after.pop("turn")
    assert before == after
