"""Write docs/commands.md: what every command says to `--help`; `--check` only says whether the page is up to date."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["TYPER_USE_RICH"] = "0"  # boxes are for terminals; read by Typer at import
os.environ["COLUMNS"] = "100"

from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from pipeline.cli import app

PAGE = Path(__file__).resolve().parents[1] / "commands.md"
OPENING = """# Commands

What `ensemble COMMAND --help` says of each command. All read [params.yaml](params.md) of the current folder.
"""


def page() -> str:
    """Return the page, as it has to stand in docs/commands.md."""
    return OPENING + "".join(_section(words) for words in command_words())


def command_words() -> list[tuple[str, ...]]:
    """Return every command as the words behind `ensemble`, in the order of the help; the first is the group itself."""
    found: list[tuple[str, ...]] = [()]
    for name, command in get_command(app).commands.items():
        found.append((name,))
        if isinstance(command, TyperGroup):
            found += [(name, inner) for inner in command.commands]
    return found


def help_text(words: tuple[str, ...]) -> str:
    """Return what `ensemble WORDS --help` prints, without the spaces at the ends of lines."""
    done = CliRunner().invoke(app, [*words, "--help"], prog_name="ensemble")
    if done.exit_code:
        raise RuntimeError(f"ensemble {' '.join(words)} --help: {done.output}")
    return "\n".join(line.rstrip() for line in done.output.strip().splitlines())


def _section(words: tuple[str, ...]) -> str:
    title = " ".join(("ensemble", *words))
    return f"\n## {title}\n\n```text\n{help_text(words)}\n```\n"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == page() else f"{PAGE}: not what --help says; run `make docs`")
    PAGE.write_text(page(), encoding="utf-8")
