import shutil

import numpy as np
import pandas as pd
import pytest
import wfdb
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import open_records
from cache.errors import EnsembleError, InputError
from cache.records import target_array, write_records
from stages.cohorts import open_cohort
from stages.ingest.record_table import new_rows
from stages.scoring.predictions import open_predictions, writing_predictions
from stages.scoring.summary import summarise
from tests.ingesting import ingest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    for k in range(6):
        home = folder / f"g{k % 2}"
        home.mkdir(exist_ok=True)
        signal = np.random.default_rng(k).normal(0, 0.3, (500, 2))
        wfdb.wrsamp(f"r{k}", 500, ["mV", "mV"], ["I", "II"], p_signal=signal, fmt=["16", "16"], write_dir=str(home))
    return folder


def labels(tmp_path, **columns):
    path = tmp_path / "labels.csv"
    pd.DataFrame(columns).to_csv(path, index=False)
    return {"labels": str(path)}


NAMES = [f"r{k}" for k in range(6)]


def test_kinds_follow_from_the_cells(folder, tmp_path):
    options = labels(
        tmp_path,
        record=NAMES,
        who=["a", "a", "b", "b", "c", None],
        age=[50, 61, None, 70, 71, 72],
        ill=[0, 1, 1, 0, None, 0],
        sex=["M", "F", "F", "M", "M", "M"],
        rhythm=["sinus", "af", "flutter", "sinus", "sinus", None],
        notes=["a;b", "b", None, "c", "a", "c;b"],
    )
    entries = open_cohort("wfdb", folder, {**options, "patient": "who"}).entries()
    kinds = {t.name: (t.kind, t.classes) for t in entries.targets}
    assert kinds == {
        "age": ("regression", ()),
        "ill": ("binary", ("0.0", "1.0")),
        "sex": ("binary", ("F", "M")),
        "rhythm": ("multiclass", ("af", "flutter", "sinus")),
        "notes": ("multilabel", ("a", "b", "c")),
    }
    frame = entries.frame.set_index("record_id")
    assert frame.loc["r5", "patient_id"] is None
    assert frame.loc[NAMES, "ill"].tolist()[:4] == [0, 1, 1, 0]
    assert frame.loc["r5", "notes"] == ["b", "c"]
    assert frame.loc["r2", "notes"] is None
    assert frame.loc["r1", "rhythm"] == 0
    assert frame.loc["r0", "path"] == "g0/r0"


def test_kinds_may_be_given_and_keys_may_be_paths(folder, tmp_path):
    options = labels(tmp_path, path=[f"g{k % 2}/r{k}.hea" for k in range(6)], grade=[1, 2, 3, 1, 2, 3])
    entries = open_cohort("wfdb", folder, {**options, "kinds": {"grade": "multiclass"}}).entries()
    assert entries.targets[0].classes == ("1", "2", "3")
    assert entries.frame.set_index("record_id").loc[NAMES, "grade"].tolist() == [0, 1, 2, 0, 1, 2]


def test_folds_of_the_table_are_kept(folder, tmp_path):
    options = labels(tmp_path, record=NAMES, cv=[0, 0, 1, 1, 2, 2], y=[1, 2, 3, 4, 5, 6])
    ingest(
        "wfdb", folder, {**options, "fold": "cv"}, records_path=tmp_path / "r.parquet", signals_path=tmp_path / "s.zarr"
    )
    records = open_records(tmp_path / "r.parquet").set_index("record_id").loc[NAMES]
    assert records["split"].tolist() == ["train", "train", "val", "val", "test", "test"]


def test_a_patient_in_two_folds_is_refused(folder, tmp_path):
    options = labels(tmp_path, record=NAMES, who=["a"] * 6, cv=[0, 0, 1, 1, 2, 2], y=[1, 2, 3, 4, 5, 6])
    with pytest.raises(InputError, match="patient 'a' is in more than one fold"):
        ingest(
            "wfdb",
            folder,
            {**options, "fold": "cv", "patient": "who"},
            records_path=tmp_path / "r.parquet",
            signals_path=tmp_path / "s.zarr",
        )


