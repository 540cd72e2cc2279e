"""Tables of labels as people have them: which row is which record, and what its columns mean."""

import numpy as np
import pandas as pd
import pytest

from cache.errors import EnsembleError, InputError
from stages.cohorts import open_cohort
from tests.ingesting import ingest
from tests.stages.wfdb_files import ecg_mv, write_record

N = 24
NAMES = [f"r{k:03d}" for k in range(N)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    for k, name in enumerate(NAMES):
        write_record(folder / "data" / f"g{k % 2}", name, ecg_mv(500, leads=1), ("II",))
    return folder


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """Records whose names are numbers with zeros before them."""
    folder = tmp_path_factory.mktemp("numbered")
    for k in range(N):
        write_record(folder, f"{k + 8:05d}", ecg_mv(500, leads=1), ("II",))
    return folder


def entries(folder, tmp_path, text, name="labels.csv", **options):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return open_cohort("wfdb", folder, {"labels": str(tmp_path / name), **options}).entries()


def column(folder, tmp_path, cells, name="y", **options):
    """Return the one target that a column of cells gives, its values in order of the records, and the notes."""
    text = "\n".join([f"record,{name}", *(f'{record},"{cell}"' for record, cell in zip(NAMES, cells, strict=True))])
    found = entries(folder, tmp_path, text, **options)
    values = found.frame.set_index("record_id").loc[NAMES, name].tolist() if found.targets else None
    return (
        found.targets[0] if found.targets else None,
        values,
        [note for note in found.notes if f"{name}:" in note or f"'{name}'" in note],
    )


AGES = [str(40 + k) for k in range(N)]


@pytest.mark.parametrize(
    ("cells", "expected", "says"),
    [
        ([f"{40 + k},5" for k in range(N)], [40.5 + k for k in range(N)], "decimal commas are read as points"),
        ([*AGES[:-1], "90+"], [*map(float, AGES[:-1]), np.nan], "1 cells are no number and become null ('90+')"),
        ([*AGES[:-1], ">89"], [*map(float, AGES[:-1]), np.nan], "become null ('>89')"),
        ([f"{40 + k:03d}Y" for k in range(N)], [40.0 + k for k in range(N)], "ages such as 063Y are read as years"),
        ([f"{40 + k} years" for k in range(N)], [40.0 + k for k in range(N)], "the unit 'years' is taken off"),
        (
            [f"\N{MINUS SIGN}{k + 1}" for k in range(N)],
            [-k - 1.0 for k in range(N)],
            "the sign \N{MINUS SIGN} is read as -",
        ),
        (
            [str(k % 4) for k in range(N)],
            [float(k % 4) for k in range(N)],
            "4 different whole numbers are a regression; {kinds: {y: multiclass}} makes them classes",
        ),
        ([f"1,{k:03d}.5" for k in range(N)], [1000.5 + k for k in range(N)], "commas are taken off numbers"),
        ([*AGES[:-2], "unknown", "?"], [*map(float, AGES[:-2]), np.nan, np.nan], "2 cells are no number"),
    ],
)
def test_numbers_that_are_spelt_otherwise_stay_numbers(folder, tmp_path, cells, expected, says):
    target, values, notes = column(folder, tmp_path, cells)
    assert target.kind == "regression"
    assert np.array_equal(values, expected, equal_nan=True)
    assert any(says in note for note in notes), notes


def test_zero_and_zero_point_zero_are_one_value(folder, tmp_path):
    target, values, notes = column(folder, tmp_path, ["0", "0.0", "1"] * 8)
    assert (target.kind, target.classes, values) == ("binary", ("0", "1"), [0, 0, 1] * 8)
    assert any("are 0 and 1" in note for note in notes)


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ([f"2020-01-{k + 1:02d}" for k in range(N)], "holds dates ('2020-01-01', '2020-01-03'"),
        ([f"{k + 1}.3.2021" for k in range(N)], "holds dates"),
        ([f"202103{k + 1:02d}" for k in range(N)], "holds dates"),
        ([f"2021-03-01 12:{k:02d}:00" for k in range(N)], "holds dates"),
        ([f"P{k * 7919:06d}X" for k in range(N)], "another text for nearly every record, 24 of 24"),
        ([f"00{k + 100}" for k in range(N)], "as identifiers do"),
        ([f"finding {k}, seen by Dr {k * 3}; possible change number {k}" for k in range(N)], "free text"),
        ([f"1,{k + 100}" for k in range(N)], "may be thousands or a decimal comma; say which by the option 'decimal'"),
    ],
)
def test_what_is_no_label_is_left_out_aloud_and_refused_where_it_is_asked_for(folder, tmp_path, cells, says):
    target, _, notes = column(folder, tmp_path, cells)
    assert target is None
    assert any(says in note and "cohort.options: {kinds: {y:" in note for note in notes), notes
    if "identifiers" not in says:
        with pytest.raises(InputError, match="column 'y' is not taken for a label"):
            column(folder, tmp_path, cells, targets=["y"])


