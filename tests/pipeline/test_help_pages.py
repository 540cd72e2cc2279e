"""docs/commands.md is what the commands say of themselves."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_every_help_text_stands_in_the_docs():
    pinned = f"typer=={version('typer')}" in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    if not pinned:
        pytest.skip("another Typer than the pinned one writes option types in other words")
    command = [sys.executable, "docs/tools/commands.py", "--check"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
