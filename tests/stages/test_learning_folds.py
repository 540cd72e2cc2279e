"""Which records train, validate and test, whatever numbers the folds have."""

from types import SimpleNamespace

import numpy as np
import pytest

from cache.errors import InputError
from stages.learning.folds import make_splits
from tests.stages.memberships import membership


def data(folds, usable=None):
    usable = np.ones(len(folds), bool) if usable is None else np.array(usable)
    return SimpleNamespace(membership=membership(len(folds), fold=folds), usable=usable)


@pytest.mark.parametrize("numbers", [(0, 1, 2, 3), (0, 2, 4, 6), (10, 20, 30, 40), (3, 5, 7, 100)])
@pytest.mark.parametrize("folds", ["all", 3, 4])
def test_gaps_in_the_fold_numbers_change_nothing(numbers, folds):
    ranks = np.array([0, 1, 2, 3, 0, 1, 2, 3, 1])
    found = make_splits(data([numbers[rank] for rank in ranks]), folds)
    expected = make_splits(data(ranks), folds)
    assert len(found) == (4 if folds == "all" else folds)
    for parts, wanted in zip(found, expected, strict=True):
        for rows, others in zip(parts, wanted, strict=True):
            assert len(rows)
            np.testing.assert_array_equal(rows, others)
        assert sorted(np.concatenate(parts)) == list(range(len(ranks)))


def test_a_fold_without_a_usable_record_is_none():
    found = make_splits(data([0, 1, 2, 9], [True, True, True, False]), "all")
    assert [test.tolist() for _, _, test in found] == [[0], [1], [2]]
    with pytest.raises(InputError, match=r"`folds: 4` needs at least 3 folds .* records.parquet has 3"):
        make_splits(data([0, 1, 2, 9], [True, True, True, False]), 4)


def test_a_patient_in_two_parts_of_a_fit_is_named():
    parts = membership(4, split=["train", "val", "test", "train"], patient=["ann", "bob", "ann", "eve"])
    with pytest.raises(InputError, match=r"fit 0: patient 'ann' is in both train and test \(1 such patients\)"):
        make_splits(SimpleNamespace(membership=parts, usable=np.ones(4, bool)), "split")


def test_records_without_a_patient_are_counted_and_taken_for_nobody():
    parts = membership(4, split=["train", "val", "test", "train"], patient=["ann", "bob", None, None])
    with pytest.raises(InputError, match=r"fit 0: 1 records have no patient_id; name each one's patient"):
        make_splits(SimpleNamespace(membership=parts, usable=np.ones(4, bool)), "split")