@pytest.mark.parametrize(
    ("columns", "options", "says"),
    [
        ({"record": NAMES, "y": [None] * 6}, {}, "label column 'y' is empty"),
        ({"record": [f"x{k}" for k in range(6)], "y": range(6)}, {}, "none of its 6 keys .*'x0'.* is a record"),
        ({"record": ["r0", "r0"], "y": [1, 2]}, {}, "names the record 'r0' more than once"),
        ({"record": NAMES, "y": range(6)}, {"id": "name"}, r"no column 'name' \(option 'id'\); it has: record, y"),
        ({"record": NAMES, "y": range(6)}, {"targets": ["z"]}, "no column 'z'"),
        ({"record": NAMES, "y": range(6)}, {"patient": "z"}, "no column 'z'"),
        ({"record": NAMES, "y": range(6)}, {"kinds": {"y": "binary"}}, "has 6 values; it cannot be binary"),
        ({"record": NAMES, "y": list("abcdef")}, {"kinds": {"y": "regression"}}, "holds no number"),
        ({"record": NAMES, "y": list("abcdef")}, {"fold": "y"}, "is not a whole number from 0 up"),
        ({"record": NAMES, "status": range(6)}, {"targets": ["status"]}, "a target cannot be named 'status'"),
        ({"record": [], "y": []}, {}, "lists no record"),
    ],
)
def test_mistakes_in_the_table_are_named(folder, tmp_path, columns, options, says):
    with pytest.raises(EnsembleError, match=says) as caught:
        open_cohort("wfdb", folder, {**labels(tmp_path, **columns), **options}).entries()
    assert "\n" not in str(caught.value)


def test_keys_without_a_record_and_records_without_a_row_are_counted(folder, tmp_path):
    entries = open_cohort("wfdb", folder, labels(tmp_path, record=["r0", "r1", "zz"], y=[1, 2, 3])).entries()
    assert any("1 keys (such as 'zz') have no record" in note for note in entries.notes)
    assert any("4 records have no row" in note for note in entries.notes)


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no WFDB header"):
        open_cohort("wfdb", tmp_path).entries()


def test_a_key_that_names_two_records_is_refused(folder, tmp_path):
    home = tmp_path / "in"
    for name in ("a", "b"):
        shutil.copytree(folder / "g0", home / name)
    with pytest.raises(InputError, match=r"key 'r0' names 2 records .*'a/r0' and 'b/r0'.*give their paths"):
        open_cohort("wfdb", home, labels(tmp_path, record=["r0"], y=[1])).entries()
    frame = open_cohort("wfdb", home, labels(tmp_path, record=["a/r0", "b/r0"], y=[1, 2])).entries().frame
    assert frame.set_index("record_id").loc[["a/r0", "b/r0"], "y"].tolist() == [0, 1]
    for suffix in (".hea", ".dat"):
        shutil.copy(folder / "g0" / f"r0{suffix}", home)
    frame = open_cohort("wfdb", home, labels(tmp_path, record=["r0"], y=[1])).entries().frame
    assert frame.loc[frame["y"].notna(), "path"].tolist() == ["r0"]  # the path of one, the file name of others


def test_a_record_named_by_its_path_and_by_its_file_name_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="names the record 'g0/r0' more than once, by its path and by its file name"):
        open_cohort("wfdb", folder, labels(tmp_path, record=["g0/r0", "r0"], y=[1, 2])).entries()


