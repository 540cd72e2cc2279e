"""Records standardised in blocks equal those standardised one by one, and those read by wfdb."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.errors import InputError
from cache.signals import LEADS, MISSING
from stages.readers import Counts, Quality, Recording, read_wfdb, standardise, standardise_block

ORDERS = [
    LEADS,
    (*LEADS[:4], "aVF", "aVL", *LEADS[6:]),
    tuple(reversed(LEADS)),
    ("MLII", *LEADS),
    LEADS[:8],
    ("I", "i"),
]


@st.composite
def recordings(draw) -> Counts | Recording | None:
    kind = draw(st.sampled_from(["counts"] * 6 + ["millivolts", "none"]))
    if kind == "none":
        return None
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
    return counts if kind == "counts" else counts.to_recording()


def alone(recording: Counts | Recording, out: np.ndarray) -> Quality | str:
    try:
        return standardise(recording, out)
    except InputError as error:
        return str(error)


@settings(max_examples=60, deadline=None)
@given(st.lists(recordings(), min_size=1, max_size=6))
def test_a_block_gives_what_its_records_give_alone(block):
    out, expected = np.full((2, len(block), 12, 5000), 99, dtype=np.int16)
    for k, judged in enumerate(standardise_block(block, out)):
        if block[k] is None:
            assert isinstance(judged, InputError)
            continue
        one = alone(block[k], expected[k])
        assert (str(judged) if isinstance(judged, Exception) else judged) == one
        if isinstance(one, Quality):
            assert np.array_equal(out[k], expected[k])


def test_a_record_that_cannot_be_read_does_not_stop_the_others():
    broken = Counts(np.zeros((5000, 12), dtype=np.int16), LEADS, (0.0,) * 12, (0,) * 12, 500.0, 5000)
    odd = Counts(np.zeros((5000, 3), dtype=np.int16), LEADS, (200.0,) * 12, (0,) * 12, 500.0, 5000)
    good = Counts(np.ones((5000, 12), dtype=np.int16), LEADS, (200.0,) * 12, (0,) * 12, 500.0, 5000)
    out = np.empty((3, 12, 5000), dtype=np.int16)
    judged = standardise_block([broken, odd, good], out)
    assert "gain 0" in str(judged[0])
    assert isinstance(judged[1], Exception)
    assert isinstance(judged[2], Quality)
    assert (out[2] == 5).all()


@pytest.mark.parametrize("folder", ["ptbxl", "challenge2021", "ludb"])
def test_real_records_give_the_same_rows_in_blocks(test_data, folder):
    home: Path = test_data / folder
    paths = sorted(str(p.relative_to(home)) for p in home.rglob("*.hea"))[:120]
    block = [read_wfdb(home, path) for path in paths]
    out = np.empty((len(block), 12, 5000), dtype=np.int16)
    row = np.empty((12, 5000), dtype=np.int16)
    for k, judged in enumerate(standardise_block(block, out)):
        assert judged == standardise(block[k], row)
        assert np.array_equal(out[k], row)
