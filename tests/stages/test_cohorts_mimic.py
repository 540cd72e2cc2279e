import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages.cohorts import open_cohort
from stages.cohorts.mimic_labels.reports import CLASSES, report_class
from stages.synthetic import GeneratePaths, GenerateSettings
from stages.synthetic import run as generate

LAB_HEAD = (
    "labevent_id,subject_id,hadm_id,specimen_id,itemid,order_provider_id,charttime,storetime,value,valuenum,valueuom,"
    "ref_range_lower,ref_range_upper,flag,priority,comments\n"
)


def lab(subject, time, value, low="3.3", high="5.1", flag="", item=50971, comment=""):
    return f'1,{subject},,,{item},,{time},,{value},{value},mEq/L,{low},{high},{flag},,"{comment}"\n'


def make(folder: Path, labs: list[str], *, rows=None, machine=None, patients=None):
    (folder / "hosp").mkdir(parents=True)
    rows = rows or ["1,10,10,2150-06-01 12:00:00,files/10"]
    (folder / "record_list.csv").write_text("subject_id,study_id,file_name,ecg_time,path\n" + "\n".join(rows) + "\n")
    reports = ",".join(f"report_{k}" for k in range(18))
    machine = machine or ["10,800,Sinus rhythm" + "," * 17]
    (folder / "machine_measurements.csv").write_text(f"study_id,rr_interval,{reports}\n" + "\n".join(machine) + "\n")
    patients = patients or ["1,F,50,2148,2011 - 2013,"]
    (folder / "hosp" / "patients.csv").write_text(
        "subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod\n" + "\n".join(patients) + "\n"
    )
    with gzip.open(folder / "hosp" / "labevents.csv.gz", "wt") as file:
        file.write(LAB_HEAD + "".join(labs))
    return folder


def entries(folder, **options):
    return open_cohort("mimic-iv-ecg", folder, options).entries()


@pytest.mark.parametrize(
    ("labs", "flag"),
    [
        ([lab(1, "2150-06-01 11:00:00", "4.0")], 0),
        ([lab(1, "2150-06-01 11:00:00", "5.2")], 1),
        ([lab(1, "2150-06-01 11:00:00", "3.2")], 1),
        ([lab(1, "2150-06-01 11:00:00", "5.1")], 0),
        ([lab(1, "2150-06-01 11:00:00", "4.0", flag="abnormal")], 1),
        ([lab(1, "2150-06-01 11:00:00", "", flag="abnormal")], 1),
        ([lab(1, "2150-06-01 11:00:00", "")], None),
        ([lab(1, "2150-06-01 11:00:00", "9.0", low="", high="")], 0),
        ([lab(1, "2150-06-01 08:00:00", "6.0")], 1),
        ([lab(1, "2150-06-01 07:59:59", "6.0")], None),
        ([lab(1, "2150-06-01 13:00:00", "6.0")], 1),
        ([lab(1, "2150-06-01 13:00:01", "6.0")], None),
        ([lab(2, "2150-06-01 12:00:00", "6.0")], None),
        ([lab(1, "2150-06-01 12:00:00", "60", item=51097)], None),
        ([lab(1, "2150-06-01 11:00:00", "6.0"), lab(1, "2150-06-01 12:30:00", "4.0")], 0),
        ([lab(1, "2150-06-01 09:00:00", "6.0"), lab(1, "2150-06-01 13:30:00", "4.0")], 1),
        ([lab(1, "2150-06-01 11:30:00", "6.0"), lab(1, "2150-06-01 12:30:00", "4.0")], 1),
        ([lab(1, "2150-06-01 11:00:00", "6.0", item=50822), lab(1, "2150-06-01 11:00:00", "4.0")], 0),
        (
            [
                lab(1, "2150-06-01 11:00:00", "", comment="HEMOLYZED\nTEST NOT DONE"),
                lab(1, "2150-06-01 09:00:00", "6.0"),
            ],
            1,
        ),
    ],
)
def test_flag_is_of_the_nearest_usable_potassium_in_the_window(tmp_path, labs, flag):
    value = entries(make(tmp_path / "m", labs)).frame["flag"][0]
    assert (np.isnan(value) and flag is None) or value == flag


def test_the_window_is_a_parameter(tmp_path):
    folder = make(tmp_path / "m", [lab(1, "2150-06-01 02:00:00", "6.0")])
    assert entries(folder, potassium_hours_before=10.0).frame["flag"][0] == 1


def test_ages_rr_and_gender(tmp_path):
    rows = [f"{s},{s}0,x,2150-06-01 12:00:00,files/{s}" for s in (1, 2, 3, 4)]
    machine = [f"{s}0,{rr},Sinus rhythm" + "," * 17 for s, rr in ((1, 800), (2, 29999), (3, 5001), (4, 0))]
    patients = ["1,F,50,2148,,", "2,M,91,2150,,", "3,,50,2300,,"]
    frame = entries(make(tmp_path / "m", [], rows=rows, machine=machine, patients=patients)).frame
    assert frame["rr_interval"].tolist()[0] == 800
    assert frame["rr_interval"].isna().tolist() == [False, True, True, True]
    assert frame["age"][:2].tolist() == [52, 91]
    assert frame["age"].isna().tolist() == [False, False, True, True]
    assert frame["gender"][:2].tolist() == [1, 0]
    assert frame["gender"].isna().tolist() == [False, False, True, True]


