import numpy as np
import pyarrow.parquet as pq
import pytest

from cache import open_records, records_digest
from cache.errors import MissingFileError, StoreError
from cache.record_rows import RecordRows
from cache.records import READING_COLUMNS


@pytest.fixture
def table(tmp_path, make_cohort):
    """The table of a cohort of 40 records, in row groups of 7."""
    make_cohort(tmp_path, 40)
    path = tmp_path / "records.parquet"
    pq.write_table(pq.read_table(path), path, row_group_size=7)
    return path


@pytest.mark.parametrize("rows", [slice(0, 40), slice(0, 7), slice(5, 23), slice(38, 60), slice(9, 9)])
def test_rows_are_those_of_the_whole_table(table, rows):
    whole = open_records(table).iloc[rows]
    found = RecordRows(table).read(rows)
    assert [row.record_id for row in found] == whole["record_id"].tolist()
    expected = np.where(whole["status"] == "ok", "", whole["reason"].fillna("")).tolist()
    assert [row.unreadable for row in found] == expected


@pytest.mark.parametrize("n", [None, 0, 1, 7, 22, 40])
def test_the_digest_is_that_of_the_first_ids(table, n):
    rows = RecordRows(table)
    assert len(rows) == 40
    assert rows.digest(n) == records_digest(open_records(table)["record_id"].tolist()[:n])


def test_what_is_no_records_table_is_refused(table):
    with pytest.raises(MissingFileError, match="run `ensemble ingest` first"):
        RecordRows(table.with_name("nowhere.parquet"))
    pq.write_table(pq.read_table(table).drop_columns(["status"]), table)
    with pytest.raises(StoreError, match="lacks the columns status"):
        RecordRows(table)
    table.write_bytes(table.read_bytes()[:-20])
    with pytest.raises(StoreError, match="not a readable Parquet file"):
        RecordRows(table)


def test_columns_are_read_alone_and_a_record_is_found_by_its_id(tmp_path, make_cohort):
    make_cohort(tmp_path, 10)
    path = tmp_path / "records.parquet"
    frame = open_records(path)
    few = open_records(path, columns=["patient_id", "age", "no such column"])
    assert list(few.columns) == ["patient_id", "age"]
    assert set(few.attrs["targets"]) == {"age"}
    rest = open_records(path, without=READING_COLUMNS)
    assert set(frame.columns) - set(rest.columns) == set(READING_COLUMNS) & set(frame.columns)
    assert rest.attrs["targets"] == frame.attrs["targets"]
    rows = RecordRows(path, ("record_id",), ("age", "pace_spikes"))
    assert (rows.find("r0007"), rows.find("r0070")) == (7, None)
    assert rows.equal("patient_id", "p0002").nonzero()[0].tolist() == [4, 5]
    assert rows.take(slice(8, 20)) == {
        "record_id": ["r0008", "r0009"],
        "age": frame["age"].tolist()[8:],
        "pace_spikes": [None, None],
    }
    assert set(RecordRows(path, ("record_id",), every_target=True).take(slice(0, 1))) == {"record_id", "sex", "age"}


def test_some_rows_are_a_frame_of_their_own(table):
    whole, rows = open_records(table), np.array([0, 6, 7, 22, 39])
    found = open_records(table, columns=["record_id", "age"], rows=rows)
    assert found["record_id"].tolist() == whole["record_id"][rows].tolist()
    assert found["age"].tolist() == whole["age"][rows].tolist()
    assert found.attrs == {**whole.attrs, "targets": {"age": whole.attrs["targets"]["age"]}}
    assert len(open_records(table, rows=np.array([], int))) == 0
