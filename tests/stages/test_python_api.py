"""docs/python-api.md says what happens."""

import doctest
from pathlib import Path

from stages.embed import Embedder, EmbedPaths, EmbedSettings

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_worked_examples_run_as_written(tmp_path, make_cohort, monkeypatch):
    make_cohort(tmp_path, 16)
    paths = [tmp_path / name for name in ("records.parquet", "signals.zarr", "embeddings/seed.zarr", ".ensemble")]
    Embedder(EmbedSettings("seed"), EmbedPaths(*paths)).run()
    monkeypatch.chdir(tmp_path)
    result = doctest.testfile(str(DOCS / "python-api.md"), module_relative=False)
    assert result.attempted > 40
    assert result.failed == 0
