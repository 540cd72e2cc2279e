"""A study works wherever it lies: in a git repository or not, moved, on data that cannot be written, in any letters."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.stages.wfdb_files import ecg_mv, write_record

N = 12


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=900, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def ensemble(folder: Path, *arguments: str) -> str:
    return run(folder, sys.executable, "-m", "pipeline.cli", *arguments).stdout


@pytest.mark.slow
@pytest.mark.parametrize("in_git", [True, False])
def test_a_study_is_run_moved_and_run_again(tmp_path, in_git):
    home = tmp_path / "Großes Archiv 心电"
    data = home / "my data (1)"
    for k in range(N):
        write_record(data, f"r{k:02d}", ecg_mv(5000, seed=k))
    labels = pd.DataFrame({"record": [f"r{k:02d}" for k in range(N)], "größe": range(N)})
    labels.to_csv(data / "labels ü.csv", index=False)
    for path in (*data.iterdir(), data):
        path.chmod(0o555 if path.is_dir() else 0o444)
    if in_git:
        run(home, "git", "init", "--quiet")
    names = [
        "init",
        "erste Studie",
        "--source",
        "wfdb",
        "--path",
        "my data (1)",
        "--labels",
        "my data (1)/labels ü.csv",
    ]
    ensemble(home, *names)
    study = home / "erste Studie"
    params = yaml.safe_load((study / "params.yaml").read_text(encoding="utf-8"))
    params["experts"] = {"rocket": {"weights": "weights/default"}}
    (study / "params.yaml").write_text(yaml.safe_dump(params, allow_unicode=True), encoding="utf-8")
    run(study, sys.executable, "-m", "dvc", "repro", "embed@rocket")
    before = {name: (study / name).read_bytes() for name in ("records.parquet", "dvc.lock")}
    assert pd.read_parquet(study / "records.parquet")["status"].tolist() == ["ok"] * N
    moved = home / "zweiter Ort"
    shutil.move(study, moved)
    again = run(moved, sys.executable, "-m", "dvc", "repro", "embed@rocket").stdout
    assert "Running stage" not in again
    run(moved, sys.executable, "-m", "dvc", "repro", "--force", "embed@rocket")
    assert {name: (moved / name).read_bytes() for name in before} == before
    data.chmod(0o755)
