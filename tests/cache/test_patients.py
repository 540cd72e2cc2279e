"""Whose labels have trained an expert: the attribute of its store, and the records that it names."""

import json

import numpy as np
import pandas as pd
import pytest

from cache.errors import StoreError
from cache.patients import LABELLED_TRAINING, patient_digests, patients_taught, records_seen, training_entry

RECORDS = pd.DataFrame(
    {"source": ["ptbxl", "ptbxl", "ptbxl", "ludb"], "patient_id": ["1", "2", "1", "1"]}, index=[4, 5, 6, 7]
)


def seen(*entries, records=RECORDS):
    attributes = json.loads(json.dumps({LABELLED_TRAINING: entries}))
    return records_seen(attributes, records).tolist()


def test_every_record_of_a_listed_patient_is_seen_and_no_other_collections_patient_of_that_number():
    digests = patient_digests(RECORDS.iloc[:1], b"key")
    assert seen(training_entry(["ptbxl"], digests, b"key")) == [True, False, True, False]
    assert seen(training_entry(["ptbxl"], digests, b"another")) == [False] * 4
    assert seen(training_entry(["ludb"])) == [False, False, False, True]
    assert seen(training_entry(["ptbxl"], digests, b"key"), training_entry(["ludb"])) == [True, False, True, True]
    assert seen() == [False] * 4
    assert records_seen({}, RECORDS).tolist() == [False] * 4


def test_hashed_patients_of_a_collection_that_was_learnt_from_count_as_seen():
    hashed = pd.DataFrame({"source": ["ptbxl", "ludb"], "patient_id": ["h-0123456789abcdef", "h-0123456789abcdef"]})
    listed = patient_digests(RECORDS, b"key")
    assert seen(training_entry(["ptbxl"], listed, b"key"), records=hashed) == [True, False]
    # the study's own list has the ids as the study has them
    assert seen(training_entry(["ptbxl"], patient_digests(hashed.iloc[1:])), records=hashed) == [False, True]


@pytest.mark.parametrize("entry", [{"patients": "AAAA"}, {"sources": [], "key": "", "patients": "?"}, 3])
def test_an_attribute_that_cannot_be_read_is_named(entry):
    with pytest.raises(StoreError, match=LABELLED_TRAINING):
        records_seen({LABELLED_TRAINING: [entry]}, RECORDS)


@pytest.mark.parametrize("entry", [{"sources": [], "key": "", "patients": "?"}, {"patients": 3}, 3])
def test_a_list_that_cannot_be_counted_is_named(entry):
    with pytest.raises(StoreError, match=LABELLED_TRAINING):
        patients_taught({LABELLED_TRAINING: [entry]})


def test_the_longest_list_tells_how_many_patients_taught():
    few, more = (training_entry(["ptbxl"], np.arange(n, dtype="<u8"), b"key") for n in (3, 7))
    assert patients_taught({LABELLED_TRAINING: [few, more, training_entry(["ludb"])]}) == 7
    assert patients_taught({LABELLED_TRAINING: [training_entry(["ludb"])]}) == patients_taught({}) == 0


def test_digests_are_a_patients_and_ascend():
    digests = patient_digests(RECORDS)
    assert len(digests) == 3
    assert (np.diff(digests) > 0).all()
