"""Who each record is of and where it belongs: what a frame of the table says, without the frame."""

import numpy as np
import pandas as pd
import pytest

import cache.records
from cache.errors import InputError
from cache.fingerprint import text_digest
from cache.patients import People, patient_digests
from cache.record_columns import Texts
from cache.record_members import RecordMembers
from cache.records import BASE_COLUMNS, open_records, write_records

N = 50


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.setattr(cache.records, "ROW_GROUP_RECORDS", 7)
    k = np.arange(N)
    frame = pd.DataFrame({name: [None] * N for name in BASE_COLUMNS})
    frame["record_id"] = [f"r{i * 37 % N:02d}" for i in k]
    frame["patient_id"] = [f"p{i // 2 * 7 % 25}" for i in k]
    frame["source"] = np.where(k // 2 % 3, "ptbxl", "chapman")
    frame["fold"], frame["split"] = k // 2 % 10, np.where(k // 2 % 10 < 8, "train", "test")
    frame["status"] = np.where(k % 11, "ok", "bad")
    write_records(tmp_path / "records.parquet", frame, [])
    return tmp_path / "records.parquet"


def test_members_are_those_of_the_frame(table):
    members, frame = RecordMembers.read(table), open_records(table, without=())
    expected = np.flatnonzero((frame["split"] == "train") & (frame["status"] == "ok"))
    rows = members.training_rows()
    np.testing.assert_array_equal(rows, expected)
    some = np.array([41, 3, 3, 17, 0])
    assert members.ids(some).to_pylist() == frame["record_id"][some].tolist()
    assert members.patients(some).to_pylist() == frame["patient_id"][some].tolist()
    assert members.ids(some[:0]).to_pylist() == []
    pairs = zip(frame["record_id"], frame["split"], strict=True)
    chosen = frame.iloc[rows]
    assert members.facts(rows) == {
        "sources": sorted(set(chosen["source"])),
        "n_records": len(rows),
        "n_patients": chosen["patient_id"].nunique(),
        "split_digest": text_digest([f"{name}\t{split}" for name, split in pairs]),
    }
    with pytest.raises(InputError, match="no readable record has split 'val'"):
        members.training_rows("val")


def test_people_have_the_digests_of_the_frame(table, monkeypatch):
    monkeypatch.setattr("cache.patients.PEOPLE_AT_ONCE", 4)
    people, frame = RecordMembers.read(table).people, open_records(table, without=())
    for rows in (np.arange(N), np.flatnonzero(frame["split"] == "test"), np.arange(0)):
        found = patient_digests(people.take(rows), b"key")
        np.testing.assert_array_equal(found, patient_digests(frame.iloc[rows], b"key"))
        assert found.dtype == np.uint64
    once, place = people.different()
    assert len(once) == frame[["source", "patient_id"]].drop_duplicates().shape[0]
    spelt = pd.concat(once.frames(), ignore_index=True).iloc[place].reset_index(drop=True)
    assert spelt["patient_id"].tolist() == frame["patient_id"].tolist()
    assert spelt["source"].tolist() == frame["source"].tolist()


def test_a_record_without_a_patient_is_of_its_own_source():
    once, place = People(Texts.of(["a", "b", "b"]), Texts.of(["1", None, "1"])).different()
    (spelt,) = once.frames()
    assert spelt["source"].tolist() == ["a", "b", "b"]
    assert spelt["patient_id"].tolist()[place[2]] == "1"
    assert pd.isna(spelt["patient_id"].tolist()[place[1]])
