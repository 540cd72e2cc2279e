"""Tables that nobody vouches for: any bytes are read or refused in one line, and none takes the machine down."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.errors import EnsembleError, InputError
from stages.cohorts import open_cohort
from stages.cohorts.mimic_labels.potassium import read_results
from stages.readers.tables import Table, read_table

HEADS = {
    "record_list.csv": "subject_id,study_id,file_name,ecg_time,path",
    "machine_measurements.csv": "subject_id,study_id,cart_id,ecg_time,report_0,rr_interval",
    "hosp/patients.csv": "subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod",
    "hosp/labevents.csv": "subject_id,itemid,charttime,valuenum,ref_range_lower,ref_range_upper,flag",
}
CELLS = (
    '1|10|50971|2150-06-01 12:00:00|300|NaN|-1|1e400||"|"a\nb"|é|M|files/1|a\0b|99999999999999999999999|abnormal|'
    "29999|2150-13-45|Sinus rhythm|'|\t|=1+1"
)
CELL = st.sampled_from(CELLS.split("|"))
BODY = st.lists(st.lists(CELL, min_size=1, max_size=8).map(",".join), max_size=6).map("\n".join)


@settings(max_examples=120, deadline=None)
@given(st.fixed_dictionaries(dict.fromkeys(HEADS, BODY)), st.sets(st.sampled_from(sorted(HEADS)), max_size=1))
def test_any_lists_of_mimic_are_read_or_refused_in_one_line(tmp_path_factory, bodies, headless):
    folder = tmp_path_factory.getbasetemp() / "fuzz-mimic"
    (folder / "hosp").mkdir(parents=True, exist_ok=True)
    for name, body in bodies.items():
        head = "" if name in headless else HEADS[name] + "\n"
        (folder / name).write_bytes((head + body).encode())
    try:
        found = open_cohort("mimic-iv-ecg", folder).entries()
    except EnsembleError as error:
        refused = str(error)
    else:
        refused = ""
        assert len(found.frame)
        assert found.frame["age"].dropna().between(0, 130).all()
        assert found.frame["rr_interval"].dropna().between(0, 5000).all()
        assert set(found.frame["flag"].dropna()) <= {0, 1}
    assert "\n" not in refused


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peaks are read from /proc (Linux)")
# VmHWM, for a process inherits ru_maxrss from the one that started it: a large parent hides what a child takes.
CHILD = """
import re, sys
from pathlib import Path
from cache.errors import InputError
from stages.readers.tables import read_table
def peak_kb():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak_kb()
try:
    read_table(Path(sys.argv[1]))
except InputError as error:
    print(peak_kb() - before, error)
