import contextlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import wfdb
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.errors import InputError
from cache.signals import LEADS, MISSING
from stages.readers import Counts, Recording, inside, read_wfdb, standardise
from stages.readers.wfdb_header import parse_header

NAMES = list(LEADS)


def write(
    folder: Path, name: str = "a", n: int = 5000, leads=NAMES, rate=500, gain=200.0, baseline=0, seed=0, fmt="16"
):
    rng = np.random.default_rng(seed)
    counts = rng.integers(-1500, 1500, (n, len(leads)))
    k = len(leads)
    wfdb.wrsamp(
        name,
        fs=rate,
        units=["mV"] * k,
        sig_name=list(leads),
        d_signal=counts,
        fmt=[fmt] * k,
        adc_gain=[gain] * k if np.isscalar(gain) else list(gain),
        baseline=[baseline] * k if np.isscalar(baseline) else list(baseline),
        write_dir=str(folder),
    )
    return counts


def edit(folder: Path, old: str, new: str, name: str = "a", count: int = 1) -> None:
    path = folder / f"{name}.hea"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def row_of(recording):
    out = np.empty((12, 5000), dtype=np.int16)
    return out, standardise(recording, out)


def as_millivolts(recording) -> Recording:
    return recording.to_recording() if isinstance(recording, Counts) else recording


def test_agrees_with_wfdb_on_every_real_record(test_data):
    headers = sorted(test_data.rglob("*.hea"))
    assert headers
    for header in headers:
        expected = wfdb.rdrecord(str(header)[:-4])
        counts = read_wfdb(test_data, str(header.relative_to(test_data)))
        assert isinstance(counts, Counts), f"{header} was not read directly"
        recording = counts.to_recording()
        assert np.array_equal(recording.signals_mv, expected.p_signal.T, equal_nan=True)
        assert (list(recording.leads), recording.rate_hz) == (expected.sig_name, expected.fs)
        if header.parent.name != "ludb":
            by_counts, by_millivolts = row_of(counts), row_of(recording)
            assert np.array_equal(by_counts[0], by_millivolts[0])
            assert by_counts[1] == by_millivolts[1]


@pytest.mark.parametrize("fmt", ["16", "212", "80", "32"])
def test_agrees_with_wfdb_in_other_formats(tmp_path, fmt):
    rng = np.random.default_rng(1)
    counts = rng.integers(-100, 100, (1000, 2))
    wfdb.wrsamp(
        "a",
        500,
        ["mV", "uV"],
        ["I", "V2"],
        d_signal=counts,
        fmt=[fmt] * 2,
        adc_gain=[37.0, 3.0],
        baseline=[3, -7],
        write_dir=str(tmp_path),
    )
    expected = wfdb.rdrecord(str(tmp_path / "a")).p_signal.T * np.array([[1.0], [1e-3]])
    assert np.allclose(as_millivolts(read_wfdb(tmp_path, "a")).signals_mv, expected, rtol=1e-15, atol=0)


def test_per_lead_gain_and_negative_baseline(tmp_path):
    gains, baselines = np.linspace(150.5, 2000, 12), np.arange(-600, 600, 100)
    counts = write(tmp_path, gain=gains, baseline=baselines)
    out, quality = row_of(read_wfdb(tmp_path, "a"))
    expected = np.rint((counts.T - baselines[:, None]) / gains[:, None] * 1000)
    assert np.array_equal(out, expected)
    assert quality.valid == 5000
    assert quality.missing_leads == ()


@pytest.mark.parametrize("units", ["uV", "µV", "V", "mv", "MV"])
def test_units_count(tmp_path, units):
    counts = write(tmp_path, gain=200.0)
    text = (tmp_path / "a.hea").read_text().replace("/mV", f"/{units}")
    (tmp_path / "a.hea").write_bytes(text.encode("latin-1"))
    scale = {"uV": 1e-3, "µV": 1e-3, "V": 1e3}.get(units, 1.0)
    assert np.allclose(as_millivolts(read_wfdb(tmp_path, "a")).signals_mv, counts.T / 200.0 * scale, rtol=1e-12)


def test_a_malformed_date_does_not_matter(tmp_path):
    counts = write(tmp_path)
    edit(tmp_path, "a 12 500 5000", "a 12 500 5000 10:30:00 15-May-2020")
    with pytest.raises(ValueError, match="does not match format"):
        wfdb.rdrecord(str(tmp_path / "a"))
    assert np.array_equal(read_wfdb(tmp_path, "a").samples, counts)


def test_a_malformed_date_does_not_matter_where_wfdb_must_read(tmp_path):
    counts = write(tmp_path, fmt="212", leads=["I", "II"])
    edit(tmp_path, "a 2 500 5000", "a 2 500 5000 10:30:00 15-May-2020")
    assert np.array_equal(np.rint(read_wfdb(tmp_path, "a").signals_mv * 200), counts.T)


