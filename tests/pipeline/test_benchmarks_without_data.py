"""`make bench` goes on where a benchmark's data are not there: it says what it needs and ends without an error."""

import runpy
import sys

import pytest


@pytest.mark.parametrize("name", ["verdict", "adaptation.rotated"])
def test_a_benchmark_without_its_data_says_what_it_needs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ENSEMBLE_TEST_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", [name])
    runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    said = capsys.readouterr().out
    assert "ENSEMBLE_TEST_DATA" in said
    assert said.rstrip().endswith("nothing done")
    assert list(tmp_path.iterdir()) == []