"""


def cell_of_100_mb(path: Path) -> Path:
    with path.open("wb") as file:
        file.write(b"a,b\n1,")
        for _ in range(100):
            file.write(b"x" * (1 << 20))
    return path


def bomb(path: Path) -> Path:
    """Half a gigabyte in half a megabyte."""
    packed = path.with_name(f"{path.name}.gz")
    with gzip.open(packed, "wb", compresslevel=1) as file:
        file.write(b"a,b\n1,")
        for _ in range(64):
            file.write(bytes(8 << 20))
    assert packed.stat().st_size < 4 << 20
    return packed


def two_million_columns(path: Path) -> Path:
    path.write_bytes(b"," * 2_000_000 + b"\n")
    return path


@needs_proc
@pytest.mark.parametrize("make", [cell_of_100_mb, bomb, two_million_columns])
def test_a_giant_cell_or_head_costs_neither_memory_nor_a_traceback(tmp_path, make):
    path = make(tmp_path / "table.csv")
    done = subprocess.run([sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grown_kb, told = done.stdout.split(" ", 1)
    assert int(grown_kb) < 80_000
    assert told.startswith(str(path))


def test_a_bomb_of_small_rows_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.readers.tables.whole_table.MAX_CELLS", 100_000)
    path = tmp_path / "table.csv.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"a,b\n" + b"1,1\n" * 2_000_000)
    with pytest.raises(InputError, match="more than 100000 cells"):
        read_table(path)
    few, _ = read_table(path, ["a"], keep=lambda block: block.index < 3)
    assert 0 < len(few) < 100


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"name,gr\xf6\x81e\na,1\n", "its head is not UTF-8 text; save it as UTF-8"),
        (b"name,ort\na,K\x90ln\n", "has a cell that is not UTF-8 text; save it as UTF-8"),
        (b"name,ort\na,b\nc,\xff\x00,d\n", "has a cell that is not UTF-8 text; save it as UTF-8"),
        (",".join(map(str, range(10_001))).encode() + b"\n" + b"," * 10_000, "has more than 10000 columns"),
        (b"\xef\xbb\xbf\r\n" + b"," * 10_000 + b"\n", "has more than 10000 columns"),
    ],
)
def test_text_that_cannot_be_read_is_named_in_one_line(tmp_path, capfd, content, says):
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        read_table(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (",".join(f"c{k}" for k in range(10_000)) + "\n", [f"c{k}" for k in range(10_000)]),
        ('"a' + "," * 20_000 + '",b\n1,2\n', ["a" + "," * 20_000, "b"]),
        ('height 5",width\n' + "1,2\n" * 20_000, ['height 5"', "width"]),
        ("\ufeffa,b\r\n1,2\r\n", ["a", "b"]),
    ],
)
def test_heads_that_are_not_too_wide_are_read(tmp_path, content, names):
    path = tmp_path / "table.csv"
    path.write_bytes(content.encode())
    assert read_table(path)[0].columns.tolist() == names


def test_bytes_that_are_no_text_cost_no_row_but_theirs_where_they_may_be(tmp_path, capfd):
    path = tmp_path / "table.csv"
    rows = [f"{k},{'äöü€😀' * 40}\n".encode() for k in range(20_000)]  # 11 MB: six blocks
    rows[15_000] = b"15000,a\xffb\xe2\x82\n"
    rows[16_000] = b"\xff\xfe\n"
    path.write_bytes(b"a,b\n" + b"".join(rows))
    table = Table(path, lenient=True)
    cells = [row for batch in table.batches(["a", "b"]) for row in batch.to_pylist()]
    assert [row["a"] for row in cells] == [str(k) for k in range(20_000) if k != 16_000]
    assert [row["b"] for row in cells if row["b"] != "äöü€😀" * 40] == ["a?b??"]
    assert table.malformed == 1
    assert capfd.readouterr().err == ""


def test_more_potassium_than_any_hospital_has_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.cohorts.mimic_labels.potassium.MAX_RESULTS", 1000)
    path = tmp_path / "labevents.csv"
    path.write_text(HEADS["hosp/labevents.csv"] + "\n" + "1,50971,2150-06-01 12:00:00,4,3,5,\n" * 2000)
    with pytest.raises(InputError, match="more than 1000 potassium results"):
        read_results(path, np.array([1]))


def test_arrays_that_promise_giant_records_are_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("signals", shape=(2, 12, 10**9), chunks=(1, 12, 1000), dtype="f4", compression="gzip")
    cohort = open_cohort("arrays", tmp_path, {"file": "a.h5", "rate_hz": 500})
    assert len(cohort.entries().frame) == 2
    with pytest.raises(InputError, match="more than 50000000 samples"):
        cohort.read("0")


PTBXL = (
    "ecg_id,patient_id,age,sex,scp_codes,strat_fold,filename_lr,filename_hr",
    ",description,diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass\nNORM,normal,1.0,,,NORM,NORM\n",
)
OTHERS = {
    "ludb": "ID,Sex,Age,Rhythms,Electric axis of the heart,Conduction abnormalities,Extrasystolies,Hypertrophies,"
    "Cardiac pacing,Ischemia,Non-specific repolarization abnormalities",
    "code15": "exam_id,patient_id,age,is_male,normal_ecg,trace_file,1dAVb,RBBB,LBBB,SB,ST,AF",
    "ptbxl": PTBXL[0],
}
LISTS = {"ludb": "ludb.csv", "code15": "exams.csv", "ptbxl": "ptbxl_database.csv"}
ODD = CELLS + "|{'NORM': 100.0}|{'NORM'|1.0|>89|15|records500/1|exams_part0.hdf5|../x.hdf5|True"


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(sorted(OTHERS)),
    st.lists(st.lists(st.sampled_from(ODD.split("|")), min_size=7, max_size=13).map(",".join), max_size=5),
)
def test_any_list_of_the_other_sources_is_read_or_refused_in_one_line(tmp_path_factory, source, rows):
    folder = tmp_path_factory.getbasetemp() / f"fuzz-{source}"
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "data/1.hea").touch()
    (folder / "scp_statements.csv").write_text(PTBXL[1])
    (folder / LISTS[source]).write_text("\n".join([OTHERS[source], *rows]) + "\n")
    try:
        found = open_cohort(source, folder).entries()
    except EnsembleError as error:
        refused = str(error)
    else:
        refused = ""
        assert found.frame["age"].dropna().between(0, 130).all()
    assert "\n" not in refused


VALUE = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
)
KEYS = ("subject_id", "ecg_path", "rr_interval", "age", "gender", "flag", "report_label")


@settings(max_examples=80, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(KEYS), VALUE) | VALUE, max_size=4))
def test_any_jsonl_is_read_or_refused_in_one_line(tmp_path_factory, lines):
    folder = tmp_path_factory.getbasetemp() / "fuzz-jsonl"
    folder.mkdir(exist_ok=True)
    (folder / "a.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    try:
        found = open_cohort("enecg-jsonl", folder).entries()
    except EnsembleError as error:
        refused = str(error)
    else:
        refused = ""
        assert set(found.frame["gender"].dropna()) <= {0, 1}
    assert "\n" not in refused
