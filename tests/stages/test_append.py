"""`ingest --append`: what was there stays as it is, byte for byte, and only the new rows are read."""

import hashlib
import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import wfdb
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import open_records, open_signals
from cache.errors import EnsembleError, InputError, MissingFileError, StoreError
from stages.cohorts import Entries
from stages.ingest import row_block as blocks
from stages.ingest.folds import assign_folds
from stages.ingest.outputs import write_tables
from stages.ingest.record_table import new_rows
from stages.readers.rows import QUALITY, RowOptions
from stages.synthetic import GeneratePaths, GenerateSettings
from stages.synthetic import run as generate
from tests.ingesting import ingest

LISTS = ("flat_leads", "missing_leads", "derived_leads", "notes")


class Note(list):
    """A cell that can be watched."""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "mimic"
    generate(GenerateSettings(records=90, seed=3), GeneratePaths(folder))
    return folder


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr("cache.signals.create_signals.__defaults__", (16,))


def run(path, out: Path, source="mimic-iv-ecg", options=None, **more):
    return ingest(
        source, path, options, records_path=out / "records.parquet", signals_path=out / "signals.zarr", **more
    )


def files(out: Path) -> dict[str, tuple[int, str]]:
    return {
        str(p.relative_to(out)): (p.stat().st_ino, hashlib.sha256(p.read_bytes()).hexdigest())
        for p in sorted(out.rglob("*"))
        if p.is_file()
    }


@pytest.mark.usefixtures("small_shards")
def test_what_was_there_stays_and_only_new_rows_are_read(cohort, tmp_path, monkeypatch):
    run(cohort, tmp_path, limit=40)
    before, table = files(tmp_path), pq.read_table(tmp_path / "records.parquet")
    digest = open_signals(tmp_path / "signals.zarr").content_digest()
    read = []
    real = blocks._read
    monkeypatch.setattr(blocks, "_read", lambda c, path, *more: (read.append(path), real(c, path, *more))[1])
    summary = run(cohort, tmp_path, append=True)
    after, records = files(tmp_path), open_records(tmp_path / "records.parquet")
    assert (summary.n_records, summary.n_new) == (90, 50)
    assert read == records["path"].tolist()[40:]
    assert pq.read_table(tmp_path / "records.parquet").slice(0, 40).equals(table)
    assert open_signals(tmp_path / "signals.zarr").content_digest(40) == digest
    # 40 records fill two shards of 16; the third was partial and is written again, the others are the same files.
    for shard in (0, 1):
        for name in (f"signals.zarr/signals/c/{shard}/0/0", f"signals.zarr/digest/c/{shard}/0"):
            assert after[name] == before[name]
    assert after["signals.zarr/signals/c/2/0/0"] != before["signals.zarr/signals/c/2/0/0"]


@pytest.mark.usefixtures("small_shards")
def test_signals_and_quality_equal_those_of_one_run(cohort, tmp_path):
    run(cohort, tmp_path / "whole")
    for limit in (10, 32, 50, None):
        run(cohort, tmp_path / "grown", limit=limit, append=limit != 10)
    one, many = (open_signals(tmp_path / name / "signals.zarr") for name in ("whole", "grown"))
    assert many.content_digest() == one.content_digest()
    assert np.array_equal(many.valid, one.valid)
    dealt = ["fold", "split"]  # ten records are of six patients: there are six folds, and it stays at that
    whole, grown = (open_records(tmp_path / name / "records.parquet") for name in ("whole", "grown"))
    pd.testing.assert_frame_equal(whole.drop(columns=dealt), grown.drop(columns=dealt))
    assert (tmp_path / "whole/bad_records.csv").read_bytes() == (tmp_path / "grown/bad_records.csv").read_bytes()
    assert (grown.groupby("patient_id")["fold"].nunique() == 1).all()
    assert sorted(grown.groupby("fold")["split"].unique().explode()) == ["test", *["train"] * 4, "val"]


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_stopped_append_goes_on_to_the_same_bytes(cohort, tmp_path, workers):
    def stop(done, total):
        if done > 60:
            raise KeyboardInterrupt

    for name in ("whole", "stopped"):
        run(cohort, tmp_path / name, limit=40)
    run(cohort, tmp_path / "whole", append=True)
    with pytest.raises(KeyboardInterrupt):
        run(cohort, tmp_path / "stopped", append=True, progress=stop)
    run(cohort, tmp_path / "stopped", append=True, workers=workers)
    assert [(n, d) for n, (_, d) in files(tmp_path / "stopped").items()] == [
        (n, d) for n, (_, d) in files(tmp_path / "whole").items()
    ]


