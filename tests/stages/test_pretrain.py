"""Pretraining: whose records it sees, what it writes, and that a killed run goes on to the same curve."""

import json
import random
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.errors import InputError, UsageError
from cache.records import open_records
from cache.signals import open_signals
from stages.experts import list_experts, load_expert
from stages.pretrain import PretrainPaths, PretrainSettings
from stages.pretrain import run as pretrain
from stages.pretrain.objectives import pretrainable
from stages.training.loop import Training, learning_rate_factor
from stages.training.memory import in_batches
from stages.training.settings import LoopSettings
from stages.training.versions import patients_seen
from tests.stages.third_party import install

TINY = {"width": 16, "heads": 2, "dim_head": 8, "mlp_dim": 32, "depth": 2, "drop_out_rate": 0.1}
TINY |= {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2, "decoder_dim_head": 8}
LOOP = LoopSettings(epochs=4, batch_size=8, learning_rate=1e-2, warmup_epochs=1, checkpoint_seconds=0.0)
STMEM = PretrainSettings("stmem+test", "stmem", LOOP, variant="ipastmem", config=TINY)


@pytest.fixture(autouse=True)
def study(toy_study, monkeypatch):
    monkeypatch.chdir(toy_study)
    torch.set_num_threads(1)
    return toy_study


PATHS = PretrainPaths(Path("records.parquet"), Path("signals.zarr"), Path(".ensemble"))


def run(settings=STMEM, **loop):
    return pretrain(replace(settings, loop=replace(settings.loop, **loop)), PATHS)


def test_the_expert_loads_what_was_made(study):
    summary = run()
    assert summary.name in list_experts()
    expert, again = load_expert("stmem+test"), load_expert("stmem+test")
    x = expert.prepare(open_signals("signals.zarr").read_mv(slice(8, 12)), 500)
    vectors = [each.encode(x[:, 0]).embedding for each in (expert, again)]
    assert torch.equal(*vectors)
    assert expert.spec.name == "stmem+test"
    assert expert.preprocessing == "soup"
    by_file = load_expert("stmem", "weights/versions/stmem+test/model.safetensors", config={"heads": 2, "dim_head": 8})
    assert torch.equal(by_file.encode(x[:, 0]).embedding, vectors[0])
    facts = json.loads((study / "weights/versions/stmem+test/version.json").read_text())
    assert facts["cohort"]["sources"] == ["toy"]
    assert facts["cohort"]["n_records"] == summary.n_records == 31  # 32 training records, one of them bad
    assert [entry["loss"] for entry in facts["curve"]] == [entry["loss"] for entry in summary.history.epochs]
    assert facts["parameters"]["variant"] == "ipastmem"
    assert str(study) not in json.dumps(facts)


def test_the_loss_falls(study):
    first, *_, last = run(epochs=15).history.epochs
    assert last["loss"] < first["loss"] - 0.1
    assert last["validation_loss"] < first["validation_loss"]


def test_only_training_patients_are_learnt_from(study):
    run()
    store, split = open_signals("signals.zarr", "r+"), open_records("records.parquet")["split"].to_numpy()
    for shard in range(store.n_shards):
        rows = store.rows_of(shard)
        signals = store.read_uv(rows)
        signals[split[rows] == "test"] //= 3
        store.write_shard(shard, signals, np.full(len(signals), 5000))
    run(replace(STMEM, name="stmem+other"))
    state = {name: load_expert(name).module.state_dict() for name in ("stmem+test", "stmem+other")}
    assert all(torch.equal(value, state["stmem+other"][key]) for key, value in state["stmem+test"].items())
    frame = open_records("records.parquet")
    assert patients_seen("stmem+test", frame[frame["split"] == "test"]) == 0
    assert patients_seen("stmem+test", frame) == frame[frame["split"] == "train"]["patient_id"].nunique()


KILLED = """
import json, os, signal, sys
from pathlib import Path
import torch
from stages.pretrain import PretrainPaths, PretrainSettings
from stages.pretrain import run as pretrain
from stages.training.settings import LoopSettings
torch.set_num_threads(1)
settings, step = json.loads(sys.argv[1]), int(sys.argv[2])
loop = settings.pop("loop")
loop["betas"] = tuple(loop["betas"])
def stop(done, total, loss):
    if done == step:
        os.kill(os.getpid(), signal.SIGKILL)
paths = PretrainPaths(Path("records.parquet"), Path("signals.zarr"), Path(".ensemble"))
pretrain(PretrainSettings(loop=LoopSettings(**loop), **settings), paths, stop)
"""


