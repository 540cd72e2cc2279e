"""Columns as a learner reads them: the same values as the whole table's, in a few bytes a record."""

import tracemalloc

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cache.records
from cache.errors import InputError
from cache.record_columns import Texts, names_of
from cache.record_rows import RecordRows
from cache.records import BASE_COLUMNS, Target, open_records, target_array, write_records
from stages.learning.membership import Membership

TARGETS = [
    Target("age", "regression", unit="years"),
    Target("sex", "binary", classes=("f", "m")),
    Target("rhythm", "multiclass", classes=("SR", "AF", "AFL")),
    Target("class", "multilabel", classes=("NORM", "MI", "CD")),
]
N = 50


def write_table(path, n, monkeypatch, rows_of_a_group):
    monkeypatch.setattr(cache.records, "ROW_GROUP_RECORDS", rows_of_a_group)
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({name: [None] * n for name in BASE_COLUMNS})
    frame["record_id"] = [f"files/p{k // 2:07d}/s{k:08d}" for k in range(n)]
    frame["patient_id"] = [f"p{k // 2 * 7919 % n:07d}" for k in range(n)]
    frame["source"] = np.where(np.arange(n) % 3, "ptbxl", "chapman")
    fold = np.arange(n) // 2 % 10
    frame["fold"], frame["split"], frame["status"] = fold, np.where(fold < 8, "train", "test"), "ok"
    frame["age"] = np.where(rng.random(n) < 0.2, np.nan, rng.uniform(20, 90, n))
    frame["sex"] = pd.array(np.where(rng.random(n) < 0.2, None, rng.integers(0, 2, n)), "Int16")
    frame["rhythm"] = pd.array(np.where(rng.random(n) < 0.2, None, rng.integers(0, 3, n)), "Int16")
    named = ([], ["MI"], ["CD", "NORM"], None)
    frame["class"] = pd.Series([named[k] for k in rng.integers(0, 4, n)], dtype=object)
    write_records(path, frame, TARGETS)
    return path


@pytest.fixture
def table(tmp_path, monkeypatch):
    return write_table(tmp_path / "records.parquet", N, monkeypatch, 7)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.kind)
def test_labels_are_those_of_the_whole_table(table, target):
    found, expected = RecordRows(table).labels(target), target_array(open_records(table), target)
    assert found.itemsize <= expected.itemsize
    np.testing.assert_array_equal(found, expected)
    missing = np.isnan(expected) if expected.dtype.kind == "f" else expected < 0
    assert 0 < missing.sum() < missing.size


@pytest.mark.parametrize("column", ["record_id", "patient_id", "source", "split", "reason"])
def test_texts_are_those_of_the_whole_table_in_the_order_of_their_names(table, column):
    whole = open_records(table)[column].astype(object)
    # a text that is missing is NaN in pandas 3
    found, expected = RecordRows(table).texts(column), whole.where(whole.notna(), None).tolist()
    assert found.spelt(found.codes) == expected
    if column != "reason":
        names, codes = np.unique(np.array(expected, dtype=object), return_inverse=True)
        assert found.names.to_pylist() == names.tolist()
        np.testing.assert_array_equal(found.codes, codes)
        np.testing.assert_array_equal(found.equal(expected[3]), np.array(expected) == expected[3])
    assert not found.equal("nobody").any()


def test_texts_with_gaps_or_without_any_row():
    found = Texts.of(["b", None, "a"])
    assert (found.codes.tolist(), found.name(1), found.spelt(found.codes)) == ([1, -1, 0], "b", ["b", None, "a"])
    assert len(Texts.of([])) == 0


def test_a_class_that_the_target_does_not_have_is_named(table):
    narrow = Target("class", "multilabel", classes=("NORM", "CD"))
    with pytest.raises(InputError, match=r"task 'class': 'MI' is none of its classes \(NORM, CD\)"):
        RecordRows(table).labels(narrow)


def test_what_a_fit_reads_of_the_table_takes_few_bytes_a_record(tmp_path, monkeypatch):
    n = 60_000
    rows = RecordRows(write_table(tmp_path / "records.parquet", n, monkeypatch, 8192))
    tracemalloc.start()
    rows.digest()
    kept = Membership.read(rows), [rows.labels(target) for target in TARGETS]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(kept[0]) == n
    # 14 bytes of membership, 8 + 4 + 4 + 3 * 4 of labels, and what 8,192 records take while they are read
    assert peak / n < 14 + 28 + 60


def test_numbered_texts_are_taken_counted_and_compared():
    whole = Texts.of(["c", "a", None, "b", "c"])
    subset = whole.take(np.array([0, 2, 4]))
    assert subset.arrow().to_pylist() == ["c", None, "c"]
    assert (whole.n_used, subset.n_used) == (3, 1)
    assert subset.used().names.to_pylist() == ["c"]
    assert subset.used().codes.tolist() == [0, -1, 0]
    assert subset.within(pa.array(["b", "c", "d"])).tolist() == [1, -1, 1]
    assert subset.same_as(Texts.of(["c", None, "c"]))
    assert not subset.same_as(Texts.of(["c", None, "a"]))
    assert not subset.same_as(whole)
    assert names_of([subset, Texts.of(["d", "a"])]).to_pylist() == ["a", "c", "d"]
    assert names_of([whole, subset]) is whole.names


def test_rows_of_a_column_are_picked_across_row_groups(tmp_path):
    schema = pa.schema([pa.field(name, kind) for name, (kind, _) in BASE_COLUMNS.items()])
    ids = [f"r{k}" for k in range(10)]
    table = pa.Table.from_pylist([{"record_id": name} for name in ids], schema)
    pq.write_table(table, tmp_path / "records.parquet", row_group_size=3)
    rows = RecordRows(tmp_path / "records.parquet")
    assert rows.picked("record_id", np.array([0, 2, 3, 9])).to_pylist() == ["r0", "r2", "r3", "r9"]
    assert rows.picked("record_id", np.array([], int)).to_pylist() == []
    parts = list(rows.parts(["record_id", "nothing"]))
    assert [part.num_rows for part in parts] == [3, 3, 3, 1]
    assert all(part.column_names == ["record_id"] for part in parts)