def test_an_option_settles_each(folder, tmp_path):
    dates = [f"2020-01-{k % 5 + 1:02d}" for k in range(N)]
    assert column(folder, tmp_path, dates, kinds={"y": "multiclass"})[0].classes == tuple(sorted(set(dates)))
    commas = [f"1,{k + 100}" for k in range(N)]
    assert column(folder, tmp_path, commas, decimal=",")[1][0] == pytest.approx(1.1)
    assert column(folder, tmp_path, commas, decimal=".")[1][0] == 1100
    padded = [f"00{k + 100}" for k in range(N)]
    assert column(folder, tmp_path, padded, kinds={"y": "regression"})[1][0] == 100
    assert column(folder, tmp_path, padded, targets=["y"])[0].kind == "regression"
    assert column(folder, tmp_path, [*AGES[:-1], "90+"], kinds={"y": "multiclass"})[0].kind == "multiclass"


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["AF", "SR", "AFL", "AF"] * 6, "multiclass"),
        (["AF;AFL", "SR", "AF", "AF"] * 6, "multilabel"),
        (["1", "2", "3", "4", "other", "1"] * 4, "multiclass"),
        (["yes", "no"] * 12, "binary"),
        (AGES, "regression"),
        ([f"{0.01 * k:.2f}" for k in range(N)], "regression"),
        (["2020", "2021", "2019"] * 8, "regression"),
    ],
)
def test_usual_columns_are_what_they_were(folder, tmp_path, cells, kind):
    target, _, notes = column(folder, tmp_path, cells)
    assert (target.kind, [note for note in notes if "makes them classes" not in note]) == (kind, [])


@pytest.mark.parametrize(
    ("both", "one", "options"),
    [
        ("['AF', 'LBBB']", "['SR']", {}),
        ("[AF, LBBB]", "[SR]", {}),
        ("{'AF','LBBB'}", "{'SR'}", {}),
        ("AF|LBBB", "SR", {"separators": {"y": "|"}}),
        ("AF, LBBB", "SR", {"separators": {"y": ","}}),
        ("AF/LBBB", "SR", {"separators": {"y": "/"}}),
    ],
)
def test_several_findings_in_a_cell_are_a_multilabel(folder, tmp_path, both, one, options):
    target, values, _ = column(folder, tmp_path, [both if k % 2 else one for k in range(N)], **options)
    assert (target.kind, target.classes) == ("multilabel", ("AF", "LBBB", "SR"))
    assert values[:2] == [["SR"], ["AF", "LBBB"]]


