"""Several processes under torch's own launcher: they pretrain and post-train as one would."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.experts import load_expert
from stages.posttrain import PosttrainPaths, PosttrainSettings
from stages.posttrain import run as posttrain
from stages.pretrain import PretrainPaths, PretrainSettings
from stages.pretrain import run as pretrain
from stages.training.settings import LoopSettings

LOOP = LoopSettings(epochs=3, batch_size=8, learning_rate=1e-2)
FORECAST = PretrainSettings("dlinear+test", "dlinear", replace(LOOP, epochs=1), config={"kernel_size": 25})
SMALL = {"width": 16, "depth": 2, "mlp_dim": 32, "heads": 2, "dim_head": 8, "seq_len": 1000, "patch_size": 50}
TUNED = PosttrainSettings(
    "stmem+sex", "stmem", "sex", LOOP, "stmem.safetensors", SMALL, "soup", drop_path=0.0, seeds=(0, 1)
)
VERSIONS = {"pretrain": "dlinear+test", "posttrain": "stmem+sex"}
PATIENCE_S = 600


def train(what):
    """Run one command; the process that writes the version also writes what happened."""
    torch.set_num_threads(1)
    records, signals, state = Path("records.parquet"), Path("signals.zarr"), Path(".ensemble")
    if what == "pretrain":
        done = pretrain(FORECAST, PretrainPaths(records, signals, state))
        told = done.history.losses
    else:
        done = posttrain(TUNED, PosttrainPaths(records, signals, state))
        told = done.runs
    if done.folder:
        Path(f"{what}.json").write_text(json.dumps(told))


@pytest.fixture
def study(toy_study, monkeypatch):
    monkeypatch.chdir(toy_study)
    torch.manual_seed(0)
    state = load_expert("stmem", config=SMALL, random_weights=True, preprocessing="soup").module.state_dict()
    save_file({key: value.clone().contiguous() for key, value in state.items()}, "stmem.safetensors")
    return toy_study


def outcome(study):
    weights = [load_file(study / "weights/versions" / name / "model.safetensors") for name in VERSIONS.values()]
    told = {what: json.loads((study / f"{what}.json").read_text()) for what in VERSIONS}
    for path in (study / ".ensemble/training").iterdir():
        path.unlink()
    return told, weights


def launch(what):
    """Each command is a launch of its own: torchrun's store does not serve a second group of the same processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__, what]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE_S)


@pytest.mark.slow
def test_two_processes_train_as_one(study):
    for what in VERSIONS:
        train(what)
    alone, weights_alone = outcome(study)
    for what in VERSIONS:
        done = launch(what)
        assert done.returncode == 0, done.stderr
    together, weights_together = outcome(study)
    assert together["pretrain"] == pytest.approx(alone["pretrain"], rel=1e-4)
    for run, same in zip(together["posttrain"], alone["posttrain"], strict=True):
        assert (run["seed"], run["penalty"], run["epoch"]) == (same["seed"], same["penalty"], same["epoch"])
        assert run["probe"]["test"] == pytest.approx(same["probe"]["test"], rel=1e-4)
        assert [e.keys() for e in run["curve"]] == [e.keys() for e in same["curve"]]
        for entry, expected in zip(run["curve"], same["curve"], strict=True):
            assert entry == pytest.approx(expected, rel=1e-3)
    for found, expected in zip(weights_together, weights_alone, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-2)


if __name__ == "__main__":
    train(sys.argv[1])
