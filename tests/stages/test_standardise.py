"""Records of the usual kind become the rows, and are judged, as the general way has it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.errors import InputError
from cache.signals import LEADS, MISSING
from stages.readers import Counts, Quality, Recording, read_wfdb, standardise
from stages.readers.standardise import standardise_any
from stages.readers.whole_microvolts import standardise_usual

ORDERS = [
    LEADS,
    (*LEADS[:4], "aVF", "aVL", *LEADS[6:]),
    tuple(reversed(LEADS)),
    ("MLII", *LEADS),
    LEADS[:8],
    ("I", "i"),
]


@st.composite
def recordings(draw) -> Counts | Recording:
    leads = draw(st.sampled_from(ORDERS))
    n, rate_hz = draw(st.sampled_from([(5000, 500.0), (5501, 500.0), (4999, 500.0), (3000, 250.0), (0, 500.0)]))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    largest = draw(st.sampled_from([2000, 6553, 6554, 32767]))
    samples = rng.integers(-largest, largest + 1, (n, len(leads))).astype(np.int16)
    for gap in draw(
        st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4990), st.sampled_from([1, 50, 5000])), max_size=2)
    ):
        lead, start, length = gap
        samples[start : start + length, lead % len(leads)] = draw(st.sampled_from([MISSING, 32767, -32767, 7]))
    gains = [draw(st.sampled_from([1000.0, 200.0, -500.0, 204.8, 0.5]))] * len(leads)
    baselines = [draw(st.sampled_from([0, 0, 5, -1024]))] * len(leads)
    counts = Counts(samples, leads, tuple(gains), tuple(baselines), rate_hz, n)
    return counts if draw(st.integers(0, 6)) else counts.to_recording()


def made(way: Callable[..., Quality], recording: Counts | Recording) -> tuple[Quality | str, np.ndarray]:
    row = np.full((12, 5000), 99, dtype=np.int16)
    try:
        return way(recording, row), row
    except InputError as error:
        return str(error), np.zeros(0)


@settings(max_examples=150, deadline=None)
@given(recordings())
def test_the_usual_way_gives_what_the_general_one_does(recording):
    (quality, row), (expected, expected_row) = made(standardise, recording), made(standardise_any, recording)
    assert quality == expected
    assert np.array_equal(row, expected_row)


def test_what_is_not_usual_is_left_to_the_general_way():
    out = np.empty((12, 5000), dtype=np.int16)
    usual = Counts(np.ones((5000, 12), dtype=np.int16), LEADS, (200.0,) * 12, (0,) * 12, 500.0, 5000)
    assert standardise_usual(usual, out) == Quality(500.0, 5000, 5000, 0.0, LEADS, (), 0.0)
    assert (out == 5).all()
    for change in ({"gains_per_mv": (0.0,) * 12}, {"rate_hz": 250.0}, {"baselines": (1,) * 12}, {"leads": LEADS[:3]}):
        assert standardise_usual(usual._replace(**change), out) is None


@pytest.mark.parametrize(("folder", "usual"), [("ptbxl", 400), ("challenge2021", 50), ("ludb", 0)])
def test_real_records_give_the_same_rows_either_way(test_data, folder, usual):
    home: Path = test_data / folder
    n_usual = 0
    for path in sorted(str(p.relative_to(home)) for p in home.rglob("*.hea")):
        recording = read_wfdb(home, path)
        (quality, row), (expected, expected_row) = made(standardise, recording), made(standardise_any, recording)
        assert quality == expected
        assert np.array_equal(row, expected_row)
        n_usual += standardise_usual(recording, row) is not None
    assert n_usual == usual
