"""One version of the package, stated once: what repeats it agrees."""

import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

import ensemble as face

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_the_command_and_the_package_say_the_installed_version(ensemble):
    assert face.__version__ == version("ecg-ensemble")
    assert ensemble("--version").stdout == f"ensemble {face.__version__}\n"


def test_citation_and_changelog_name_the_projects_version():
    assert str(yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["version"]) == PROJECT["version"]
    assert f"\n## {PROJECT['version']} (" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_every_extra_that_a_message_names_is_one():
    named = set()
    for path in (p for room in ("pipeline", "stages", "cache", "ensemble") for p in (ROOT / room).rglob("*.py")):
        for part in path.read_text("utf-8").split("ecg-ensemble[")[1:]:
            named |= set(part.partition("]")[0].split(","))
    known = set(PROJECT["optional-dependencies"])
    assert {"hospital", "plots", "cluster", "chronos"} <= named
    assert {name for name in named if "{" not in name} <= known


def test_a_cluster_without_dask_is_one_line_that_names_the_extra(monkeypatch):
    from cache.errors import UsageError
    from pipeline.compute.tasks import connected

    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match=r"pip install 'ecg-ensemble\[cluster\]'"):
        connected("tcp://127.0.0.1:9").__enter__()


@pytest.mark.slow
def test_fragments_become_the_changelog(tmp_path):
    """What towncrier writes of a fragment stands above the releases that were there."""
    pytest.importorskip("towncrier")
    for name in ("pyproject.toml", "CHANGELOG.md"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "changelog.d").mkdir()
    (tmp_path / "changelog.d" / "waves.added.md").write_text("`ensemble wave` waves.\n")
    command = [sys.executable, "-m", "towncrier", "build", "--yes", "--version", "9.9.9", "--date", "2030-01-01"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    text = (tmp_path / "CHANGELOG.md").read_text("utf-8")
    assert text.index("## 9.9.9 (2030-01-01)") < text.index("`ensemble wave` waves.") < text.index("## 0.2.0")
