"""What ingest and predict say of files that are odd: leads left out, scale, links, files of macOS."""

import os
import shutil

import numpy as np
import pandas as pd
import pytest

from cache import open_records, open_signals
from cache.errors import InputError, UsageError
from cache.signals import LEADS
from stages.cohorts import open_cohort
from stages.readers.amplitude import amplitude_note, fitting_factor
from stages.readers.files import read_ecg
from stages.readers.rows import RowOptions
from tests.ingesting import ingest
from tests.stages.wfdb_files import ecg_mv, write_record


def run(source, folder, out, options=None, **settings):
    out.mkdir(exist_ok=True)
    paths = {"records_path": out / "records.parquet", "signals_path": out / "signals.zarr"}
    summary = ingest(source, folder, options, **paths, **settings)
    return summary, open_records(out / "records.parquet"), open_signals(out / "signals.zarr")


def test_leads_left_out_are_named_for_each_record_and_counted(tmp_path):
    write_record(tmp_path / "in", "a", leads=("I", "II", "PLETH"), units=("mV", "mV", "NU"))
    write_record(tmp_path / "in", "b", leads=("II", "CH2", "PLETH"), units=("mV", "mV", "NU"))
    write_record(tmp_path / "in", "c")
    summary, records, _ = run("wfdb", tmp_path / "in", tmp_path / "out")
    assert records["notes"].map(list).tolist() == [["leads left out: PLETH"], ["leads left out: CH2, PLETH"], []]
    assert any(note.startswith("leads left out: 2 x PLETH, 1 x CH2; cohort.options:") for note in summary.notes)
    assert not any(note.startswith("missing_leads") for note in summary.notes)  # one record has them all


def test_leads_that_no_record_has_are_named(tmp_path):
    write_record(tmp_path / "in", "a", leads=("I", "II", "CH3"))
    summary, *_ = run("wfdb", tmp_path / "in", tmp_path / "out")
    assert "missing_leads: no record has III, aVR, aVL, aVF, V1, V2, V3, V4, V5, V6" in summary.notes


@pytest.mark.parametrize("workers", [1, 2])
def test_a_study_names_its_leads_for_ingest_and_predict(tmp_path, workers):
    counts = write_record(tmp_path / "in", "a", leads=("CH1", "CH2", "II"))
    options = {"lead_names": {"ch1": "V1", "II": "lead i"}}
    _, records, signals = run("wfdb", tmp_path / "in", tmp_path / "out", options, workers=workers)
    assert np.array_equal(signals.signals[0][[6, 0], :1500], counts.T[[0, 2]])
    assert set(LEADS) - set(records["missing_leads"][0]) == {"I", "V1"}
    kept = RowOptions.from_json(records.attrs["row_options"])
    assert kept.lead_names == (("ch1", "V1"), ("II", "I"))
    predicted = read_ecg(tmp_path / "in" / "a", kept)
    assert np.allclose(predicted.signals_mv[[6, 0]] * 1000, counts.T[[0, 2]])
    assert "leads left out: CH2" in predicted.warnings


def test_every_source_has_the_options_of_all(tmp_path):
    np.save(tmp_path / "x.npy", ecg_mv(1000, leads=2).T[None] * 1000)
    options = {"file": "x.npy", "rate_hz": 100, "leads": ["CH1", "CH2"], "lead_names": {"CH1": "I"}, "scale": 0.001}
    _, records, signals = run("arrays", tmp_path, tmp_path / "out", options)
    assert records["notes"].map(list).tolist() == [["leads left out: CH2"]]
    assert np.abs(signals.signals[0][0, :1000] / 1000 - ecg_mv(1000, leads=2)[:, 0]).max() < 0.001
    with pytest.raises(UsageError, match="'CH1' is said to be 'Q', which is none of the twelve standard leads"):
        open_cohort("wfdb", tmp_path, {"lead_names": {"CH1": "Q"}})


