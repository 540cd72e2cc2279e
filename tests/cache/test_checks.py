import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from cache.embeddings import Identity, Layout, Shard, open_embeddings
from cache.errors import StorageError, StoreError
from cache.signals import MISSING, create_signals, open_signals
from cache.upkeep.checks import (
    count_without_vector,
    embedding_faults,
    repair_embeddings,
    repair_signals,
    signal_faults,
)
from cache.upkeep.resume import create_embeddings
from cache.zarr_io.metadata import seal

LAYOUT = Layout(
    n_records=10, layer_names=("embed", "block_1"), layer_dims=(3, 4), embedding_dim=4, output_dim=2, shard_records=4
)
IDENTITY = Identity({"expert": "toy", "version": "1"}, signals_digest="s", records_digest="r")


def bytes_of(store):
    return {str(p.relative_to(store)): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


@pytest.fixture
def store(tmp_path):
    made = create_embeddings(tmp_path / "toy.zarr", LAYOUT, IDENTITY)
    for shard in range(made.n_shards):
        write(made, shard)
    return made.path


def write(store, shard):
    rng, n = np.random.default_rng(shard), store.rows_of(shard).stop - store.rows_of(shard).start
    store.write(shard, Shard(rng.normal(size=(n, 2, 4)), rng.normal(size=(n, 4)), rng.normal(size=(n, 2))))


@pytest.fixture
def signals(tmp_path):
    made = create_signals(tmp_path / "signals.zarr", 40, shard_records=16)
    rng = np.random.default_rng(0)
    for shard in range(made.n_shards):
        n = made.rows_of(shard).stop - made.rows_of(shard).start
        made.write_shard(shard, rng.integers(-99, 99, (n, 12, 5000)).astype(np.int16), np.full(n, 5000))
    return made.path


def flip(file, bit):
    content = bytearray(file.read_bytes())
    content[(bit // 8) % len(content)] ^= 1 << bit % 8
    file.write_bytes(content)


def test_a_whole_store_has_no_faults(store, signals):
    assert list(embedding_faults(store)) == []
    assert list(signal_faults(signals)) == []
    assert list(repair_embeddings(store)) == []
    assert list(repair_signals(signals)) == []


@pytest.mark.parametrize("name", ["layers", "embedding", "output", "done"])
def test_every_flipped_bit_of_a_shard_is_found_and_only_that_shard_dropped(store, name):
    whole = bytes_of(store)
    file = next(f for f in (store / name / "c/1").rglob("*") if f.is_file()) if name != "done" else store / "done/c/1"
    for bit in range(0, 8 * len(file.read_bytes()), 31):
        flip(file, bit)
        assert [fault.shard for fault in embedding_faults(store)] == [1]
        flip(file, bit)
    flip(file, 77)
    assert len(list(repair_embeddings(store))) == 1
    again = open_embeddings(store, mode="r+")
    assert again.pending() == [1]
    write(again, 1)
    assert bytes_of(store) == whole


def test_every_flipped_bit_of_the_metadata_is_found_and_restored(store):
    whole = bytes_of(store)
    for name in [name for name in whole if name.endswith("zarr.json")]:
        for bit in range(0, 8 * len(whole[name]), 811):
            flip(store / name, bit)
            assert name in [str(fault).split(": ")[1].split()[0] for fault in embedding_faults(store)]
            with pytest.raises(StoreError, match="run `ensemble cache repair`"):
                open_embeddings(store)
            assert len(list(repair_embeddings(store))) == 1
            assert bytes_of(store) == whole


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES])
def test_what_the_disk_does_not_let_be_read_is_not_dropped(store, monkeypatch, code):
    file = store / "done/c/1"
    flip(file, 77)
    whole, read = bytes_of(store), Path.read_bytes

    def refuse(path):
        if path == file:
            raise OSError(code, os.strerror(code), str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(StorageError, match=r"done/c/1: cannot be read \("):
        list(repair_embeddings(store))
    monkeypatch.undo()
    assert bytes_of(store) == whole


def test_a_lost_file_is_found(store):
    (store / "embedding/c/2/0").unlink()
    assert [str(f).removeprefix(str(store)) for f in embedding_faults(store)] == [
        ": shard 2: embedding/c/2/0 is missing"
    ]
    list(repair_embeddings(store))
    assert [f.what for f in embedding_faults(store)] == ["records 8 to 9 are not embedded"]


def test_flipped_bits_of_signals_are_found_dropped_and_never_read(signals):
    for name in ("signals/c/1/0/0", "valid/c/1", "digest/c/1/0"):
        file = signals / name
        for bit in range(3, 8 * file.stat().st_size, max(37, 8 * file.stat().st_size // 6)):
            flip(file, bit)
            assert [fault.shard for fault in signal_faults(signals)] == [1]
            flip(file, bit)
    flip(signals / "signals/c/1/0/0", 1000)
    assert list(repair_signals(signals)) == [f"{signals}: shard 1 dropped; run `ensemble ingest`"]
    with pytest.raises(StoreError, match="16 records are not written yet"):
        open_signals(signals).content_digest()


def test_a_lost_shard_of_signals_does_not_read_as_missing_samples(signals):
    (signals / "signals/c/1/0/0").unlink()
    assert [fault.shard for fault in signal_faults(signals)] == [1]
    with pytest.raises(StoreError, match="shard 1 is missing"):
        open_signals(signals).read_mv(slice(20, 24))


def test_a_shard_of_unreadable_records_is_no_fault(tmp_path):
    made = create_signals(tmp_path / "signals.zarr", 20, shard_records=16)
    for n, shard in ((16, 0), (4, 1)):
        made.write_shard(shard, np.full((n, 12, 5000), MISSING, dtype=np.int16), np.zeros(n))
    assert list(signal_faults(made.path)) == []
    assert np.isnan(open_signals(made.path).read_mv(slice(0, 20))).all()


def test_rows_of_another_store_are_found(signals, tmp_path):
    shutil.copytree(signals, tmp_path / "other.zarr")
    shutil.copy(signals / "signals/c/0/0/0", tmp_path / "other.zarr/signals/c/1/0/0")
    faults = [str(fault) for fault in signal_faults(tmp_path / "other.zarr")]
    assert faults == [f"{tmp_path}/other.zarr: shard 1: 16 records are not those written, the first is row 16"]


def test_a_store_without_copies_of_its_metadata_is_judged_by_its_shapes(store):
    shutil.rmtree(store / "spare")
    assert list(embedding_faults(store)) == []
    zarr.open_group(store, mode="r+").attrs["layer_names"] = ["embed"]
    assert [f.what for f in embedding_faults(store)] == ["layer_names or layer_dims do not fit the 2 layers"]


def test_rows_without_a_vector_are_counted_by_one_byte_each_or_in_an_older_store_by_their_values(tmp_path):
    path = tmp_path / "toy.zarr"
    layout = Layout(10, ("a",), (3,), 3, shard_records=4)
    embedding = np.ones((10, 3), dtype=np.float32)
    embedding[[2, 9]] = np.nan
    embedding[5, 0] = np.nan  # one missing feature is no missing vector
    store = create_embeddings(path, layout, IDENTITY)
    for shard in range(store.n_shards):
        rows = store.rows_of(shard)
        store.write(shard, Shard(embedding[rows, None], embedding[rows]))
    assert count_without_vector(open_embeddings(path)) == 2
    assert not list(embedding_faults(path))
    shutil.rmtree(path / "embedding/c")
    assert count_without_vector(open_embeddings(path)) == 2
    shutil.rmtree(path)
    group = zarr.create_group(path, attributes={"records_digest": "r"})
    for name, values in (("layers", embedding[:, None]), ("embedding", embedding), ("done", np.ones(10, dtype=bool))):
        group.create_array(name, data=values)
    assert count_without_vector(open_embeddings(path)) == 2


def test_an_older_store_grows_as_it_is(tmp_path):
    path, layout = tmp_path / "toy.zarr", Layout(8, ("a",), (3,), 3, shard_records=4)
    embedding = np.ones((4, 3), dtype=np.float32)
    create_embeddings(path, layout, IDENTITY)
    shutil.rmtree(path / "has_vector")
    seal(path)
    store = open_embeddings(path, mode="r+")
    for shard in range(2):
        store.write(shard, Shard(embedding[:, None], embedding))
    grown = create_embeddings(path, replace(layout, n_records=12), IDENTITY, kept=store)
    assert grown.has_vector is None
    assert grown.pending() == [2]