def test_leads_are_placed_by_name_in_any_spelling(tmp_path):
    names = ["v6", "AVR", "avf", "i", "Lead II", "MLII", "aVl"]
    counts = write(tmp_path, leads=names, gain=1000.0)
    out, quality = row_of(read_wfdb(tmp_path, "a"))
    for column, place in {0: "V6", 1: "aVR", 2: "aVF", 3: "I", 4: "II", 6: "aVL"}.items():
        assert np.array_equal(out[LEADS.index(place)], counts[:, column])
    assert quality.missing_leads == ("III", "V1", "V2", "V3", "V4", "V5")
    assert (out[LEADS.index("V1")] == MISSING).all()


def test_missing_samples_stay_missing_and_flat_leads_are_named(tmp_path):
    write(tmp_path)
    data = np.fromfile(tmp_path / "a.dat", dtype="<i2").reshape(-1, 12)
    data[100:200, 0], data[:, 1], data[:, 2], data[0, 3] = MISSING, 7, MISSING, 32767
    data.tofile(tmp_path / "a.dat")
    counts = read_wfdb(tmp_path, "a")
    for recording in (counts, counts.to_recording()):
        out, quality = row_of(recording)
        assert (out[0, 100:200] == MISSING).all()
        assert quality.flat_leads == ("II",)
        assert quality.missing_leads == ("III",)
        assert quality.nan_fraction == pytest.approx(100 / (11 * 5000))
        assert quality.clipped_fraction == pytest.approx(1 / (11 * 5000))


def test_short_records_are_padded_with_missing_samples(tmp_path):
    write(tmp_path, n=1200)
    out, quality = row_of(read_wfdb(tmp_path, "a"))
    assert quality.valid == quality.n_samples == 1200
    assert quality.nan_fraction == 0
    assert (out[:, 1200:] == MISSING).all()
    assert (out[:, :1200] != MISSING).all()


def test_the_first_ten_seconds_of_a_long_record_are_kept(tmp_path):
    counts = write(tmp_path, n=58 * 500, gain=1000.0)
    out, quality = row_of(read_wfdb(tmp_path, "a"))
    assert np.array_equal(out, counts[:5000].T)
    assert (quality.n_samples, quality.valid) == (29000, 5000)


@pytest.mark.parametrize("rate", [1000, 400, 257, 250, 100, 128])
def test_resampling_keeps_the_wave_and_removes_what_would_alias(tmp_path, rate):
    time = np.arange(12 * rate) / rate
    slow = np.sin(2 * np.pi * 7 * time) + 0.3
    fast = np.sin(2 * np.pi * 0.45 * rate * time) if rate > 1000 / 0.9 - 200 else 0 * time
    recording = Recording((slow + fast)[None], ("II",), rate, len(time))
    out, quality = row_of(recording)
    expected = np.sin(2 * np.pi * 7 * np.arange(5000) / 500) + 0.3
    assert quality.valid == 5000
    assert np.abs(out[1] / 1000.0 - expected)[200:].max() < 0.02


def test_gaps_survive_resampling(tmp_path):
    signal = np.ones((1, 10000))
    signal[0, 4000:4100] = np.nan
    out, quality = row_of(Recording(signal, ("I",), 1000.0, 10000))
    missing = np.flatnonzero(out[0] == MISSING)
    assert (missing[0], missing[-1]) == (2000, 2049)
    assert quality.flat_leads == ("I",)


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (
            lambda d: (d / "a.dat").write_bytes((d / "a.dat").read_bytes()[:70000]),
            "cut short: it holds 70000 of 120000",
        ),
        (lambda d: (d / "a.dat").unlink(), "a.dat does not exist"),
        (lambda d: (d / "a.hea").unlink(), "a.hea does not exist"),
        (lambda d: (d / "a.hea").write_text(""), "record line cannot be read"),
        (lambda d: (d / "a.hea").write_bytes(os.urandom(500)), "record line cannot be read"),
        (lambda d: edit(d, "200.0(0)/mV", "0(0)/mV"), "lead I has gain 0"),
        (lambda d: edit(d, "/mV", "/mmHg"), "'mmHg', which is no voltage"),
        (lambda d: edit(d, " V6", " V5"), "two leads are named V5"),
        (lambda d: edit(d, "a 12 500", "a 12 0"), "signals at 0 Hz"),
        (lambda d: edit(d, "a 12 500", "a 12 3"), "sampling rate is 3 Hz"),
        (lambda d: edit(d, "a 12 500", "a 13 500"), "promises 13 signals and describes 12"),
        (lambda d: edit(d, "a 12 500 5000", "a 12 500 4000"), "disagree"),
        (lambda d: edit(d, "a.dat", "../a.dat", count=12), "another folder"),
        (lambda d: edit(d, "a.dat", "/etc/passwd", count=12), "another folder"),
    ],
)
def test_what_cannot_be_trusted_is_refused_with_the_reason(tmp_path, break_it, says):
    write(tmp_path)
    break_it(tmp_path)
    with pytest.raises(InputError, match=says):
        row_of(read_wfdb(tmp_path, "a"))


