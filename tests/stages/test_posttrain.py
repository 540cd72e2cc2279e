"""Post-training: the strategy and its ablations, and the version that comes out."""

import json
import random
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cache.errors import StoreError, UsageError
from cache.signals import open_signals
from stages.experts import expert_class, list_experts, load_expert
from stages.heads.targets.tasks import TaskSpec, layout
from stages.posttrain import PosttrainPaths, PosttrainSettings
from stages.posttrain import run as posttrain
from stages.posttrain.probing import Head, Labelled, fit_probe
from stages.posttrain.stage import _load
from stages.posttrain.tuned import Tuned, rate_groups
from stages.training.settings import LoopSettings

SMALL = {"width": 16, "depth": 3, "mlp_dim": 32, "heads": 2, "dim_head": 8, "seq_len": 1000, "patch_size": 50}
LOOP = LoopSettings(epochs=2, batch_size=8, learning_rate=3e-3, checkpoint_seconds=60)
PATHS = PosttrainPaths(Path("records.parquet"), Path("signals.zarr"), Path(".ensemble"))


@pytest.fixture(autouse=True)
def study(toy_study, monkeypatch):
    monkeypatch.chdir(toy_study)
    torch.set_num_threads(1)
    return toy_study


@pytest.fixture
def stmem(study):
    torch.manual_seed(0)
    expert = load_expert("stmem", config=SMALL, random_weights=True, preprocessing="soup")
    path = study / "stmem.safetensors"
    save_file({key: value.clone().contiguous() for key, value in expert.module.state_dict().items()}, path)
    same = {"weights": path, "config": SMALL, "preprocessing": "soup", "select": "last"}
    return PosttrainSettings("stmem+sex", "stmem", "sex", LOOP, **same)


def vectors_of(name):
    expert = load_expert(name)
    x = expert.prepare(open_signals("signals.zarr").read_mv(slice(8, 12)), 500)
    with torch.inference_mode():
        return expert.encode(x[:, 0]).embedding.numpy()


