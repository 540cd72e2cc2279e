"""From files to stored vectors: every expert sees each record at its own rate and of its own length, by lead name.

What is stored is held to `prepare` and `encode` on the record itself, in float64. That these are the official ones is
what tests/parity holds.
"""

import json
import os

import numpy as np
import pytest

from cache import open_signals
from cache.signals import to_microvolts
from stages.experts.run import RunSettings, Signal, embed_records, set_precision
from tests.integration.end_to_end import (
    CASES,
    EVERY_CASE,
    GOLDEN,
    embedded,
    ingested,
    reference,
    sampled,
    signal_of,
    small_and_saved,
)
from tests.stages.small_experts import EACH_CODE, NAMES

TOLERANCE = 2e-4
"""Of the spread between records."""
TOLERANCES = {"rocket": 1e-3}
"""Of rocket: a sample that its high-pass leaves halfway between two microvolts may round either way (decisions.md)."""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return ingested(tmp_path_factory.mktemp("cases"), CASES, 10.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return ingested(tmp_path_factory.mktemp("whole"), EVERY_CASE, None)


def holds(study, name: str, seconds: float | None) -> None:
    expert, weights = small_and_saved(name, study.folder)
    vectors, bad = embedded(study, name, weights)
    expected = [reference(expert, case, seconds) for case in study.cases]
    known = np.stack([vector for vector in expected if vector is not None])
    spread = np.nanmean(np.nanstd(known, axis=0))
    for case, vector, right in zip(study.cases, vectors, expected, strict=True):
        if right is None:
            assert np.isnan(vector).all(), case
            assert "shorter than" in bad[case.name], bad
        else:
            assert np.array_equal(np.isnan(vector), np.isnan(right)), case
            error = np.sqrt(np.nanmean((vector - right) ** 2)) / spread
            assert error < TOLERANCES.get(name, TOLERANCE), (case, error)


def test_rows_hold_what_the_files_hold(study, whole):
    for made, seconds in ((study, 10.0), (whole, None)):
        store = open_signals(made.folder / "signals.zarr")
        valid, rates = (read(slice(0, len(store))) for read in (store.valid_of, store.rates_of))
        for row, case in enumerate(made.cases):
            expected = to_microvolts(signal_of(case))
            expected = expected if seconds is None else expected[:, : round(seconds * case.rate_hz)]
            assert (valid[row], rates[row]) == (expected.shape[1], case.rate_hz)
            assert np.array_equal(store.read_uv(slice(row, row + 1))[0, :, : valid[row]], expected), case


@pytest.mark.parametrize("name", EACH_CODE)
def test_a_stored_vector_is_that_of_the_record_as_it_is(study, name):
    holds(study, name, 10.0)


@pytest.mark.slow
@pytest.mark.skipif("ENSEMBLE_EVERY_CASE" not in os.environ, reason="takes minutes; set ENSEMBLE_EVERY_CASE=1")
@pytest.mark.parametrize("name", NAMES)
def test_every_rate_and_length_of_whole_records(whole, name):
    holds(whole, name, None)


@pytest.mark.parametrize("name", EACH_CODE)
def test_end_to_end_vectors_are_the_golden_ones(study, name):
    golden = json.loads(GOLDEN.read_text())
    assert name in golden, "write it: python -m tests.integration.end_to_end"
    vectors, _ = embedded(study, name, small_and_saved(name, study.folder)[1])
    for case, values in zip(study.cases, sampled(vectors), strict=True):
        expected, found = (np.array(v, dtype=float) for v in (golden[name][case.name], values))
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3, err_msg=f"{name}, {case}")


ROUNDED = [  # by the network, and by the store
    *(("fp32", "float32"), ("bf16", "float32"), ("fp16", "float16")),
    *(pytest.param(*pair, marks=pytest.mark.slow) for pair in [("fp32", "float16"), ("bf16", "float16")]),
    pytest.param("fp16", "float32", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("precision", "dtype"), ROUNDED)
@pytest.mark.parametrize("name", ["ecgfm", "hubert", "timesnet", "ttm", "morphology"])
def test_a_record_alone_has_the_stored_vector_to_the_last_bit(study, name, precision, dtype):
    expert, weights = small_and_saved(name, study.folder)
    vectors, _ = embedded(study, name, weights, precision=precision, dtype=dtype, batch_size=5, shard_records=8)
    set_precision(expert, precision)
    store = open_signals(study.folder / "signals.zarr")
    for row, stored in enumerate(vectors):
        [(_, signals_mv, rate_hz)] = store.read_groups(slice(row, row + 1))
        alone = embed_records(expert, [Signal(signals_mv[0], rate_hz)], RunSettings(dtype=dtype))
        np.testing.assert_array_equal(alone.embedding[0], stored)
        assert bool(alone.reasons) == bool(np.isnan(stored).all())