@pytest.mark.parametrize(
    ("scale", "says"),
    [
        (1000.0, " mV, ECGs have 0.05 to 8; times 0.001 it would be one"),
        (0.001, "times 1000 it would be one (cohort.options: {scale: 1000})"),
        (20.0, "; times 0.1 it would be one"),
        (1.0, None),
        (0.15, None),
    ],
)
@pytest.mark.parametrize("source", ["arrays", "wfdb"])
def test_amplitudes_that_are_no_ecgs_are_said_with_the_factor_that_fits(tmp_path, source, scale, says):
    signals_mv = ecg_mv(1000, 100) * scale
    if source == "arrays":
        np.save(tmp_path / "x.npy", np.stack([signals_mv.T] * 2))
        summary, records, _ = run("arrays", tmp_path, tmp_path / "out", {"file": "x.npy", "rate_hz": 100})
    else:
        gain = 20.0 if scale > 1 else 20000.0
        write_record(tmp_path / "in", "a", signals_mv, gains=gain, rate_hz=100)
        write_record(tmp_path / "in", "b", signals_mv, gains=gain, rate_hz=100)
        summary, records, _ = run("wfdb", tmp_path / "in", tmp_path / "out")
        warnings = read_ecg(tmp_path / "in" / "a").warnings
        assert any(says is not None and says in text for text in warnings) == (says is not None)
    noted = [note for note in summary.notes if note.startswith("amplitude")]
    if says is None:
        assert noted == []
        assert records["notes"].map(len).tolist() == [0, 0]
    else:
        assert len(noted) == 1
        assert says in noted[0]
        assert "(2 of 2 records)" in noted[0]


def test_z_scores_are_known_by_their_mean_and_deviation(tmp_path):
    signals = ecg_mv(5000, 500).T
    signals = (signals - signals.mean(axis=1, keepdims=True)) / signals.std(axis=1, keepdims=True)
    np.save(tmp_path / "x.npy", signals[None])
    summary, *_ = run("arrays", tmp_path, tmp_path / "out", {"file": "x.npy", "rate_hz": 500})
    assert any("mean 0 and standard deviation 1, as z-scores have" in note for note in summary.notes)


def test_real_ecgs_of_any_height_are_not_suspected():
    rows = np.rint(ecg_mv(5000).T * 1000).astype(np.int16)
    for factor in (0.1, 0.5, 1, 2, 4):
        assert amplitude_note((rows * factor).astype(np.int16), 500.0) is None
    flat = np.zeros((12, 5000), dtype=np.int16)
    assert amplitude_note(flat, 500.0) is None
    assert [fitting_factor(height) for height in (900.0, 0.001, 1e-6, 20.0)] == [1e-3, 1e3, 1e6, 0.1]


# ---- links -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def linked(tmp_path):
    """A subset of a collection: links to files, and a link to a folder."""
    for k in range(3):
        write_record(tmp_path / "big", f"r{k}")
    (tmp_path / "subset").mkdir()
    for name in ("r0.hea", "r0.dat"):
        (tmp_path / "subset" / name).symlink_to(tmp_path / "big" / name)
    (tmp_path / "by_folder").mkdir()
    (tmp_path / "by_folder" / "more").symlink_to(tmp_path / "big")
    return tmp_path


def test_links_out_of_the_folder_are_refused_and_an_option_allows_them(linked):
    with pytest.raises(InputError, match=r"through a link; cohort.options: \{follow_links: true\} \(.*\) allows it"):
        open_cohort("wfdb", linked / "subset").read("r0")
    summary, records, signals = run("wfdb", linked / "subset", linked / "out", {"follow_links": True})
    assert (summary.n_bad, records["record_id"].tolist(), int(signals.valid[0])) == (0, ["r0"], 1500)


def test_a_link_to_a_folder_is_named_and_an_option_follows_it(linked):
    with pytest.raises(InputError, match=r"links to folders are not followed \('more'\), .*\{follow_links"):
        open_cohort("wfdb", linked / "by_folder").entries()
    write_record(linked / "by_folder", "own")
    summary, records, _ = run("wfdb", linked / "by_folder", linked / "out")
    assert records["record_id"].tolist() == ["own"]
    assert any("links to folders are not followed: 'more'" in note for note in summary.notes)
    (linked / "big" / "back").symlink_to(linked / "by_folder")  # a circle
    summary, records, _ = run("wfdb", linked / "by_folder", linked / "out", {"follow_links": True})
    assert (summary.n_bad, records["path"].tolist()) == (0, ["more/r0", "more/r1", "more/r2", "own"])


