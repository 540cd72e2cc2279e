"""docs/store-format.md names a test for each guarantee; all of them exist."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
PAGE = TESTS.parent / "docs/store-format.md"
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE.read_text(encoding="utf-8"))))


def test_the_page_names_tests():
    assert len(NAMED) > 25


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_the_test_that_a_guarantee_names_exists(file, name):
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    assert name in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


def test_every_guarantee_names_one():
    _, _, section = PAGE.read_text(encoding="utf-8").partition("## Guarantees and the tests")
    rows = [line for line in section.splitlines() if line.startswith("| ") and "| test |" not in line]
    assert len(rows) > 20
    assert [row for row in rows if "::test_" not in row] == []
