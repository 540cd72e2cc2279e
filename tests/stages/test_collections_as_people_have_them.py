"""Published collections that are there in part, zipped, in folders of their own, re-saved by spreadsheets, or moved."""

import shutil

import h5py
import numpy as np
import pandas as pd
import pytest

from cache.errors import InputError, MissingFileError
from stages.cohorts import open_cohort
from tests.ingesting import ingest
from tests.stages.wfdb_files import ecg_mv, write_record

STATEMENTS = (
    ",description,diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass\n"
    "NORM,normal,1.0,,,NORM,NORM\nIMI,mi,1.0,,,MI,IMI\n"
)


def write_ptbxl(folder, rate=500, before=""):
    rows = []
    for k in range(1, 13):
        name = f"{k:05d}_{'hr' if rate == 500 else 'lr'}"
        write_record(folder / f"records{rate}" / "00000", name, ecg_mv(10 * rate, rate), rate_hz=rate)
        codes = f"\"{{'{['NORM', 'IMI'][k % 2]}': 100.0}}\""
        paths = f"{before}records100/00000/{k:05d}_lr,{before}records500/00000/{k:05d}_hr"
        rows.append(f"{k},{15000 + k},{40 + k},{k % 2},{codes},{k % 10 + 1},{paths}")
    head = "ecg_id,patient_id,age,sex,scp_codes,strat_fold,filename_lr,filename_hr"
    (folder / "ptbxl_database.csv").write_text("\n".join([head, *rows, ""]))
    (folder / "scp_statements.csv").write_text(STATEMENTS)
    return folder


def run(source, folder, out, **options):
    out.mkdir(exist_ok=True)
    return ingest(source, folder, options, records_path=out / "records.parquet", signals_path=out / "signals.zarr")


def test_ptbxl_with_the_other_rate_only_names_the_option(tmp_path):
    folder = write_ptbxl(tmp_path / "p", rate=100)
    with pytest.raises(MissingFileError, match=r"records500 holds no record, .* cohort.options: \{rate: 100\} reads"):
        open_cohort("ptbxl", folder).entries()
    assert run("ptbxl", folder, tmp_path / "out", rate=100).n_bad == 0
    with pytest.raises(MissingFileError, match=r"\{rate: 500\}"):
        open_cohort("ptbxl", write_ptbxl(tmp_path / "q"), {"rate": 100}).entries()


def test_groups_of_statements_that_the_list_does_not_have_are_left_out(tmp_path):
    summary = run("ptbxl", write_ptbxl(tmp_path / "p"), tmp_path / "out")
    assert set(summary.labels) == {"superclass", "subclass", "diag44", "all71", "age", "sex"}
    assert [note for note in summary.notes if "left out, the labels name no class" in note] == [
        "form: left out, the labels name no class of it",
        "rhythm: left out, the labels name no class of it",
    ]


def test_a_list_saved_by_a_european_spreadsheet_is_read(tmp_path):
    folder = write_ptbxl(tmp_path / "p")
    table = pd.read_csv(folder / "ptbxl_database.csv")
    table["age"] = table["age"] + 0.5
    table.to_csv(folder / "ptbxl_database.csv", sep=";", decimal=",", index=False, encoding="utf-8-sig")
    frame = open_cohort("ptbxl", folder).entries().frame
    assert frame["age"].tolist() == [41.5 + k for k in range(12)]
    assert frame["superclass"].tolist() == [["MI"], ["NORM"]] * 6


@pytest.mark.parametrize("before", ["/data/ptb-xl/1.0.3/", "D:\\ecg\\ptbxl\\", "ptb-xl-1.0.3/"])
def test_paths_of_a_list_with_another_prefix_are_found(tmp_path, before):
    entries = open_cohort("ptbxl", write_ptbxl(tmp_path / "p", before=before)).entries()
    assert entries.frame["path"].tolist()[0] == "records500/00000/00001_hr"
    assert any("are taken from elsewhere" in note and "records500/00000/00001_hr" in note for note in entries.notes)


def test_paths_of_a_list_that_lack_a_folder_are_found(tmp_path):
    folder = write_ptbxl(tmp_path / "p")
    (folder / "copy").mkdir()
    shutil.move(folder / "records500", folder / "copy" / "records500")
    entries = open_cohort("ptbxl", folder).entries()
    assert entries.frame["path"].tolist()[0] == "copy/records500/00000/00001_hr"


def test_a_list_never_leads_out_of_the_folder(tmp_path):
    folder = write_ptbxl(tmp_path / "p", before="../q/")
    shutil.move(folder / "records500", tmp_path / "q" / "records500")
    summary = run("ptbxl", folder, tmp_path / "out")
    assert summary.n_bad == 12
    assert list(summary.reasons) == [
        "path '../q/records500/00000/00001_hr.hea' leaves the cohort's folder, and the like"
    ]


HEAD = "exam_id,age,is_male,nn_predicted_age,1dAVb,RBBB,LBBB,SB,ST,AF,patient_id,death,timey,normal_ecg,trace_file"


def write_code15(folder, ids):
    folder.mkdir(exist_ok=True)
    rows = [f"{i},50,True,50,False,False,False,False,False,True,{7000 + k},F,1,False,exams_part0.hdf5" for k, i in ids]
    (folder / "exams.csv").write_text("\n".join([HEAD, *rows, ""]))


def write_shard(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["exam_id"] = [1001, 1002]
        file["tracings"] = np.stack([ecg_mv(4096, 400), ecg_mv(4096, 400, seed=1)]).astype(np.float32)


def test_code15_zipped_says_what_to_unzip(tmp_path):
    write_code15(tmp_path / "c", [(0, 1001), (1, 1002)])
    (tmp_path / "c" / "exams_part0.zip").write_bytes(b"PK")
    with pytest.raises(MissingFileError, match=r"none of the 1 shards .*hdf5\) is here; unzip exams_part0\.zip"):
        open_cohort("code15", tmp_path / "c").entries()


@pytest.mark.parametrize("place", ["exams_part0.hdf5", "exams_part0/exams_part0.hdf5", "all/exams_part0.hdf5"])
def test_code15_in_folders_and_with_ids_as_fractions_is_read(tmp_path, place):
    write_code15(tmp_path / "c", [(0, "1001.0"), (1, "1002.0")])
    write_shard(tmp_path / "c" / place)
    summary = run("code15", tmp_path / "c", tmp_path / "out")
    assert (summary.n_records, summary.n_bad) == (2, 0)
    frame = pd.read_parquet(tmp_path / "out" / "records.parquet")
    assert frame["record_id"].tolist() == ["1001", "1002"]
    assert frame["path"].tolist() == [f"{place}#0", f"{place}#1"]


def test_a_summary_names_a_record_of_every_kind(tmp_path):
    for k in range(4):
        write_record(tmp_path / "in", f"r{k}")
        (tmp_path / "in" / f"r{k}.dat").unlink()
    (tmp_path / "in" / "r9.hea").write_text("nonsense")
    summary = run("wfdb", tmp_path / "in", tmp_path / "out")
    assert next(iter(summary.reasons.items())) == ("r0.dat does not exist, and the like", 4)


def test_a_folder_without_records_is_an_error(tmp_path):
    with pytest.raises(InputError, match="holds no WFDB header"):
        open_cohort("wfdb", tmp_path).entries()