@pytest.mark.usefixtures("small_shards")
def test_a_stopped_append_may_be_followed_by_one_of_fewer_records(cohort, tmp_path):
    def stop(done, total):
        if done > 60:
            raise KeyboardInterrupt

    run(cohort, tmp_path, limit=40)
    digest = open_signals(tmp_path / "signals.zarr").content_digest()
    with pytest.raises(KeyboardInterrupt):
        run(cohort, tmp_path, append=True, progress=stop)
    assert run(cohort, tmp_path, append=True, limit=45).n_records == 45
    assert len(open_signals(tmp_path / "signals.zarr")) == 45
    assert open_signals(tmp_path / "signals.zarr").content_digest(40) == digest


def test_nothing_new_changes_nothing(cohort, tmp_path):
    run(cohort, tmp_path, limit=30)
    before = files(tmp_path)
    assert run(cohort, tmp_path, limit=30, append=True).n_new == 0
    assert {n: d for n, (_, d) in files(tmp_path).items()} == {n: d for n, (_, d) in before.items()}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=60),
    st.lists(st.integers(0, 60), max_size=60),
    st.integers(1, 8),
)
def test_patients_keep_their_fold_whatever_is_added(first, more, n_folds):
    named = [f"p{p}" for p in first]
    folds = assign_folds(named, n_folds=n_folds, seed=1)
    kept = dict(zip(named, folds.tolist(), strict=True))
    both = named + [f"p{p}" for p in more]
    grown = assign_folds(both, n_folds=n_folds, seed=1, kept=kept)
    assert np.array_equal(grown[: len(first)], folds)
    assert (pd.Series(grown).groupby(both).nunique() == 1).all()


def test_new_patients_fill_the_emptiest_folds():
    kept = {f"p{k}": k % 4 for k in range(8)}
    patients = [*kept, *(f"q{k}" for k in range(8))]
    assert np.bincount(assign_folds(patients, n_folds=8, seed=0, kept=kept)).tolist() == [2] * 8


def test_published_folds_are_taken_and_a_patient_who_is_there_keeps_theirs(test_data, tmp_path):
    run(test_data / "ptbxl", tmp_path, "ptbxl", limit=60)
    run(test_data / "ptbxl", tmp_path, "ptbxl", append=True)
    run(test_data / "ptbxl", tmp_path / "whole", "ptbxl")
    grown, whole = (open_records(p / "records.parquet") for p in (tmp_path, tmp_path / "whole"))
    pd.testing.assert_frame_equal(grown, whole)


def wfdb_folder(folder: Path, names: list[str], **columns) -> dict[str, str]:
    for k, name in enumerate(names):
        home = folder / Path(name).parent
        home.mkdir(parents=True, exist_ok=True)
        signal = np.random.default_rng(k).normal(0, 0.3, (500, 2))
        wfdb.wrsamp(
            Path(name).name, 500, ["mV", "mV"], ["I", "II"], p_signal=signal, fmt=["16", "16"], write_dir=str(home)
        )
    pd.DataFrame({"record": names, **columns}).to_csv(folder / "labels.csv", index=False)
    return {"labels": str(folder / "labels.csv")}


def test_new_classes_come_behind_those_that_are_there(tmp_path):
    rhythms = ["sinus", "flutter", "pause", "af"]
    names = [f"r{k}" for k in range(8)]
    folder = tmp_path / "records"
    options = wfdb_folder(folder, names[:6], rhythm=[*rhythms[:3], *rhythms[:3]])
    run(folder, tmp_path, "wfdb", options)
    wfdb_folder(folder, names, rhythm=[*rhythms[:3], *rhythms[:3], "af", "sinus"])
    run(folder, tmp_path, "wfdb", options, append=True)
    records = open_records(tmp_path / "records.parquet")
    target = records.attrs["targets"]["rhythm"]
    assert target.classes == ("flutter", "pause", "sinus", "af")
    assert [target.classes[code] for code in records["rhythm"]] == [*rhythms[:3], *rhythms[:3], "af", "sinus"]


