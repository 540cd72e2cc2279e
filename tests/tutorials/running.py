"""Run a tutorial as a reader would: the console blocks of a page one command after another, in a home of its own.

`python -m tests.tutorials.running [NAME ...]` writes what the commands print now into the pages of docs/tutorials; an
output with a line `...` is left as it is.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.tutorials.homes import HOMES

PAGES = Path(__file__).resolve().parents[2] / "docs" / "tutorials"
TUTORIALS = tuple(sorted(path.stem for path in PAGES.glob("*.md") if path.stem != "index"))
BLOCK = re.compile(r"(?<=^```console\n)(.*?)(?=^```$)", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
UNFINISHED = re.compile(r"^[^\n]*: (\d+)/(?!\1 )\d+ (?:records|steps), [^\n]*\n", re.MULTILINE)
"""Progress of a slow run: a fast one prints its last line alone."""
OF_THIS_RUN = (
    (re.compile(r"^ +seconds: .*\n", re.MULTILINE), ""),
    (re.compile(r"[\d.,]+(?=/s| s\b| seconds\b)"), "#"),
    (re.compile(r"\b[0-9a-f]{12}\b|(?<=\bh-)[0-9a-f]{32}\b"), "#"),
)
"""Speeds, times, fingerprints and hashes under a fresh key: no two runs or machines share them."""
PROMPT, GOES_ON = "$ ", "> "


@dataclass
class Step:
    """One command of a page, and what stands below it."""

    command: str
    expected: str

    @property
    def is_open(self) -> bool:
        """Whether some lines of the output are left out in the page."""
        return "..." in self.expected.splitlines()


def steps_of(block: str) -> list[Step]:
    """Return the commands of a console block: `$ ` begins one, `> ` goes on, other lines are its output."""
    found: list[Step] = []
    for line in block.splitlines():
        if line.startswith(PROMPT):
            found.append(Step(line.removeprefix(PROMPT), ""))
        elif line.startswith(GOES_ON) and not found[-1].expected:
            found[-1].command += "\n" + line.removeprefix(GOES_ON)
        else:
            found[-1].expected += line + "\n"
    return found


class Shell:
    """A reader's shell: each command in the folder where the one before ended."""

    def __init__(self, home: Path) -> None:
        self.folder = home
        tools = Path(sys.executable).parent
        self.environment = {
            **os.environ,
            "HOME": str(home),
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "COLUMNS": "96",
            "NO_COLOR": "1",
            "TERM": "dumb",
            "OMP_NUM_THREADS": "1",
            "DVC_NO_ANALYTICS": "1",
            "PYTHONWARNINGS": "ignore",
        }

    def run(self, command: str) -> str:
        """Return what the command prints, errors included; a failed command raises."""
        script = f'set -euo pipefail\n{command}\npwd > "$FOLDER_FILE"'
        with tempfile.NamedTemporaryFile("r") as where:
            done = subprocess.run(
                ["bash", "-c", script],
                cwd=self.folder,
                env={**self.environment, "FOLDER_FILE": where.name},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            if done.returncode:
                raise AssertionError(f"$ {command}\n{done.stdout}")
            self.folder = Path(where.read().strip())
        printed = done.stdout.replace(self.environment["HOME"], "~")
        return UNFINISHED.sub("", "".join(line.rstrip() + "\n" for line in printed.splitlines()))


def same(expected: str, printed: str) -> bool:
    """Whether an output is what the page says; `...` stands for any lines, and numbers may be those of another CPU."""
    for pattern, plain in OF_THIS_RUN:
        expected, printed = pattern.sub(plain, expected), pattern.sub(plain, printed)
    wanted, got = expected.split(), printed.split()
    if "..." not in wanted:
        return len(wanted) == len(got) and all(map(_same_word, wanted, got))
    head, tail = wanted[: wanted.index("...")], wanted[wanted.index("...") + 1 :]
    if "..." in tail:
        raise ValueError(f"one `...` an output: {expected}")
    if len(got) < len(head) + len(tail):
        return False
    ends = (head, got[: len(head)]), (tail, got[len(got) - len(tail) :])
    return all(same(" ".join(one), " ".join(other)) for one, other in ends)


def _same_word(wanted: str, got: str) -> bool:
    if set(wanted) | set(got) <= set("━─┏┓┗┛┡┩└┘│┃├┤┳┻┼╇┬┴╭╮╰╯"):
        return True  # a table is as wide as its numbers
    if NUMBER.sub("#", wanted) != NUMBER.sub("#", got):
        return False
    pairs = zip(NUMBER.findall(wanted), NUMBER.findall(got), strict=True)
    return all(_near(*(float(number.replace(",", "")) for number in pair)) for pair in pairs)


def _near(wanted: float, got: float) -> bool:
    return abs(wanted - got) <= max(0.03, 0.1 * abs(wanted))


def outputs(page: str, shell: Shell) -> Iterator[tuple[Step, str]]:
    """Run a page's commands and give each with what it printed."""
    for block in BLOCK.findall(page):
        for step in steps_of(block):
            yield step, shell.run(step.command)


def written_anew(page: str, shell: Shell) -> str:
    """Return the page with the outputs of now."""

    def block_of(found: re.Match[str]) -> str:
        text = ""
        for step in steps_of(found.group()):
            printed = shell.run(step.command)
            text += PROMPT + step.command.replace("\n", f"\n{GOES_ON}") + "\n"
            text += step.expected if step.is_open else printed
        return text

    return BLOCK.sub(block_of, page)


def main(names: list[str]) -> None:
    """Write the outputs of the named tutorials, or of all."""
    for name in names or TUTORIALS:
        path = PAGES / f"{name}.md"
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder).resolve()
            HOMES[name](home)
            path.write_text(written_anew(path.read_text("utf-8"), Shell(home)), "utf-8")
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