def test_lists_may_be_empty_and_cells_that_look_like_lists_are_said(folder, tmp_path):
    _, values, notes = column(folder, tmp_path, ["[]", "", *["['AF', 'SR']"] * (N - 2)])
    assert (values[0], values[1], values[2]) == ([], None, ["AF", "SR"])
    assert any("lists such as [] are read as findings" in note for note in notes)
    target, _, notes = column(folder, tmp_path, [["AF", "SR", "AF|SR"][k % 3] for k in range(N)])
    assert target.kind == "multiclass"
    assert any("'AF|SR' may be 2 findings in one cell; {separators: {y: '|'}} parts them" in note for note in notes)
    assert not any("findings" in note for note in column(folder, tmp_path, ["1/2", "1"] * (N // 2))[2])


def test_a_column_that_says_yes_alone_is_told(folder, tmp_path):
    target, _, notes = column(folder, tmp_path, ["X" if k % 2 else "" for k in range(N)])
    assert target.kind == "binary"
    assert any("say 'X'; an empty one is null, write 0 where it is absent" in note for note in notes)


def test_a_number_that_names_the_row_is_no_label(folder, tmp_path):
    target, _, notes = column(folder, tmp_path, [str(5000 + 7 * k) for k in range(N)], name="study_nr")
    assert target is None
    assert any("as identifiers do" in note for note in notes)


def test_classes_that_differ_in_case_only_are_said(folder, tmp_path):
    target, _, notes = column(folder, tmp_path, ["Yes", "yes", "No"] * 8)
    assert target.classes == ("No", "Yes", "yes")
    assert any("Yes, yes differ in case or blanks only" in note for note in notes)


@pytest.mark.parametrize("row", ["r000,N", "data/g0/r000,N", "data\\g0\\r000.hea,N"])
def test_a_table_without_a_head_is_refused_and_its_columns_can_be_named(folder, tmp_path, row):
    text = "\n".join([row, *(f"{name},{'NA'[k % 2]}" for k, name in enumerate(NAMES[1:]))]) + "\n"
    with pytest.raises(InputError, match=r"has no head, its first row is a record's.*option 'columns'"):
        entries(folder, tmp_path, text)
    found = entries(folder, tmp_path, text, columns=["record", "rhythm"])
    assert found.targets[0].classes == ("A", "N") or found.targets[0].classes == ("N",)
    assert found.frame.set_index("record_id").loc["r000", "rhythm"] == found.targets[0].classes.index("N")


@pytest.mark.parametrize(
    "spelt",
    [
        lambda path: path,
        lambda path: f"./{path}.hea",
        lambda path: path.replace("/", "\\") + ".dat",
        lambda path: f"C:\\Users\\me\\study\\{path}.mat".replace("/", "\\"),
        lambda path: f"/mnt/other/place/{path}",
        lambda path: f"../elsewhere/{path}",
        lambda path: path.rsplit("/", 1)[-1].upper(),
        lambda path: "another/prefix/" + path.rsplit("/", 1)[-1],
    ],
)
def test_keys_are_paths_in_any_spelling(folder, tmp_path, spelt):
    paths = {name: f"data/g{k % 2}/{name}" for k, name in enumerate(NAMES)}
    text = "\n".join(["FileName,age", *(f"{spelt(paths[name])},{50 + k}" for k, name in enumerate(NAMES))])
    found = entries(folder, tmp_path, text)
    assert found.frame.set_index("record_id").loc[NAMES, "age"].tolist() == [50 + k for k in range(N)]


def test_zeros_that_a_spreadsheet_ate_are_put_back_where_that_is_unambiguous(numbered, tmp_path):
    for spelt in (str, lambda k: f"{k}.0"):
        text = "\n".join(["ecg_id,age", *(f"{spelt(k + 8)},{50 + k}" for k in range(N))])
        found = entries(numbered, tmp_path, text)
        names = [f"{k + 8:05d}" for k in range(N)]
        assert found.frame.set_index("record_id").loc[names, "age"].tolist() == [50 + k for k in range(N)]
        assert any("without the zeros or the .0" in note for note in found.notes)


def test_zeros_that_could_be_two_records_are_not_guessed(tmp_path):
    for name in ("7", "007", "8"):
        write_record(tmp_path / "in", name, ecg_mv(500, leads=1), ("II",))
    found = entries(tmp_path / "in", tmp_path, "record,y\n07,1\n8,2\n")
    assert found.frame.set_index("record_id")["y"].isna().to_dict() == {"007": True, "7": True, "8": False}
    assert any("1 keys (such as '07') have no record" in note for note in found.notes)


def test_an_index_beside_the_table_is_neither_key_nor_label(folder, tmp_path):
    for head in ("", "Unnamed: 0", "index"):
        rows = (f"{k},{50 + k},{name}" for k, name in enumerate(NAMES))
        found = entries(folder, tmp_path, "\n".join([f"{head},age,Recording", *rows]))
        assert [target.name for target in found.targets] == ["age"]
        assert any("column 'Recording' names the records" in note for note in found.notes)


def test_one_finding_a_row_is_a_multilabel(folder, tmp_path):
    rows = [f"{name},{50 + k},{dx}" for k, name in enumerate(NAMES) for dx in (["AF", "LBBB"] if k % 2 else ["SR"])]
    found = entries(folder, tmp_path, "\n".join(["record,age,dx", *rows]))
    kinds = {target.name: (target.kind, target.classes) for target in found.targets}
    assert kinds == {"age": ("regression", ()), "dx": ("multilabel", ("AF", "LBBB", "SR"))}
    frame = found.frame.set_index("record_id").loc[NAMES]
    assert (frame["dx"].iloc[0], frame["dx"].iloc[1]) == (["SR"], ["AF", "LBBB"])
    assert any("12 records have several rows; their cells of 'dx' are joined" in note for note in found.notes)


TIDY = [
    (name, label, value, unit)
    for k, name in enumerate(NAMES)
    for label, value, unit in (
        ("age", 40 + k, "years"),
        ("sex", "MF"[k % 2], ""),
        *([("rhythm", "AF", ""), ("rhythm", "LBBB", "")] if k % 3 else [("rhythm", "SR", "")]),
        *([("potassium", f"{3 + k / 10:.1f}", "mmol/l")] if k % 4 else []),
    )
]
"""One label a row; some records lack one, some have two rows of one."""


@pytest.mark.parametrize("heads", [("name", "value"), ("Variable", "Result"), ("code", "VAL"), ("Merkmal", "Wert")])
def test_one_label_a_row_gives_a_target_for_each_name(folder, tmp_path, heads):
    lines = [",".join(["record", *heads, "unit"]), *(",".join(map(str, row)) for row in TIDY)]
    found = entries(folder, tmp_path, "\n".join(lines))
    assert {target.name: target.kind for target in found.targets} == {
        "age": "regression",
        "sex": "binary",
        "rhythm": "multilabel",
        "potassium": "regression",
    }
    frame = found.frame.set_index("record_id").loc[NAMES]
    assert frame["age"].tolist() == [40.0 + k for k in range(N)]
    assert frame["sex"].tolist() == [1 - k % 2 for k in range(N)]
    assert frame["rhythm"].tolist() == [["AF", "LBBB"] if k % 3 else ["SR"] for k in range(N)]
    known = [k for k in range(N) if k % 4]
    assert frame["potassium"].iloc[known].tolist() == [round(3 + k / 10, 1) for k in known]
    assert frame["potassium"].isna().sum() == N - len(known)
    assert any(f"one label a row, column '{heads[0]}' says which ('age', 'sex', 'rhythm'" in n for n in found.notes)
    assert any("differ between rows of one record: unit" in note for note in found.notes)


def test_other_heads_of_one_label_a_row_are_refused_and_an_option_settles_it(folder, tmp_path):
    rows = [f"{name},{label},{value}" for name in NAMES for label, value in (("NORM", 80), ("SR", 100 - len(name)))]
    text = "\n".join(["record,statement,likelihood", *rows])
    with pytest.raises(InputError, match=r"in column 'likelihood' .*\{label_names: COLUMN, label_values: likelihood\}"):
        entries(folder, tmp_path, text)
    found = entries(folder, tmp_path, text, label_names="statement", label_values="likelihood")
    assert [target.name for target in found.targets] == ["NORM", "SR"]
    found = entries(folder, tmp_path, text, targets=["statement"])
    assert found.frame["statement"].iloc[0] == ["NORM", "SR"]
    found = entries(folder, tmp_path, text, label_names="statement", label_values="likelihood", targets=["SR"])
    assert [target.name for target in found.targets] == ["SR"]
    with pytest.raises(EnsembleError, match="go together"):
        entries(folder, tmp_path, text, label_names="statement")
    with pytest.raises(InputError, match=r"no column 'finding' \(option 'label_names'\)"):
        entries(folder, tmp_path, text, label_names="finding", label_values="likelihood")


def test_values_that_all_say_yes_leave_the_names_as_findings(folder, tmp_path):
    rows = [f"{name},{dx},1" for k, name in enumerate(NAMES) for dx in (["AF", "LBBB"] if k % 2 else ["SR"])]
    found = entries(folder, tmp_path, "\n".join(["record,finding,value", *rows]))
    assert [(target.name, target.kind) for target in found.targets] == [("finding", "multilabel")]
    assert found.frame.set_index("record_id").loc["r001", "finding"] == ["AF", "LBBB"]
    assert any("column 'value' says yes in every row" in note for note in found.notes)


def test_codes_in_several_rows_are_findings_where_the_study_says_so(folder, tmp_path):
    rows = [f"{name},{dx}" for k, name in enumerate(NAMES) for dx in ([164889003, 164909002] if k % 2 else [426783006])]
    text = "\n".join(["record,dx", *rows])
    with pytest.raises(InputError, match=r"\{kinds: \{dx: multilabel\}\} takes them as findings"):
        entries(folder, tmp_path, text)
    found = entries(folder, tmp_path, text, kinds={"dx": "multilabel"})
    assert found.frame.set_index("record_id").loc["r001", "dx"] == ["164889003", "164909002"]


def test_a_table_of_one_row_a_record_is_not_long_whatever_its_heads(folder, tmp_path):
    rows = [f"{name},{'MF'[k % 2]},{k}" for k, name in enumerate(NAMES)]
    found = entries(folder, tmp_path, "\n".join(["record,label,value", *rows]))
    assert [target.name for target in found.targets] == ["label", "value"]


def test_ingest_says_of_every_label_its_kind_its_classes_or_range_and_how_many_lack_it(folder, tmp_path):
    cells = [(60 + k if k else "", "AF" if k % 3 else "SR", "AF;LBBB" if k % 2 else "SR", k % 2) for k in range(N)]
    rows = [",".join(map(str, (name, *row))) for name, row in zip(NAMES, cells, strict=True)]
    (tmp_path / "labels.csv").write_text("\n".join(["record,age,rhythm,dx,sex", *rows]))
    stores = {"records_path": tmp_path / "records.parquet", "signals_path": tmp_path / "signals.zarr"}
    summary = ingest("wfdb", folder, {"labels": str(tmp_path / "labels.csv")}, **stores)
    assert [note for note in summary.notes if note.startswith("label ")] == [
        f"label age: regression, 61 to 83, median 72; 1 of {N} missing",
        f"label rhythm: binary, 2 classes (AF 16, SR 8); 0 of {N} missing",
        f"label dx: multilabel, 3 classes (AF 12, LBBB 12, SR 12); 0 of {N} missing",
        f"label sex: binary, 2 classes (0 12, 1 12); 0 of {N} missing",
    ]


def test_several_numbers_or_patients_of_one_record_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match=r"'r000' more than once, with different numbers in column 'age' \(1, 2\)"):
        entries(folder, tmp_path, "record,age\nr000,1\nr000,2\nr001,1\n")
    with pytest.raises(EnsembleError, match="several patients for record 'r000'"):
        entries(folder, tmp_path, "record,patient_id,age\nr000,a,1\nr000,b,1\nr001,c,2\n")


def test_rows_of_arrays_say_that_a_head_may_be_missing(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 12, 500)))
    (tmp_path / "labels.csv").write_text("\n".join(["a", "b", "a", "b"]) + "\n")
    options = {"file": "x.npy", "rate_hz": 100, "labels": "labels.csv"}
    with pytest.raises(InputError, match="has it no head"):
        open_cohort("arrays", tmp_path, options).entries()
    found = open_cohort("arrays", tmp_path, {**options, "columns": ["y"]}).entries()
    assert found.frame["y"].tolist() == [0, 1, 0, 1]


def test_a_table_of_pandas_without_names_of_columns_has_a_head(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 12, 500)))
    pd.DataFrame(np.arange(8).reshape(4, 2)).to_csv(tmp_path / "labels.csv", index=False)
    options = {"file": "x.npy", "rate_hz": 100, "labels": "labels.csv"}
    assert [t.name for t in open_cohort("arrays", tmp_path, options).entries().targets] == ["0", "1"]
