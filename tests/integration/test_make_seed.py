"""`make seed DATA=FOLDER` on a small part of PTB-XL: it goes on after a kill, and packs what an unbroken run packs."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
N_RECORDS = 100
FILES = ("seed.safetensors", "seed.patients.npy")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("ENSEMBLE_TEST_DATA" not in os.environ, reason="ENSEMBLE_TEST_DATA is not set"),
    pytest.mark.skipif(not shutil.which("make"), reason="make is not installed"),
]


@pytest.fixture
def data(tmp_path):
    """Write a folder that holds 100 records of PTB-XL, as ../shared/data unpacked does."""
    source, folder = Path(os.environ["ENSEMBLE_TEST_DATA"]) / "ptbxl", tmp_path / "data" / "ptbxl-all"
    table = pd.read_csv(source / "ptbxl_database.csv").iloc[:N_RECORDS]
    folder.mkdir(parents=True)
    table.to_csv(folder / "ptbxl_database.csv", index=False)
    shutil.copy(source / "scp_statements.csv", folder)
    for name in table["filename_hr"]:
        for suffix in (".hea", ".dat"):
            file = folder / f"{name}{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / f"{name}{suffix}", file)
    return folder.parent


@pytest.fixture
def root(tmp_path):
    """Copy the code, whose packaged weights the recipe replaces, and let its recipe run one epoch."""
    copy = tmp_path / "root"
    for name in ("cache", "stages", "pipeline", "benchmarks", "weights"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, copy)
    recipe = copy / "weights" / "seed.yaml"
    text = recipe.read_text()
    assert "    epochs: 48\n" in text
    recipe.write_text(text.replace("    epochs: 48\n", "    epochs: 2\n    checkpoint_seconds: 0\n"))
    return copy


def commands(root, data):
    """Return what `make seed` would run, but for the installation."""
    listed = subprocess.run(
        ["make", "-n", "seed", f"DATA={data}"], cwd=root, capture_output=True, text=True, check=True
    ).stdout.replace("\\\n", " ")
    found = [line.split(" -m ")[1].split() for line in listed.splitlines() if " -m weights." in line]
    assert [line[0] for line in found] == ["weights.seed_expert", "weights.pack_seed"]
    return found


def start(root, arguments):
    """Start one of the commands in a process group of its own."""
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *arguments], cwd=root, env=environment, start_new_session=True, stderr=subprocess.PIPE
    )


def finish(process):
    error = process.communicate()[1].decode()
    assert process.returncode == 0, error[-3000:]


def kill_when(process, happened):
    """SIGKILL a process and its children as soon as a file is there."""
    deadline = time.monotonic() + 300
    while not happened():
        assert process.poll() is None, process.communicate()[1].decode()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_a_killed_run_goes_on_and_packs_the_weights_of_an_unbroken_one(root, data):
    train, pack = commands(root, data)
    encoders, packed = root / "build/seed/encoders", root / "stages/experts/weights"
    shipped = [(packed / name).read_bytes() for name in FILES]
    kill_when(start(root, train), lambda: list(encoders.glob("all/.ensemble/training/*.pt")))
    assert not (encoders / "all/seed.npz").exists()
    kill_when(start(root, train), (encoders / "all-1/weights").exists)
    first = (encoders / "all/weights/versions/seed+ptbxl/model.safetensors").stat().st_mtime_ns
    finish(start(root, train))
    assert (encoders / "all/weights/versions/seed+ptbxl/model.safetensors").stat().st_mtime_ns == first
    finish(start(root, pack))
    resumed = [(packed / name).read_bytes() for name in FILES]
    assert resumed[0] != shipped[0]
    table = pd.read_csv(data / "ptbxl-all/ptbxl_database.csv")
    taught = table.loc[table["strat_fold"] <= 8, "patient_id"].nunique()
    assert len(np.load(packed / FILES[1])) == taught

    shutil.rmtree(encoders)
    finish(start(root, train))
    finish(start(root, pack))
    assert [(packed / name).read_bytes() for name in FILES] == resumed
