import ast
import shutil

import numpy as np
import pandas as pd
import pytest

from cache import open_records, target_array
from cache.errors import InputError, UsageError
from stages.cohorts import open_cohort
from stages.learning.data import task_specs
from tests.ingesting import ingest


def test_labels_equal_an_independent_reading(test_data, tmp_path):
    folder = test_data / "ptbxl"
    ingest("ptbxl", folder, records_path=tmp_path / "r.parquet", signals_path=tmp_path / "s.zarr")
    records = open_records(tmp_path / "r.parquet")
    table = pd.read_csv(folder / "ptbxl_database.csv").assign(codes=lambda t: t["scp_codes"].map(ast.literal_eval))
    statements = pd.read_csv(folder / "scp_statements.csv", index_col=0)
    diagnostic = statements[statements["diagnostic"] == 1]
    groups = {
        "superclass": diagnostic["diagnostic_class"].dropna().to_dict(),
        "subclass": diagnostic["diagnostic_subclass"].dropna().to_dict(),
        "diag44": {c: c for c in diagnostic.index},
        "form": {c: c for c in statements.index[statements["form"] == 1]},
        "rhythm": {c: c for c in statements.index[statements["rhythm"] == 1]},
        "all71": {c: c for c in statements.index},
    }
    sizes = {"superclass": 5, "subclass": 23, "diag44": 44, "form": 19, "rhythm": 12, "all71": 71}
    assert records["record_id"].tolist() == table["ecg_id"].astype(str).tolist()
    assert records["patient_id"].tolist() == table["patient_id"].astype(int).astype(str).tolist()
    for name, of in groups.items():
        target = records.attrs["targets"][name]
        assert target.classes == tuple(sorted(set(of.values())))
        assert len(target.classes) == sizes[name]
        hot = np.array(
            [[float(any(of.get(c) == k for c in codes)) for k in target.classes] for codes in table["codes"]]
        )
        hot[hot.sum(axis=1) == 0] = np.nan
        assert np.array_equal(target_array(records, target), hot, equal_nan=True)
    above = {"subclass": "superclass"} | dict.fromkeys(("diag44", "form", "all71"), "subclass")
    for name, of in groups.items():
        pairs = [(child, groups[above[name]].get(code)) for code, child in of.items()] if name in above else []
        expected = {(child, above[name], parent) for child, parent in pairs if parent is not None}
        assert set(records.attrs["targets"][name].parents) == expected
    assert ("IMI", "subclass", "IMI") in records.attrs["targets"]["all71"].parents
    assert [task.parents for task in task_specs([records.attrs["targets"]["subclass"]])] == [
        records.attrs["targets"]["subclass"].parents
    ]
    assert np.array_equal(records["age"], table["age"].where(table["age"] < 300), equal_nan=True)
    assert records["sex"].tolist() == table["sex"].tolist()
    assert records["fold"].tolist() == (table["strat_fold"] - 1).tolist()
    assert (records["split"] == table["strat_fold"].map({9: "val", 10: "test"}).fillna("train")).all()


def copy(test_data, folder, change):
    folder.mkdir()
    shutil.copy(test_data / "ptbxl" / "scp_statements.csv", folder)
    table = pd.read_csv(test_data / "ptbxl" / "ptbxl_database.csv", dtype=str).head(5)
    change(table)
    table.to_csv(folder / "ptbxl_database.csv", index=False)
    return folder


def test_the_low_rate_files_are_an_option(test_data):
    cohort = open_cohort("ptbxl", test_data / "ptbxl", {"rate": 100})
    entries = cohort.entries()
    assert cohort.read(entries.frame["path"][0]).rate_hz == 100
    with pytest.raises(UsageError, match="500 and 100, got 250"):
        open_cohort("ptbxl", test_data / "ptbxl", {"rate": 250}).entries()


def test_some_folds_alone_can_be_taken(test_data):
    every = open_cohort("ptbxl", test_data / "ptbxl").entries().frame
    some = open_cohort("ptbxl", test_data / "ptbxl", {"strat_folds": [1, 9]}).entries().frame
    assert set(some["fold"]) == {0, 8}
    assert some["record_id"].tolist() == every.loc[every["fold"].isin([0, 8]), "record_id"].tolist()
    with pytest.raises(UsageError, match="strat_folds"):
        open_cohort("ptbxl", test_data / "ptbxl", {"strat_folds": [11]})


def test_a_likelihood_threshold_touches_diagnostic_statements_only(test_data, tmp_path):
    def change(table):
        table["scp_codes"] = "{'NORM': 80.0, 'IMI': 15.0, 'LVOLT': 0.0, 'SR': 0.0}"

    folder = copy(test_data, tmp_path / "p", change)
    strict = open_cohort("ptbxl", folder, {"likelihood": 50}).entries().frame.loc[0]
    assert strict["superclass"] == ["NORM"]
    assert strict["all71"] == ["LVOLT", "NORM", "SR"]
    assert open_cohort("ptbxl", folder).entries().frame.loc[0, "superclass"] == ["MI", "NORM"]


@pytest.mark.parametrize(
    "cell",
    ["{", "{'NORM': __import__('os')}x", "[1, 2]", "{'A': 1 " + "  " * 3000, "{" + "'A': 1.0, " * 400 + "!", None],
)
def test_statements_that_cannot_be_read_are_null_with_a_note(test_data, tmp_path, cell):
    def change(table):
        table.loc[1, "scp_codes"] = cell

    entries = open_cohort("ptbxl", copy(test_data, tmp_path / "p", change)).entries()
    assert entries.frame.loc[1, "all71"] is None
    assert any("1 scp_codes cells" in note for note in entries.notes)


def test_ages_over_89_are_null_with_a_count(test_data, tmp_path):
    def change(table):
        table.loc[0, "age"], table.loc[1, "age"] = "300.0", "NaN"

    entries = open_cohort("ptbxl", copy(test_data, tmp_path / "p", change)).entries()
    assert entries.frame["age"].isna().tolist() == [True, True, False, False, False]
    assert any("1 patients over 89" in note for note in entries.notes)


def test_a_wrong_fold_is_refused(test_data, tmp_path):
    def change(table):
        table.loc[0, "strat_fold"] = "11"

    with pytest.raises(InputError, match="strat_fold is not a number from 1 to 10"):
        open_cohort("ptbxl", copy(test_data, tmp_path / "p", change)).entries()
