"""Claims on stores of objects: who holds them, for how long, and that no write lands over a successor's."""

import json
import os
import time
from contextlib import closing

import pytest

from cache.claims import claims_on
from cache.embeddings import open_embeddings
from cache.errors import ClaimsLostError, StorageError, UsageError
from cache.storage.locations import location_of
from cache.storage.objects import client_for
from cache.upkeep.resume import create_embeddings
from tests.cache.test_objects import bytes_of, content, fill, identity, layout
from tests.clouds import ON_EVERY_CLOUD
from tests.s3_server import LEASE_S


@pytest.fixture(params=["s3", "gs", "az"])
def bucket(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def url(bucket):
    return location_of(f"{bucket}/study/embeddings/toy.zarr")


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


@ON_EVERY_CLOUD
def test_leases_are_kept_as_long_as_their_process_is_at_work(two):
    first, second = two
    first.share(), second.share()
    with first.claim(7):
        time.sleep(LEASE_S + 2.1)
        with second.claim(7) as theirs:
            assert not theirs
        first.confirm()


@ON_EVERY_CLOUD
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


@ON_EVERY_CLOUD
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


@pytest.fixture
def ignoring(bucket, monkeypatch, request):
    """Make the server ignore conditions."""

    def ignore(ignored):
        if not bucket.startswith("s3"):
            server = request.getfixturevalue({"gs": "google_server", "az": "azure_server"}[bucket[:2]])
            monkeypatch.setattr(server.storage, "ignored", ignored)
            return
        files = client_for("s3", os.getpid()).files
        call = files.call_s3

        def careless(method, Bucket, Key, **more):
            there = method == "put_object" and files.exists(f"{Bucket}/{Key}")
            heard = {name: value for name, value in more.items() if not ignored(name, there)}
            return call(method, Bucket=Bucket, Key=Key, **heard)

        monkeypatch.setattr(files, "call_s3", careless)

    return ignore


@pytest.mark.parametrize("ignored", [never, if_match_of_nothing])
def test_a_storage_without_conditional_requests_is_refused(url, tmp_path, ignoring, ignored):
    ignoring(ignored)
    with (
        closing(claims_on(url, tmp_path)) as claims,
        pytest.raises(StorageError, match=r"ignores conditions \(If-None-"),
    ):
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
    first._session.written_at = 0.0  # long ago: one that was just written is not written again everywhere
    session = next(iter((url.parent / ".claims/toy.zarr/sessions").children()))
    before = json.loads(session.read_bytes())
    first.confirm()
    after = json.loads(session.read_bytes())
    assert before.pop("turn") < after.pop("turn")
    assert before == after


def test_a_session_is_not_written_more_often_than_its_storage_wants(gs, google_server, tmp_path):
    url = location_of(f"{gs}/study/embeddings/toy.zarr")
    with closing(claims_on(url, tmp_path)) as claims:
        claims.share()
        for _ in range(5):
            claims.confirm()
        puts = [key for method, key in google_server.storage.requests if method == "PUT" and "/sessions/" in key]
        assert len({key for key in puts if puts.count(key) > 3}) == 0, "made, and tried twice for its conditions"
        claims._session.file.unlink()
        with pytest.raises(ClaimsLostError):
            claims.confirm()


@pytest.mark.parametrize("bucket", ["gs", "az"], indirect=True)
def test_the_storages_clock_is_asked_once_and_is_never_ahead(url, tmp_path, monkeypatch):
    from cache.claims.clock import StorageClock

    clock = StorageClock(url / "clock")
    before = time.time()
    first = clock.now().timestamp()
    assert before - 2 < first <= time.time()
    monkeypatch.setattr(client_for(url.protocol, os.getpid()), "create", None)
    time.sleep(0.2)
    assert first + 0.2 <= clock.now().timestamp() <= time.time()
    assert url.files() == {}
