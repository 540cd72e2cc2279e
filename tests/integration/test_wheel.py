"""What `pip install` without -e gives: the wheel alone, in a folder outside the repository, runs a whole study."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, files):  # a build leaves its folders beside the sources
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Environment of a process that sees the wheel's files and the packages they need, and no repository."""
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}, site


@pytest.mark.slow
def test_the_wheel_holds_everything_that_is_no_python_too(wheel):
    kept = {path.relative_to(ROOT).as_posix() for name in ("pipeline", "stages") for path in (ROOT / name).rglob("*")}
    data = {name for name in kept if name.endswith((".txt", ".html", ".css", ".json", ".safetensors"))}
    assert {"stages/report/style.css", "stages/experts/weights/seed.safetensors"} <= data
    assert data <= set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.slow
def test_a_study_of_the_wheel_runs_from_init_to_the_report(installed, tmp_path):
    environment, site = installed

    def run(*arguments, cwd=tmp_path):
        done = subprocess.run(
            [sys.executable, "-m", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert Path(run_where(environment, tmp_path)).is_relative_to(site)
    (tmp_path / "params.yaml").write_text(
        "generate: {records: 120}\ncohort: {source: mimic-iv-ecg, path: data}\nexperts: {rocket: {}}\n"
    )
    run("pipeline.cli", "generate", "data")
    run("pipeline.cli", "init", "study", "--source", "mimic-iv-ecg", "--path", "data")
    assert "seed" in run("pipeline.cli", "experts")
    shim = tmp_path / "bin" / "ensemble"  # the command that pip makes of the wheel's entry point
    shim.parent.mkdir()
    shim.write_text(f"#!{sys.executable}\nfrom pipeline.cli import main\nmain()\n")
    shim.chmod(0o755)
    environment["PATH"] = f"{shim.parent}{os.pathsep}{environment['PATH']}"
    run("dvc", "repro", "-q", cwd=tmp_path / "study")
    metrics = json.loads((tmp_path / "study/metrics.json").read_text())
    assert metrics["tasks"]
    assert (tmp_path / "study/report.html").stat().st_size > 10_000


def run_where(environment, folder):
    """Return the file that `import stages` reads."""
    code = "import stages.report; print(stages.report.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.slow
def test_an_experiment_runs_in_a_study_inside_a_git_repository(installed, tmp_path):
    """`dvc exp run -S` needs a commit to start from; nothing in the study's files has to be changed for it."""
    environment, _ = installed
    environment = {**environment, "GIT_AUTHOR_NAME": "x", "GIT_AUTHOR_EMAIL": "x@y", "GIT_COMMITTER_NAME": "x"}
    environment |= {"GIT_COMMITTER_EMAIL": "x@y"}

    def run(*command, cwd=tmp_path):
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    (tmp_path / "params.yaml").write_text(
        "generate: {records: 120}\ncohort: {source: mimic-iv-ecg, path: data}\nexperts: {morphology: {}}\n"
    )
    ensemble = [sys.executable, "-m", "pipeline.cli"]
    run(*ensemble, "generate", "data")
    run("git", "init", "-q", ".")
    run(*ensemble, "init", "study", "--source", "mimic-iv-ecg", "--path", "data")
    study = tmp_path / "study"
    params = study / "params.yaml"
    params.write_text(params.read_text().replace("  rocket:     {weights: weights/default}\n", ""))
    run("dvc", "repro", "-q", "fit-heads", cwd=study)
    run("git", "add", "study", cwd=tmp_path)
    run("git", "commit", "-q", "-m", "a study", cwd=tmp_path)
    run("dvc", "exp", "run", "-S", "fit_heads.options.rank=4", "fit-heads", cwd=study)
    assert "rank: 4" in params.read_text()
    assert '"rank": 4' in (study / "heads/config.json").read_text()
