"""Files that people give as weights: settings objects beside them, pointers, other names, other experts' files."""

import collections
import os
import pathlib
import sys
import types

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from transformers import HubertConfig

from cache.errors import WeightsError
from stages.experts import expert_class, load_expert
from stages.experts.checkpoint_files import read_checkpoint, unwrap
from tests.stages.small_experts import new_expert

STATE = {"w": torch.arange(3.0)}
CONFIG = {
    "model": {"dim": 1, "layers": [1, 2, {"like": "${model.dim}"}], "none": None},
    "task": {"_name": "x", "p": 0.5},
}
FOUNDER = expert_class("ecgfounder")[0].small_config()
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4665a5ea423c2713d436b5ee\nsize 379548371\n"


@pytest.fixture
def founder():
    torch.manual_seed(0)
    module = load_expert("ecgfounder", config=FOUNDER, random_weights=True).module
    return {key: value.contiguous() for key, value in module.state_dict().items()}


@pytest.fixture
def attribute_dict(monkeypatch):
    """Lightning's AttributeDict, as lightning_fabric 2.6 defines it, under its own module and name."""

    class AttributeDict(dict):
        def __getattr__(self, key):
            try:
                return self[key]
            except KeyError as e:
                raise AttributeError(key) from e

        def __setattr__(self, key, value):
            self[key] = value

    name = "lightning_fabric.utilities.data"
    AttributeDict.__module__, AttributeDict.__qualname__ = name, "AttributeDict"
    for part in ("lightning_fabric", "lightning_fabric.utilities", name):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    sys.modules[name].AttributeDict = AttributeDict
    return AttributeDict


@pytest.mark.parametrize("zipped", [True, False])
def test_omegaconf_settings_are_passed_over(tmp_path, zipped):
    path = tmp_path / "fairseq.pt"
    content = {"model": STATE, "cfg": OmegaConf.create(CONFIG), "args": None}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    read = read_checkpoint(path)
    assert torch.equal(unwrap(read)["w"], STATE["w"])
    assert "DictConfig" not in type(read["cfg"]).__name__


@pytest.mark.parametrize("zipped", [True, False])
def test_lightnings_settings_are_passed_over(tmp_path, attribute_dict, zipped):
    path = tmp_path / "lightning.ckpt"
    hyper_parameters = attribute_dict(
        lr=1e-3, data=pathlib.PurePosixPath("/a"), nested=attribute_dict(n=1), b=(0.9, 0.95)
    )
    loops = {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": collections.Counter(a=1)}}}
    content = {"epoch": 3, "state_dict": STATE, "hyper_parameters": hyper_parameters, "loops": loops}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    for part in ("lightning_fabric", "lightning_fabric.utilities", "lightning_fabric.utilities.data"):
        del sys.modules[part]
    read = read_checkpoint(path)
    assert torch.equal(unwrap(read)["w"], STATE["w"])
    assert "lightning_fabric" not in sys.modules


def test_huberts_own_file_holds_its_configuration_and_loads(tmp_path):
    state = new_expert("hubert").module.state_dict()
    path = tmp_path / "hubert_ecg_small.pt"
    torch.save({"model_config": HubertConfig(hidden_size=512), "model_state_dict": state, "global_step": 7}, path)
    small = expert_class("hubert")[0].small_config()
    loaded = load_expert("hubert", path, small)
    assert all(torch.equal(value, state[key]) for key, value in loaded.module.state_dict().items())


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_settings_of_a_framework_let_nothing_else_through(tmp_path, attribute_dict):
    path, touched = tmp_path / "weights.pt", tmp_path / "touched"
    torch.save({"model": STATE, "cfg": OmegaConf.create(CONFIG), "hp": attribute_dict(a=Hostile(touched))}, path)
    with pytest.raises(WeightsError, match=r"refused.*system.*convert it to .safetensors"):
        read_checkpoint(path)
    assert not touched.exists()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (POINTER, ("Git LFS pointer to 379,548,371 bytes", "git lfs pull")),
        (b"/annex/objects/SHA256E-s379548371--4665a5ea.pt\n", ("git-annex pointer", "git annex get")),
        (b"<!DOCTYPE html><html><head><title>Google Drive</title>", ("web page", "download the file itself")),
    ],
)
def test_what_stands_in_the_place_of_weights_is_named(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        load_expert("ecgfounder", tmp_path / name)
    message = str(caught.value)
    assert all(part in message for part in said)
    assert "weights_only" not in message
    assert "\n" not in message


def refused(expert, content, path, config):
    torch.save(content, path) if path.suffix == ".pt" else save_file(content, path)
    with pytest.raises(WeightsError) as caught:
        load_expert(expert, path, config)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


ELSEWHERE = {
    "teacher": lambda s: (
        {"teacher": s, "epoch": 3},
        "under ['teacher'] 134 key(s) such as first_conv",
        "['teacher'] would",
    ),
    "net": lambda s: ({"net": s}, "under ['net'] 134 key(s)", "what is under ['net'] would"),
    "lightning": lambda s: (
        {"state_dict": {f"model.{k}": v for k, v in s.items()} | {"loss.weight": torch.zeros(3)}},
        "135 key(s) such as model.first_conv",
        "['state_dict'] with the prefix 'model.' would",
    ),
    "deeper": lambda s: (
        {"state": {"ema": {f"student.backbone.{k}": v for k, v in s.items()}}},
        "under ['state']['ema'] 134 key(s)",
        "with the prefix 'student.backbone.' would",
    ),
}


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_weights_under_other_names_are_told_with_the_line_that_takes_them(tmp_path, founder, kind, monkeypatch):
    content, there, fits = ELSEWHERE[kind](founder)
    message = refused("ecgfounder", content, tmp_path / "w.pt", FOUNDER)
    assert there in message
    assert fits in message
    line = message.partition("write it to a file with ")[2].partition(" and give that")[0]
    monkeypatch.chdir(tmp_path)
    exec(line, {"torch": torch, "read_checkpoint": read_checkpoint})
    assert load_expert("ecgfounder", "weights.pt", FOUNDER).spec.embedding_dim == 48


def test_a_prefix_in_safetensors_is_told_too(tmp_path, founder):
    prefixed = {f"net.{key}": value for key, value in founder.items()}
    message = refused("ecgfounder", prefixed, tmp_path / "w.safetensors", FOUNDER)
    assert "what is under the prefix 'net.' would" in message


def test_another_experts_file_is_recognised(tmp_path, founder):
    assert "looks like weights of expert 'ecgfounder'" in refused("stmem", founder, tmp_path / "w.pt", None)
    stmem = new_expert("stmem").module.state_dict()
    assert "looks like weights of expert 'stmem'" in refused("ecgfounder", {"model": stmem}, tmp_path / "w.pt", None)


def test_a_file_without_tensors_says_what_is_in_it(tmp_path):
    assert "(no tensors, but epoch, lr): holds no tensors under" in refused(
        "ecgfounder", {"epoch": 1, "lr": 0.1}, tmp_path / "w.pt", None
    )
