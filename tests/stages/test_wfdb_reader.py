import os
import re
import tracemalloc

import numpy as np
import pytest
import wfdb

from cache.errors import InputError
from cache.signals import LEADS, MISSING
from stages.readers import Counts, Recording, inside, read_wfdb, standardise
from stages.readers.at_500_hz import row_at_500_hz
from stages.readers.lead_names import lead_columns
from tests.stages.wfdb_samples import NAMES, as_millivolts, edit, one_file_each, restate, row_of, write


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


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("DI", "I"),
        ("dIII", "III"),
        ("Lead DII", "II"),
        ("V 1", "V1"),
        ("v_6", "V6"),
        ("LeadAVR", "aVR"),
        ("lead-V2", "V2"),
        *(
            (name, None)
            for name in ("-aVR", "- aVR", "lead -aVR", "\u2212aVR", "-I", "I-", "DV1", "V7", "I V", "IIII", "D")
        ),
    ],
)
def test_a_spelling_is_one_lead_or_none_and_a_lead_turned_over_is_none(name, place):
    expected = [(LEADS.index(place), 1)] if place else []
    assert lead_columns(("V3", name)) == sorted([(LEADS.index("V3"), 0), *expected])


def test_missing_samples_stay_missing_and_flat_leads_are_named(tmp_path):
    write(tmp_path)
    data = np.fromfile(tmp_path / "a.dat", dtype="<i2").reshape(-1, 12)
    data[100:200, 0], data[:, 1], data[:, 2], data[0, 3] = MISSING, 7, MISSING, 32767
    data.tofile(tmp_path / "a.dat")
    restate(tmp_path)
    counts = read_wfdb(tmp_path, "a")
    for recording in (counts, counts.to_recording()):
        out, quality = row_of(recording)
        assert (out[0, 100:200] == MISSING).all()
        assert quality.flat_leads == ("II",)
        assert quality.missing_leads == ("III",)
        assert quality.nan_fraction == pytest.approx(100 / (11 * 5000))
        assert quality.clipped_fraction == pytest.approx(1 / (11 * 5000))


def test_short_records_stay_short(tmp_path):
    write(tmp_path, n=1200)
    out, quality = row_of(read_wfdb(tmp_path, "a"))
    assert quality.valid == quality.n_samples == 1200
    assert quality.nan_fraction == 0
    assert out.shape == (12, 1200)
    assert (out != MISSING).all()


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
    row, quality = row_of(recording)
    assert (quality.valid, row.shape) == (10 * rate, (12, 10 * rate))
    out = row_at_500_hz(standardise(recording, None)[0], rate)
    expected = np.sin(2 * np.pi * 7 * np.arange(5000) / 500) + 0.3
    assert np.abs(out[1] / 1000.0 - expected)[200:].max() < 0.02


def test_gaps_survive_resampling(tmp_path):
    signal = np.ones((1, 10000))
    signal[0, 4000:4100] = np.nan
    row, quality = row_of(Recording(signal, ("I",), 1000.0, 10000))
    missing = np.flatnonzero(row_at_500_hz(row, 1000.0)[0] == MISSING)
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
        (
            lambda d: (d / "a.hea").write_text("../big/a.hea"),
            "'../big/a.hea'; it is a link kept as text",
        ),
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


def test_a_file_cut_behind_the_seconds_that_are_kept_is_refused_where_wfdb_must_read(tmp_path):
    write(tmp_path, fmt="212", n=10_000, leads=["I", "II"])
    assert read_wfdb(tmp_path, "a").signals_mv.shape == (2, 5501)
    edit(tmp_path, "a 2 500 10000", "a 2 500")
    recording = read_wfdb(tmp_path, "a")
    assert (recording.signals_mv.shape, recording.n_samples) == ((2, 5501), 10_000)
    edit(tmp_path, "a 2 500", "a 2 500 10000")
    os.truncate(tmp_path / "a.dat", 29_000)
    with pytest.raises(InputError, match=r"a\.dat is cut short: it holds 29000 of 30000 bytes"):
        read_wfdb(tmp_path, "a")


