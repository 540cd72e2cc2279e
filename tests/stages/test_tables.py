"""Tables as spreadsheets and people write them."""

import gzip
import sys

import numpy as np
import openpyxl
import pytest

from cache.errors import InputError
from stages.readers.tables import numbers, read_table

TEXT = 'record,Größe,name\nr1,"1,5",Köln\nr2,"2,25",Łódź\nr3,,Zürich\n'
WANTED = {"record": ["r1", "r2", "r3"], "Größe": ["1,5", "2,25", None], "name": ["Köln", "Łódź", "Zürich"]}


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        TEXT.encode("utf-16-le"),
        TEXT.encode("utf-16-be"),
        TEXT.replace("\n", "\r\n").encode(),
        gzip.compress(TEXT.encode(), mtime=0),
    ],
)
def test_a_table_is_read_in_any_unicode(tmp_path, content):
    path = tmp_path / ("t.csv.gz" if content[:2] == b"\x1f\x8b" else "t.csv")
    path.write_bytes(content)
    assert read_table(path)[0].to_dict("list") == WANTED


def test_western_letters_are_read_without_unicode_and_that_is_said(tmp_path):
    (tmp_path / "t.csv").write_bytes(TEXT.replace("Łódź", "Åse €").encode("cp1252"))
    frame, notes = read_table(tmp_path / "t.csv")
    assert frame["name"].tolist() == ["Köln", "Åse €", "Zürich"]
    assert notes == ["t.csv: read as text in cp1252"]


def test_an_encoding_can_be_given(tmp_path):
    (tmp_path / "t.csv").write_bytes("record,诊断\nr1,房颤\n".encode("gb18030"))
    assert read_table(tmp_path / "t.csv", encoding="gb18030")[0]["诊断"].tolist() == ["房颤"]
    with pytest.raises(InputError, match="'latin9x' \\(option 'encoding'\\) is no encoding"):
        read_table(tmp_path / "t.csv", encoding="latin9x")


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_cells_may_be_parted_by_something_else(tmp_path, delimiter):
    rows = [["record", "age", "note, more"], ["r1", "61,5", "a,b"], ["r2", "70", "c"], ["r3", "1,250", ""]]
    (tmp_path / "t.csv").write_text("\n".join(delimiter.join(row) for row in rows) + "\n")
    frame, notes = read_table(tmp_path / "t.csv")
    assert frame.columns.tolist() == rows[0]
    assert frame["note, more"].tolist() == ["a,b", "c", None]
    if delimiter == ";":  # where commas are decimal
        assert numbers(frame["age"]).tolist() == [61.5, 70.0, 1.25]
        assert notes[1] == "t.csv: decimal commas are read as points in age"


@pytest.mark.parametrize(
    "text", ["record,dx\nr1,AF;AFL\nr2,AF\n", 'record,"a;b;c"\nr1,1\n', "record\nr1\nr2\n", "record,a|b\nr1,2|3\n"]
)
def test_lists_in_cells_are_no_columns(tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    frame, notes = read_table(tmp_path / "t.csv")
    assert frame.columns[0] == "record"
    assert len(frame.columns) == text.split("\n")[0].count(",") + 1
    assert notes == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    ("before", "delimiter"),
    [
        ("sep=;\n", ";"),
        ('"sep=\t"\r\n', "\t"),
        ("Labels of 2024\n", ","),
        ("Labels of 2024\n\n", ","),
        ("# made by hand\n# age in years, sex 0 or 1\n", ","),
        ("Study;\n", ","),
    ],
)
def test_lines_before_the_head_are_passed_over_and_that_is_said(tmp_path, before, delimiter, encoding):
    rows = [["record", "age", "sex"], ["r1", "61", "0"], ["r2", "70", "1"], ["r3", "55", ""]]
    text = before + "\n".join(delimiter.join(row) for row in rows) + "\n"
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    frame, notes = read_table(tmp_path / "t.csv", strict=True)
    assert frame.to_dict("list") == {"record": ["r1", "r2", "r3"], "age": ["61", "70", "55"], "sex": ["0", "1", None]}
    n = len(before.splitlines())
    assert any(f"its first {n} lines, before the head, are passed over" in note for note in notes)


@pytest.mark.parametrize("text", ["#,record,age\n0,r1,1\n1,r2,2\n", "record\nr1\nr2\n", "a,b\n1,2,3\n1,2,3\n4,5,6\n"])
def test_a_head_is_not_taken_for_a_line_before_it(tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    assert read_table(tmp_path / "t.csv")[0].columns.tolist() == text.split("\n")[0].split(",")


def test_blanks_around_heads_are_no_part_of_them(tmp_path):
    (tmp_path / "t.csv").write_text("record , age ,sex\nr1, 61 ,0\nr2,70,1\n")
    assert read_table(tmp_path / "t.csv")[0].to_dict("list") == {
        "record": ["r1", "r2"],
        "age": ["61", "70"],
        "sex": ["0", "1"],
    }


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"PK\x03\x04 an .ods file", "another program's spreadsheet"),
        (b'\n[{"record": "r1"}]', "is JSON"),
        (b"<!DOCTYPE html><table>", "is a web page or XML"),
        (b"%PDF-1.7", "is a PDF"),
    ],
)
def test_what_is_no_table_is_named_with_what_to_do(tmp_path, content, says):
    (tmp_path / "labels").write_bytes(content)
    with pytest.raises(InputError, match=f"{says}; save the table as CSV UTF-8, or as .xlsx"):
        read_table(tmp_path / "labels")


def sheet(path, rows):
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)


def test_the_first_sheet_of_an_excel_file_is_a_table(tmp_path):
    sheet(tmp_path / "t.xlsx", [["record", "age", "dx", None], ["r1", 61.5, "AF;AFL", None], [7, 70, True, None], []])
    frame, _ = read_table(tmp_path / "t.xlsx")
    assert frame.to_dict("list") == {"record": ["r1", "7"], "age": ["61.5", "70"], "dx": ["AF;AFL", "True"]}
    assert read_table(tmp_path / "t.xlsx", ["age"], lambda block: block["age"] == "70")[0]["age"].tolist() == ["70"]
    with pytest.raises(InputError, match="has no column 'sex'; it has: record, age"):
        read_table(tmp_path / "t.xlsx", ["sex"])


def test_excel_files_that_cannot_be_read_are_named_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "old.xls").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(600))
    with pytest.raises(InputError, match=r"format before 2007; save it as \.xlsx"):
        read_table(tmp_path / "old.xls")
    sheet(tmp_path / "t.xlsx", [["record"], ["r1"]])
    (tmp_path / "cut.xlsx").write_bytes((tmp_path / "t.xlsx").read_bytes()[:900])
    with pytest.raises(InputError, match="not a readable Excel file"):
        read_table(tmp_path / "cut.xlsx")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(InputError, match=r"needs openpyxl; `pip install 'ecg-ensemble\[excel\]'`"):
        read_table(tmp_path / "t.xlsx")


def test_a_large_table_of_another_dialect_is_read_whole(tmp_path):
    rows = [f"r{k}\t{k}\tü" for k in range(200_000)]
    (tmp_path / "t.tsv").write_bytes("\n".join(["record\tvalue\tname", *rows]).encode("utf-16"))
    frame, _ = read_table(tmp_path / "t.tsv")
    assert np.array_equal(numbers(frame["value"]), np.arange(200_000))
    assert set(frame["name"]) == {"ü"}
