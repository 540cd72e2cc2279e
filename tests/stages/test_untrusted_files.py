"""Files that nobody vouches for: what points out of the folder, promises any size, or has a name that is no text."""

import json
import os
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import wfdb

from cache import open_records
from cache.errors import EnsembleError, InputError, UsageError
from cache.signals import LEADS
from stages.cohorts import open_cohort
from stages.download import DownloadPaths, DownloadSettings
from stages.download import run as download
from stages.ingest import shards as reading
from tests.ingesting import ingest


def run(source, folder, out, options=None, **more):
    summary = ingest(source, folder, options, records_path=out / "r.parquet", signals_path=out / "s.zarr", **more)
    return summary, open_records(out / "r.parquet")


def record(folder, name, seed=0):
    signal = np.random.default_rng(seed).normal(0, 0.3, (500, 2))
    wfdb.wrsamp(name, 500, ["mV"] * 2, ["I", "II"], p_signal=signal, fmt=["16"] * 2, write_dir=str(folder))


def arrays(folder, name, **more):
    return open_cohort("arrays", folder, {"file": name, "rate_hz": 500, **more})


@pytest.mark.parametrize("kind", ["external storage", "external link", "link to a link", "virtual", "bytes"])
def test_hdf5_that_points_to_other_files_is_refused(tmp_path, kind):
    home, secret = tmp_path / "in", tmp_path / "secret.h5"
    home.mkdir()
    with h5py.File(secret, "w") as file:
        file["signals"] = np.ones((2, 12, 500), dtype="f4")
    with h5py.File(home / "a.h5", "w") as file:
        if kind == "external storage":
            shape = {"shape": (2, 12, 500), "dtype": "f4"}
            file.create_dataset("signals", external=[(str(secret), 2048, 48_000)], **shape)
        elif kind == "external link":
            file["signals"] = h5py.ExternalLink(str(secret), "/signals")
        elif kind == "link to a link":
            file["g/other"] = h5py.ExternalLink(str(secret), "/signals")
            file["signals"] = h5py.SoftLink("/g/other")
        elif kind == "virtual":
            layout = h5py.VirtualLayout((2, 12, 500), dtype="f4")
            layout[:] = h5py.VirtualSource(str(secret), "signals", shape=(2, 12, 500))
            file.create_virtual_dataset("signals", layout)
        else:
            file["signals"] = np.zeros((2, 12, 500), dtype="S8")
    with pytest.raises(InputError, match=r"behind a link|in other files|no dataset 'signals' of numbers"):
        arrays(home, "a.h5").entries()


