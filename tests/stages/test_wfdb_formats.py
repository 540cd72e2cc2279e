"""Several samples a frame, format 61, skews and MATLAB files: what wfdb reads wrongly, or not at all."""

import numpy as np
import pytest
import scipy.io

from cache.errors import InputError
from stages.readers import Counts, read_wfdb
from tests.stages.wfdb_files import ecg_mv, write_record


def write_frames(folder, frame_rate_hz, per_frame, n_frames, fmt="16", skews=None):
    """Write two leads of `per_frame` samples a frame; returns the counts [lead, sample] without skew."""
    n = n_frames * per_frame
    counts = np.rint(ecg_mv(n, frame_rate_hz * per_frame, leads=2) * 1000).astype(int).T
    skews = skews or (0, 0)
    held = np.zeros((2, n_frames + max(skews), per_frame), dtype=int)
    for row, lead, skew in zip(held, counts, skews, strict=True):
        row[skew : skew + n_frames] = lead.reshape(n_frames, per_frame)
    order = ">i2" if fmt == "61" else "<i2"
    held.transpose(1, 0, 2).astype(order).tofile(folder / "a.dat")
    lines = [
        f"a.dat {fmt}x{per_frame}:{skew} 1000(0)/mV 16 0 {lead[0]} {lead.sum() % 65536} 0 {name}"
        for lead, name, skew in zip(counts, ("I", "II"), skews, strict=True)
    ]
    (folder / "a.hea").write_text("\n".join([f"a 2 {frame_rate_hz} {n_frames}", *lines]) + "\n")
    return counts


@pytest.mark.parametrize("fmt", ["16", "61"])
@pytest.mark.parametrize(("frame_rate_hz", "per_frame"), [(100, 5), (62.4725, 4), (1, 250), (500, 1)])
def test_each_sample_of_a_frame_is_read_at_the_true_rate(tmp_path, fmt, frame_rate_hz, per_frame):
    counts = write_frames(tmp_path, frame_rate_hz, per_frame, n_frames=max(3, round(8 * frame_rate_hz)), fmt=fmt)
    read = read_wfdb(tmp_path, "a")
    read = read.to_recording() if isinstance(read, Counts) else read
    assert read.rate_hz == pytest.approx(frame_rate_hz * per_frame)
    assert read.n_samples == counts.shape[1]
    assert np.array_equal(np.rint(read.signals_mv * 1000), counts)


def test_only_the_beginning_of_a_long_record_of_frames_is_read(tmp_path):
    counts = write_frames(tmp_path, 1, 250, n_frames=60, fmt="61")
    read = read_wfdb(tmp_path, "a")
    assert (read.n_samples, read.signals_mv.shape) == (15_000, (2, 12 * 250))
    assert np.array_equal(np.rint(read.signals_mv * 1000), counts[:, :3000])


def test_leads_of_fewer_samples_a_frame_are_resampled_in_place(tmp_path):
    fast, slow = ecg_mv(2000, 500, leads=1)[:, 0], ecg_mv(1000, 250, leads=1)[:, 0]
    frames = np.concatenate([fast.reshape(-1, 2), slow[:, None]], axis=1)
    np.rint(frames * 1000).astype("<i2").tofile(tmp_path / "a.dat")
    lines = ["a.dat 16x2 1000(0)/mV 16 0 0 0 0 I", "a.dat 16 1000(0)/mV 16 0 0 0 0 V1"]
    (tmp_path / "a.hea").write_text("\n".join(["a 2 250 1000", *lines]) + "\n")
    read = read_wfdb(tmp_path, "a")
    assert (read.rate_hz, read.notes) == (500, ("leads of 1 samples a frame are resampled to 2",))
    assert np.abs(read.signals_mv[1] - read.signals_mv[0]).max() < 0.1
    assert abs(np.argmax(read.signals_mv[1][:300]) - np.argmax(read.signals_mv[0][:300])) <= 1


