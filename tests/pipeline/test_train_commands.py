"""`ensemble pretrain` and `ensemble posttrain`: what their options come to."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from stages.experts import load_expert

SMALL = {"width": 16, "depth": 2, "mlp_dim": 32, "heads": 2, "dim_head": 8, "seq_len": 1000, "patch_size": 50}
ASK = (
    "--expert",
    "stmem",
    "--task",
    "sex",
    "--epochs",
    "1",
    "--batch-size",
    "8",
    "--device",
    "cpu",
    "--accept-license",
)


@pytest.fixture(autouse=True)
def study(toy_study, monkeypatch):
    monkeypatch.chdir(toy_study)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    state = load_expert("stmem", config=SMALL, random_weights=True, preprocessing="soup").module.state_dict()
    save_file({key: value.clone().contiguous() for key, value in state.items()}, "stmem.safetensors")
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["experts"]["stmem"] = {"weights": "stmem.safetensors", "config": SMALL, "preprocessing": "soup"}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    return toy_study


def facts_of(name):
    return json.loads(Path("weights/versions", name, "version.json").read_text())


def test_posttrain_takes_fractions_and_seeds_and_tells_each(ensemble):
    ended = ensemble("posttrain", *ASK, "--fractions", "0.5,1", "--seeds", "3,4")
    assert ended.returncode == 0, ended.stderr
    assert "stage 1 on features computed now" in ended.stdout
    assert "100% of the training patients, 2 seed(s): probe auroc" in ended.stdout
    assert "50% of the training patients, 2 seed(s)" in ended.stdout
    runs = json.loads(Path("weights/versions/stmem+sex/results.json").read_text())["runs"]
    assert [(run["fraction"], run["seed"]) for run in runs] == [(1.0, 3), (1.0, 4), (0.5, 3), (0.5, 4)]
    assert facts_of("stmem+sex")["parameters"]["seed"] == 3
    folder = Path("weights/versions/stmem+sex")
    assert {file.name for file in folder.iterdir() if file.stat().st_mode & 0o044 != 0o044} == set()
    assert "`ensemble embed --expert stmem+sex`" in ended.stdout.splitlines()[-1]
    recorded = json.loads(Path(".ensemble/runs/posttrain-stmem+sex.json").read_text())
    assert recorded["settings"]["weights"].endswith("stmem.safetensors")


@pytest.mark.parametrize(
    ("options", "probing", "drop_path"),
    [
        ((), True, 0.5),
        (("--plain",), False, 0.0),
        (("--no-probing",), False, 0.5),
        (("--no-drop-path",), True, 0.0),
        (("--drop-path", "0.2"), True, 0.2),
    ],
)
def test_one_flag_gives_each_ablation(ensemble, options, probing, drop_path):
    ended = ensemble("posttrain", *ASK, *options)
    assert ended.returncode == 0, ended.stderr
    found = facts_of("stmem+sex")["parameters"]
    assert (found["probing"], found["drop_path"]) == (probing, drop_path)


def test_posttrain_starts_from_the_experts_store_where_it_is_current(ensemble):
    assert ensemble("embed", "--expert", "stmem", "--device", "cpu", "--accept-license").returncode == 0
    ended = ensemble("posttrain", *ASK)
    assert "stmem.zarr" in ended.stdout.splitlines()[0]
    state = load_expert("stmem", "stmem.safetensors", SMALL, preprocessing="soup").module.state_dict()
    save_file({key: 1.01 * value.contiguous() for key, value in state.items()}, "stmem.safetensors")
    assert ensemble("posttrain", *ASK).stdout.startswith("stage 1 on features computed now")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("posttrain",), "give --expert and --task"),
        (("posttrain", *ASK[:2], "--task", "height", "--accept-license"), "has the targets sex, age"),
        (("posttrain", *ASK, "--fractions", ","), "--fractions"),
        (("posttrain", *ASK, "--drop-path", "1"), "--drop-path"),
        (("posttrain", *ASK, "--name", "mymodel"), "--name mymodel: a version is named EXPERT+TAG"),
        (("posttrain", *ASK, "--name", "ecgfm+sex"), "--name ecgfm+sex: a version of 'stmem'"),
        (("pretrain", "--expert", "stmem", "--name", "mymodel"), "--name mymodel: a version is named EXPERT+TAG"),
        (("pretrain", "--expert", "stmem", "--name", "seed+mine"), "--name seed+mine: a version of 'stmem'"),
        (("pretrain",), "--expert: which one?"),
        (("pretrain", "--expert", "stmem", "--size", "huge"), "--size huge"),
    ],
)
def test_wrong_use_is_one_line(ensemble, options, message):
    ended = ensemble(*options)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    assert not Path(".ensemble/training").exists()
