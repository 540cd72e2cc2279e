import numpy as np
import pandas as pd
import pytest

from cache.errors import InputError, MissingFileError, StoreError
from cache.records import BASE_COLUMNS, Target, open_records, records_digest, target_array, write_records

TARGETS = [
    Target("age", "regression", unit="years"),
    Target("sex", "binary", classes=("male", "female")),
    Target("rhythm", "multiclass", classes=("SR", "AF", "ST")),
    Target("superclass", "multilabel", classes=("NORM", "MI", "CD")),
]


def make_frame(n: int = 6) -> pd.DataFrame:
    frame = pd.DataFrame({name: [None] * n for name in BASE_COLUMNS})
    frame["record_id"] = [f"r{i}" for i in range(n)]
    frame["patient_id"] = [f"p{i // 2}" for i in range(n)]
    frame["fold"] = [i // 2 for i in range(n)]
    frame["split"] = ["train", "train", "val", "val", "test", "test"][:n]
    frame["status"] = "ok"
    frame["age"] = [50.5, None, 61, 44, 30, 20]
    frame["sex"] = [0, 1, None, 1, 0, 0]
    frame["rhythm"] = [2, 0, None, 1, 0, 0]
    frame["superclass"] = [["MI", "CD"], [], None, ["NORM"], ["NORM"], ["CD"]]
    return frame


def test_a_table_reads_back_with_its_targets_and_missing_values(tmp_path):
    write_records(tmp_path / "records.parquet", make_frame(), TARGETS)
    frame = open_records(tmp_path / "records.parquet")
    assert frame.attrs["targets"] == {t.name: t for t in TARGETS}
    arrays = {t.name: target_array(frame, t) for t in TARGETS}
    np.testing.assert_array_equal(arrays["age"], [50.5, np.nan, 61, 44, 30, 20])
    np.testing.assert_array_equal(arrays["sex"], [0, 1, np.nan, 1, 0, 0])
    np.testing.assert_array_equal(arrays["rhythm"], [2, 0, -1, 1, 0, 0])
    np.testing.assert_array_equal(arrays["superclass"][:4], [[0, 1, 1], [0, 0, 0], [np.nan] * 3, [1, 0, 0]])


def test_the_same_table_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_records(tmp_path / name, make_frame(), TARGETS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_record_id_may_occur_once_only(tmp_path):
    frame = make_frame()
    frame.loc[3, "record_id"] = "r0"
    with pytest.raises(InputError, match="'r0' occurs more than once"):
        write_records(tmp_path / "records.parquet", frame, TARGETS)
    assert list(tmp_path.iterdir()) == []


def test_a_patient_in_two_splits_is_refused(tmp_path):
    frame = make_frame()
    frame.loc[1, "split"] = "test"
    with pytest.raises(InputError, match="patient 'p0' is in more than one fold or split"):
        write_records(tmp_path / "records.parquet", frame, TARGETS)


def test_rows_without_a_patient_may_be_in_any_fold(tmp_path):
    frame = make_frame()
    frame.loc[[1, 2], "patient_id"] = None
    frame["fold"], frame["split"] = frame["fold"].astype(int), frame["split"].astype(object)
    frame.loc[1, "split"] = "test"
    write_records(tmp_path / "records.parquet", frame, TARGETS)
    assert open_records(tmp_path / "records.parquet", columns=["split"])["split"].tolist() == frame["split"].tolist()


def test_a_missing_table_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(MissingFileError, match="run `ensemble ingest` first"):
        open_records(tmp_path / "records.parquet")


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    (tmp_path / "records.parquet").write_text("not parquet")
    with pytest.raises(StoreError, match="not a readable Parquet file"):
        open_records(tmp_path / "records.parquet")


def test_the_row_digest_notices_order_and_borders():
    assert records_digest(["a", "b"]) != records_digest(["b", "a"])
    assert records_digest(["ab", "c"]) != records_digest(["a", "bc"])
