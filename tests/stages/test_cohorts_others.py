import json
import re
import shutil

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import wfdb

from cache import open_records, open_signals
from cache.errors import EnsembleError
from cache.signals import LEADS
from stages.cohorts import list_cohorts, open_cohort
from stages.cohorts._snomed import SCORED
from tests.ingesting import ingest


def run(source, folder, out, options=None):
    summary = ingest(source, folder, options, records_path=out / "r.parquet", signals_path=out / "s.zarr")
    return summary, open_records(out / "r.parquet"), open_signals(out / "s.zarr")


def test_every_source_says_what_it_is_and_refuses_an_empty_folder(tmp_path):
    assert {"mimic-iv-ecg", "ptbxl", "wfdb", "challenge", "ludb", "chapman", "code15", "enecg-jsonl", "arrays"} <= set(
        list_cohorts()
    )
    for name in list_cohorts():
        options = {"file": "x.npy", "rate_hz": 500} if name == "arrays" else {}
        with pytest.raises(EnsembleError) as caught:
            open_cohort(name, tmp_path, options).entries()
        assert str(tmp_path) in str(caught.value)


def test_challenge_labels_equal_an_independent_reading(test_data, tmp_path):
    summary, records, _ = run("challenge", test_data / "challenge2021", tmp_path)
    assert (summary.n_records, summary.n_bad) == (50, 0)
    assert len(records.attrs["targets"]["dx"].classes) == 26
    for _, row in records.iterrows():
        text = (test_data / "challenge2021" / f"{row['path']}.hea").read_text()
        codes = re.search(r"# ?Dx: ?(.*)", text)[1].split(",")
        assert list(row["dx"]) == sorted({SCORED[c] for c in codes if c in SCORED})
        assert row["age"] == float(re.search(r"# ?Age: ?(.*)", text)[1])
        assert row["sex"] == float(re.search(r"# ?Sex: ?(.*)", text)[1] == "Female")


@pytest.mark.parametrize(
    ("comments", "age", "sex", "dx"),
    [
        ("#Age: 56\n#Sex: F\n#Dx: 59118001,713427006\n", 56, 1, ["CRBBB|RBBB"]),
        ("#  Age :NaN\n#Sex:Male\n#Dx:999999\n", None, 0, []),
        ("# Age: 300\n# Sex: Unknown\n# Dx: Unknown\n", None, None, None),
        ("", None, None, None),
    ],
)
def test_challenge_comments_of_any_spacing(tmp_path, comments, age, sex, dx):
    home = tmp_path / "in"
    home.mkdir()
    wfdb.wrsamp(
        "A1",
        500,
        ["mV"],
        ["II"],
        p_signal=np.random.default_rng(0).normal(0, 1, (900, 1)),
        fmt=["16"],
        write_dir=str(home),
    )
    with (home / "A1.hea").open("a") as file:
        file.write(comments)
    row = open_cohort("challenge", home).entries().frame.loc[0]
    for value, expected in ((row["age"], age), (row["sex"], sex)):
        assert np.isnan(value) if expected is None else value == expected
    assert row["dx"] == dx


def test_the_header_of_the_challenge_of_2020_is_read(tmp_path):
    samples = np.random.default_rng(0).integers(-900, 900, (5000, 12)).astype("<i2")
    (tmp_path / "E1.mat").write_bytes(b"\0" * 24 + samples.tobytes())
    sums = samples.sum(axis=0, dtype=np.int64).astype(np.int16)
    lines = [f"E1.mat 16+24 4880/mV 16 0 {samples[0, k]} {sums[k]} 0 {name}" for k, name in enumerate(LEADS)]
    (tmp_path / "E1.hea").write_text("\n".join(["E1.mat 12 500 5000 05-May-2020 14:50:55", *lines, "#Age: NaN", ""]))
    _, records, signals = run("challenge", tmp_path, tmp_path / "out")
    assert records["status"].tolist() == ["ok"]
    assert np.array_equal(signals.signals[0], np.rint(samples.T / 4.88))