def test_a_version_reloads_to_identical_embeddings_in_a_new_process(stmem, study):
    summary = posttrain(replace(stmem, seeds=(0, 1)), PATHS)
    assert "stmem+sex" in list_experts()
    here = vectors_of("stmem+sex")
    code = (
        "import numpy as np, torch\nfrom stages.experts import load_expert\nfrom cache.signals import open_signals\n"
        "torch.set_num_threads(1)\ne = load_expert('stmem+sex')\n"
        "x = e.prepare(open_signals('signals.zarr').read_mv(slice(8, 12)), 500)\n"
        "with torch.inference_mode():\n    np.save('there.npy', e.encode(x[:, 0]).embedding.numpy())"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert np.array_equal(here, np.load("there.npy"))
    original = load_expert("stmem", stmem.weights, SMALL, preprocessing="soup").module.state_dict()
    changed = load_expert("stmem+sex").module.state_dict()
    assert not torch.equal(original["block0.ff.fn.net.0.weight"], changed["block0.ff.fn.net.0.weight"])
    facts = json.loads((study / "weights/versions/stmem+sex/version.json").read_text())
    assert (facts["parent"], facts["task"], facts["base"]) == ("stmem", "sex", "stmem")
    assert facts["parameters"]["drop_path"] == 0.5
    results = json.loads((study / "weights/versions/stmem+sex/results.json").read_text())
    assert [run["seed"] for run in results["runs"]] == [0, 1]
    assert summary.predictions[0].shape == (len(summary.test_rows), 1)
    spec = expert_class("stmem+sex")[0].published_spec("base")
    assert spec.layer_dims == (16,) * 4
    assert spec.non_commercial


def test_a_version_can_be_adapted_again(stmem):
    posttrain(stmem, PATHS)
    again = replace(stmem, name="stmem+sex+age", expert="stmem+sex", task="age", weights=None, config={})
    summary = posttrain(replace(again, preprocessing=None), PATHS)
    assert "mae" in summary.runs[0]["tuned"]["test"]
    assert not np.array_equal(vectors_of("stmem+sex+age"), vectors_of("stmem+sex"))


def test_inputs_of_an_earlier_version_of_the_expert_are_not_read(stmem, study, monkeypatch):
    from stages.experts.models.ecg import stmem as module

    posttrain(stmem, PATHS)
    [kept] = (study / ".ensemble/inputs").glob("*.rows.npy")
    posttrain(stmem, PATHS)
    assert list((study / ".ensemble/inputs").glob("*.rows.npy")) == [kept]
    spec = module._spec
    monkeypatch.setattr(module, "_spec", lambda *args: replace(spec(*args), version="later"))
    posttrain(stmem, PATHS)
    assert len(list((study / ".ensemble/inputs").glob("*.rows.npy"))) == 2


def test_the_tuned_network_learns_what_its_frozen_features_do_not_tell(stmem):
    longer = replace(stmem, loop=replace(LOOP, epochs=12), drop_path=0.1, drop_path_schedule="linear", select="best")
    curve = posttrain(longer, PATHS).runs[0]["curve"]
    assert curve[0]["epoch"] == 0
    assert curve[-1]["loss"] < curve[1]["loss"]


def test_the_ablations_differ_where_they_should(stmem):
    full, plain = (
        posttrain(replace(stmem, select="best", **change), PATHS).runs[0]
        for change in ({}, {"probing": False, "drop_path": 0.0})
    )
    assert full["probe"] == plain["probe"]
    assert plain["curve"][0]["validation_loss"] == pytest.approx(np.log(2), abs=0.05)
    assert full["curve"][0]["validation_loss"] != plain["curve"][0]["validation_loss"]
    assert full["curve"][1]["loss"] != plain["curve"][1]["loss"]


def test_the_best_epoch_is_kept_and_may_be_the_probe(stmem):
    run = posttrain(replace(stmem, select="best", loop=replace(LOOP, learning_rate=0.3)), PATHS).runs[0]
    losses = {entry["epoch"]: entry["validation_loss"] for entry in run["curve"]}
    assert run["epoch"] == min(losses, key=losses.__getitem__) == 0
    assert run["tuned"] == run["probe"]


def test_fractions_take_whole_patients_and_nest(stmem):
    summary = posttrain(replace(stmem, fractions=(0.25, 1.0)), PATHS)
    assert [run["fraction"] for run in summary.runs] == [1.0, 0.25]
    assert summary.runs[1]["n_train"] == 8  # two records of each of four patients
    facts = json.loads(Path(summary.folder, "version.json").read_text())
    assert facts["cohort"]["n_records"] == summary.runs[0]["n_train"]


@pytest.mark.parametrize("name", ["ecgfm", "ecgfounder", "hubert", "jepa", "moment", "tempo"])
def test_every_expert_with_residual_blocks_can_be_adapted(name, study):
    cls, variant = expert_class(name)
    config = dict(cls.small_config(variant))
    torch.manual_seed(0)
    state = load_expert(name, config=config, random_weights=True).module.state_dict()
    save_file({key: value.clone().contiguous() for key, value in state.items()}, "weights.safetensors")
    asked = PosttrainSettings(f"{name}+sex", name, "sex", replace(LOOP, epochs=1), "weights.safetensors", config)
    posttrain(replace(asked, gradient_checkpointing=True, layer_decay=0.8), PATHS)
    expert = load_expert(f"{name}+sex")
    assert np.isfinite(vectors_of(f"{name}+sex")).all()
    assert expert.spec.embedding_dim == cls.build(config, state, variant=variant).spec.embedding_dim


def test_layer_decay_slows_what_is_near_the_input(stmem):
    expert = _load(stmem)
    tuned = Tuned(expert, Head(16, layout([TaskSpec("sex", "binary")])), None)
    groups = rate_groups(tuned, 0.5)
    assert [group["scale"] for group in groups] == [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]
    assert sum(len(g["params"]) for g in groups) == sum(p.requires_grad for p in tuned.parameters())
    assert any(p is tuned.head.linear.weight for p in groups[-1]["params"])
    assert any(p is expert.module.norm.weight for p in groups[-1]["params"])


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel", "regression"])
def test_the_probe_solves_what_is_linear(kind):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 5, generator=generator) * torch.tensor([1, 10, 0.1, 1, 0.0])
    score = x @ torch.tensor([[1.0, 0, 0], [0, 0.1, 0], [0, 0, 10], [0, 0, 0], [0, 0, 0]])
    task = TaskSpec("t", kind, ("a", "b", "c") if kind in ("multiclass", "multilabel") else ())
    y = {
        "binary": (score[:, :1] > 0).float(),
        "multilabel": (score > 0).float(),
        "multiclass": torch.nn.functional.one_hot(score.argmax(1), 3).float(),
        "regression": score[:, :1],
    }[kind]
    head = Head(5, layout([task]))
    train, held_out = (Labelled(x[rows], y[rows], torch.ones_like(y[rows])) for rows in (slice(200), slice(200, 300)))
    penalty = fit_probe(head, train, held_out)
    assert penalty == pytest.approx(1e-4)
    with torch.no_grad():
        logits = head(held_out.x)
    if kind == "regression":
        torch.testing.assert_close(logits, held_out.y, atol=0.02, rtol=0.02)
    elif kind == "multiclass":
        assert (logits.argmax(1) == held_out.y.argmax(1)).float().mean() > 0.93
    else:
        assert ((logits > 0) == (held_out.y > 0)).float().mean() > 0.93


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "height"}, "has the targets sex, age"),
        ({"drop_path": 1.5}, "0 <= rate < 1"),
        (
            {"name": "rocket+sex", "expert": "rocket", "weights": None, "config": {}, "preprocessing": None},
            "cannot be post-trained",
        ),
    ],
)
def test_wrong_use_is_told(stmem, change, message):
    with pytest.raises(UsageError, match=message):
        posttrain(replace(stmem, **change), PATHS)


