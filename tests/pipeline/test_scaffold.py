import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cache.errors import MissingFileError, UsageError
from pipeline.study.params import read_params
from pipeline.study.scaffold import make_study

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ptbxl(tmp_path):
    folder = tmp_path / "ptb xl: copy"
    folder.mkdir()
    for name in ("ptbxl_database.csv", "scp_statements.csv"):
        (folder / name).write_text("")
    return folder


def test_a_study_is_ready_for_dvc(tmp_path, ptbxl):
    make_study(tmp_path / "study", "ptbxl", ptbxl)
    params = read_params(tmp_path / "study")
    assert (params.cohort.source, params.cohort.path) == ("ptbxl", str(ptbxl))
    stages = yaml.safe_load((tmp_path / "study/dvc.yaml").read_text())["stages"]
    assert stages["ingest"]["deps"] == [str(ptbxl / "ptbxl_database.csv"), str(ptbxl / "scp_statements.csv")]
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "stage", "list", "--name-only"],
        cwd=tmp_path / "study",
        capture_output=True,
        text=True,
        check=True,
    )
    assert {"ingest", "embed@rocket", "embed@morphology", "fit-heads", "evaluate", "report"} <= set(done.stdout.split())


def imported(module: Path) -> set[Path]:
    """Files of `stages` that a module reads, and those that they read."""
    found, todo = set(), [module]
    while todo:
        for node in ast.walk(ast.parse((file := todo.pop()).read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in [n for n in names if n.startswith("stages.")]:
                path = ROOT.joinpath(*name.split("."))
                path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
                todo += {path} - found - {file}
                found.add(path)
    return found


@pytest.mark.parametrize("stage", ["fit-heads", "evaluate", "report"])
def test_dvc_runs_a_stage_again_when_its_code_changes(stage):
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    watched = [ROOT / dep for dep in stages[stage]["deps"]]
    read = imported(ROOT / "stages" / stage.replace("-", "_") / "stage.py")
    assert {f for f in read if not any(f == dep or dep in f.parents for dep in watched)} == set()


def test_a_study_inside_a_git_repository_is_a_project_of_its_own(tmp_path, ptbxl):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    make_study(tmp_path / "inner/study", "ptbxl", ptbxl)
    assert (tmp_path / "inner/study/.dvc/config").is_file()


def test_nothing_is_overwritten(tmp_path, ptbxl):
    make_study(tmp_path / "study", "ptbxl", ptbxl)
    with pytest.raises(UsageError, match=r"holds params\.yaml already"):
        make_study(tmp_path / "study", "ptbxl", ptbxl)


def test_a_missing_folder_or_source_makes_nothing(tmp_path, ptbxl):
    with pytest.raises(MissingFileError, match="nowhere"):
        make_study(tmp_path / "study", "ptbxl", tmp_path / "nowhere")
    with pytest.raises(UsageError, match="unknown source 'ptb'; there are: "):
        make_study(tmp_path / "study", "ptb", ptbxl)
    assert not (tmp_path / "study").exists()
