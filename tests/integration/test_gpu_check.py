"""The one command for machines with a GPU, as a dry run on a CPU with small networks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def check(tmp_path, *arguments):
    command = [sys.executable, ROOT / "benchmarks" / "gpu_check.py", "--device", "cpu", "--small", "--records", "8"]
    done = subprocess.run(
        [*command, "--out", tmp_path / "check.json", *arguments], capture_output=True, text=True, check=False
    )
    return done, json.loads((tmp_path / "check.json").read_text())


@pytest.mark.slow
def test_the_dry_run_passes_from_end_to_end(tmp_path):
    done, found = check(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not [name for name, part in found.items() if "failed" in part]
    assert {name for name, part in found.items() if "skipped" in part} == {"full_memory", "tests"}
    assert found["heads"]["largest_difference"] == 0
    assert all(part["of_the_spread"] == 0 for part in found["parity"].values() if isinstance(part, dict))
    assert found["forward"]["ecgfm fp32"]["records_s"] > 0
    assert found["embed"]["morphology"]["records/s"] > 0


def test_without_time_left_every_part_is_left_out_and_says_so(tmp_path):
    done, found = check(tmp_path, "--limit-s", "1")
    assert done.returncode == 0, done.stderr
    assert {part["skipped"] for name, part in found.items() if name != "machine"} == {"no time left"}