@pytest.mark.parametrize("source", ["wfdb", "challenge"])
def test_segments_are_no_records_of_their_own(tmp_path, source):
    for k in range(2):
        signal = np.random.default_rng(k).normal(0, 0.3, (500, 2))
        wfdb.wrsamp(f"s{k}", 500, ["mV"] * 2, ["I", "II"], p_signal=signal, fmt=["16"] * 2, write_dir=str(tmp_path))
    (tmp_path / "whole.hea").write_text("whole/2 2 500 1000\ns0 500\ns1 500\n")
    (tmp_path / "itself.hea").write_text("itself/1 2 500 500\nitself 500\n")
    found = open_cohort(source, tmp_path).entries()
    assert found.frame["record_id"].tolist() == ["itself", "whole"]
    assert any("2 headers are segments of other records" in note for note in found.notes)


def test_cells_that_say_not_known_are_null(folder, tmp_path):
    columns = {
        "record": NAMES,
        "who": ["a", "NaN", "b", "b", "NA", "a"],
        "age": ["40", "NaN", "43", "45", "47", "51"],
        "rhythm": ["None", "af", "sinus", "flutter", "null", "nan"],
    }
    found = open_cohort("wfdb", folder, {**labels(tmp_path, **columns), "patient": "who"}).entries()
    assert [(t.name, t.kind, t.classes) for t in found.targets] == [
        ("age", "regression", ()),
        ("rhythm", "multiclass", ("af", "flutter", "sinus")),
    ]
    frame = found.frame.set_index("record_id").loc[NAMES]
    assert frame["age"].isna().tolist() == [False, True, False, False, False, False]
    assert frame["rhythm"].isna().tolist() == [True, False, False, False, True, True]
    assert frame["patient_id"].isna().tolist() == [False, True, False, False, True, False]


def test_columns_that_are_no_labels_for_their_names_are_named(folder, tmp_path):
    found = open_cohort("wfdb", folder, labels(tmp_path, record=NAMES, status=["ok"] * 6, y=range(6))).entries()
    assert [t.name for t in found.targets] == ["y"]
    assert "labels.csv: not taken for labels, for their names: status" in found.notes


def test_numbers_that_are_none_are_counted(folder, tmp_path):
    options = labels(tmp_path, record=NAMES, age=["40", "about 50", "43", "45", "47", "51"])
    found = open_cohort("wfdb", folder, {**options, "kinds": {"age": "regression"}}).entries()
    assert "age: 1 cells are no number and become null" in found.notes


@pytest.mark.parametrize("name", ["patient_id", "subject_id"])
def test_a_column_of_patients_is_used_without_being_named(folder, tmp_path, name):
    options = labels(tmp_path, record=NAMES, y=range(6), **{name: list("aabbcc")})
    found = open_cohort("wfdb", folder, options).entries()
    assert found.frame.set_index("record_id").loc[NAMES, "patient_id"].tolist() == list("aabbcc")
    assert [t.name for t in found.targets] == ["y"]
    assert any(f"those of column '{name}'" in note for note in found.notes)
    other = open_cohort("wfdb", folder, {**options, "patient": "y"}).entries()
    assert other.frame.set_index("record_id").loc[NAMES, "patient_id"].tolist() == list("012345")


def test_another_column_of_patients_is_no_label(folder, tmp_path):
    options = labels(tmp_path, record=NAMES, subject_id=range(6), patient_id=list("aabbcc"), y=range(6))
    found = open_cohort("wfdb", folder, options).entries()
    assert [t.name for t in found.targets] == ["y"]
    assert "labels.csv: not taken for labels, for their names: subject_id" in found.notes
    asked = open_cohort("wfdb", folder, {**options, "targets": ["subject_id"], "patient": "patient_id"}).entries()
    assert [t.name for t in asked.targets] == ["subject_id"]


