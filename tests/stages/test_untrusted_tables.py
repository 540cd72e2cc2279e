"""Tables that nobody vouches for: any bytes are read or refused in one line, and none takes the machine down."""

import gzip
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.errors import EnsembleError
from stages.cohorts import open_cohort

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


CHILD = """
import resource, sys
from pathlib import Path
from cache.errors import InputError
from stages.readers.tables import read_table
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_table(Path(sys.argv[1]))
except InputError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
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


@pytest.mark.parametrize("make", [cell_of_100_mb, bomb])
def test_a_giant_cell_costs_neither_memory_nor_a_traceback(tmp_path, make):
    path = make(tmp_path / "table.csv")
    done = subprocess.run([sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grown_kb, told = done.stdout.split(" ", 1)
    assert int(grown_kb) < 80_000
    assert told.startswith(str(path))
