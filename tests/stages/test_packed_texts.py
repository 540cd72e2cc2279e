"""The list of an ingest in memory: texts packed, lists shared, and the same rows as of plain columns."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from cache.errors import InputError
from cache.record_columns import all_differ
from cache.records import Target
from stages.cohorts import Entries
from stages.ingest.packed_texts import PACKED, all_named, longest, named_patients, pack
from stages.ingest.record_table import new_rows


def listed(**columns) -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            "record_id": [f"r{k}" for k in range(6)],
            "patient_id": ["b", None, "a", "b", np.nan, "c"],
            "path": [f"x/r{k}.dat" for k in range(6)],
            "finding": [["AF"], ["SR"], ["AF"], None, [], ["AF"]],
        }
    )
    return frame.assign(**columns)


def rows_of(frame):
    return new_rows(Entries(frame, [Target("finding", "multilabel", classes=("AF", "SR"))]), "list", None, 0)


def test_texts_are_packed_and_equal_lists_are_one():
    frame = listed()
    pack(frame, ("record_id", "patient_id", "path"), ["finding"])
    assert [frame[name].dtype == PACKED for name in frame] == [True, True, True, False]
    assert frame["record_id"].tolist() == [f"r{k}" for k in range(6)]
    assert frame["finding"][0] is frame["finding"][2]
    assert frame["finding"].tolist() == [["AF"], ["SR"], ["AF"], None, [], ["AF"]]
    assert longest(frame["path"]) == 8
    assert all_named(frame["record_id"])
    assert not all_named(frame["patient_id"])
    assert named_patients(frame["patient_id"], frame["record_id"]).tolist() == [
        *("b", "record:r1", "a", "b"),
        *("record:r4", "c"),
    ]


def test_what_is_no_text_stays_and_names_its_rows_as_before():
    ids, paths = [7, "r1", "r2", "r2", None, "r5"], ["a", "b\udcff", "c", "d", None, "f"]
    frame = listed(record_id=pd.Series(ids, dtype=object), path=pd.Series(paths, dtype=object))
    rows = rows_of(frame)
    assert rows.frame["record_id"].tolist() == ["7", "r1", "r2", "r2#2", "row-4", "r5"]
    assert rows.frame["path"].tolist() == ["a", "b\\udcff", "c", "d", "", "f"]
    assert set(rows.refused) == {1, 3, 4}
    assert rows.frame["patient_id"].tolist() == ["b", "record:r1", "a", "b", "record:row-4", "c"]


def test_a_list_of_texts_gives_the_rows_that_columns_of_objects_give():
    packed, plain = rows_of(listed()), rows_of(listed(path=pd.Series([*"abcde", 5], dtype=object)))
    assert packed.frame["record_id"].dtype == packed.frame["path"].dtype == PACKED
    for column in ("record_id", "patient_id", "finding", "fold", "split"):
        assert packed.frame[column].tolist() == plain.frame[column].tolist()
    assert packed.notes == plain.notes == ["2 records have no patient: each counts as a patient of its own"]


def test_a_name_that_is_too_long_is_shortened_among_packed_ones():
    rows = rows_of(listed(record_id=["a" * 501, *(f"r{k}" for k in range(5))]))
    assert rows.refused == {0: "its record_id has 501 characters, more than 500"}
    assert len(rows.frame["record_id"][0]) < 200


@pytest.mark.parametrize(("texts", "differ"), [([], True), (["a"], True), (["b", "a"], True), (["b", "a", "b"], False)])
def test_texts_that_occur_twice_are_found(texts, differ):
    assert all_differ(pa.array(texts, pa.string())) == differ


def test_a_patient_in_two_folds_is_still_refused():
    with pytest.raises(InputError, match=r"patient 'b' is in more than one fold \(1 such patients\)"):
        rows_of(listed(fold=[0, 0, 1, 1, 2, 2]))
