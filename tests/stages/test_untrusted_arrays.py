"""Array files that nobody vouches for: a few bytes that stand for gigabytes, damage, names of any length."""

import json
import random
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import wfdb

from cache import open_records
from cache.errors import EnsembleError, InputError
from cache.signals import LEADS
from stages.cohorts import arrays as module
from stages.cohorts import code15, open_cohort
from tests.ingesting import ingest

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peaks are read from /proc (Linux)")
# VmHWM, for a process inherits ru_maxrss from the one that started it: a large parent hides what a child takes.
PEAK = """
import json, re, sys
from cache.errors import InputError
from stages.cohorts import open_cohort
def peak_kb():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
cohort = open_cohort("arrays", sys.argv[1], json.loads(sys.argv[2]))
before = peak_kb()
said = []
for row in range(int(sys.argv[3])):
    try:
        said.append(str(cohort.read(str(row)).signals_mv.shape))
    except InputError as error:
        said.append(str(error))
print(json.dumps([peak_kb() - before, said]))
"""


def peak(folder, n_rows, **options):
    """Return how many kB reading some rows takes, and what came of each."""
    arguments = [str(folder), json.dumps({"rate_hz": 500, **options}), str(n_rows)]
    done = subprocess.run([sys.executable, "-c", PEAK, *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def opened(folder, name, **more):
    return open_cohort("arrays", folder, {"file": name, "rate_hz": 500, **more})


def lists(*lengths: int) -> pa.Array:
    ends = np.cumsum([0, *lengths])
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(np.zeros(ends[-1], "f4")))


# ---- Parquet ---------------------------------------------------------------------------------------------------------


@needs_proc
def test_a_large_row_group_is_read_row_by_row(tmp_path):
    """1,500 records in the one row group that writers make by default: 360 MB of float32, read in a few."""
    pq.write_table(pa.table({lead: lists(*[5000] * 1500) for lead in LEADS}), tmp_path / "a.parquet")
    grown_kb, said = peak(tmp_path, 1500, file="a.parquet")
    assert said == ["(12, 5000)"] * 1500
    assert grown_kb < 60_000


@needs_proc
def test_of_twelve_lists_that_are_too_long_one_is_unpacked(tmp_path):
    columns = {lead: lists(0, 12_000_000, 0) for lead in LEADS}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", compression="zstd")
    grown_kb, said = peak(tmp_path, 3, file="a.parquet")
    assert said[0] == "(12, 0)"
    assert said[1] == "its array is (12, 12000000), more than 50000000 samples"
    assert said[2] == "its row group is damaged, or has a list that is too long, here or before"
    assert grown_kb < 400_000


def test_parquet_rows_may_be_read_in_any_order(tmp_path):
    signals = np.random.default_rng(0).normal(0, 1, (7, 12, 30))
    columns = {lead: pa.array(list(signals[:, k])) for k, lead in enumerate(LEADS)}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=3)
    cohort = opened(tmp_path, "a.parquet")
    for row in (0, 1, 5, 5, 3, 6, 0, 2):
        assert np.array_equal(cohort.read(str(row)).signals_mv, signals[row])


def test_a_record_without_a_list_costs_only_itself(tmp_path):
    columns = {lead: pa.array([[1.0] * 9, None if lead == "V3" else [1.0] * 9, [1.0] * 9]) for lead in LEADS}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    cohort = opened(tmp_path, "a.parquet")
    with pytest.raises(InputError, match="not equally long"):
        cohort.read("1")
    assert cohort.read("2").signals_mv.shape == (12, 9)


def test_a_row_group_that_is_refused_stays_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_COLUMN_BYTES", 1000)
    pq.write_table(pa.table({lead: lists(100, 100) for lead in LEADS}), tmp_path / "a.parquet")
    cohort = opened(tmp_path, "a.parquet")
    for row in ("0", "1", "0"):
        with pytest.raises(InputError, match="its row group unpacks to 0 MB a lead"):
            cohort.read(row)