CELL = st.text(alphabet=st.sampled_from(list('r012345;,"\n.x µ\0-')), max_size=8)
ANY = CELL.map(str.encode) | st.sampled_from([b"\xff", b"\xed\xa0\x80"])
USUAL = st.sampled_from([b"0", b"1", b"2.5", b"NaN", b"", b"a;b", b"b", "é".encode(), b'"x\ny"', b"1e400"])
LINES = st.lists(st.lists(ANY, min_size=1, max_size=4), max_size=12)
ROWS = st.lists(
    st.tuples(st.sampled_from(NAMES).map(str.encode), USUAL, USUAL), min_size=3, unique_by=lambda row: row[0]
)
TABLE = (LINES | ROWS | ROWS).map(lambda rows: b"\n".join(b",".join(row) for row in rows))
GOOD = st.sampled_from([b"record,y,x\n", b"record,patient_id,y\n"])
HEAD = GOOD | GOOD | st.sampled_from([b"", b"record,y,cv\n", b"record,y,pace_spikes\n"])


@settings(max_examples=150, deadline=None)
@given(HEAD, TABLE)
def test_any_table_gives_folds_and_a_table_or_is_refused_in_one_line(folder, tmp_path_factory, head, text):
    base = tmp_path_factory.getbasetemp()
    path = base / "fuzz.csv"
    path.write_bytes(head + text)
    options = {"labels": str(path), **({"fold": "cv"} if b"cv" in head else {})}
    said = ""
    try:
        rows = new_rows(open_cohort("wfdb", folder, options).entries(), "wfdb", None, 0)
    except EnsembleError as error:
        said = str(error)
    else:
        quality = {"sampling_rate_hz": 500.0, "n_samples": 500, "nan_fraction": 0.0, "clipped_fraction": 0.0}
        frame = rows.frame.assign(**quality, status="ok", reason=None, flat_leads=None, missing_leads=None)
        write_records(base / "fuzz.parquet", frame, rows.targets)
        records = open_records(base / "fuzz.parquet")
        assert records["record_id"].tolist() == NAMES[::2] + NAMES[1::2]
        assert list(records.attrs["targets"]) == [target.name for target in rows.targets]
        for target in rows.targets:
            assert len(target_array(records, target)) == 6
    assert len(said.splitlines()) <= 1


@pytest.mark.parametrize(
    ("sex", "groups"),
    [
        (["M", "F", "F", "F", "M", "F"], {"female": {1, 2, 3, 5}, "male": {0, 4}}),
        (["female", "male", "male", "male", "female", "male"], {"female": {0, 4}, "male": {1, 2, 3, 5}}),
        ([1, 0, 0, 0, 1, 0], {"0": {1, 2, 3, 5}, "1": {0, 4}}),
        (["F", "M", "X", "M", "F", "M"], {"X": {2}, "female": {0, 4}, "male": {1, 3, 5}}),
    ],
)
def test_subgroups_by_sex_are_named_by_what_the_labels_say(folder, tmp_path, sex, groups):
    options = labels(tmp_path, record=NAMES, age=[50, 61, 40, 70, 71, 72], sex=sex)
    ingest("wfdb", folder, options, records_path=tmp_path / "r.parquet", signals_path=tmp_path / "s.zarr")
    records = open_records(tmp_path / "r.parquet")
    ids, age = records["record_id"].to_numpy(), records["age"].to_numpy(float)
    with writing_predictions(tmp_path / "p.parquet", {"age": records.attrs["targets"]["age"]}) as table:
        # the error of record k is k + 1 years: a group's error tells who is in it
        error = np.array([float(name[1:]) + 1 for name in ids])
        table.add("age", "gate", "test", 0, record_ids=ids, patient_ids=ids, y_true=age, y_pred=age + error)
    found = summarise(open_predictions(tmp_path / "p.parquet"), records, n_resamples=10)["tasks"]["age"]["subgroups"]
    told = {name: (group["n"], group["methods"]["gate"]["mae"]["value"]) for name, group in found["sex"].items()}
    expected = {name: (len(rows), pytest.approx(np.mean([k + 1 for k in rows]))) for name, rows in groups.items()}
    assert told == expected