def test_a_dataset_within_groups_is_read(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["all/ecgs"] = np.ones((2, 12, 500), dtype="f4")
    assert arrays(tmp_path, "a.h5", dataset="all/ecgs").read("1").signals_mv.sum() == 6000


def test_hdf5_chunks_that_do_not_fit_the_memory_are_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        more = {"chunks": (800, 12, 10_000), "dtype": "f4", "compression": "gzip"}
        file.create_dataset("signals", shape=(800, 12, 10_000), **more)
    with pytest.raises(InputError, match=r"has chunks of .*more than 256 MB"):
        arrays(tmp_path, "a.h5").entries()


PEAK = """
import resource, sys
from cache.errors import InputError
from stages.cohorts import arrays, open_cohort
arrays.MAX_SAMPLES = 5_000_000  # a tenth of what it is, to have a small test
cohort = open_cohort("arrays", sys.argv[1], {"file": "a.parquet", "rate_hz": 500, "leads": ["I"]})
cohort.entries()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    cohort.read("0")
except InputError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
"""


def test_a_parquet_list_of_any_length_is_refused_before_it_is_unpacked(tmp_path):
    lists = pa.ListArray.from_arrays(pa.array([0, 6_000_000], pa.int32()), pa.array(np.zeros(6_000_000, "f4")))
    pq.write_table(pa.table({"I": lists}), tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 10_000
    done = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, check=True)
    grown_kb, told = done.stdout.split(" ", 1)
    assert "row group unpacks to 45 MB" in told
    assert int(grown_kb) < 20_000


@pytest.mark.parametrize("kind", ["npy", "h5", "parquet"])
def test_a_file_that_was_written_anew_is_read_anew(tmp_path, kind):
    read = []
    for value in (1.0, 2.0):
        signals = np.full((1, 12, 500), value)
        path = tmp_path / f"a.{kind}"
        if kind == "npy":
            np.save(path, signals)
        elif kind == "h5":
            with h5py.File(tmp_path / "new.h5", "w") as file:
                file["signals"] = signals
            path.write_bytes((tmp_path / "new.h5").read_bytes())  # into the same inode
        else:
            pq.write_table(pa.table({lead: list(signals[:, k]) for k, lead in enumerate(LEADS)}), path)
        os.utime(path, (value, value))
        read.append(arrays(tmp_path, path.name).read("0").signals_mv[0, 0])
    assert read == [1.0, 2.0]


@pytest.mark.parametrize("rate_hz", [float("nan"), float("inf"), 0, -1])
def test_a_rate_that_is_none_is_refused(tmp_path, rate_hz):
    with pytest.raises(UsageError, match="option 'rate_hz'"):
        arrays(tmp_path, "a.npy", rate_hz=rate_hz)


def test_names_that_are_no_text_make_the_record_bad(tmp_path):
    home = tmp_path / "in"
    home.mkdir()
    record(home, "r0")
    for suffix in (".hea", ".dat"):
        shutil.copy(home / f"r0{suffix}", os.fsencode(home) + b"/\xff" + suffix.encode())
    summary, records = run("wfdb", home, tmp_path)
    assert records[["record_id", "status"]].to_numpy().tolist() == [["r0", "ok"], ["\\udcff", "bad"]]
    assert records["reason"].tolist()[1] == "its path is not UTF-8 text"
    assert summary.n_bad == 1


def test_surrogates_in_a_list_make_the_record_bad(tmp_path):
    record(tmp_path, "5")
    rows = [{"subject_id": "\ud800", "ecg_path": "5"}, {"subject_id": 1, "ecg_path": "5\udfff"}]
    rows.append({"subject_id": 1, "ecg_path": "./5"})
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    _, records = run("enecg-jsonl", tmp_path, tmp_path / "out")
    assert records["reason"].str.contains("is not UTF-8 text|more than once").tolist() == [True, True, True]
    assert records["patient_id"].tolist() == ["\\ud800", "1", "1"]


def test_absolute_paths_of_the_authors_are_taken_from_files_on(tmp_path):
    home = tmp_path / "files" / "p1"
    home.mkdir(parents=True)
    record(home, "5")
    rows = [{"subject_id": 1, "ecg_path": p} for p in ("/home/them/files/mimic/files/p1/5", "/etc/files/../passwd")]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    summary, records = run("enecg-jsonl", tmp_path, tmp_path / "out")
    assert records[["path", "status"]].to_numpy().tolist() == [["files/p1/5", "ok"], ["files/../passwd", "bad"]]
    assert "ecg_path: 2 absolute paths are taken from their files/ on" in summary.notes


def labelled(tmp_path, **columns):
    home = tmp_path / "in"
    home.mkdir()
    names = [f"row-{k}" for k in range(3)]
    for k, name in enumerate(names):
        record(home, name, k)
    pd.DataFrame({"record": names, **columns}).to_csv(home / "l.csv", index=False)
    return home, {"labels": str(home / "l.csv")}


@pytest.fixture
def no_reading(monkeypatch):
    monkeypatch.setattr(reading, "_cohort", lambda *_: pytest.fail("a signal was read"))


@pytest.mark.usefixtures("no_reading")
@pytest.mark.parametrize("name", ["pace_spikes", "limb_swap", "derived_leads"])
def test_a_label_of_a_name_that_is_taken_is_refused_before_reading(tmp_path, name):
    home, options = labelled(tmp_path, **{name: [1, 2, 3]})
    with pytest.raises(InputError, match=f"a target cannot be named '{name}'.*option 'targets'"):
        run("wfdb", home, tmp_path, options)


@pytest.mark.usefixtures("no_reading")
def test_folds_that_split_a_patient_are_refused_before_reading(tmp_path):
    home, options = labelled(tmp_path, y=[1, 2, 3], patient_id=list("aab"), cv=[0, 1, 2])
    with pytest.raises(InputError, match="patient 'a' is in more than one fold"):
        run("wfdb", home, tmp_path, {**options, "fold": "cv"})


def test_folds_that_leave_a_split_empty_are_noted_and_ids_like_ours_are_read(tmp_path):
    home, options = labelled(tmp_path, y=[1, 2, 3], cv=[1, 1, 1])
    summary, records = run("wfdb", home, tmp_path, {**options, "fold": "cv"})
    assert any(note.startswith("no record is train or val: the highest of the 1 fold") for note in summary.notes)
    assert records["split"].tolist() == ["test"] * 3
    assert records["status"].tolist() == ["ok"] * 3  # named row-0 ..., as a record without a name would be


def test_records_without_a_name_and_repeated_ones_get_names_that_are_free(tmp_path):
    record(tmp_path, "5")
    head = "subject_id,study_id,file_name,ecg_time,path"
    ids = ["", "row-0", "row-0", "row-0#2"]
    rows = [f"1,{name},x,2150-06-01 12:00:00,5" for name in ids]
    (tmp_path / "record_list.csv").write_text("\n".join([head, *rows, ""]))
    (tmp_path / "machine_measurements.csv").write_text("study_id,rr_interval,report_0\n")
    _, records = run("mimic-iv-ecg", tmp_path, tmp_path / "out")
    assert records["record_id"].tolist() == ["row-0#3", "row-0", "row-0#4", "row-0#2"]
    assert records["status"].tolist() == ["bad", "ok", "bad", "ok"]


def test_a_damaged_shard_of_code15_makes_its_exams_bad(tmp_path):
    tracings = np.random.default_rng(0).normal(0, 0.3, (2, 4096, 12)).astype("f4")
    for part, ids in enumerate(([11, 12], [13, 14], [np.nan, 15.5])):
        with h5py.File(tmp_path / f"exams_part{part}.hdf5", "w") as file:
            file["exam_id"], file["tracings"] = ids, tracings
    whole = (tmp_path / "exams_part1.hdf5").read_bytes()
    (tmp_path / "exams_part1.hdf5").write_bytes(whole[: len(whole) // 2])
    head = "exam_id,age,is_male,1dAVb,RBBB,LBBB,SB,ST,AF,patient_id,normal_ecg,trace_file"
    said = ((11, 0), (12, 0), (13, 1), (15, 2))
    rows = [f"{k},60,True,False,False,False,False,False,False,{k},True,exams_part{part}.hdf5" for k, part in said]
    (tmp_path / "exams.csv").write_text("\n".join([head, *rows, ""]))
    summary, records = run("code15", tmp_path, tmp_path / "out")
    assert records["status"].tolist() == ["ok", "ok", "bad", "bad"]
    assert records["reason"].tolist()[2] == "exams_part1.hdf5 cannot be opened as HDF5"
    assert any("the exams of exams_part1.hdf5 cannot be read" in note for note in summary.notes)


@pytest.mark.parametrize("below", ["", "sub"])
def test_a_download_into_a_file_is_refused(tmp_path, below):
    (tmp_path / "file").touch()
    with pytest.raises(EnsembleError, match="is not a folder"):
        download(
            DownloadSettings("ludb", base_url="http://127.0.0.1:9/files"), DownloadPaths(tmp_path / "file" / below)
        )
