"""`make bench` goes on where a benchmark's data are not there: it says what it needs and ends without an error."""

import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("name", ["verdict", "adaptation_rotated"])
def test_a_benchmark_without_its_data_says_what_it_needs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ENSEMBLE_TEST_DATA", raising=False)
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "ENSEMBLE_TEST_DATA" in said
    assert said.rstrip().endswith("nothing done")
    assert list(tmp_path.iterdir()) == []