def test_records_that_are_renamed_by_newcomers_are_not_read_twice(tmp_path):
    folder = tmp_path / "records"
    wfdb_folder(folder, ["a/x", "a/y", "a/z"])
    run(folder, tmp_path, "wfdb")
    wfdb_folder(folder, ["b/x"])
    assert run(folder, tmp_path, "wfdb", append=True).n_new == 1
    assert open_records(tmp_path / "records.parquet")["record_id"].tolist() == ["x", "y", "z", "b/x"]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"out": "nothing"}, MissingFileError, "signals.zarr does not exist; run `ensemble ingest` without --append"),
        ({"source": "wfdb"}, InputError, "holds source 'mimic-iv-ecg'; --append takes more of the same"),
        ({"records": 10}, StoreError, "holds 30 records, records.parquet 10: they do not belong together"),
        ({"drop": "flag"}, InputError, "do not have the same targets \\('flag'\\)"),
    ],
)
def test_what_does_not_go_together_is_refused_and_left_alone(cohort, tmp_path, change, error, says):
    run(cohort, tmp_path, limit=30)
    path = tmp_path / "records.parquet"
    if "records" in change:
        pq.write_table(pq.read_table(path).slice(0, change["records"]), path)
    if "drop" in change:
        pq.write_table(pq.read_table(path).drop_columns([change["drop"]]), path)
    before = files(tmp_path)
    with pytest.raises(error, match=says) as caught:
        run(cohort, tmp_path / change.get("out", ""), change.get("source", "mimic-iv-ecg"), append=True)
    assert isinstance(caught.value, EnsembleError)
    after = files(tmp_path)
    assert {n: after[n] for n in before} == before


@pytest.mark.usefixtures("small_shards")
def test_embedding_then_sees_the_new_rows_only(cohort, tmp_path, tiny_ecgfm):
    from stages.embed import Embedder, EmbedPaths, EmbedSettings

    run(cohort, tmp_path, limit=20)
    place = EmbedPaths(
        tmp_path / "records.parquet", tmp_path / "signals.zarr", tmp_path / "ecgfm.zarr", tmp_path / "state"
    )
    chosen = EmbedSettings("ecgfm", weights=tiny_ecgfm.weights, config=tiny_ecgfm.config, shard_records=4)
    assert Embedder(chosen, place).run().n_embedded == 20
    run(cohort, tmp_path, limit=28, append=True)
    done = Embedder(chosen, place).run()
    assert (done.n_embedded, done.n_resumed, done.fresh_because) == (8, 20, "")


@pytest.mark.usefixtures("small_shards")
def test_the_table_is_the_same_however_many_rows_a_group_has(cohort, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    usual = [run(cohort, whole, limit=16), run(cohort, whole, limit=40, append=True)]
    for module in ("cache.records", "stages.ingest.row_groups"):
        monkeypatch.setattr(f"{module}.ROW_GROUP_RECORDS", 7)
    small = [run(cohort, cut, limit=16), run(cohort, cut, limit=40, append=True)]
    assert small == usual
    read = [pq.ParquetFile(out / "records.parquet") for out in (whole, cut)]
    assert [file.num_row_groups for file in read] == [1, 6]
    assert read[0].schema_arrow.equals(read[1].schema_arrow, check_metadata=True)
    assert read[0].read().to_pydict() == read[1].read().to_pydict()
    assert (whole / "bad_records.csv").read_bytes() == (cut / "bad_records.csv").read_bytes()


def test_the_end_of_an_ingest_holds_one_row_group_of_what_reading_showed(tmp_path, monkeypatch):
    for module in ("cache.records", "stages.ingest.row_groups"):
        monkeypatch.setattr(f"{module}.ROW_GROUP_RECORDS", 512)
    alive, most = [], 0

    def shard(k):
        nonlocal most
        found = {name: [[] if name in LISTS else None] * 64 for name in QUALITY} | {"status": ["ok"] * 64}
        found["notes"] = [Note([f"note {k}"]) for _ in range(64)]
        alive.extend(weakref.ref(cell) for cell in found["notes"])
        most = max(most, sum(cell() is not None for cell in alive))
        return found

    names = [f"r{k:05d}" for k in range(64 * 100)]
    entries = Entries(pd.DataFrame({"record_id": names, "patient_id": names, "path": names}), [])
    rows = new_rows(entries, "list", None, 0)
    summary = write_tables(tmp_path / "records.parquet", rows, map(shard, range(100)), RowOptions())
    assert (summary.n_records, summary.n_bad) == (6400, 0)
    assert most <= 3 * 512