KILLED = """
import json, os, signal, sys
from pathlib import Path
import torch
from stages.posttrain import PosttrainPaths, PosttrainSettings
from stages.posttrain import run as posttrain
from stages.training.settings import LoopSettings
torch.set_num_threads(1)
settings, step = json.loads(sys.argv[1]), int(sys.argv[2])
loop = settings.pop("loop")
loop["betas"] = tuple(loop["betas"])
told = []
def stop(done, total, loss):
    told.append(done)
    if len(told) == step:
        os.kill(os.getpid(), signal.SIGKILL)
paths = PosttrainPaths(Path("records.parquet"), Path("signals.zarr"), Path(".ensemble"))
posttrain(PosttrainSettings(loop=LoopSettings(**loop), **settings), paths, stop)
"""


def test_a_killed_run_goes_on_to_the_identical_curve_and_version(stmem, study):
    loop = replace(LOOP, epochs=4, ema=0.9, checkpoint_seconds=0.0)
    asked = replace(stmem, weights=str(stmem.weights), loop=loop, select="best", seeds=(0, 1), drop_path=0.3)
    step = random.randrange(2, 2 * 4 * 3)
    command = [sys.executable, "-c", KILLED, json.dumps(asdict(asked)), str(step)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = list((study / ".ensemble/training").iterdir())
    resumed = posttrain(asked, PATHS)
    weights = (study / "weights/versions/stmem+sex/model.safetensors").read_bytes()
    assert len(kept) == 1 + (step > 13)  # the second seed's checkpoint, where it had begun its second step
    for path in (study / ".ensemble/training").iterdir():
        path.unlink()
    whole = posttrain(asked, PATHS)
    assert whole.runs == resumed.runs
    assert (study / "weights/versions/stmem+sex/model.safetensors").read_bytes() == weights


def test_accumulation_and_checkpointing_change_no_number(stmem, study):
    still, dropping = replace(stmem, drop_path=0.0), stmem
    for plain, changed in (
        (still, replace(still, loop=replace(LOOP, micro_batch=3))),
        (dropping, replace(dropping, gradient_checkpointing=True)),
    ):
        curves = []
        for asked in (plain, changed):
            for path in Path(".ensemble/training").glob("*"):
                path.unlink()
            curves.append(posttrain(asked, PATHS).runs[0]["curve"])
        assert [e["loss"] for e in curves[1]] == pytest.approx([e["loss"] for e in curves[0]], rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_stays_close(stmem, study, precision):
    asked = replace(stmem, drop_path=0.0)
    exact, mixed = (
        posttrain(replace(asked, loop=replace(LOOP, precision=chosen)), PATHS).runs[0]["curve"]
        for chosen in ("fp32", precision)
    )
    assert [e["loss"] for e in mixed] == pytest.approx([e["loss"] for e in exact], rel=0.03)
    assert [e["loss"] for e in mixed] != [e["loss"] for e in exact]


def test_impossible_fractions_are_refused(stmem):
    with pytest.raises(UsageError, match="shares"):
        replace(stmem, fractions=(0.0,))


def test_cached_features_start_from_the_same_head(stmem, study):
    from stages.embed import Embedder, EmbedPaths, EmbedSettings

    paths = EmbedPaths(PATHS.records, PATHS.signals, Path("stmem.zarr"), PATHS.state)
    embedder = Embedder(EmbedSettings("stmem", stmem.weights, SMALL, "soup"), paths)
    embedder.run()
    cached = posttrain(stmem, replace(PATHS, features=paths.store)).runs[0]
    computed = posttrain(stmem, PATHS).runs[0]
    assert cached["probe"]["test"]["auroc"] == pytest.approx(computed["probe"]["test"]["auroc"], abs=0.2)
    assert cached["penalty"] == computed["penalty"]
    Path("stmem.zarr/embedding").rename("moved")
    with pytest.raises(StoreError):
        posttrain(stmem, replace(PATHS, features=paths.store))