def test_ludb_labels_equal_an_independent_reading(test_data, tmp_path):
    summary, records, _ = run("ludb", test_data / "ludb", tmp_path)
    table = pd.read_csv(test_data / "ludb" / "ludb.csv")
    assert (summary.n_records, summary.n_bad) == (len(table), 0)
    assert records["record_id"].tolist() == table["ID"].astype(str).tolist()
    assert records["sex"].tolist() == table["Sex"].str.strip().eq("F").astype(int).tolist()
    assert records["age"].tolist() == pd.to_numeric(table["Age"]).tolist()
    columns = {
        "rhythm": ("Rhythms", None),
        "axis": ("Electric axis of the heart", None),
        "conduction": ("Conduction abnormalities", []),
        "extrasystoles": ("Extrasystolies", []),
        "hypertrophy": ("Hypertrophies", []),
        "pacing": ("Cardiac pacing", []),
        "ischemia": ("Ischemia", []),
        "repolarization": ("Non-specific repolarization abnormalities", []),
    }
    assert set(records.attrs["targets"]) == {*columns, "age", "sex"}
    for name, (column, empty) in columns.items():
        expected = [
            sorted(part.strip() for part in cell.split("\n") if part.strip()) if isinstance(cell, str) else empty
            for cell in table[column]
        ]
        assert [None if found is None else list(found) for found in records[name]] == expected, name
        classes = {part for found in expected for part in found or ()}
        assert set(records.attrs["targets"][name].classes) == classes, name


def test_chapman_is_read_in_its_own_layout(test_data, tmp_path):
    home = tmp_path / "in" / "WFDBRecords" / "01" / "010"
    home.mkdir(parents=True)
    for path in sorted((test_data / "challenge2021").glob("JS*")):
        shutil.copy(path, home)
    (tmp_path / "in" / "ConditionNames_SNOMED-CT.csv").write_text(
        "Acronym Name,Full Name,Snomed_CT\nSB,Sinus Bradycardia,426177001\nST,Sinus Tachycardia,427084000\n"
    )
    summary, records, _ = run("chapman", tmp_path / "in", tmp_path)
    assert summary.n_bad == 0
    assert len(records.attrs["targets"]["rhythm"].classes) == 11
    for _, row in records.iterrows():
        text = (tmp_path / "in" / f"{row['path']}.hea").read_text()
        assert ("ST" in row["rhythm"]) == ("427084000" in text) == ("ST" in row["condition"])
        assert ("AFIB" in row["rhythm"]) == ("164889003" in text)


def test_code15_is_read_in_its_own_layout(tmp_path):
    rng = np.random.default_rng(0)
    tracings = np.zeros((3, 4096, 12), dtype=np.float32)
    time = np.arange(4000) / 400
    tracings[0, 48:4048] = np.sin(2 * np.pi * 5 * time)[:, None] * np.arange(1, 13) / 10
    tracings[1, 648:3448] = rng.normal(0, 0.1, (2800, 12))
    with h5py.File(tmp_path / "exams_part0.hdf5", "w") as file:
        file["exam_id"], file["tracings"] = [11, 12, 13], tracings
    rows = [
        "11,60,True,61,True,False,False,False,False,True,7,,,False,exams_part0.hdf5",
        "12,300,False,61,False,False,False,False,False,False,7,,,True,exams_part0.hdf5",
        "13,50,False,61,False,False,False,False,False,False,8,,,True,exams_part0.hdf5",
        "14,50,False,61,False,False,False,False,False,False,9,,,True,exams_part0.hdf5",
        "15,50,False,61,False,False,False,False,False,False,9,,,True,exams_part1.hdf5",
    ]
    head = "exam_id,age,is_male,nn_predicted_age,1dAVb,RBBB,LBBB,SB,ST,AF,patient_id,death,timey,normal_ecg,trace_file"
    (tmp_path / "exams.csv").write_text("\n".join([head, *rows, ""]))
    summary, records, signals = run("code15", tmp_path, tmp_path / "out")
    assert any("1 of 2 shards are not there" in note for note in summary.notes)
    assert records["status"].tolist() == ["ok", "ok", "bad", "bad"]
    assert [list(x) for x in records["dx"]] == [["1dAVb", "AF"], [], [], []]
    assert records["sex"].tolist() == [0, 1, 1, 1]
    assert records["age"].isna().tolist() == [False, True, False, False]
    assert records["n_samples"].tolist()[:2] == [3999, 2800]  # the sine begins with a zero of its own
    assert (signals.valid[1], signals.rates_of(slice(0, 4)).tolist()) == (2800, [400.0, 400.0, 0.0, 0.0])
    expected = np.sin(2 * np.pi * 5 * (np.arange(3999) + 1) / 400) * 0.2
    assert np.abs(signals.signals[0][1, :3999] / 1000 - expected).max() < 0.001


