"""Records of the usual kind become the rows, and are judged, as the general way has it."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.errors import InputError
from cache.signals import LEADS, MISSING
from stages.readers import Counts, Quality, Recording, read_wfdb, standardise
from stages.readers.rows import QUALITY, RowMaker, RowOptions
from stages.readers.whole_microvolts import finish, place

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


def by_maker(recording: Counts | Recording, seconds: float | None = 10.0) -> tuple[dict | str, np.ndarray]:
    maker = RowMaker(1)
    made = maker.make(0, [lambda: recording], RowOptions(seconds=seconds))
    facts = dict(zip(QUALITY, made.columns[0], strict=True))
    if facts["status"] == "bad":
        return facts["reason"], np.zeros(0)
    assert (maker.rows[0, :, made.valid[0] :] == MISSING).all()
    assert made.rate_hz[0] == recording.rate_hz
    return {**facts, "notes": None}, maker.rows[0, :, : made.valid[0]]  # notes are the maker's alone


def by_general_way(recording: Counts | Recording, seconds: float | None = 10.0) -> tuple[dict | str, np.ndarray]:
    try:
        row, quality = standardise(recording, seconds)
    except InputError as error:
        return str(error), np.zeros(0)
    facts = dict.fromkeys(QUALITY) | {"status": "ok", "derived_leads": ()}
    return facts | {name: value for name, value in quality._asdict().items() if name in QUALITY}, row


@settings(max_examples=150, deadline=None)
@given(recordings(), st.sampled_from([10.0, 4.0, None]))
def test_the_usual_way_gives_what_the_general_one_does(recording, seconds):
    (facts, row), (expected, expected_row) = by_maker(recording, seconds), by_general_way(recording, seconds)
    assert facts == expected
    assert np.array_equal(row, expected_row)


@pytest.mark.parametrize("rate_hz", [100.0, 250.0, 257.0, 360.0, 500.0, 1000.0])
@pytest.mark.parametrize("seconds", [2.5, 10.0, 30.0])
def test_a_row_has_the_rate_and_the_length_of_its_file(rate_hz, seconds):
    n = round(rate_hz * seconds)
    samples = np.random.default_rng(n).integers(-2000, 2000, (n, 12)).astype(np.int16)
    counts = Counts(samples, LEADS, (1000.0,) * 12, (0,) * 12, rate_hz, n)
    for kept in (10.0, None):
        maker = RowMaker(2)
        made = maker.make(1, [lambda: counts], RowOptions(seconds=kept))
        length = n if kept is None else min(n, round(10 * rate_hz))
        assert (made.valid.tolist(), made.rate_hz.tolist()) == ([length], [rate_hz])
        assert np.array_equal(maker.rows[1, :, :length], samples[:length].T)


def test_what_is_not_usual_is_left_to_the_general_way():
    out = np.empty((12, 5000), dtype=np.int16)
    usual = Counts(np.ones((5000, 12), dtype=np.int16), LEADS, (200.0,) * 12, (0,) * 12, 500.0, 5000)
    assert finish([place(usual, out)], out[None]) == [Quality(500.0, 5000, 5000, 0.0, LEADS, (), 0.0)]
    assert (out == 5).all()
    for change in ({"gains_per_mv": (0.0,) * 12}, {"rate_hz": 250.0}, {"baselines": (1,) * 12}, {"leads": LEADS[:3]}):
        assert place(usual._replace(**change), out) is None
    assert place(usual, out, seconds=8.0) is None


@pytest.mark.parametrize(("folder", "usual"), [("ptbxl", 400), ("challenge2021", 50), ("ludb", 0)])
def test_real_records_give_the_same_rows_either_way(test_data, folder, usual):
    home: Path = test_data / folder
    n_usual = 0
    for path in sorted(str(p.relative_to(home)) for p in home.rglob("*.hea")):
        recording = read_wfdb(home, path)
        (facts, row), (expected, expected_row) = by_maker(recording), by_general_way(recording)
        assert {**facts, "limb_swap": None} == expected
        assert np.array_equal(row, expected_row)
        n_usual += isinstance(recording, Counts) and place(recording, np.empty((12, 5000), np.int16)) is not None
    assert n_usual == usual
