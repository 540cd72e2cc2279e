"""docs/python-api.md says what happens."""

import doctest
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_worked_example_runs_as_written() -> None:
    result = doctest.testfile(str(DOCS / "python-api.md"), module_relative=False)
    assert result.attempted > 15
    assert result.failed == 0