def test_a_foreign_channel_of_more_samples_does_not_set_the_rate(tmp_path):
    counts = np.arange(500 * 5).reshape(500, 5).astype("<i2")
    counts.tofile(tmp_path / "a.dat")
    lines = ["a.dat 16 1000(0)/mV 16 0 0 0 0 I", "a.dat 16x4 1/NU 16 0 0 0 0 PLETH"]
    (tmp_path / "a.hea").write_text("\n".join(["a 2 125 500", *lines]) + "\n")
    read = read_wfdb(tmp_path, "a")
    assert (read.rate_hz, read.leads, read.notes) == (125, ("I",), ("leads left out: PLETH",))
    assert np.array_equal(np.rint(read.signals_mv[0] * 1000), counts[:, 0])


@pytest.mark.parametrize("fmt", ["16", "61"])
@pytest.mark.parametrize("skews", [(0, 7), (14, 7), (3, 3)])
def test_skews_are_taken_off_whatever_they_are(tmp_path, fmt, skews):
    counts = write_frames(tmp_path, 500, 1, n_frames=2000, fmt=fmt, skews=skews)
    assert np.array_equal(np.rint(read_wfdb(tmp_path, "a").signals_mv * 1000), counts)


def test_what_a_skew_takes_beyond_the_file_is_missing(tmp_path):
    counts = write_frames(tmp_path, 500, 1, n_frames=2000, skews=(0, 7))
    content = (tmp_path / "a.dat").read_bytes()
    (tmp_path / "a.dat").write_bytes(content[: 2000 * 4])
    read = read_wfdb(tmp_path, "a").signals_mv
    assert np.array_equal(np.rint(read[1, :-7] * 1000), counts[1, :-7])
    assert np.isnan(read[1, -7:]).all()
    assert not np.isnan(read[0]).any()


def test_segments_of_frames_are_read_at_the_true_rate(tmp_path):
    counts = write_frames(tmp_path, 100, 5, n_frames=400)
    (tmp_path / "m.hea").write_text("m/2 2 100 800\na 400\na 400\n")
    read = read_wfdb(tmp_path, "m")
    assert (read.rate_hz, read.n_samples) == (500, 4000)
    assert np.array_equal(np.rint(read.signals_mv * 1000), np.concatenate([counts, counts], axis=1))


def write_mat(folder, array, header_offset=24, n_samples=1500, **options):
    write_record(folder, "a", leads=("I", "II"))
    text = (folder / "a.hea").read_text().splitlines()
    scipy.io.savemat(folder / "a.mat", {"val": array}, **options)
    lines = [f"a.mat 16+{header_offset} 1000(0)/mV 16 0 0 0 0 {lead}" for lead in ("I", "II")]
    (folder / "a.hea").write_text("\n".join([f"a 2 500 {n_samples}", *lines]) + "\n")
    return text


COUNTS = np.arange(3000, dtype=np.int16).reshape(2, 1500)


def test_a_mat_file_of_version_4_is_read(tmp_path):
    write_mat(tmp_path, COUNTS, format="4")
    assert np.array_equal(read_wfdb(tmp_path, "a").samples, COUNTS.T)


@pytest.mark.parametrize(
    ("array", "options", "says"),
    [
        (COUNTS, {"format": "5"}, "a.mat is of MATLAB v5.0, which WFDB does not read; save an int16 array"),
        (COUNTS.T.copy(), {"format": "4"}, r"an array \[1500, 2\] for 2 leads, the other way round"),
        (COUNTS.astype(float), {"format": "4"}, "no little-endian int16 numbers"),
        (COUNTS[:1], {"format": "4"}, r"an array \[1, 1500\] for 2 leads; save"),
    ],
)
def test_a_mat_file_that_is_something_else_is_refused_by_its_first_bytes(tmp_path, array, options, says):
    write_mat(tmp_path, array, n_samples=700, **options)
    with pytest.raises(InputError, match=says):
        read_wfdb(tmp_path, "a")


def test_a_mat_file_whose_samples_begin_elsewhere_is_refused(tmp_path):
    write_mat(tmp_path, COUNTS, header_offset=20, format="4")
    with pytest.raises(InputError, match="begin at byte 24, its header says 20"):
        read_wfdb(tmp_path, "a")