def test_several_samples_a_frame_are_samples_of_their_own(tmp_path):
    counts = np.random.default_rng(5).integers(-1500, 1500, (1000, 3)).astype("<i2")
    counts[10, 0] = MISSING
    counts[11, 2] = MISSING
    counts.tofile(tmp_path / "a.dat")
    sums = counts.sum(axis=0, dtype=np.int64)
    (tmp_path / "a.hea").write_text(
        "a 2 500 1000\n"
        f"a.dat 16x2 200(0)/mV 16 0 {counts[0, 0]} {(sums[0] + sums[1]) % 65536} 0 I\n"
        f"a.dat 16 200(0)/uV 16 0 {counts[0, 2]} {sums[2] % 65536} 0 V1\n"
    )
    recording = read_wfdb(tmp_path, "a")
    assert (recording.rate_hz, recording.n_samples) == (1000, 2000)
    expected = counts[:, :2].reshape(-1) / 200
    expected[20] = np.nan
    assert np.allclose(recording.signals_mv[0], expected, equal_nan=True, rtol=1e-15, atol=0)
    v1 = recording.signals_mv[1]
    assert np.isnan(v1[22])
    assert recording.notes == ("leads of 1 samples a frame are resampled to 2",)


def test_a_pipe_is_refused_where_wfdb_must_read(tmp_path):
    one_file_each(tmp_path)
    (tmp_path / "a2.dat").unlink()
    os.mkfifo(tmp_path / "a2.dat")
    with pytest.raises(InputError, match=r"a2\.dat is not a file"):
        read_wfdb(tmp_path, "a")


@pytest.mark.parametrize("fmt", ["16", "24", "212"])
@pytest.mark.parametrize(
    ("first", "says"),
    [("a 512 999999", "sampling rate is 999999 Hz"), ("a 512 20000", "more than 20000000")],
)
def test_nothing_is_allotted_for_a_header_that_promises_too_much(tmp_path, fmt, first, says):
    lines = [f"a.dat {fmt} 200/mV 16 0 0 0 0 {k or 'I'}" for k in range(512)]
    (tmp_path / "a.hea").write_text("\n".join([f"{first} 500000", *lines]) + "\n")
    (tmp_path / "a.dat").touch()
    os.truncate(tmp_path / "a.dat", 512 * 500_000 * 4)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=says):
            read_wfdb(tmp_path, "a")
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("form", ["16:999999999", "16x999999", "212:999999999"])
def test_nothing_is_allotted_for_a_skew_or_frame_that_no_record_has(tmp_path, form):
    write(tmp_path, leads=["I", "II"])
    edit(tmp_path, "a.dat 16 ", f"a.dat {form} ", count=2)
    with pytest.raises(InputError, match="more than 20000000"):
        read_wfdb(tmp_path, "a")


@pytest.mark.parametrize("fmt", ["16", "212"])
def test_a_header_is_no_file_of_samples(tmp_path, fmt):
    text = f"record 1 500\nrecord.hea {fmt} 200/mV 16 0 0 0 0 I\n"
    (tmp_path / "record.hea").write_text(text)
    with pytest.raises(InputError, match=r"names a header, 'record\.hea', as the file of its samples"):
        read_wfdb(tmp_path, "record")


@pytest.mark.parametrize(
    ("fmt", "bits", "zero", "values", "n_clipped"),
    [
        ("16", 12, 0, [2047, -2048, -2047, 2046, -2046], 3),
        ("16", 11, 1024, [2047, 0, 1, 2, 2046], 3),
        ("16", 12, 0, [2047, -2048, 2048], 0),
        ("16", 16, 0, [2047, -2048], 0),
        ("16", 0, 0, [2047, -2048], 0),
        ("212", 0, 0, [2047, -2047, 2046], 2),
        ("212", 11, 1024, [2046, 0, 2047, 1], 3),
    ],
)
def test_clipped_means_at_the_limit_of_the_converter_that_the_header_tells(
    tmp_path, fmt, bits, zero, values, n_clipped
):
    counts = np.random.default_rng(4).integers(900, 1000, (5000, 12))
    counts[7 : 7 + len(values), 2] = values
    k = 12
    wfdb.wrsamp(
        "a",
        500,
        ["mV"] * k,
        NAMES,
        d_signal=counts,
        fmt=[fmt] * k,
        adc_gain=[200.0] * k,
        baseline=[0] * k,
        write_dir=str(tmp_path),
    )
    path = tmp_path / "a.hea"
    path.write_text(re.sub(r"/mV \d+ \d+ ", f"/mV {bits} {zero} ", path.read_text()))
    out, quality = row_of(read_wfdb(tmp_path, "a"))
    assert np.array_equal(out[2], counts[:, 2] * 5)
    assert quality.clipped_fraction == pytest.approx(n_clipped / 60_000)


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