def test_lists_of_other_things_than_numbers_are_refused(tmp_path):
    texts = pa.ListArray.from_arrays(pa.array([0, 3], pa.int32()), pa.array(["x" * 1000] * 3))
    pq.write_table(pa.table({"I": texts}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"column 'I' holds list<.*string>, not a list of samples"):
        opened(tmp_path, "a.parquet", leads=["I"]).entries()
    twice = pa.Table.from_arrays([lists(3), lists(3)], names=["I", "I"])
    pq.write_table(twice, tmp_path / "b.parquet")
    with pytest.raises(InputError, match="has 2 columns 'I'"):
        opened(tmp_path, "b.parquet", leads=["I"]).entries()


# ---- promises --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["h5", "npy", "parquet"])
def test_files_that_promise_any_number_of_records_are_refused(tmp_path, monkeypatch, kind):
    path, n = tmp_path / f"a.{kind}", module.MAX_RECORDS + 1
    if kind == "h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("signals", shape=(n, 12, 500), chunks=(1, 12, 500), dtype="f4")
    elif kind == "npy":
        with path.open("wb") as file:
            head = {"descr": "<f4", "fortran_order": False, "shape": (n, 12, 0)}
            np.lib.format.write_array_header_1_0(file, head)
    else:
        monkeypatch.setattr(module, "MAX_RECORDS", 10)
        pq.write_table(pa.table({lead: pa.nulls(11, pa.list_(pa.float32())) for lead in LEADS}), path)
    with pytest.raises(InputError, match=r"promises \d+ records, more than"):
        opened(tmp_path, path.name).entries()


# ---- HDF5 ------------------------------------------------------------------------------------------------------------


def packed(folder, n_bytes, chunk, *, shuffle=False, checksum=False):
    """Write a dataset of which the only chunk unpacks to `n_bytes`."""
    raw = zlib.compress(bytes(n_bytes), 9) + (b"\0" * 4 if checksum else b"")
    with h5py.File(folder / "a.h5", "w") as file:
        more = {"compression": "gzip", "shuffle": shuffle, "fletcher32": checksum}
        found = file.create_dataset("signals", shape=chunk, chunks=chunk, dtype="f4", **more)
        found.id.write_direct_chunk((0, 0, 0), raw)
    return len(raw)


@needs_proc
@pytest.mark.parametrize(
    ("chunk", "says"), [((1, 12, 500), "has a packed chunk of"), ((1, 12, 100_000), "unpacks to more than its 4800004")]
)
def test_a_chunk_that_unpacks_to_more_than_its_shape_is_refused(tmp_path, chunk, says):
    assert packed(tmp_path, 1 << 29, chunk) < 1 << 20
    grown_kb, said = peak(tmp_path, 1, file="a.h5")
    assert says in said[0]
    assert grown_kb < 100_000


@pytest.mark.parametrize("more", [{}, {"shuffle": True}, {"shuffle": True, "fletcher32": True}])
def test_chunks_that_hold_what_they_say_are_read(tmp_path, monkeypatch, more):
    monkeypatch.setattr("stages.readers.arrays.hdf5._GROWTH", {1: 1 << 28})  # look into every chunk
    signals = np.random.default_rng(0).integers(0, 9, (3, 12, 500)).astype("f4")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("signals", data=signals, chunks=(2, 5, 300), compression="gzip", **more)
    cohort = opened(tmp_path, "a.h5")
    assert all(np.array_equal(cohort.read(str(row)).signals_mv, signals[row]) for row in range(3))


def test_a_dataset_that_is_packed_twice_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        how.set_chunk((1, 12, 500))
        how.set_deflate(9)
        how.set_deflate(9)
        space = h5py.h5s.create_simple((2, 12, 500))
        h5py.h5d.create(file.id, b"signals", h5py.h5t.IEEE_F32LE, space, how)
    with pytest.raises(InputError, match="packed by other filters than one of gzip and lzf"):
        opened(tmp_path, "a.h5").entries()


def test_a_record_of_any_number_of_chunks_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("signals", shape=(1, 12, 5000), chunks=(1, 1, 5), dtype="f4", compression="gzip")
    with pytest.raises(InputError, match="has more than 10000 chunks to a row"):
        opened(tmp_path, "a.h5").read("0")


# ---- damage ----------------------------------------------------------------------------------------------------------

EXAMS = "exam_id,patient_id,age,is_male,normal_ecg,trace_file,1dAVb,RBBB,LBBB,SB,ST,AF\n"


def damaged(good: bytes, chance: random.Random) -> bytes:
    """Change a few bytes of the head or the foot of a file, or cut it."""
    content, edge = bytearray(good), min(len(good), 2500)
    if chance.random() < 0.15:
        return bytes(content[: chance.randrange(len(content))])
    for _ in range(chance.choice((1, 1, 2, 4))):
        place = chance.randrange(edge)
        place = len(content) - 1 - place if chance.random() < 0.4 else place
        content[place] = chance.choice((0, 255, chance.randrange(256), content[place] ^ (1 << chance.randrange(8))))
    return bytes(content)


def entries_or_refusal(cohort):
    """Return a cohort's entries, or in one line why it has none."""
    try:
        return cohort.entries(), None
    except EnsembleError as error:
        return None, str(error)


@pytest.mark.parametrize("kind", ["npy", "h5", "parquet", "hdf5"])
def test_damaged_files_are_refused_in_one_line_or_make_records_bad(tmp_path, kind):
    path, source = tmp_path / f"a.{kind}", "arrays"
    options = {"file": path.name, "rate_hz": 500}
    signals = np.random.default_rng(0).normal(0, 0.3, (3, 12, 40)).astype("f4")
    if kind == "npy":
        np.save(path, signals)
    elif kind == "parquet":
        pq.write_table(pa.table({lead: list(signals[:, k]) for k, lead in enumerate(LEADS)}), path)
    else:
        with h5py.File(path, "w") as file:
            file.create_dataset("signals", data=signals, chunks=(1, 12, 40), compression="gzip")
            file["exam_id"], file["tracings"] = [1, 2, 3], signals.transpose(0, 2, 1)
    if kind == "hdf5":
        source, options = "code15", {}
        (tmp_path / "exams.csv").write_text(EXAMS + f"1,1,30,1,1,{path.name},0,0,0,0,0,0\n")
    good, chance, n_read = path.read_bytes(), random.Random(0), 0
    for _ in range(400):
        path.unlink()
        path.write_bytes(damaged(good, chance))
        found, refusal = entries_or_refusal(open_cohort(source, tmp_path, options))
        if refusal is not None:
            assert kind != "hdf5", refusal  # one shard must not stop the others
            assert "\n" not in refusal
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numbers beyond any other type
            try:
                open_cohort(source, tmp_path, options).read(found.frame["path"].iloc[0])
                n_read += 1
            except (EnsembleError, UnicodeDecodeError):
                pass
    assert 0 < n_read < 400


def run(source, folder, out, options=None):
    summary = ingest(source, folder, options, records_path=out / "r.parquet", signals_path=out / "s.zarr")
    return summary, open_records(out / "r.parquet")


def test_shards_of_code15_with_odd_names_or_too_many_exams_cost_their_own_exams(tmp_path, monkeypatch):
    monkeypatch.setattr(code15, "MAX_EXAMS", 2)
    tracings = np.random.default_rng(0).normal(0, 0.3, (3, 4096, 12)).astype("f4")
    for name, ids in (("a.hdf5", [1, 2]), ("b.hdf5", [3, 4, 5])):
        with h5py.File(tmp_path / name, "w") as file:
            file["exam_id"], file["tracings"] = ids, tracings[: len(ids)]
    shards = {1: "a.hdf5", 2: "../a.hdf5", 3: "b.hdf5", 6: "x" * 300}
    rows = [f"{k},{k},60,1,1,{name},0,0,0,0,0,0\n" for k, name in shards.items()]
    (tmp_path / "exams.csv").write_text(EXAMS + "".join(rows))
    summary, records = run("code15", tmp_path, tmp_path / "out")
    assert records["record_id"].tolist() == ["1", "2", "3"]
    assert records["status"].tolist() == ["ok", "bad", "bad"]
    assert "leaves the cohort's folder" in records["reason"][1]
    assert any("1 of 4 shards are not there" in note for note in summary.notes)
    assert any("3 exams are more than 2" in note for note in summary.notes)


def test_a_record_of_ludb_with_a_name_that_no_file_has_is_left_out(tmp_path):
    head = "ID,Sex,Age,Rhythms,Electric axis of the heart,Conduction abnormalities,Extrasystolies,Hypertrophies,"
    head += "Cardiac pacing,Ischemia,Non-specific repolarization abnormalities\n"
    (tmp_path / "data").mkdir()
    (tmp_path / "data/1.hea").touch()
    (tmp_path / "ludb.csv").write_text(f"{head}1,M,30,,,,,,,,\n{'1' * 300},M,30,,,,,,,,\n")
    found = open_cohort("ludb", tmp_path).entries()
    assert found.frame["record_id"].tolist() == ["1"]
    assert "1 rows of ludb.csv have no record in data/ and are left out" in found.notes


# ---- names -----------------------------------------------------------------------------------------------------------


def labelled(folder, **columns):
    for k in range(3):
        signal = np.random.default_rng(k).normal(0, 0.3, (500, 2))
        wfdb.wrsamp(f"r{k}", 500, ["mV"] * 2, ["I", "II"], p_signal=signal, fmt=["16"] * 2, write_dir=str(folder))
    pd.DataFrame({"record": ["r0", "r1", "r2"], **columns}).to_csv(folder / "l.csv", index=False)
    return {"labels": str(folder / "l.csv")}


def test_patients_of_any_length_make_records_bad_and_stay_apart(tmp_path):
    ids = ["x" * 100_000 + "a", "x" * 100_000 + "b", "p"]
    options = labelled(tmp_path, patient_id=ids, y=[1, 2, 3])
    _, records = run("wfdb", tmp_path, tmp_path / "out", options)
    assert records["status"].tolist() == ["bad", "bad", "ok"]
    assert records["reason"][0] == "its patient_id has 100001 characters, more than 500"
    assert records["patient_id"].str.len().max() < 200
    assert records["patient_id"].nunique() == 3


def test_record_ids_of_any_length_make_records_bad_and_stay_apart(tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(0, 0.3, (3, 12, 500)))
    ids = ["x" * 100_000 + "a", "x" * 100_000 + "b", "x" * 500]
    pd.DataFrame({"name": ids, "y": [1, 2, 3]}).to_csv(tmp_path / "l.csv", index=False)
    options = {"file": "a.npy", "rate_hz": 500, "labels": "l.csv", "id": "name"}
    _, records = run("arrays", tmp_path, tmp_path / "out", options)
    assert records["status"].tolist() == ["bad", "bad", "ok"]
    assert records["record_id"].str.len().tolist()[2] == 500
    assert records["record_id"].nunique() == 3
    before = records["record_id"].tolist()
    again = ingest(
        "arrays",
        tmp_path,
        options,
        records_path=tmp_path / "out/r.parquet",
        signals_path=tmp_path / "out/s.zarr",
        append=True,
    )
    assert again.n_new == 0
    assert open_records(tmp_path / "out/r.parquet")["record_id"].tolist() == before


@pytest.mark.parametrize("columns", [{"y": ["a", "b", "c" * 501]}, {"y" * 501: ["a", "b", "c"]}])
def test_classes_and_targets_of_any_length_are_refused(tmp_path, columns):
    options = labelled(tmp_path, **columns)
    with pytest.raises(InputError, match=r"has a name or class of 501 characters, more than 500.*'targets'") as caught:
        run("wfdb", tmp_path, tmp_path / "out", options)
    assert len(str(caught.value)) < 300
