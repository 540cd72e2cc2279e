"""Which second of the record each token belongs to."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from stages.experts.token_times import TokenTimes, second_weights, window_starts_s


def means(times, placement, n_windows, window_s, record_s=10.0, n_seconds=10, n_tokens=None):
    """Mean over each second of tokens whose one value is the middle of what they stand for."""
    starts, ends = times.spans_s(times.per_window if n_tokens is None else n_tokens)
    at = window_starts_s(placement, n_windows, window_s, record_s)[:, None]
    starts, ends = (at + starts).ravel(), (at + ends).ravel()
    return second_weights(starts, ends, n_seconds) @ ((starts + ends) / 2)


@pytest.mark.parametrize(
    ("times", "placement", "n_windows", "window_s"),
    [
        (TokenTimes(1, 100, 0.1), "even", 1, 10.0),
        (TokenTimes(1, 20, 0.5), "whole", 1, 10.0),
        (TokenTimes(1, 156, 0.032), "consecutive", 2, 5.0),
        (TokenTimes(1, 900, 0.01), "even", 3, 9.0),
        (TokenTimes(1, 20, 0.5), "even", 2, 10.0),
    ],
)
def test_the_mean_over_a_second_is_that_of_the_tokens_within_it(times, placement, n_windows, window_s):
    assert_allclose(means(times, placement, n_windows, window_s), np.arange(10) + 0.5, atol=0.09)


def test_a_token_over_an_edge_counts_in_both_seconds_by_its_time():
    starts = 0.6 * np.arange(5)
    weights = second_weights(starts, starts + 0.6, 3)
    assert_allclose(weights[0], [0.6, 0.4, 0, 0, 0])
    assert_allclose(weights[1], [0, 0.2, 0.6, 0.2, 0])
    assert_allclose(weights[2], [0, 0, 0, 0.4, 0.6])


def test_overlapping_windows_share_a_second():
    starts, ends = TokenTimes(1, 9, 1.0).spans_s(9)
    at = window_starts_s("even", 2, 9.0, 10.0)[:, None]
    weights = second_weights((at + starts).ravel(), (at + ends).ravel(), 10)
    assert_allclose(weights.sum(1), 1)
    assert (weights[0] > 0).sum() == 1
    assert_allclose(weights[4][weights[4] > 0], 0.5)


def test_a_second_without_tokens_is_missing_and_rounding_covers_none():
    found = means(TokenTimes(1, 50, 0.1000001), "even", 1, 5.0)
    assert_allclose(found[:5], np.arange(5) + 0.5, atol=1e-3)
    assert np.isnan(found[5:]).all()


def test_leads_one_after_the_other_start_anew_with_each():
    times = TokenTimes(1, 93, 0.64, turn_s=5.0)
    starts, ends = times.spans_s(93)
    assert starts.max() < 5
    assert ends.max() <= 5
    assert (np.diff(starts) < 0).sum() == 11
    weights = second_weights(starts, ends, 10)
    assert_allclose(weights[:5].sum(1), 1)
    assert np.isnan(weights[5:]).all()
    assert ((weights[0] > 0).sum()) >= 12