def test_without_the_hosp_tables_their_labels_are_null_with_a_note(tmp_path):
    folder = make(tmp_path / "m", [])
    for path in (folder / "hosp").iterdir():
        path.unlink()
    found = entries(folder)
    assert found.frame[["age", "gender", "flag"]].isna().all(axis=None)
    assert any("patients.csv" in note for note in found.notes)
    assert any("labevents.csv" in note for note in found.notes)


def test_malformed_rows_are_passed_over_and_counted(tmp_path):
    labs = ["1,2,3\n", lab(1, "2150-06-01 11:00:00", "6.0"), lab(1, "not a time", "6.0")]
    found = entries(make(tmp_path / "m", labs))
    assert found.frame["flag"][0] == 1
    assert any("1 no time" in n and "1 rows with a wrong number of cells" in n for n in found.notes)


def test_rows_that_repeat_a_key_are_counted_and_the_first_counts(tmp_path):
    machine = ["10,800,Sinus rhythm" + "," * 17, "10,900,Sinus tachycardia" + "," * 17]
    found = entries(make(tmp_path / "m", [], machine=machine, patients=["1,F,50,2148,,"] * 3))
    assert found.frame["rr_interval"][0] == 800
    assert "machine_measurements.csv: 1 rows repeat a study_id; the first of each counts" in found.notes
    assert "patients.csv: 2 rows repeat a subject_id; the first of each counts" in found.notes


def test_a_subject_larger_than_any_number_has_no_flag(tmp_path):
    rows = ["99999999999999999999999,10,10,2150-06-01 12:00:00,files/10"]
    labs = [lab("99999999999999999999999", "2150-06-01 11:00:00", "6.0")]
    assert np.isnan(entries(make(tmp_path / "m", labs, rows=rows)).frame["flag"][0])


def test_blanks_around_an_item_do_not_matter(tmp_path):
    labs = [lab(1, "2150-06-01 11:00:00", "6.0", item=" 50822 "), lab(1, "2150-06-01 11:00:00", "4.0", item=" 50971")]
    assert entries(make(tmp_path / "m", labs)).frame["flag"][0] == 0


def test_bytes_that_are_no_text_do_not_stop_labevents(tmp_path):
    folder = make(tmp_path / "m", [])
    good = lab(1, "2150-06-01 11:00:00", "6.0").encode()
    odd = [b"1,\xb5,3\n", good.replace(b"6.0", b"\xff"), good.replace(b"mEq/L", b"\xb5mol"), b"\xe2\x82"]
    with gzip.open(folder / "hosp" / "labevents.csv.gz", "wb") as file:
        file.write(LAB_HEAD.encode() + b"".join(odd))
    found = entries(folder)
    assert found.frame["flag"][0] == 1
    assert any("1 neither a number nor a flag, 2 rows with a wrong number" in note for note in found.notes)


@pytest.mark.parametrize(
    ("line", "label"),
    [
        *((name, k) for k, name in enumerate(CLASSES[:14])),
        ("Sinus rhythm.", 0),
        ("SINUS TACHYCARDIA", 2),
        ("Sinus rhythm with 1st degree AV block", 5),
        ("Sinus rhythm with first degree A-V block", 5),
        ("Sinus rhythm with borderline 1st degree A-V block", 4),
        ("Atrial fibrillation with rapid ventricular response.", 6),
        ("Sinus rhythm with PACs", 8),
        ("Sinus rhythm with PAC(s).", 8),
        ("Sinus rhythm with PVCs", 12),
        ("Ventricular-paced rhythm", 9),
        ("*** CONSIDER ACUTE ST ELEVATION MI ***", 10),
        ("--- Warning: Data quality may affect interpretation ---", 11),
        ("Atrial fibrillation with RVR", 6),
        ("AF with RVR", 6),
        ("AFib w/ RVR.", 6),
        ("A-fib with a rapid ventricular rate", 6),
        ("Atrial fib with rapid V-rate", 6),
        ("Afib", 3),
        ("Sinus rhythm with premature atrial contractions", 8),
        ("Sinus rhythm with premature atrial complex(es)", 8),
        ("Sinus rhythm with premature ventricular contraction(s)", 12),
        ("Sinus rhythm with premature ventricular complexes", 12),
        ("Sinus rhythm with frequent PVCs", 14),
        ("Sinus rhythm with premature supraventricular contractions", 14),
        ("Sinus rhythm with premature atrial and ventricular contractions", 14),
        ("Atrial flutter with RVR", 14),
        ("AF", 14),
        ("Atrial fibrillation with RVR and PVCs", 14),
        ("Sinus bradycardia with PAC(s)", 14),
        ("Atrial fibrillation with slow ventricular response", 14),
        ("Sinus rhythm with PVC(s) and PAC(s)", 14),
        ("Atrial flutter", 14),
        ("", None),
        (None, None),
        ("x" * 100_000, 14),
    ],
)
def test_report_classes(line, label):
    assert report_class(line) == label


