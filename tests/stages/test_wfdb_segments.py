"""Records of several segments are read as the one signal they are, or refused with the reason."""

from pathlib import Path

import numpy as np
import pytest
import wfdb

from cache.errors import InputError
from stages.readers import read_wfdb

LEADS = ["I", "II", "V1"]


def write(folder: Path, name: str, n: int = 600, *, leads=LEADS, rate=500, gain=200.0, units="mV", fmt="16", seed=0):
    counts = np.random.default_rng([seed, n, len(leads)]).integers(-1500, 1500, (n, len(leads)))
    k = len(leads)
    wfdb.wrsamp(
        name,
        rate,
        [units] * k,
        list(leads),
        d_signal=counts,
        fmt=[fmt] * k,
        adc_gain=[gain] * k,
        baseline=[5] * k,
        write_dir=str(folder),
    )
    return (counts - 5) / gain


def join(folder: Path, *lines: str, n: int = 1200, leads: int = 3, rest: str = "") -> None:
    (folder / "a.hea").write_text("\n".join([f"a/{len(lines)} {leads} 500 {n}{rest}", *lines]) + "\n")


@pytest.mark.parametrize("fmt", ["16", "212"])
def test_segments_follow_each_other_whatever_the_date(tmp_path, fmt):
    first, second = write(tmp_path, "s1"), write(tmp_path, "s2", gain=150.0, fmt=fmt, seed=1)
    join(tmp_path, "s1 600", "s2 600")
    assert np.allclose(wfdb.rdrecord(str(tmp_path / "a")).p_signal, np.vstack([first, second]))
    join(tmp_path, "s1 600", "s2 600", rest=" 10:30:00 15-May-2020")
    recording = read_wfdb(tmp_path, "a")
    assert np.allclose(recording.signals_mv, np.vstack([first, second]).T)
    assert (recording.leads, recording.rate_hz, recording.n_samples) == (tuple(LEADS), 500.0, 1200)


def test_gaps_and_leads_that_a_segment_lacks_are_missing(tmp_path):
    (tmp_path / "layout.hea").write_text("layout 3 500 0\n" + "".join(f"~ 0 200 0 0 0 0 0 {lead}\n" for lead in LEADS))
    first, second = write(tmp_path, "s1"), write(tmp_path, "s2", leads=["V1", "I"], seed=1)
    join(tmp_path, "layout 0", "s1 600", "~ 100", "s2 600", n=1300)
    signals_mv = read_wfdb(tmp_path, "a").signals_mv
    assert np.allclose(signals_mv[:, :600], first.T)
    assert np.isnan(signals_mv[:, 600:700]).all()
    assert np.isnan(signals_mv[1, 700:]).all()
    assert np.allclose(signals_mv[[2, 0], 700:], second.T)


def test_only_the_first_seconds_of_many_segments_are_read(tmp_path):
    first, second = write(tmp_path, "s1", 5000), write(tmp_path, "s2", 5000, seed=1)
    join(tmp_path, "s1 5000", "s2 5000", n=10_000)
    recording = read_wfdb(tmp_path, "a")
    assert np.allclose(recording.signals_mv, np.vstack([first, second]).T[:, :5501])
    assert recording.n_samples == 10_000


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ({"gain": 0.0}, "segment s2: lead I has gain 0"),
        ({"units": "uV"}, "segment s2: lead I is in uV and in another segment in mv"),
        ({"units": "mmHg"}, "segment s2: lead I is in 'mmHg'"),
        ({"leads": ["II", "I", "V1"]}, "segment s2: its leads are II, I, V1"),
        ({"leads": ["I", "II"]}, "segment s2: its leads are I, II,"),
        ({"rate": 250}, "segment s2: its rate is 250 Hz and that of the record 500 Hz"),
        ({"n": 700}, "segment s2: it has 700 samples and is said to have 600"),
    ],
)
def test_segments_that_do_not_fit_are_refused(tmp_path, second, says):
    write(tmp_path, "s1")
    gain = second.pop("gain", 200.0)
    write(tmp_path, "s2", seed=1, gain=gain or 200.0, **second)
    if gain == 0:
        text = (tmp_path / "s2.hea").read_text()
        (tmp_path / "s2.hea").write_text(text.replace("200.0(5)", "0(5)"))
    join(tmp_path, "s1 600", "s2 600")
    with pytest.raises(InputError, match=says):
        read_wfdb(tmp_path, "a")


@pytest.mark.parametrize(
    ("lines", "n", "says"),
    [
        (["s1 600", "s1"], 1200, "segment line"),
        (["s1 600", "~ 600"], 1300, "have 1200 samples and its header says 1300"),
        (["~ 600", "~ 600"], 1200, "gaps only"),
        (["s1 600", "a 600"], 1200, "segment a: it has segments itself"),
        (["s1 600", "../s1 600"], 1200, "another folder"),
        (["s1 600", "s3 600"], 1200, r"s3\.hea does not exist"),
        (["s1 600"] + ["~ 1"] * 2000, 2600, "more than 1024 segments"),
    ],
)
def test_lists_of_segments_that_make_no_sense_are_refused(tmp_path, lines, n, says):
    write(tmp_path, "s1")
    join(tmp_path, *lines, n=n)
    with pytest.raises(InputError, match=says):
        read_wfdb(tmp_path, "a")


def test_a_segment_of_other_samples_is_refused(tmp_path):
    write(tmp_path, "s1")
    write(tmp_path, "s2", seed=1)
    (tmp_path / "s2.dat").write_bytes((tmp_path / "s1.dat").read_bytes())
    join(tmp_path, "s1 600", "s2 600")
    with pytest.raises(InputError, match=r"segment s2: header and s2\.dat disagree"):
        read_wfdb(tmp_path, "a")
