"""Experts of other packages: the worked example of docs/adding-an-expert.md, installed and run; and broken packages."""

import json
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from cache.errors import UsageError, WeightsError
from stages.embed import EmbedSettings, describe
from stages.experts import Expert, list_experts, load_expert, models, registry
from stages.experts.contract_checks import CHECKS, check_expert
from tests.conftest import Ended
from tests.stages.third_party import FOLDER_EXPERT, PARTS, example_code, example_files, install

RUN = """
import numpy, torch
from stages.experts import load_expert
from stages.experts.run import run_expert
expert = load_expert("band-power")
x = expert.prepare(numpy.random.default_rng(0).normal(size=(2, 12, 5000)), 500.0)
print(type(expert).__module__, run_expert(expert, x).embedding.shape, expert.spec.name)
"""
COMMANDS = """
import contextlib, io, json, sys
from pipeline import cli

def run(arguments):
    sys.argv, code, out, err = ["ensemble", *arguments], 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()

ended = [run(arguments) for arguments in json.loads(sys.argv[1])]
print(json.dumps([name for name in ("peft", "transformers", "chronos") if name in sys.modules]))
print(json.dumps(ended))
"""
BROKEN = {
    "raises": "raise RuntimeError('no such\\nlibrary')",
    "no_class": "Expert = object",
    "no_spec": "from stages.experts import Expert\nclass Expert(Expert): ...",
}


def install_by_pip(files, project, target):
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


@pytest.fixture
def commands(python):
    """Run command lines one after the other in one new process, which looks for packages afresh.

    None of them may import what takes seconds and only some networks are built of.
    """

    def run(*lines, before=""):
        done = python("-c", before + COMMANDS, json.dumps([line.split() for line in lines]))
        assert done.returncode == 0, done.stderr
        *said, heavy, ended = done.stdout.splitlines()
        assert json.loads(heavy) == []
        return said, [Ended(*each) for each in json.loads(ended)]

    return run


def test_the_worked_example_is_installed_listed_and_run(tmp_path, commands):
    install_by_pip(example_files(), tmp_path / "project", tmp_path / "site")
    said, (table, page) = commands("experts", "experts band-power", before=RUN)
    assert said == ["ensemble_band_power (2, 48) band-power"]
    assert table.returncode == 0, table.stderr
    assert re.search(r"band-power .*12 leads, 500 Hz, 10 s .* 48 ", table.stdout)
    assert "band_power" not in table.stderr
    assert "band powers" in page.stdout


def test_the_example_is_an_expert_of_the_repository_as_it_stands(tmp_path, monkeypatch):
    (tmp_path / "band_power.py").write_text(example_files()["ensemble_band_power.py"])
    (tmp_path / "unnamed.py").write_text("NOTHING = 1\n")
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    expert = load_expert("band-power")
    assert type(expert).__module__ == "stages.experts.models.band_power"
    assert "band-power" in list_experts()
    assert "unnamed" not in list_experts()
    with pytest.raises(UsageError, match=r"unnamed.py registers no expert 'unnamed': write @register\('unnamed'\)"):
        load_expert("unnamed")
    for module in ("band_power", "unnamed"):
        monkeypatch.delitem(sys.modules, f"stages.experts.models.{module}")
    monkeypatch.delitem(registry._REGISTRY, "band-power")


def test_the_example_keeps_the_contract(tmp_path, monkeypatch, ensemble):
    install(tmp_path / "site", example_code(), monkeypatch)
    ended = ensemble("experts", "check", "band-power")
    assert ended.returncode == 0, ended.stdout
    assert {line.split("  ")[0] for line in ended.stdout.splitlines()} == {"PASS"}
    assert len(ended.stdout.splitlines()) == len(CHECKS)
    assert ensemble("experts", "check").returncode == ensemble("experts", "rocket", "morphology").returncode == 2


