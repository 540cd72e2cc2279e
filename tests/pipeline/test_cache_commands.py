"""`ensemble cache ...` as a person runs it, on a study of 12 records."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
import yaml

from cache import open_embeddings, open_records
from cache.embeddings import Identity, Layout, Shard
from cache.records import records_digest
from cache.upkeep.resume import create_embeddings
from pipeline import cli

N = 12


@pytest.fixture
def study(tmp_path, make_cohort, monkeypatch):
    make_cohort(tmp_path, N)
    params = {"cohort": {"source": "wfdb", "path": "."}, "experts": {"rocket": {}}, "embed": {"shard_records": 4}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cache(study, monkeypatch, capsys):
    """Run `ensemble cache ...`; returns exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ensemble", "cache", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def store(study):
    """A whole store named rocket, of another version than the real one."""
    digest = records_digest(open_records(study / "records.parquet")["record_id"])
    identity = Identity({"expert": "rocket", "version": "old"}, "s", digest)
    made = create_embeddings(study / "embeddings/rocket.zarr", Layout(N, ("a",), (3,), 3, shard_records=4), identity)
    for shard in range(made.n_shards):
        made.write(shard, Shard(np.full((4, 1, 3), float(shard)), np.full((4, 3), float(shard))))
    return made.path


def test_ls_says_what_a_stale_store_was_made_from(cache, store):
    code, out, _ = cache("ls")
    assert code == 0
    assert "stale: changed: version" in out
    assert open_embeddings(store).fingerprint[:12] in out


def test_verify_and_repair_name_the_bad_shard_and_drop_it(cache, store):
    assert cache("verify")[:2] == (0, "every shard reads as it was written\n")
    assert cache("repair")[:2] == (0, "nothing to repair\n")
    file = store / "embedding/c/1/0"
    file.write_bytes(file.read_bytes()[:-1])
    code, out, _ = cache("verify")
    assert code == 1
    assert out.startswith("embeddings/rocket.zarr: shard 1: embedding is damaged (shard 1: checksum of the index does")
    code, out, _ = cache("repair")
    assert (code, out) == (0, "embeddings/rocket.zarr: shard 1 dropped; run `ensemble embed --expert rocket`\n")
    assert open_embeddings(store).pending() == [1]
    assert cache("verify")[:2] == (1, "embeddings/rocket.zarr: shard 1: records 4 to 7 are not embedded\n")


def test_repair_restores_metadata_and_verify_covers_the_signals(cache, study, store):
    for file in (store / "zarr.json", study / "signals.zarr/valid/zarr.json"):
        file.write_bytes(file.read_bytes()[:-3])
    code, out, _ = cache("verify")
    assert code == 1
    assert out.splitlines() == [
        "signals.zarr: valid/zarr.json is damaged",
        "embeddings/rocket.zarr: zarr.json is damaged",
    ]
    assert cache("repair")[0] == 0
    assert cache("verify")[0] == 0


def test_what_cannot_be_repaired_is_named(cache, store):
    (store / "zarr.json").write_text("{")
    (store / "spare/zarr.json").write_text("{")
    code, out, _ = cache("repair")
    assert code == 1
    assert "cannot be repaired: embeddings/rocket.zarr: " in out


def test_gc_lists_and_then_deletes_what_nothing_names(cache, study, store):
    unused = study / "embeddings/unused.zarr"
    store.rename(unused)
    (study / "embeddings/.unused.zarr.x.partial").mkdir()
    code, out, _ = cache("gc")
    assert code == 0
    assert len(out.splitlines()) == 2
    assert unused.exists()
    (study / "heads").mkdir()
    (study / "heads/config.json").write_text(json.dumps({"experts": ["unused"]}))
    assert "unused.zarr (" not in cache("gc")[1].replace(".unused.zarr.x.partial (", "")
    (study / "heads/config.json").unlink()
    assert cache("gc", "--delete")[0] == 0
    assert list((study / "embeddings").iterdir()) == []
    assert cache("gc")[1] == ""


@pytest.mark.parametrize("kind", ["npy", "npz", "parquet"])
def test_vectors_of_another_tool_are_joined_by_record_id(cache, study, kind):
    rng = np.random.default_rng(0)
    ids = [f"r{i:04d}" for i in rng.permutation(N) if i != 3]  # r0003 could not be read
    vectors = rng.normal(size=(N - 1, 5)).astype(np.float32)
    options = []
    if kind == "npy":
        np.save("mine.npy", vectors)
        pd.DataFrame({"study": ids}).to_csv("ids.csv", index=False)
        options = ["--ids", "ids.csv", "--id-column", "study"]
    elif kind == "npz":
        np.savez("mine.npz", embedding=vectors, layers=np.stack([vectors, 2 * vectors], axis=1), record_id=ids)
    else:
        pd.DataFrame({"record_id": ids, "embedding": list(vectors)}).to_parquet("mine.parquet")
    code, out, err = cache("import", f"mine.{kind}", "--expert", "mine", "--dtype", "float32", *options)
    assert code == 0, err
    assert "name 'mine' under `experts`" in out
    opened = open_embeddings("embeddings/mine.zarr")
    opened.require_complete()
    opened.require_records(records_digest(open_records("records.parquet")["record_id"]))
    found = dict(zip(open_records("records.parquet")["record_id"], opened.read_embedding(), strict=True))
    assert all(np.array_equal(found[record], vector) for record, vector in zip(ids, vectors, strict=True))
    assert np.isnan(found["r0003"]).all()
    assert len(opened.layer_names) == (2 if kind == "npz" else 1)
    assert "imported" in cache("ls")[1]
    assert cache("export", "mine", "out.npy", "--layer", "layer_0")[0] == 0
    np.testing.assert_array_equal(np.load("out.npy"), opened.read_layer("layer_0"))
    assert cache("export", "mine", "out.parquet")[0] == 0
    back = pd.read_parquet("out.parquet")
    assert list(back.columns) == ["record_id", "patient_id", "embedding"]
    np.testing.assert_array_equal(np.stack(back["embedding"]), opened.read_embedding())


