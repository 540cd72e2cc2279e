"""What a person sees of the command line: help, tables, doctor, and errors in one line."""

import json
import re
import subprocess
import sys
import typing

import pytest
import typer.main
import yaml

from pipeline import cli


@pytest.fixture
def ensemble(ensemble, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return ensemble


def commands() -> list[list[str]]:
    groups = [[], ["cache"], ["weights"]]
    found = []
    for group in groups:
        command = typer.main.get_command(cli.app)
        for name in group:
            command = command.commands[name]
        found += [[*group, name] for name in command.commands if name not in ("cache", "weights")]
    return found


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_the_help_of_each_command_has_an_example(ensemble, command):
    code, out, _ = ensemble(*command, "--help")
    assert code == 0
    assert "Example: " in " ".join(out.split())


def test_experts_are_filtered_by_pattern_licence_and_presence(ensemble, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = ensemble("experts", "ecgfm*")[1]
    assert "ecgfm-finetuned" in out
    assert "hubert" not in out
    out = ensemble("experts", "--licence", "open")[1]
    assert "moment" in out
    assert "hubert-large" not in out
    assert "stmem" not in out
    assert "rocket" in ensemble("experts", "--present")[1]
    assert "ecgfounder" not in ensemble("experts", "--present", "--licence", "apache")[1]
    code, _, err = ensemble("experts", "nothing*")
    assert (code, err.count("\n")) == (2, 1)
    assert "no expert is left of 'nothing*'" in err


def test_experts_lists_every_expert_with_its_licence(ensemble):
    code, out, _ = ensemble("experts")
    assert code == 0
    for name in ("ecgfm", "moment-large", "tempo", "rocket", "morphology"):
        assert f" {name} " in out
    assert "non-commercial" in out


def test_one_expert_in_full_says_how_to_get_its_weights(ensemble):
    code, out, _ = ensemble("experts", "ecgfm")
    assert code == 0
    assert "ensemble weights fetch ecgfm; embed does it too (hub wanglab/ecg-fm" in out
    assert "by this release: 584219ea492cdeef2e19ffbdf9c6ecc874ba427e, sha256 4d0142bc" in out
    assert "experts.ecgfm.weights in params.yaml; hub cache " in out
    assert "mimic-iv-ecg" in out


def test_an_expert_whose_first_use_pins_it_says_so_before_and_after(ensemble, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "not yet: the first download pins the commit of 'main'" in ensemble("experts", "tempo")[1]
    ledger = tmp_path / "ensemble/weights.json"
    ledger.parent.mkdir()
    pin = {"sha256": "ab" * 32, "commit": "cd" * 20}
    ledger.write_text(json.dumps({"Melady/TEMPO@main/TEMPO-80M_v1.pth": pin}))
    assert f"at first use: {pin['commit']}, sha256 {pin['sha256']}" in ensemble("experts", "tempo")[1]


def test_doctor_tells_weights_that_are_missing_and_licences_that_are_not_accepted(ensemble, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = {"cohort": {"source": "wfdb", "path": "."}, "experts": {"hubert": {}, "jepa": {"weights": "gone.pth"}}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    code, out, _ = ensemble("doctor", "--offline")
    assert code == 1
    assert "WARN  expert hubert: weights to fetch (hub) -> ensemble weights fetch hubert" in out
    assert "experts.hubert.accept_licence: true" in out
    assert re.search(r"FAIL  expert jepa: weights missing: params.yaml names .*gone.pth -> ", out)


def test_doctor_gives_a_verdict_on_each_line(ensemble):
    code, out, _ = ensemble("doctor", "--offline")
    assert code == 0, out
    assert {line.split()[0] for line in out.splitlines()} <= {"PASS", "WARN"}
    assert "ensemble init FOLDER" in out


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["ingest"], "make a study with `ensemble init FOLDER`", 1),
        (["ingest", "--source", "ptbxl", "--path", "nowhere"], "nowhere is not a folder", 1),
        (["ingest", "--source", "ptbx", "--path", "."], "unknown source 'ptbx'; did you mean 'ptbxl'? there are: ", 2),
        (["fit-heads"], "ensemble init FOLDER", 1),
        (["evaluate"], "run `ensemble fit-heads` first", 1),
        (["report", "--show"], "run `ensemble evaluate` first", 1),
        (["predict", "nowhere"], "nowhere: no WFDB record", 1),
        (["experts", "ecg-fm"], "unknown expert 'ecg-fm'; there are: ", 2),
        (["weights", "fetch", "stmem"], "has no weights on the model hub", 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_without_traceback(ensemble, arguments, message, code):
    exit_code, _, err = ensemble(*arguments)
    assert (exit_code, err.count("\n")) == (code, 1), err
    assert err.startswith("error: ")
    assert message in err


def test_debug_shows_the_traceback_before_or_after_the_command(ensemble):
    for arguments in (["--debug", "ingest"], ["ingest", "--debug"]):
        assert "Traceback" in ensemble(*arguments)[2]


def leaves(command, path=()):
    """Every command with its words, those of groups included."""
    inner = getattr(command, "commands", {})
    if not inner:
        yield path, command
    for name, one in inner.items():
        yield from leaves(one, (*path, name))


WHOLE = typer.main.get_command(cli.app)
COMMANDS = list(leaves(WHOLE))


def numbers():
    """Give (words of a command, option, its bounds that there are) of every option that takes a number."""
    for path, command in COMMANDS:
        hints = typing.get_type_hints(command.callback, include_extras=True)
        for parameter in command.params:
            kind, *about = typing.get_args(hints.get(parameter.name)) or (None,)
            if parameter.param_type_name == "option" and {int, float} & {kind, *typing.get_args(kind)}:
                bounds = [(about[0].min, -1), (about[0].max, 1)]
                yield path, max(parameter.opts, key=len), [pair for pair in bounds if pair[0] is not None]


def refused(ensemble, *arguments):
    """The line that says why the arguments are refused."""
    code, _, err = ensemble(*arguments)
    assert (code, err.count("\n")) == (2, 1), (arguments, err)
    assert err.startswith("error: ")
    return err


def test_a_number_beyond_its_bounds_is_one_line_in_every_command(ensemble, monkeypatch):
    monkeypatch.setattr(cli, "app", WHOLE)  # built once: Typer builds all commands at every call
    found = list(numbers())
    assert len(found) > 25
    assert sum(len(bounds) for *_, bounds in found) > 20
    for path, option, bounds in found:
        for given in ("many", *(f"{bound + beyond:g}" for bound, beyond in bounds)):
            words = refused(ensemble, *path, option, given)
            assert words.startswith(f"error: {option}: "), (path, words)
            assert words.endswith(f"`ensemble {' '.join(path)} --help` has more\n")


def test_what_does_not_fit_a_command_is_one_line(ensemble, monkeypatch):
    monkeypatch.setattr(cli, "app", WHOLE)
    for path, command in COMMANDS:
        assert "no such option: --nonsense" in refused(ensemble, *path, "--nonsense")
        needed = [one for one in command.params if one.required]
        if needed:
            words = refused(ensemble, *path)
            assert "missing " in words, path
    assert "no such option: --presicion; did you mean --precision?" in refused(
        ensemble, "embed", "--expert", "rocket", "--presicion", "fp32"
    )
    assert "no such command 'embedd'" in refused(ensemble, "embedd")
    assert "unexpected extra argument" in refused(ensemble, "report", "more")


def test_a_reader_that_goes_away_is_no_traceback():
    done = subprocess.run(
        f"{sys.executable} -m pipeline.cli experts | head -n 1", shell=True, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr


def test_a_cohort_is_generated_outside_of_any_study(ensemble, tmp_path):
    code, out, _ = ensemble("generate", "cohort", "--records", "3")
    assert code == 0
    assert "3 records" in out
    assert len((tmp_path / "cohort" / "RECORDS").read_text().split()) == 3
