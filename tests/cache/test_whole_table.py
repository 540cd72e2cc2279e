"""records.parquet is read by column or by row group everywhere: nobody takes the whole table."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cache.records import open_records

ROOT = Path(__file__).resolve().parents[2]
READER = "cache/records.py"
SOURCES = sorted(file for room in ("cache", "stages", "pipeline") for file in (ROOT / room).rglob("*.py"))


def calls(file: Path, *names: str) -> list[ast.Call]:
    """Return the calls of functions of these last names."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [node for node in found if ast.unparse(node.func).rpartition(".")[2] in names]


def whole_reads(file: Path) -> list[str]:
    """Return what reads a table of records without saying which columns, or round the one reader."""
    at = file.relative_to(ROOT).as_posix()
    unsaid = [
        node for node in calls(file, "open_records") if not {k.arg for k in node.keywords} & {"columns", "without"}
    ]
    around = [node for node in calls(file, "read_parquet", "read_table") if "records" in ast.unparse(node)]
    return [f"{at}:{node.lineno}" for node in (unsaid if at == READER else unsaid + around)]


def test_every_reader_of_the_table_says_which_columns_it_needs():
    assert [line for file in SOURCES for line in whole_reads(file)] == []


@pytest.mark.parametrize("room", ["leaderboard", "posttrain", "pretrain", "robustness", "fit_heads", "predict"])
def test_training_and_judging_name_their_columns(room):
    asked = [call for file in (ROOT / "stages" / room).rglob("*.py") for call in calls(file, "open_records")]
    assert [ast.unparse(call) for call in asked if "columns" not in {k.arg for k in call.keywords}] == []


def test_the_guard_finds_whole_reads(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    file = tmp_path / "reader.py"
    file.write_text("open_records(p)\npd.read_parquet(p.records)\nopen_records(p, columns=['a'])\npd.read_parquet(q)\n")
    assert whole_reads(file) == ["reader.py:1", "reader.py:2"]


MEASURED = """
import sys
from pathlib import Path
from benchmarks.scale.records_table import peak_mb
from cache.records import open_records, READING_COLUMNS
columns = {"ids": {"columns": ["record_id", "patient_id"]}, "report": {"without": ("path", "n_samples", "notes")}}
before = peak_mb()
frame = open_records(Path(sys.argv[1]), **columns[sys.argv[2]])
print((peak_mb() - before) * 1e6 / len(frame))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("who", "most_bytes"), [("ids", 330), ("report", 550)])
def test_memory_of_a_million_rows(tmp_path, who, most_bytes):
    from benchmarks.scale.records_table import write_table

    write_table(tmp_path / "records.parquet", 1_000_000)
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "records.parquet"), who]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert float(done.stdout) < most_bytes


def test_lists_are_the_cells_that_pandas_gives(tmp_path):
    from benchmarks.scale.records_table import write_table

    write_table(tmp_path / "records.parquet", 500)
    read, plain = open_records(tmp_path / "records.parquet", without=()), pd.read_parquet(tmp_path / "records.parquet")
    assert list(read) == list(plain)
    for name in ("superclass", "flat_leads", "notes"):
        assert all(isinstance(cell, np.ndarray) for cell in read[name])
        assert [list(cell) for cell in read[name]] == [list(cell) for cell in plain[name]]
    assert open_records(tmp_path / "records.parquet", columns=["notes"]).shape == (500, 1)
