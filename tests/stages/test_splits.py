import tracemalloc

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.records import Target
from stages.ingest.folds import assign_folds, split_names, strata_of

COHORTS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), min_size=1, max_size=120)


@settings(max_examples=150, deadline=None)
@given(COHORTS, st.integers(1, 12), st.integers(0, 5))
def test_no_patient_is_in_two_folds_and_row_order_does_not_matter(cohort, n_folds, seed):
    patients = [f"p{p}" for p, _ in cohort]
    strata = [str(s) for _, s in cohort]
    folds = assign_folds(patients, strata, n_folds=n_folds, seed=seed)
    assert folds.min() >= 0
    assert folds.max() < n_folds
    by_patient = pd.DataFrame({"p": patients, "f": folds}).groupby("p")["f"].nunique()
    assert (by_patient == 1).all()
    backwards = assign_folds(patients[::-1], strata[::-1], n_folds=n_folds, seed=seed)
    assert np.array_equal(backwards[::-1], folds)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 10), st.integers(0, 100))
def test_single_record_patients_are_dealt_evenly_within_each_stratum(n_folds, seed):
    strata = ["a"] * 10 * n_folds + ["b"] * 3 * n_folds
    folds = assign_folds([f"p{k}" for k in range(len(strata))], strata, n_folds=n_folds, seed=seed)
    counts = pd.crosstab(strata, folds)
    assert (counts.loc["a"] == 10).all()
    assert (counts.loc["b"] == 3).all()


def test_folds_are_those_of_a_sorted_list_of_names():
    """The order of names decides who is dealt first: numpy's sorting of texts, as of old."""
    rng = np.random.default_rng(0)
    patients = ["".join(rng.choice(list("aZ0é_-😀"), rng.integers(0, 4))) for _ in range(300)]
    names, place = np.unique(patients, return_inverse=True)
    numbered = [f"{k:04d}" for k in place]
    assert np.array_equal(
        assign_folds(patients, numbered, n_folds=7, seed=1), assign_folds(numbered, numbered, n_folds=7, seed=1)
    )
    assert len(names) > 100


def test_one_giant_name_does_not_make_all_names_giant():
    patients = [f"p{k}" for k in range(2000)]
    patients[7] = "x" * 1_000_000
    tracemalloc.start()
    assign_folds(patients, patients, n_folds=10, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000_000


def test_another_seed_deals_differently():
    patients = [f"p{k}" for k in range(200)]
    first, second = (assign_folds(patients, n_folds=10, seed=seed) for seed in (0, 1))
    assert (first != second).any()


def test_rarest_statement_is_the_stratum_of_a_multilabel_record():
    frame = pd.DataFrame({"x": [["a"], ["a", "b"], ["a"], None, []]})
    assert strata_of(frame, [Target("x", "multilabel", classes=("a", "b"))]) == ["a", "b", "a", "", ""]


def test_split_names():
    assert split_names(np.array([0, 8, 9]), val=8, test=9).tolist() == ["train", "val", "test"]