def test_a_link_inside_a_path_is_named(linked):
    with pytest.raises(InputError, match=r"'more/r0.hea' leaves .* through a link to a folder, 'more'"):
        open_cohort("wfdb", linked / "by_folder").read("more/r0")


def test_following_links_does_not_let_a_list_leave_the_folder(linked):
    cohort = open_cohort("wfdb", linked / "subset", {"follow_links": True})
    for path in ("../big/r1", str(linked / "big" / "r1"), "x/../../big/r1"):
        with pytest.raises(InputError, match="leaves the cohort's folder"):
            cohort.read(path)


def test_files_that_are_not_fetched_yet_are_said_to_be_so(tmp_path):
    write_record(tmp_path / "in", "a")
    (tmp_path / "in" / "a.dat").unlink()
    (tmp_path / "in" / "a.dat").symlink_to(tmp_path / "in" / ".git" / "annex" / "objects" / "MD5E-s1.dat")
    with pytest.raises(InputError, match=r"a.dat does not exist, it is a link to a file that is not here"):
        open_cohort("wfdb", tmp_path / "in").read("a")


def test_a_datalad_folder_is_read_where_its_files_are_fetched(tmp_path):
    write_record(tmp_path / "in" / ".git" / "annex" / "objects", "key")
    for suffix in ("hea", "dat"):
        (tmp_path / "in" / f"key.{suffix}").symlink_to(f".git/annex/objects/key.{suffix}")
    summary, records, _ = run("wfdb", tmp_path / "in", tmp_path / "out")
    assert (summary.n_bad, records["path"].tolist()) == (0, ["key"])


def test_what_macos_leaves_beside_files_is_no_record(tmp_path):
    write_record(tmp_path / "in", "a")
    for path in ("._a.hea", "._a.dat", "__MACOSX/._a.hea", "__MACOSX/a.hea"):
        (tmp_path / "in" / path).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / path).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    summary, records, _ = run("wfdb", tmp_path / "in", tmp_path / "out")
    assert (summary.n_bad, records["path"].tolist()) == (0, ["a"])


# ---- where a study may lie -------------------------------------------------------------------------------------------


def test_data_may_be_read_only_and_paths_may_have_blanks_and_any_letters(tmp_path):
    home = tmp_path / "Größe 心电图" / "my data (1)"
    counts = write_record(home, "patienté_1")
    pd.DataFrame({"record": ["patienté_1"], "y": [1]}).to_csv(home / "labels ü.csv", index=False)
    for folder, _, names in os.walk(home):
        for name in names:
            os.chmod(os.path.join(folder, name), 0o444)
    os.chmod(home, 0o555)
    try:
        before = sorted(path.name for path in home.iterdir())
        out = tmp_path / "ställe 1"
        _, records, signals = run("wfdb", home, out, {"labels": "labels ü.csv"})
        assert sorted(path.name for path in home.iterdir()) == before
    finally:
        os.chmod(home, 0o755)
    assert records["record_id"].tolist() == ["patienté_1"]
    assert np.array_equal(signals.signals[0][:, :1500], counts.T)


def test_a_moved_study_and_moved_data_give_the_same_bytes(tmp_path):
    write_record(tmp_path / "data", "a")
    run("wfdb", tmp_path / "data", tmp_path / "one")
    shutil.move(tmp_path / "one", tmp_path / "two")
    shutil.move(tmp_path / "data", tmp_path / "elsewhere")
    before = (tmp_path / "two" / "records.parquet").read_bytes()
    run("wfdb", tmp_path / "elsewhere", tmp_path / "two")
    assert (tmp_path / "two" / "records.parquet").read_bytes() == before