FAULTS = {
    "outputs fit the spec": {"widths": "            layer_dims=(24,), embedding_dim=WIDTH,\n"},
    "two passes are equal": {"encode": PARTS["encode"] + "        features = features + torch.rand(1)\n"},
    "records are independent": {"prepare": PARTS["prepare"] + "        signals = signals - signals.mean(0)\n"},
    "records differ": {"encode": PARTS["encode"] + "        features = features * 0\n"},
    "leads go by name": {"prepare": PARTS["prepare"] + "        signals = signals[:, ::-1]\n"},
    "awkward records have vectors": {"prepare": "        signals = np.asarray(signals_mv, dtype=np.float64)\n"},
    "lengths are used or refused": {
        "prepare": PARTS["prepare"] + "        if signals.shape[-1] < 5000: raise InputError('too short')\n"
    },
    "arrays and tensors are alike": {"prepare": "        signals = np.nan_to_num(signals_mv.astype(float))\n"},
}


@pytest.mark.parametrize("check", FAULTS)
def test_each_fault_is_found_and_named(tmp_path, monkeypatch, ensemble, check):
    install(tmp_path / "site", example_code(**FAULTS[check]), monkeypatch)
    ended = ensemble("experts", "check", "band-power")
    assert ended.returncode == 1
    assert f"FAIL  {check}: " in ended.stdout, ended.stdout


def test_weights_of_several_files_reach_the_expert_by_their_path(tmp_path, monkeypatch):
    install(tmp_path / "site", FOLDER_EXPERT, monkeypatch, name="folder")
    folder = tmp_path / "downloaded"
    folder.mkdir()
    linear = torch.nn.Linear(8, 4)
    save_file(dict(linear.state_dict()), folder / "model.safetensors")
    (folder / "config.json").write_text('{"n_in": 8}')
    expert = load_expert("folder", folder)
    assert torch.equal(expert.module.weight, linear.weight)
    digest = describe(EmbedSettings("folder", folder))["weights_sha256"]
    (folder / "config.json").write_text('{"n_in":  8}')
    assert describe(EmbedSettings("folder", folder))["weights_sha256"] != digest
    assert {part for part, wrong in check_expert("folder", folder) if wrong} >= {"published spec is true"}
    (folder / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"lacks config.json"):
        describe(EmbedSettings("folder", folder))


def test_a_package_cannot_register_the_name_of_an_expert_that_exists():
    with pytest.raises(UsageError, match="expert 'rocket', which exists already"):
        registry.register("rocket")(type("Mine", (Expert,), {}))


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.slow] * (k != "raises")) for k in BROKEN])
def test_a_broken_package_is_named_in_one_line_and_breaks_nothing_else(tmp_path, commands, kind):
    project = '[project]\nname = "broken-package"\nversion = "1"\n[tool.setuptools]\npy-modules = ["broken_module"]\n'
    project += '[project.entry-points."ensemble.experts"]\nbroken = "broken_module:Expert"\n'
    install_by_pip(
        {"pyproject.toml": project, "broken_module.py": BROKEN[kind]}, tmp_path / "project", tmp_path / "site"
    )
    _, (table, asked, other) = commands("experts", "experts broken", "experts rocket")
    assert table.returncode == 0, table.stderr
    assert "ecgfounder" in table.stdout
    assert table.stderr.count("\n") == 1
    assert "expert 'broken' of package 'broken-package' cannot be used" in table.stderr
    assert asked.returncode == 2
    assert asked.stderr.startswith("error: expert 'broken' of package 'broken-package'")
    assert other.returncode == 0


def test_a_package_cannot_take_the_name_of_an_expert_that_exists(tmp_path, python):
    project = '[project]\nname = "other-rocket"\nversion = "1"\n[tool.setuptools]\npy-modules = ["broken_module"]\n'
    project += '[project.entry-points."ensemble.experts"]\nrocket = "broken_module:Expert"\n'
    install_by_pip({"pyproject.toml": project, "broken_module.py": ""}, tmp_path / "project", tmp_path / "site")
    done = python("-c", "from stages.experts import expert_class; print(expert_class('rocket')[0].__module__)")
    assert done.stdout.strip() == "stages.experts.models.signal_features.rocket", done.stderr
