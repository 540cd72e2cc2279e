"""Published collections in their own layouts, built here from their documentation at a small size."""

import io
import zipfile

import h5py
import numpy as np
import openpyxl
import pandas as pd
import pytest
import scipy.io

from cache import open_records
from cache.errors import InputError, UsageError
from cache.signals import LEADS
from stages.cohorts import list_cohorts, open_cohort, shared_collections
from tests.ingesting import ingest, ingested
from tests.stages.wfdb_files import ecg_mv, write_record


def test_all_are_known():
    assert {"sph", "cpsc2018", "ptb", "chapman-csv", "echonext", "files"} <= set(list_cohorts())
    assert shared_collections("chapman-csv", ["chapman", "ptbxl"]) == ["chapman"]
    assert shared_collections("cpsc2018", ["challenge2020", "ptbxl"]) == ["challenge2020"]


# ---- SPH -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def sph(tmp_path):
    folder = tmp_path / "sph"
    (folder / "records").mkdir(parents=True)
    (folder / "code.csv").write_text(
        "Category,Code,Description\nA,1,Normal ECG\nF,60,Ventricular premature complex(es)\n"
        'L,147,"T-wave abnormality, minor"\nModifier,310,Frequent\n'
    )
    lines = ["ECG_ID,AHA_Code,Patient_ID,Age,Sex,N,Date"]
    for k, (codes, patient) in enumerate([("1", "S1"), ("60+310;147", "S2"), ("1;1", "S2"), ("999", "S3")]):
        signals_mv = ecg_mv(5000 + 500 * k, seed=k).T.astype(np.float16)
        with h5py.File(folder / "records" / f"A0000{k}.h5", "w") as file:
            file["ecg"] = signals_mv
        lines.append(f"A0000{k},{codes},{patient},{50 + k},{'MF'[k % 2]},{signals_mv.shape[1]},2019-08-0{k + 1}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_sph(sph, tmp_path):
    frame, rows, summary = ingested("sph", sph, tmp_path, seconds="all")
    assert summary.n_bad == 0
    assert frame["n_samples"].tolist() == [5000, 5500, 6000, 6500]
    assert frame["patient_id"].tolist() == ["S1", "S2", "S2", "S3"]
    assert list(frame["statement"]["A00001"]) == ["T-wave abnormality, minor", "Ventricular premature complex(es)"]
    assert list(frame["modifier"]["A00001"]) == ["Frequent"]
    assert list(frame["category"]["A00001"]) == ["F", "L"]
    assert list(frame["statement"]["A00002"]) == ["Normal ECG"]
    assert frame["sex"].tolist() == [0, 1, 0, 1]
    assert "statement: 1 codes are not in code.csv and left out" in summary.notes
    parents = {target.name: target.parents for target in open_cohort("sph", sph).entries().targets}
    assert parents["statement"] == (
        ("Normal ECG", "category", "A"),
        ("T-wave abnormality, minor", "category", "L"),
        ("Ventricular premature complex(es)", "category", "F"),
    )
    assert parents["category"] == parents["modifier"] == ()
    expected = ecg_mv(5500, seed=1).T.astype(np.float16).astype(np.float64)
    assert np.abs(rows["A00001"] - expected).max() <= 0.0006


def test_sph_of_another_shape_is_bad(sph, tmp_path):
    with h5py.File(sph / "records" / "A00000.h5", "w") as file:
        file["ecg"] = np.zeros((5000, 12), dtype=np.float16)
    _, _, summary = ingested("sph", sph, tmp_path)
    assert summary.n_bad == 1
    assert "not [12, time]" in next(iter(summary.reasons))


# ---- CPSC 2018 -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cpsc(tmp_path):
    folder = tmp_path / "cpsc"
    for k in range(3):
        home = folder / f"TrainingSet{k + 1}"
        home.mkdir(parents=True)
        ecg = {"sex": "Male", "age": 60 + k, "data": ecg_mv(4500, seed=k).T}
        scipy.io.savemat(home / f"A000{k}.mat", {"ECG": ecg}, do_compression=k != 1)
    (folder / "REFERENCE.csv").write_text(
        "Recording,First_label,Second_label,Third_label\nA0000,5,2,\nA0001,1,,\nA0002,9,8,3\n"
    )
    return folder


def test_cpsc2018(cpsc, tmp_path):
    frame, rows, summary = ingested("cpsc2018", cpsc, tmp_path)
    assert summary.n_bad == 0
    assert [list(cell) for cell in frame["dx"]] == [["AF", "RBBB"], ["Normal"], ["I-AVB", "STD", "STE"]]
    assert frame["first"].tolist() == [4, 0, 8]
    for k in range(3):
        assert np.abs(rows[f"A000{k}"] - ecg_mv(4500, seed=k).T).max() <= 0.00051


def test_cpsc2018_damaged_and_packed_beyond_measure(cpsc, tmp_path, monkeypatch):
    monkeypatch.setattr("stages.readers.arrays.mat5.MAX_UNPACKED_BYTES", 1 << 20)
    content = (cpsc / "TrainingSet1" / "A0000.mat").read_bytes()
    (cpsc / "TrainingSet1" / "A0000.mat").write_bytes(content[: len(content) // 2])
    bomb = io.BytesIO()
    scipy.io.savemat(bomb, {"ECG": {"data": np.zeros((12, 20_000))}}, do_compression=True)
    (cpsc / "TrainingSet2" / "A0001.mat").write_bytes(bomb.getvalue())
    scipy.io.savemat(cpsc / "TrainingSet3" / "A0002.mat", {"other": 1})
    folder_frame = ingested_all_bad(cpsc, tmp_path)
    reasons = folder_frame["reason"].tolist()
    assert "no readable MATLAB file" in reasons[0]
    assert "unpacks to more than 1 MB" in reasons[1]
    assert "no structure 'ECG'" in reasons[2]


def ingested_all_bad(folder, tmp_path):
    out = tmp_path / "out"
    ingest("cpsc2018", folder, records_path=out / "r.parquet", signals_path=out / "s.zarr")
    return open_records(out / "r.parquet")


def test_cpsc2018_labels_beyond_nine_are_refused(cpsc):
    (cpsc / "REFERENCE.csv").write_text("Recording,First_label,Second_label,Third_label\nA0000,10,,\n")
    with pytest.raises(InputError, match="labels are 1 to 9"):
        open_cohort("cpsc2018", cpsc).entries()


# ---- PTB -------------------------------------------------------------------------------------------------------------


def test_ptb_has_fifteen_leads_of_which_twelve_are_read(tmp_path):
    folder = tmp_path / "ptb"
    leads = (*(lead.lower() for lead in LEADS), "vx", "vy", "vz")
    told = [
        ("patient001", "s0010_re", "81", "female", "Myocardial infarction", "infero-lateral"),
        ("patient001", "s0014lre", "81", "female", "Myocardial infarction", "infero-lateral"),
        ("patient002", "s0015lre", "n/a", "male", "Heart failure (NYHA 3)", "no"),
        ("patient003", "s0016lre", "40", "male", "n/a", "n/a"),
    ]
    for k, (patient, name, age, sex, reason, infarction) in enumerate(told):
        home = folder / patient
        write_record(home, name, ecg_mv(11500, 1000.0, k, 15), leads, "mV", 2000.0, 1000.0)
        header = (home / f"{name}.hea").read_text()
        said = f"# age: {age}\n# sex: {sex}\n# Diagnose:\n# Reason for admission: {reason}\n"
        (home / f"{name}.hea").write_text(f"{header}{said}# Acute infarction (localization): {infarction}\n")
    frame, rows, summary = ingested("ptb", folder, tmp_path)
    assert summary.n_bad == 0
    assert set(frame["sampling_rate_hz"]) == {1000.0}
    assert frame["patient_id"].tolist() == ["patient001", "patient001", "patient002", "patient003"]
    targets = open_records(tmp_path / "out" / "r.parquet").attrs["targets"]
    assert targets["diagnosis"].classes == ("Heart failure", "Myocardial infarction")
    assert frame["diagnosis"].tolist()[:3] == [1, 1, 0]
    assert pd.isna(frame["diagnosis"]["s0016lre"])
    assert targets["infarction"].classes == ("infero-lateral",)
    assert frame["age"].isna().tolist() == [False, False, True, False]
    assert any(note.startswith("leads left out: 4 x vx, 4 x vy, 4 x vz") for note in summary.notes)
    assert np.abs(rows["s0010_re"] - ecg_mv(11500, 1000.0, 0, 15)[:10000, :12].T).max() <= 0.00076


# ---- Chapman's CSV edition -------------------------------------------------------------------------------------------


@pytest.fixture
def chapman(tmp_path):
    folder = tmp_path / "chapman"
    for name in ("ECGData", "ECGDataDenoised"):
        (folder / name).mkdir(parents=True)
    book = openpyxl.Workbook()
    head = ["FileName", "Rhythm", "Beat", "PatientAge", "Gender", "VentricularRate", "AtrialRate", "QRSDuration"]
    head += ["QTInterval", "QTCorrected", "RAxis", "TAxis", "QRSCount", "QOnset", "QOffset", "TOffset"]
    book.active.append(head)
    rows = [("AFIB", "RBBB TWC", "MALE"), ("SB", "NONE", "FEMALE"), ("SB", "TWC", "MALE")]
    for k, (rhythm, beat, sex) in enumerate(rows):
        name = f"MUSE_2018011{k}_171742_27000"
        book.active.append([name, rhythm, beat, 60 + k, sex, 117, 234, 114, 356, 496, 81, -27, 19, 208, 265, 386])
        uv = ecg_mv(5000, seed=k) * 1000
        lines = [",".join(f"{value:.3f}" for value in row) for row in uv]
        (folder / "ECGData" / f"{name}.csv").write_text("\n".join([",".join(LEADS), *lines]) + "\n")
        (folder / "ECGDataDenoised" / f"{name}.csv").write_text("\n".join(lines) + "\n")
    book.save(folder / "Diagnostics.xlsx")
    return folder


@pytest.mark.parametrize("signals", ["ECGData", "ECGDataDenoised"])
def test_chapman_csv(chapman, tmp_path, signals):
    frame, rows, summary = ingested("chapman-csv", chapman, tmp_path, {"signals": signals})
    assert summary.n_bad == 0
    assert frame["rhythm"].tolist() == [0, 1, 1]
    assert [list(cell) for cell in frame["beat"]] == [["RBBB", "TWC"], [], ["TWC"]]
    assert frame["heart_rate"].tolist() == [117, 117, 117]
    for k, name in enumerate(frame.index):
        assert np.abs(rows[name] - ecg_mv(5000, seed=k).T).max() <= 0.00051


def test_chapman_csv_damaged(chapman, tmp_path):
    path = next((chapman / "ECGData").iterdir())
    path.write_text("I,II\n1,2\n3\n")
    _, _, summary = ingested("chapman-csv", chapman, tmp_path)
    assert summary.n_bad == 1
    assert "no table of numbers" in next(iter(summary.reasons))


# ---- labels beside a collection --------------------------------------------------------------------------------------


@pytest.fixture
def ptbxl(test_data):
    return test_data / "ptbxl"


def test_discharge_diagnoses_of_mimic(tmp_path):
    from stages.synthetic import GeneratePaths, GenerateSettings, run

    folder = tmp_path / "mimic"
    run(GenerateSettings(records=12, defect_rate=0.0), GeneratePaths(folder))
    studies = pd.read_csv(folder / "record_list.csv", dtype=str)["study_id"].tolist()
    lists = ["['I500', 'I4891']", "['I509']", "[]", "['I501', 'E119']", *(["[]"] * (len(studies) - 4))]
    table = pd.DataFrame({"study_id": studies, "all_diag_all": lists, "ed_diag_ed": ["['R079']"] * len(studies)})
    table["strat_fold"] = [k % 4 for k in range(len(studies))]
    table.to_csv(tmp_path / "records_w_diag_icd10.csv", index=False)
    options = {"icd": str(tmp_path), "icd_least": 2}
    found = open_cohort("mimic-iv-ecg", folder, options).entries()
    icd = found.frame.set_index("record_id")["icd"]
    assert [icd[study] for study in studies[:5]] == [["I50"], ["I50"], None, ["I50"], None]
    assert next(t for t in found.targets if t.name == "icd").classes == ("I50",)
    assert any("2 codes of fewer than 2 records are left out" in note for note in found.notes)
    whole = open_cohort("mimic-iv-ecg", folder, {**options, "icd_digits": 5, "icd_least": 1}).entries()
    assert whole.frame.set_index("record_id")["icd"][studies[0]] == ["I4891", "I500"]
    folds = {"folds": str(tmp_path / "records_w_diag_icd10.csv"), "folds_column": "strat_fold"}
    listed = open_cohort("mimic-iv-ecg", folder, folds).listed()
    assert listed.frame["fold"].tolist() == [k % 4 for k in range(len(studies))]
    other = open_cohort("mimic-iv-ecg", folder, {**options, "icd_column": "ed_diag_ed"}).entries()
    assert other.frame["icd"].map(lambda cell: cell == ["R07"]).all()
    with pytest.raises(InputError, match="no code is that of 100 records"):
        open_cohort("mimic-iv-ecg", folder, {"icd": str(tmp_path)}).entries()


def test_features_of_ptbxl_plus(ptbxl, tmp_path):
    ids = pd.read_csv(ptbxl / "ptbxl_database.csv", dtype=str)["ecg_id"].tolist()
    (tmp_path / "plus" / "features").mkdir(parents=True)
    table = pd.DataFrame({"QRS_Area_aVF": range(len(ids)), "ecg_id": ids[::-1], "PR_Int_Global": 160.5})
    table["PR_Int_Count"] = ["", *(["3"] * (len(ids) - 1))]
    table.to_csv(tmp_path / "plus" / "features" / "12sl_features.csv", index=False)
    options = {"plus": str(tmp_path / "plus"), "plus_features": ["12sl:PR_Int_*", "12sl:QRS_Area_aVF"]}
    found = open_cohort("ptbxl", ptbxl, options).entries()
    frame = found.frame.set_index("record_id")
    assert frame["12sl_QRS_Area_aVF"][ids[0]] == len(ids) - 1
    assert (frame["12sl_PR_Int_Global"] == 160.5).all()
    assert frame["12sl_PR_Int_Count"].isna().sum() == 1
    for wrong, says in ((["pr"], "is not PROVIDER:COLUMN"), (["12sl:XX*"], "has no column like")):
        with pytest.raises((UsageError, InputError), match=says):
            open_cohort("ptbxl", ptbxl, {**options, "plus_features": wrong}).entries()
    with pytest.raises(UsageError, match="needed together"):
        open_cohort("ptbxl", ptbxl, {"plus": str(tmp_path)}).entries()


def test_folds_of_ecgbench_replace_those_of_a_collection(ptbxl, tmp_path):
    table = pd.read_csv(ptbxl / "ptbxl_database.csv", dtype=str)
    patients = table["patient_id"].unique()
    fold_of = {who: 1 + k % 5 for k, who in enumerate(patients)}
    folds = table[["ecg_id", "patient_id", "filename_hr"]].copy()
    folds["fold"] = folds["patient_id"].map(fold_of)
    folds["default_split"] = folds["fold"].map({1: "test", 2: "train", 3: "val", 4: "train", 5: "train"})
    (tmp_path / "bench" / "clean").mkdir(parents=True)
    folds.iloc[1:].to_csv(tmp_path / "bench" / "clean" / "folds.csv", index=False)
    found = open_cohort("ptbxl", ptbxl, {"folds": str(tmp_path / "bench")}).listed()
    assert found.published.n_folds == 5
    kept = folds.iloc[1:].set_index("ecg_id")
    numbered = {2: 0, 4: 1, 5: 2, 3: 3, 1: 4}
    for name, fold in zip(found.frame["record_id"], found.frame["fold"], strict=True):
        assert fold == numbered[kept["fold"][name]]
    assert "folds.csv: 1 records have no fold in it and are left out" in found.notes
    plain = folds.drop(columns="default_split").rename(columns={"fold": "mine", "ecg_id": "record_id"})
    plain.to_csv(tmp_path / "mine.csv", index=False)
    own = open_cohort("ptbxl", ptbxl, {"folds": str(tmp_path / "mine.csv"), "folds_column": "mine"}).listed()
    assert own.published is None
    assert sorted(own.frame["fold"].unique()) == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match="has no column 'fold'"):
        open_cohort("ptbxl", ptbxl, {"folds": str(tmp_path / "mine.csv")}).listed()


def test_a_zip_is_no_layout(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("a", "b")
    for source in ("sph", "cpsc2018", "ptb", "chapman-csv"):
        with pytest.raises(OSError, match=r"does not exist|holds no"):
            open_cohort(source, tmp_path).entries()