def test_a_killed_run_goes_on_to_the_identical_curve(study):
    step = random.randrange(2, 12)
    command = [sys.executable, "-c", KILLED, json.dumps(asdict(STMEM)), str(step)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    resumed = run()
    assert resumed.resumed_at == step - 1
    weights = (study / "weights/versions/stmem+test/model.safetensors").read_bytes()
    (study / ".ensemble/training/stmem+test.pt").unlink()
    whole = run()
    assert whole.resumed_at == 0
    assert whole.history.losses == resumed.history.losses
    assert whole.history.epochs == resumed.history.epochs
    assert (study / "weights/versions/stmem+test/model.safetensors").read_bytes() == weights


def test_a_checkpoint_of_other_parameters_is_not_used(study, caplog):
    run()
    assert run(learning_rate=5e-3).resumed_at == 0
    assert "starting afresh" in caplog.text


def test_neither_inputs_nor_checkpoint_of_an_earlier_version_are_used(study, monkeypatch):
    from stages.experts.models.ecg import stmem as module

    run()
    spec = module._spec
    monkeypatch.setattr(module, "_spec", lambda *args: replace(spec(*args), version="later"))
    assert run().resumed_at == 0
    assert len(list((study / ".ensemble/inputs").glob("*.rows.npy"))) == 4  # training and validation records of both


def test_accumulation_and_checkpointing_change_no_number(study):
    plain = replace(STMEM, config=TINY | {"drop_out_rate": 0.0})
    whole = run(plain).history.losses
    for settings, loop in ((plain, {"micro_batch": 3}), (replace(plain, gradient_checkpointing=True), {})):
        (study / ".ensemble/training/stmem+test.pt").unlink()
        assert run(settings, **loop).history.losses == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_stays_close(study, precision):
    exact = run().history.losses
    assert run(precision=precision).history.losses == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize(
    ("expert", "leads", "config"),
    [
        ("dlinear", "each", {"kernel_size": 25}),
        ("dlinear", "joint", {"kernel_size": 25}),
        ("timesnet", "joint", {"d_model": 4, "d_ff": 4, "e_layers": 1, "num_kernels": 2, "top_k": 1, "seq_len": 100}),
    ],
)
def test_forecasting_learns_and_loads(study, expert, leads, config):
    settings = PretrainSettings(f"{expert}+test", expert, LOOP, leads=leads, config=config)
    summary = run(settings, learning_rate=1e-2, checkpoint_seconds=60)
    assert summary.n_records == (31 * 12 if leads == "each" else 31)
    assert summary.history.epochs[-1]["loss"] < 0.9 * summary.history.epochs[0]["loss"]
    found = load_expert(f"{expert}+test")
    x = found.prepare(open_signals("signals.zarr").read_mv(slice(8, 10)), 500)
    assert found.encode(x[:, 0]).output.shape == (2, 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "soup"}, "expected stmem or ipastmem"),
        ({"size": "huge"}, "expected tiny, small or base"),
        ({"expert": "rocket", "name": "rocket+test"}, "these can: dlinear, seed, stmem, timesnet"),
        ({"expert": "dlinear", "name": "dlinear+test"}, "has no variants"),
        ({"expert": "timesnet", "name": "timesnet+test", "variant": "", "leads": "both"}, "expected each or joint"),
        ({"expert": "seed", "name": "seed+test", "variant": "", "size": "small"}, "has no sizes"),
        ({"config": {"mask_ratio": 0.99}}, "mask_ratio 0.99"),
        ({"name": "stmem"}, r"named EXPERT\+TAG"),
    ],
)
def test_wrong_use_is_told_before_anything_runs(change, message):
    with pytest.raises(UsageError, match=message):
        run(replace(STMEM, **change))


def test_an_expert_of_another_package_says_itself_how_it_is_pretrained(tmp_path, monkeypatch):
    code = "from stages.experts.models.time_series.dlinear import DLinear\nclass Mine(DLinear):\n    pass\n"
    install(tmp_path / "site", code, monkeypatch, name="mine")
    assert pretrainable() == ["dlinear", "mine", "seed", "stmem", "timesnet"]
    settings = PretrainSettings("mine+test", "mine", LOOP, config={"kernel_size": 25})
    assert run(settings, epochs=1).n_records == 31 * 12


class Rows:
    def __len__(self):
        return 16

    def fetch(self, rows, generator):
        return (torch.from_numpy(rows).float()[:, None],)


class Full(torch.nn.Module):
    """Takes so many records and no more."""

    def __init__(self, limit):
        super().__init__()
        self.limit, self.map = limit, torch.nn.Linear(1, 1)

    def forward(self, x):
        if len(x) > self.limit:
            raise torch.OutOfMemoryError("full")
        return self.map(x / 16).square().mean()


def test_full_memory_halves_what_goes_through_at_once(caplog):
    def losses(limit):
        torch.manual_seed(0)
        training = Training(Full(limit), Rows(), LoopSettings(epochs=3, batch_size=16, learning_rate=0.1))
        training.run()
        return training.history.losses

    assert losses(4) == pytest.approx(losses(99), rel=1e-5)
    assert "4 records a forward pass" in caplog.text
    with pytest.raises(InputError, match="micro_batch"):
        losses(0)


def test_moving_average_is_what_remains():
    torch.manual_seed(0)
    training = Training(Full(99), Rows(), LoopSettings(epochs=5, batch_size=16, learning_rate=0.5, ema=0.99))
    average = training.run()
    assert average is not training.model
    assert not torch.equal(average.map.weight, training.model.map.weight)


class Normed(torch.nn.Module):
    """Keeps running statistics, which no optimiser moves."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(1)

    def forward(self, x):
        return (self.norm(x) - 1).square().mean()


def test_moving_average_follows_running_statistics():
    training = Training(Normed(), Rows(), LoopSettings(epochs=3, batch_size=16, learning_rate=0.1, ema=0.9))
    average = training.run()
    assert average is not training.model
    assert average.norm.running_mean != 0
    assert torch.equal(average.norm.running_mean, training.model.norm.running_mean)


def test_full_memory_halves_a_pass_without_gradients(caplog):
    def double(part):
        if part.stop - part.start > 3:
            raise torch.OutOfMemoryError("full")
        return list(range(part.start, part.stop))

    assert [row for part in in_batches(10, 8, double) for row in part] == list(range(10))
    assert "2 records a forward pass" in caplog.text
    with pytest.raises(InputError, match="micro_batch"):
        in_batches(3, 2, lambda part: double(slice(0, 9)))


def test_learning_rate_warms_up_and_falls_to_its_floor():
    rates = [learning_rate_factor(step, 100, 10, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
