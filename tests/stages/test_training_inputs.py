"""What networks are trained on: each record at its own rate and of its own length."""

import numpy as np
import pytest

from cache.errors import InputError
from cache.signals import create_signals, to_microvolts
from stages.training.inputs import prepared_inputs
from tests.stages.small_experts import records, small_expert

LENGTHS = ((5000, 500.0), (2500, 250.0), (3600, 500.0), (1000, 500.0), (5000, 500.0), (0, 0.0))
"""Samples and rate: two whole records, one at another rate, one of a single window, one too short, one unreadable."""


@pytest.fixture
def signals(tmp_path):
    store = create_signals(tmp_path / "signals.zarr", len(LENGTHS), 16)
    rows = np.full((len(LENGTHS), 12, 5000), np.nan)
    for k, (n, rate_hz) in enumerate(LENGTHS):
        rows[k, :, :n] = records(len(LENGTHS), 10.0, rate_hz or 500.0)[k, :, :n]
    store.write_shard(0, to_microvolts(rows), *(np.array(values) for values in zip(*LENGTHS, strict=True)))
    return store


def test_every_record_is_prepared_as_it_is_and_the_too_short_are_left_out(tmp_path, signals, caplog):
    expert = small_expert("ecgfm")
    for _ in range(2):  # made, then found again
        made = prepared_inputs(tmp_path / "inputs", {}, expert.prepare, signals, np.arange(5))
        assert made.rows.tolist() == [0, 1, 2, 4]
        assert made.x.shape == (4, 2, 12, 2500)
    for x, row in zip(made.x, made.rows, strict=True):
        n, rate_hz = LENGTHS[row]
        alone = expert.prepare(signals.read_mv(slice(row, row + 1))[:, :, :n], rate_hz).numpy()[0]
        np.testing.assert_array_equal(x, np.tile(alone, (2 // len(alone), 1, 1)))
    assert "1 of 5 records are left out of training, the first: expert 'ecgfm': 2 s are shorter" in caplog.text


def test_records_of_which_none_is_long_enough_are_refused(tmp_path, signals):
    with pytest.raises(InputError, match=r"no record can be trained on: expert 'jepa': 7.2 s are shorter"):
        prepared_inputs(tmp_path / "inputs", {}, small_expert("jepa").prepare, signals, np.array([2, 3]))
