"""Experts of other packages: the worked example of docs/adding-an-expert.md, installed and run; and broken packages."""

import re
import subprocess
import sys

import pytest

from tests.stages.third_party import example_files

RUN = """
import numpy, torch
from stages.experts import load_expert
from stages.experts.run import run_expert
expert = load_expert("band-power")
x = expert.prepare(numpy.random.default_rng(0).normal(size=(2, 12, 5000)), 500.0)
print(type(expert).__module__, run_expert(expert, x).embedding.shape, expert.spec.name)
"""
BROKEN = {
    "raises": "raise RuntimeError('no such\\nlibrary')",
    "no_class": "Expert = object",
    "no_spec": "from stages.experts import Expert\nclass Expert(Expert): ...",
}


def install(files, project, target):
    for name, content in files.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(content)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(project)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def python(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))

    def run(*arguments):
        return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path)

    return run


def test_the_worked_example_is_installed_listed_and_run(tmp_path, python):
    install(example_files(), tmp_path / "project", tmp_path / "site")
    done = python("-c", RUN)
    assert done.stdout.split("\n")[0] == "ensemble_band_power (2, 48) band-power", done.stderr
    table = python("-m", "pipeline.cli", "experts")
    assert table.returncode == 0, table.stderr
    assert re.search(r"band-power .*12 leads, 500 Hz, 10 s .* 48 ", table.stdout)
    assert "band_power" not in table.stderr
    assert "band powers" in python("-m", "pipeline.cli", "experts", "band-power").stdout


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_package_is_named_in_one_line_and_breaks_nothing_else(tmp_path, python, kind):
    project = '[project]\nname = "broken-package"\nversion = "1"\n[tool.setuptools]\npy-modules = ["broken_module"]\n'
    project += '[project.entry-points."ensemble.experts"]\nbroken = "broken_module:Expert"\n'
    install({"pyproject.toml": project, "broken_module.py": BROKEN[kind]}, tmp_path / "project", tmp_path / "site")
    table = python("-m", "pipeline.cli", "experts")
    assert table.returncode == 0, table.stderr
    assert "ecgfounder" in table.stdout
    assert table.stderr.count("\n") == 1
    assert "expert 'broken' of package 'broken-package' cannot be used" in table.stderr
    asked = python("-m", "pipeline.cli", "experts", "broken")
    assert asked.returncode == 2
    assert asked.stderr.startswith("error: expert 'broken' of package 'broken-package'")
    assert python("-m", "pipeline.cli", "experts", "rocket").returncode == 0


def test_a_package_cannot_take_the_name_of_an_expert_that_exists(tmp_path, python):
    project = '[project]\nname = "other-rocket"\nversion = "1"\n[tool.setuptools]\npy-modules = ["broken_module"]\n'
    project += '[project.entry-points."ensemble.experts"]\nrocket = "broken_module:Expert"\n'
    install({"pyproject.toml": project, "broken_module.py": ""}, tmp_path / "project", tmp_path / "site")
    done = python("-c", "from stages.experts import expert_class; print(expert_class('rocket')[0].__module__)")
    assert done.stdout.strip() == "stages.experts.models.signal_features.rocket", done.stderr
