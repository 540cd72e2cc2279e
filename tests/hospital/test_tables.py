"""Labels of a hospital's files from the tables that people have."""

from datetime import datetime

import numpy as np
import openpyxl
import pytest

from cache.errors import InputError
from stages.cohorts import open_cohort
from tests.hospital import write_binary, write_xml
from tests.hospital.ecgs import EIGHT, beats_uv, ecg_of

PATIENTS = ("00123", "00124", "00125", "00126")
TIMES = [datetime(2024, 2, 29, 13, 5, 9), datetime(2024, 3, 14, 8, 0, 0)]
TIMES += [datetime(2023, 12, 31, 23, 59, 59), datetime(2024, 3, 14, 9, 0, 0)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four ECGs: two MUSE files with test ids, one SCP-ECG and one DICOM file in a folder below."""
    home = tmp_path_factory.mktemp("files")
    (home / "b").mkdir()
    eight = [
        ecg_of(beats_uv(500, 2.0), 4.88, 500, EIGHT, patient_id=PATIENTS[k], acquired=TIMES[k], test_id=f"1.2.{k}")
        for k in range(4)
    ]
    write_xml.muse(eight[0], home / "one.xml")
    write_xml.muse(eight[1], home / "two.xml")
    write_binary.scp(eight[2], home / "b" / "three.scp")
    write_binary.dicom(eight[3], home / "b" / "four.dcm")
    return home


def entries(folder, path, content, encoding="utf-8", **options):
    path.write_bytes(content.encode(encoding))
    return open_cohort("files", folder, {"labels": str(path), "kinds": {"age": "regression"}, **options}).entries()


def ages(found):
    frame = found.frame.set_index("path")["age"]
    return [frame[name] for name in ("one.xml", "two.xml", "b/three.scp", "b/four.dcm")]


KEYS = {
    "file names": ("one.xml", "two.xml", "three.scp", "four.dcm"),
    "file names without their ends": ("one", "two", "three", "four"),
    "paths": ("one.xml", "two.xml", "b/three.scp", "b/four.dcm"),
    "paths of a Windows machine": ("one.xml", "two.xml", "b\\three.scp", "b\\four.dcm"),
    "record ids": ("1.2.0", "1.2.1", "b/three.scp", "1.2.3"),
}


@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
def test_rows_are_found_by_file_name_or_record_id(folder, tmp_path, keys):
    lines = [f"{key},{50 + k}.5" for k, key in enumerate(keys)]
    found = entries(folder, tmp_path / "l.csv", "\n".join(["file,age", *lines]))
    assert ages(found) == [50.5, 51.5, 52.5, 53.5]
    assert found.frame["patient_id"].tolist() == [PATIENTS[k] for k in (3, 2, 0, 1)]
    assert not [note for note in found.notes if "None" in note]


TABLES = {
    "commas": ("utf-8", ",", "."),
    "semicolons and decimal commas": ("utf-8", ";", ","),
    "a mark before": ("utf-8-sig", ";", ","),
    "Latin-1": ("latin-1", ";", ","),
    "UTF-16": ("utf-16", "\t", "."),
    "tabs": ("utf-8", "\t", "."),
}


@pytest.mark.parametrize(("encoding", "separator", "point"), TABLES.values(), ids=TABLES)
def test_tables_as_programs_write_them(folder, tmp_path, encoding, separator, point):
    rows = [["Datei", "age", "Geschlecht"]]
    rows += [[key, f"{50 + k}{point}5", "weiblich" if k % 2 else "männlich"] for k, key in enumerate(KEYS["paths"])]
    text = "\r\n".join(separator.join(row) for row in rows) + "\r\n"
    found = entries(folder, tmp_path / "l.csv", text, encoding)
    assert ages(found) == [50.5, 51.5, 52.5, 53.5]
    assert {t.name: t.classes for t in found.targets}["Geschlecht"] == ("männlich", "weiblich")


def test_an_excel_sheet_with_real_dates(folder, tmp_path):
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(["patient", "when", "age"])
    for k, who in enumerate(PATIENTS):
        sheet.append([who, TIMES[k], 50.5 + k])
    book.save(tmp_path / "l.xlsx")
    options = {"labels": str(tmp_path / "l.xlsx"), "patient": "patient", "time": "when"}
    assert ages(open_cohort("files", folder, options).entries()) == [50.5, 51.5, 52.5, 53.5]


FORMS = {
    "ISO": "%Y-%m-%dT%H:%M:%S",
    "ISO with a blank, to the minute": "%Y-%m-%d %H:%M",
    "day first, points": "%d.%m.%Y %H:%M:%S",
    "day first, slashes, two digits of the year": "%d/%m/%y %H:%M",
    "month first": "%m/%d/%Y %H:%M:%S",
    "month as a word": "%d-%b-%Y %H:%M:%S",
    "digits alone": "%Y%m%d%H%M%S",
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_rows_are_found_by_patient_and_time_with_dates_in_any_order(folder, tmp_path, form):
    """Two rows of each patient: that of the ECG's time counts."""
    lines = ["who,when,age"]
    for k, who in enumerate(PATIENTS):
        lines.append(f"{who},{TIMES[k].strftime(form)},{50 + k}.5")
        lines.append(f"{who},{TIMES[(k + 2) % 4].strftime(form)},99")
    found = entries(folder, tmp_path / "l.csv", "\n".join(lines), patient="who", time="when")
    assert ages(found) == [50.5, 51.5, 52.5, 53.5]


def test_days_and_months_that_cannot_be_told_apart_are_asked_for(folder, tmp_path):
    lines = ["who,when,age", "00123,03/04/2024 10:00,5", "00124,01/02/2024 11:00,6"]
    with pytest.raises(InputError, match=r"cannot be told apart .*'date_order' to dmy or mdy"):
        entries(folder, tmp_path / "l.csv", "\n".join(lines), patient="who", time="when")
    both = ["who,when,age", "00123,31/01/2024 10:00,5", "00124,01/31/2024 11:00,6"]
    with pytest.raises(InputError, match="both orders occur"):
        entries(folder, tmp_path / "l.csv", "\n".join(both), patient="who", time="when")
    near = ["who,when,age", "00123,02/29/2024 13:05,61", "00124,03/14/2024 08:00,62"]
    found = entries(folder, tmp_path / "l.csv", "\n".join(near), patient="who", time="when", date_order="mdy")
    assert ages(found)[:2] == [61, 62]
    assert np.isnan(ages(found)[2:]).all()
    assert any("2 records have no row of their patient and time" in note for note in found.notes)


def test_the_nearest_time_counts_and_only_within_the_tolerance(folder, tmp_path):
    lines = [
        "who,when,age",
        "00123,2024-02-29 13:05:00,1",
        "00123,2024-02-29 13:05:30,2",
        "00124,2024-03-14 08:05:00,3",
    ]
    found = entries(folder, tmp_path / "l.csv", "\n".join(lines), patient="who", time="when")
    assert ages(found)[0] == 1
    assert np.isnan(ages(found)[1])
    found = entries(folder, tmp_path / "l.csv", "\n".join(lines), patient="who", time="when", time_tolerance_s=600)
    assert ages(found)[:2] == [1, 3]


def test_patient_ids_that_lost_their_zeros_are_told_and_not_guessed(folder, tmp_path):
    lines = ["who,when,age", *(f"{int(who)},{TIMES[k].isoformat()},{50 + k}.5" for k, who in enumerate(PATIENTS))]
    text = "\n".join(lines)
    with pytest.raises(InputError, match=r"differ from those of the files in zeros .* 'patient_zeros' to ignore"):
        entries(folder, tmp_path / "l.csv", text, patient="who", time="when")
    found = entries(folder, tmp_path / "l.csv", text, patient="who", time="when", patient_zeros="ignore")
    assert ages(found) == [50.5, 51.5, 52.5, 53.5]


def test_one_patient_under_two_ids_is_refused_until_the_study_says_what_they_are(folder, tmp_path):
    """A table names the patients of some files, the other files name theirs: 123 and 00123 would be two patients."""
    text = "file,who,age\none.xml,125,61\ntwo.xml,124,62\n"
    with pytest.raises(InputError, match="differ in zeros before them alone; set the option 'patient_zeros'"):
        entries(folder, tmp_path / "l.csv", text, patient="who")
    kept = entries(folder, tmp_path / "l.csv", text, patient="who", patient_zeros="keep")
    assert sorted(kept.frame["patient_id"]) == ["00125", "00126", "124", "125"]
    one = entries(folder, tmp_path / "l.csv", text, patient="who", patient_zeros="ignore")
    assert one.frame["patient_id"].nunique() == 3


def test_patients_of_the_table_win_over_those_of_the_files(folder, tmp_path):
    text = "file,subject_id,age\none.xml,anna,61\n"
    found = entries(folder, tmp_path / "l.csv", text).frame.set_index("path")["patient_id"]
    assert found.to_dict() == {"one.xml": "anna", "two.xml": "00124", "b/three.scp": "00125", "b/four.dcm": "00126"}


def test_a_table_that_names_no_file_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="none of its 1 keys"):
        entries(folder, tmp_path / "l.csv", "file,age\nnowhere.xml,5\n")
