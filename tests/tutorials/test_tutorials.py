"""The tutorials print what they say: every command is run, in order, on real ECGs where the page says so."""

from pathlib import Path

import pytest

from tests.tutorials.homes import HOMES
from tests.tutorials.running import PAGES, TUTORIALS, Shell, outputs, same, steps_of


def test_every_page_has_a_home():
    assert set(TUTORIALS) == set(HOMES)


def test_outputs_are_compared_word_for_word_and_numbers_nearly():
    assert same("AUROC 0.913 (0.88-0.94)\n", "AUROC   0.915 (0.87-0.95)\n")
    assert not same("AUROC 0.913\n", "AUROC 0.79\n")
    assert same("done at 12.1/s, 3.0 s, 8586ade312c3\n  seconds: read 2\n", "done at 99/s, 45 s, 0123456789ab\n")
    assert not same("3 records\n", "3 files\n")
    assert same("first\n...\nlast 3\n", "first\nof\nmany\nlast 3\n")
    assert not same("first\n...\nlast\n", "first\nof\nmany\n")
    assert [(s.command, s.expected) for s in steps_of("$ a \\\n> b\nout\n$ c\n")] == [("a \\\nb", "out\n"), ("c", "")]


@pytest.mark.slow
@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_prints_what_it_says(name: str, tmp_path: Path, request: pytest.FixtureRequest):
    if name in ("ptb-xl-in-five-minutes", "a-hospitals-folder"):
        request.getfixturevalue("test_data")
    HOMES[name](tmp_path)
    page = (PAGES / f"{name}.md").read_text("utf-8")
    done = 0
    for step, printed in outputs(page, Shell(tmp_path)):
        assert same(step.expected, printed), f"$ {step.command}\n{printed}"
        done += 1
    assert done >= 5