def test_enecg_jsonl(tmp_path):
    wfdb.wrsamp(
        "5",
        500,
        ["mV"],
        ["II"],
        p_signal=np.random.default_rng(0).normal(0, 1, (5000, 1)),
        fmt=["16"],
        write_dir=str(tmp_path),
    )
    rows = [
        {"subject_id": 1, "ecg_path": "5", "rr_interval": 800, "age": 60, "gender": "F", "flag": 1, "report_label": 3},
        {
            "subject_id": 1,
            "ecg_path": "../5",
            "rr_interval": 29999,
            "age": -999,
            "gender": 0,
            "flag": None,
            "report_label": 15,
        },
    ]
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    _, records, _ = run("enecg-jsonl", tmp_path, tmp_path / "out")
    assert records["status"].tolist() == ["ok", "bad"]
    assert records.loc[0, ["rr_interval", "age", "gender", "flag", "report_label"]].tolist() == [800, 60, 1, 1, 3]
    assert records.loc[1, ["rr_interval", "age", "flag", "report_label"]].isna().all()
    assert records.loc[1, "gender"] == 0
    (tmp_path / "all.jsonl").write_text('{"ecg_path": "5"}\n[' * 2)
    with pytest.raises(EnsembleError, match="line 2: not JSON"):
        open_cohort("enecg-jsonl", tmp_path).entries()


@pytest.mark.parametrize("kind", ["npy", "npy-time-first", "h5", "parquet"])
def test_arrays(tmp_path, kind):
    signals = np.random.default_rng(0).normal(0, 300, (4, 12, 2500))
    name = f"x.{kind.split('-')[0]}"
    if kind == "h5":
        with h5py.File(tmp_path / name, "w") as file:
            file["signals"] = signals
    elif kind == "parquet":
        columns = {lead: pa.array(list(signals[:, k])) for k, lead in enumerate(LEADS)}
        pq.write_table(pa.table(columns), tmp_path / name, row_group_size=3)
    else:
        np.save(tmp_path / name, signals if kind == "npy" else signals.transpose(0, 2, 1))
    pd.DataFrame({"name": list("abcd"), "who": list("xxyz"), "y": [1.5, 2, 3, 4]}).to_csv(
        tmp_path / "l.csv", index=False
    )
    options = {"file": name, "rate_hz": 500, "units": "uV", "labels": "l.csv", "id": "name", "patient": "who"}
    _, records, stored = run("arrays", tmp_path, tmp_path / "out", options)
    assert records["record_id"].tolist() == list("abcd")
    assert records["patient_id"].tolist() == list("xxyz")
    assert records["y"].tolist() == [1.5, 2, 3, 4]
    assert np.array_equal(stored.read_uv(slice(0, 4))[:, :, :2500], np.rint(signals))
    assert np.asarray(stored.valid).tolist() == [2500] * 4


def test_parquet_columns_that_are_no_lists_are_refused(tmp_path):
    pq.write_table(pa.table({lead: [1.0, 2.0] for lead in LEADS}), tmp_path / "x.parquet")
    with pytest.raises(EnsembleError, match="column 'I' holds double, not a list of samples a record"):
        open_cohort("arrays", tmp_path, {"file": "x.parquet", "rate_hz": 500}).entries()


def test_a_malformed_row_of_labels_row_for_row_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 12, 500)))
    (tmp_path / "l.csv").write_text("y,z\n1,a\n2,b,?\n3,c\n")
    with pytest.raises(EnsembleError, match="1 rows have a wrong number of cells"):
        open_cohort("arrays", tmp_path, {"file": "x.npy", "rate_hz": 500, "labels": "l.csv"}).entries()


def test_arrays_refuse_what_is_no_array(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    for name, says in (
        ("x.npy", "not a .npy file of numbers"),
        ("y.npy", "does not exist"),
        ("../x.npy", "leaves|does not exist"),
    ):
        with pytest.raises(EnsembleError, match=says):
            open_cohort("arrays", tmp_path, {"file": name, "rate_hz": 500}).entries()
