import numpy as np
import pyarrow.parquet as pq
import pytest

from cache import open_records, records_digest
from cache.errors import MissingFileError, StoreError
from cache.record_rows import RecordRows


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