def test_labels_of_the_generated_cohort_equal_an_independent_reading(tmp_path):
    generate(GenerateSettings(records=200, seed=1), GeneratePaths(tmp_path / "m"))
    frame = entries(tmp_path / "m").frame
    machine = pd.read_csv(tmp_path / "m" / "machine_measurements.csv")
    listed = pd.read_csv(tmp_path / "m" / "record_list.csv", parse_dates=["ecg_time"])
    rr = machine["rr_interval"].where(machine["rr_interval"].between(1, 5000))
    assert np.array_equal(frame["rr_interval"], rr, equal_nan=True)
    people = pd.read_csv(tmp_path / "m" / "hosp" / "patients.csv.gz").set_index("subject_id").loc[listed["subject_id"]]
    ages = people["anchor_age"].to_numpy() + listed["ecg_time"].dt.year.to_numpy() - people["anchor_year"].to_numpy()
    assert np.array_equal(frame["age"], ages)
    assert np.array_equal(frame["gender"], (people["gender"] == "F").astype(float))
    labs = pd.read_csv(tmp_path / "m" / "hosp" / "labevents.csv.gz", parse_dates=["charttime"])
    labs = labs[labs["itemid"].isin([50971, 50822]) & labs["valuenum"].notna()]
    for row, ecg in listed.iterrows():
        hours = (
            labs.loc[labs["subject_id"] == ecg["subject_id"], "charttime"] - ecg["ecg_time"]
        ).dt.total_seconds() / 3600
        hours = hours[hours.between(-4, 1)]
        if hours.empty:
            assert np.isnan(frame["flag"][row])
            continue
        near = labs.loc[hours.abs().idxmin()]
        outside = (
            near["flag"] == "abnormal" or not near["ref_range_lower"] <= near["valuenum"] <= near["ref_range_upper"]
        )
        assert frame["flag"][row] == int(outside)


# VmHWM, for a process inherits ru_maxrss from the one that started it: a large parent hides what a child takes.
STREAM = """
import re, sys
import numpy as np
from pathlib import Path
from stages.cohorts.mimic_labels.potassium import read_results
def peak_kb():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak_kb()
results = read_results(Path(sys.argv[1]), np.arange(100))
print(peak_kb() - before, len(results.subject), int(results.abnormal.sum()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peaks are read from /proc (Linux)")
@pytest.mark.parametrize("packed", [True, False])
def test_labevents_is_streamed_in_bounded_memory(tmp_path, packed):
    """ENSEMBLE_LABEVENTS_ROWS=50000000 reads a table of MIMIC's size; without it the same code reads a short one."""
    n_blocks = max(int(os.environ.get("ENSEMBLE_LABEVENTS_ROWS", "400000")) // 20_000, 1)
    path = tmp_path / ("labevents.csv.gz" if packed else "labevents.csv")
    pack = gzip.compress if packed else bytes
    rows = [lab(k, "2150-06-01 11:00:00", "4.0", item=51000 + k % 900, comment="x" * 80) for k in range(20_000)]
    block = pack("".join(rows).encode())
    with path.open("wb") as file:
        file.write(pack(LAB_HEAD.encode()))
        for number in range(n_blocks):
            file.write(block)
            file.write(pack(lab(number % 100, f"2150-06-{number % 28 + 1:02d} 11:00:00", "6.0").encode()))
    done = subprocess.run([sys.executable, "-c", STREAM, str(path)], capture_output=True, text=True, check=True)
    grown_kb, found, abnormal = map(int, done.stdout.split())
    moments = len({(number % 100, number % 28) for number in range(n_blocks)})
    assert found == abnormal == moments
    assert grown_kb < 250_000


def test_a_giant_cell_is_an_error_and_not_a_giant_process(tmp_path):
    folder = make(tmp_path / "m", [])
    with gzip.open(folder / "hosp" / "labevents.csv.gz", "wt") as file:
        file.write(LAB_HEAD + "1,1,,,50971,,")
        for _ in range(40):
            file.write("x" * (1 << 20))
    with pytest.raises(ValueError, match=r"labevents\.csv\.gz: .*2 MB"):
        entries(folder)


def test_a_record_without_machine_measurements_has_no_labels_of_them(tmp_path):
    rows = [f"1,{s},x,2150-06-01 12:00:00,files/{s}" for s in (10, 11)]
    found = entries(make(tmp_path / "m", [], rows=rows))
    assert found.frame["report_label"].isna().tolist() == [False, True]
    assert found.frame["rr_interval"].isna().tolist() == [False, True]