def test_layers_are_named_and_whole_numbers_taken(cache, study):
    layers = np.random.default_rng(0).integers(-9, 9, size=(N, 3, 4))
    ids = [f"r{i:04d}" for i in range(N)]
    np.savez("mine.npz", layers=layers, record_id=ids)
    code, _, err = cache("import", "mine.npz", "--expert", "mine", "--layer-names", "embed, block_1,block_2")
    assert code == 0, err
    opened = open_embeddings("embeddings/mine.zarr")
    assert opened.layer_names == ("embed", "block_1", "block_2")
    np.testing.assert_array_equal(opened.read_layer("block_2"), layers[:, 2])
    for names, message in (("a,b", "2 layer names (a, b) for 3 layers"), ("a,b,a", "each must differ")):
        code, _, err = cache("import", "mine.npz", "--expert", "mine", "--replace", "--layer-names", names)
        assert code == 2
        assert message in err
    table = pd.DataFrame(layers[:, 0], columns=list("abcd")).assign(record_id=ids)
    table.to_parquet("flat.parquet")
    assert cache("import", "flat.parquet", "--expert", "flat")[0] == 0
    np.testing.assert_array_equal(open_embeddings("embeddings/flat.zarr").read_embedding(), layers[:, 0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({5: None}, "row 5 (record 'r0005') of column 'embedding' has no list (null); leave that record out, or give"),
        ({7: [1.0, 2.0], 9: None}, "row 7 (record 'r0007') of column 'embedding' has 2 numbers, others 3"),
        (dict.fromkeys(range(N), "text"), "column 'embedding' holds string; expected a list of numbers"),
        ({i: ["a"] for i in range(N)}, "column 'embedding' holds lists of string; expected lists of numbers"),
    ],
)
def test_lists_that_are_no_vectors_are_named_by_their_row(cache, study, changed, message):
    rows = [changed.get(i, [float(i), 0.5, None]) for i in range(N)]
    pd.DataFrame({"record_id": [f"r{i:04d}" for i in range(N)], "embedding": rows}).to_parquet("mine.parquet")
    code, _, err = cache("import", "mine.parquet", "--expert", "mine")
    assert code == 1
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([f"r{i:04d}" for i in range(N - 1)], "1 records have no vector, such as 'r0011'"),
        ([*(f"r{i:04d}" for i in range(N)), "x"], "1 record ids are not in records.parquet, such as 'x'"),
        ([*(f"r{i:04d}" for i in range(N)), "r0000"], "record id 'r0000' occurs more than once"),
    ],
)
def test_ids_that_do_not_fit_are_refused(cache, ids, message):
    np.save("mine.npy", np.zeros((len(ids), 2), dtype=np.float32))
    pd.DataFrame({"record_id": ids}).to_csv("ids.csv", index=False)
    code, _, err = cache("import", "mine.npy", "--expert", "mine", "--ids", "ids.csv")
    assert code == 1
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import", "nowhere.npy", "--expert", "mine"], "nowhere.npy does not exist"),
        (["import", "records.parquet", "--expert", "mine"], "does not hold numbers; leave it out"),
        (["import", "mine.npy", "--expert", "rocket", "--replace"], "give another name"),
        (["import", "mine.npy", "--expert", "mine"], "give a file with the record ids as --ids"),
        (["import", "mine.npy", "--expert", "mine", "--ids", "ids.csv"], "12 record ids for 3 vectors"),
        (["import", "mine.npy", "--expert", "mine", "--ids", "records.parquet", "--id-column", "x"], "no column 'x'"),
        (["export", "mine", "out.npy"], "embeddings/mine.zarr does not exist"),
    ],
)
def test_a_wrong_exchange_is_one_line(cache, arguments, message):
    np.save("mine.npy", np.zeros((3, 2), dtype=np.float32))
    pd.DataFrame({"record_id": [f"r{i:04d}" for i in range(N)]}).to_csv("ids.csv", index=False)
    code, _, err = cache(*arguments)
    assert code
    assert message in err
    assert err.count("\n") == 1
