"""The folders' rules: imports run pipeline -> stages -> cache, and what may not be known where."""

import ast
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import structure

ROOT = Path(__file__).resolve().parent.parent
STAGES = (
    "download",
    "ingest",
    "embed",
    "fit_heads",
    "evaluate",
    "report",
    "predict",
    "pretrain",
    "posttrain",
    "convert",
    "explain",
    "similar",
    "robustness",
    "ecg_map",
    "leaderboard",
)


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def knows(path: Path, *names: str) -> set[str]:
    return {found for found in imports(path) for name in names if found == name or found.startswith(f"{name}.")}


@pytest.mark.parametrize("path", files("cache"), ids=str)
def test_cache_knows_neither_torch_nor_those_above_it(path):
    assert not knows(path, "torch", "stages", "pipeline")


@pytest.mark.parametrize("path", files("stages"), ids=str)
def test_stages_do_not_know_the_pipeline(path):
    assert not knows(path, "pipeline", "typer", "dvc")


@pytest.mark.parametrize("path", files("ensemble"), ids=str)
def test_the_public_face_does_not_know_the_pipeline(path):
    assert not knows(path, "pipeline", "typer", "dvc")


@pytest.mark.parametrize("package", ["cache", "stages", "pipeline"])
def test_nobody_inside_imports_the_public_face(package):
    assert not {path for path in files(package) if knows(path, "ensemble")}


def test_the_public_face_loads_nothing_before_it_is_used():
    code = (
        "import sys, ensemble\n"
        "print([m for m in ('torch', 'numpy', 'pandas', 'zarr', 'stages', 'cache') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("path", files("stages/experts"), ids=str)
def test_an_expert_knows_neither_zarr_nor_the_stores(path):
    assert not knows(path, "zarr", "cache.signals", "cache.embeddings", "cache.records", "stages.heads")


@pytest.mark.parametrize("path", files("stages/heads"), ids=str)
def test_a_head_knows_neither_experts_nor_the_stores(path):
    assert not knows(path, "zarr", "stages.experts", "cache.signals", "cache.embeddings")


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_knows_another(stage):
    others = [f"stages.{name}" for name in STAGES if name != stage]
    assert files(f"stages/{stage}")
    assert not {found for path in files(f"stages/{stage}") for found in knows(path, *others)}


def test_help_loads_nothing_heavy():
    code = (
        "import sys\n"
        "sys.argv = ['ensemble', '--help']\n"
        "from pipeline.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'peft', 'transformers', 'dask', 'zarr', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_reading_params_loads_nothing_heavy(tmp_path):
    (tmp_path / "params.yaml").write_text("cohort: {source: ptbxl, path: .}\nexperts: {rocket: }\n")
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from pipeline.study.params import read_params\n"
        f"read_params(Path({str(tmp_path)!r}))\n"
        "print([m for m in ('torch', 'peft', 'transformers', 'dask', 'zarr', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_no_folder_holds_more_than_sixteen_files():
    assert not {str(folder): n for folder, n in structure.files_per_folder(ROOT).items() if n > 16}


def test_no_file_is_longer_than_four_hundred_lines():
    assert not structure.long_files(ROOT)


def test_a_face_has_no_body():
    assert not structure.bodies_in_faces(ROOT)


def test_no_underscore_name_leaves_its_folder():
    assert not structure.private_imports(ROOT)


DOORS = {
    "ingest": "Ingest",
    "embed": "Embed",
    "fit_heads": "FitHeads",
    "evaluate": "Evaluate",
    "report": "Report",
    "predict": "Predict",
    "pretrain": "Pretrain",
    "posttrain": "Posttrain",
    "synthetic": "Generate",
    "download": "Download",
    "convert": "Convert",
    "explain": "Explain",
    "similar": "Similar",
    "ecg_map": "Map",
    "leaderboard": "Leaderboard",
}


@pytest.mark.parametrize(("stage", "name"), DOORS.items())
def test_every_stage_has_the_same_door(stage, name):
    """`run(settings, paths, progress=None) -> XSummary`, with settings that cannot be changed."""
    room = importlib.import_module(f"stages.{stage}")
    for suffix in ("Settings", "Paths", "Summary"):
        assert f"{name}{suffix}" in room.__all__
    parameters = inspect.signature(room.run).parameters
    assert list(parameters)[:3] == ["settings", "paths", "progress"]
    assert parameters["progress"].default is None
    assert set(list(parameters)[3:]) <= {"machine"}
    settings = getattr(room, f"{name}Settings")
    frozen = (
        settings.model_config["frozen"] if hasattr(settings, "model_config") else settings.__dataclass_params__.frozen
    )
    assert frozen


def test_two_public_classes_never_share_a_name():
    assert not structure.classes_of_one_name(ROOT)


def test_nothing_is_named_by_a_pronoun():
    assert not structure.pronoun_names(ROOT)


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="for several test processes on one machine")
def test_a_test_process_among_several_computes_on_as_many_threads_as_it_was_given():
    import torch

    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])