def test_samples_of_another_record_are_refused(tmp_path):
    write(tmp_path, "a", seed=1)
    write(tmp_path, "b", seed=2)
    shutil.copy(tmp_path / "b.dat", tmp_path / "a.dat")
    with pytest.raises(InputError, match="disagree"):
        read_wfdb(tmp_path, "a")


def test_samples_that_became_zero_behind_a_right_beginning_are_refused(tmp_path):
    write(tmp_path)
    data = (tmp_path / "a.dat").read_bytes()
    (tmp_path / "a.dat").write_bytes(data[:60_000] + bytes(60_000))
    with pytest.raises(InputError, match="disagree"):
        read_wfdb(tmp_path, "a")


def test_one_wrong_checksum_and_none_at_all_are_no_reason_to_refuse(tmp_path):
    counts = write(tmp_path)
    signals = parse_header((tmp_path / "a.hea").read_bytes()).signals
    edit(tmp_path, f" {signals[3].checksum} 0 aVR", " 1 0 aVR")
    assert np.array_equal(read_wfdb(tmp_path, "a").samples, counts)
    for signal in signals:
        checksum = 1 if signal.lead == "aVR" else signal.checksum
        edit(tmp_path, f" {checksum} 0 {signal.lead}\n", f" 0 0 {signal.lead}\n")
    assert np.array_equal(read_wfdb(tmp_path, "a").samples, counts)


@pytest.mark.parametrize("n", [1, 49, 50, 4999])
def test_checksums_of_any_length_agree(tmp_path, n):
    counts = write(tmp_path, n=n)
    assert np.array_equal(read_wfdb(tmp_path, "a").samples, counts)


def test_what_is_no_file_is_refused(tmp_path):
    write(tmp_path)
    (tmp_path / "a.dat").unlink()
    os.mkfifo(tmp_path / "a.dat")
    with pytest.raises(InputError, match=r"a\.dat is not a file"):
        read_wfdb(tmp_path, "a")
    (tmp_path / "a.hea").unlink()
    (tmp_path / "a.hea").mkdir()
    with pytest.raises(InputError, match=r"a\.hea is not a file"):
        read_wfdb(tmp_path, "a")


def test_no_known_lead_is_refused(tmp_path):
    write(tmp_path, leads=["ABP", "PLETH"])
    with pytest.raises(InputError, match="none of its leads"):
        row_of(read_wfdb(tmp_path, "a"))


@pytest.mark.parametrize("path", ["../a", "x/../../a", "/etc/passwd", "", "a\0b", "x\\..\\..\\a"])
def test_paths_that_leave_the_folder_are_refused(tmp_path, path):
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match="path"):
        inside(tmp_path / "in", path)


def test_links_that_leave_the_folder_are_refused_and_others_followed(tmp_path):
    home = tmp_path / "in"
    (home / "real").mkdir(parents=True)
    write(home / "real")
    write(tmp_path, "out")
    (home / "within").symlink_to(home / "real")
    (home / "without").symlink_to(tmp_path)
    (home / "out.hea").symlink_to(tmp_path / "out.hea")
    assert isinstance(read_wfdb(home, "within/a"), Counts)
    for path in ("without/out", "out"):
        with pytest.raises(InputError, match="through a link"):
            read_wfdb(home, path)


LINES = st.sampled_from(
    [
        "a 12 500 5000",
        "a.dat 16 200(0)/mV 16 0 0 0 0 I",
        "a.dat 16",
        "#Age: NaN",
        "a/2 1 500 10",
        "a 1 1e9 99999999999",
        "a 1",
    ]
)
JUNK = st.text(alphabet=st.sampled_from(list("a1 0.-+/()x:#e~\n\t\\µ\0")), max_size=60)


@settings(max_examples=300, deadline=None)
@given(st.lists(LINES | JUNK, max_size=15).map("\n".join))
def test_any_header_is_read_or_refused(tmp_path_factory, text):
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    (folder / "a.hea").write_bytes(text.encode())
    (folder / "a.dat").write_bytes(bytes(range(250)))
    with contextlib.suppress(InputError):
        row_of(read_wfdb(folder, "a"))


def test_the_short_way_through_a_signal_line_gives_what_the_long_one_gives():
    lines = [
        "a.dat 16x1+24 1000.0(0)/mv 16 0 -5 25645 0 aVR",
        "a.dat 16 807(1)/mV 0 0 -47 7211 0 lead i",
        "a.dat 212 200 11 1024 995 -22131 0 MLII",
    ]
    signals = parse_header("\n".join(["a 3 500 10", *lines]).encode()).signals
    assert [(s.gain, s.baseline, s.offset, s.initial, s.checksum, s.lead) for s in signals] == [
        (1000.0, 0, 24, -5, 25645, "aVR"),
        (807.0, 1, 0, -47, 7211, "lead i"),
        (200.0, 1024, 0, 995, -22131, "MLII"),
    ]
