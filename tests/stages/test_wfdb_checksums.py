"""Checksums of WFDB headers: when they speak against the samples, and when they say nothing."""

import shutil

import numpy as np
import pytest
import wfdb

from cache.errors import InputError
from stages.readers import read_wfdb
from stages.readers.wfdb.header import parse_header
from tests.stages.wfdb_samples import edit, one_file_each, write


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


def test_two_leads_of_twelve_may_have_other_checksums_and_no_more(tmp_path):
    write(tmp_path)
    data = np.fromfile(tmp_path / "a.dat", dtype="<i2").reshape(-1, 12)
    for lead in (3, 4, 5):
        data[-1, lead] += 1
        data.tofile(tmp_path / "a.dat")
        if lead < 5:
            assert np.array_equal(read_wfdb(tmp_path, "a").samples, data)
        else:
            with pytest.raises(InputError, match="disagree"):
                read_wfdb(tmp_path, "a")


def test_checksums_count_where_a_lead_states_none(tmp_path):
    write(tmp_path)
    path = tmp_path / "a.hea"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], "a.dat 16 200/mV"]) + "\n")
    data = np.fromfile(tmp_path / "a.dat", dtype="<i2").reshape(-1, 12)
    assert np.array_equal(read_wfdb(tmp_path, "a").samples, data)
    data[1:, :-1] = np.random.default_rng(9).integers(-900, 900, (len(data) - 1, 11))
    data.tofile(tmp_path / "a.dat")
    with pytest.raises(InputError, match="disagree"):
        read_wfdb(tmp_path, "a")


@pytest.mark.parametrize("leads", [["I"], ["I", "II"], ["I", "II", "III", "V1"]])
def test_most_checksums_must_agree_where_leads_are_few(tmp_path, leads):
    write(tmp_path, leads=leads)
    data = np.fromfile(tmp_path / "a.dat", dtype="<i2").reshape(-1, len(leads))
    data[-1, : (len(leads) + 1) // 2] += 1
    data.tofile(tmp_path / "a.dat")
    with pytest.raises(InputError, match="disagree"):
        read_wfdb(tmp_path, "a")


@pytest.mark.parametrize("fmt", ["212", "80", "24", "32", "516"])
def test_checksums_count_in_other_formats(tmp_path, fmt):
    if fmt == "516":
        pytest.importorskip("soundfile")
    rng = np.random.default_rng(2)
    counts, leads = rng.integers(-100, 100, (999, 3)), ["I", "II", "V1"]
    spelt = {"units": ["mV"] * 3, "adc_gain": [100.0] * 3, "baseline": [0] * 3, "write_dir": str(tmp_path)}
    wfdb.wrsamp("a", 500, sig_name=leads, d_signal=counts, fmt=[fmt] * 3, **spelt)
    assert np.allclose(read_wfdb(tmp_path, "a").signals_mv * 100, counts.T)
    kept = (tmp_path / "a.hea").read_text()
    wfdb.wrsamp("a", 500, sig_name=leads, d_signal=counts[:, ::-1] // 2, fmt=[fmt] * 3, **spelt)
    (tmp_path / "a.hea").write_text(kept)
    with pytest.raises(InputError, match=r"header and a\.dat disagree"):
        read_wfdb(tmp_path, "a")


def test_checksums_count_where_each_lead_has_a_file(tmp_path):
    counts = one_file_each(tmp_path)
    assert np.array_equal(np.rint(read_wfdb(tmp_path, "a").signals_mv * 200), counts.T)
    shutil.copy(tmp_path / "a0.dat", tmp_path / "a1.dat")
    assert np.array_equal(np.rint(read_wfdb(tmp_path, "a").signals_mv[1] * 200), counts[:, 0])
    shutil.copy(tmp_path / "a0.dat", tmp_path / "a2.dat")
    with pytest.raises(InputError, match=r"header and a0\.dat, .* disagree"):
        read_wfdb(tmp_path, "a")


@pytest.mark.parametrize("n", [1, 49, 50, 4999])
def test_checksums_of_any_length_agree(tmp_path, n):
    counts = write(tmp_path, n=n)
    assert np.array_equal(read_wfdb(tmp_path, "a").samples, counts)
