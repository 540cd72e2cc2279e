"""Reading checkpoints: official ones with settings beside the tensors, hostile and damaged ones; the strict match."""

import argparse
import collections
import os
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cache.errors import MissingFileError, UsageError, WeightsError
from stages.experts import expert_class, load_expert
from stages.experts.checkpoint_files import read_checkpoint, unwrap

STATE = {"w": torch.arange(3.0)}
SMALL = expert_class("ecgfounder")[0].small_config()


@pytest.fixture
def settings(monkeypatch):
    """An object of a package that is not installed where the checkpoint is read, built three ways."""
    module = types.ModuleType("omegaconf")

    class Plain:
        def __init__(self):
            self.value = 1

    class Reduced:
        def __reduce__(self):
            return Reduced, ({"a": 1},), {"flags": None}

        def __init__(self, *_):
            pass

    for cls in (Plain, Reduced):
        cls.__module__, cls.__qualname__ = "omegaconf", cls.__name__
        setattr(module, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, "omegaconf", module)
    return [Plain(), Reduced()]


@pytest.fixture
def official_state():
    torch.manual_seed(0)
    module = load_expert("ecgfounder", config=SMALL, random_weights=True).module
    return {key: value.contiguous() for key, value in module.state_dict().items()}


def fairseq_like(model):
    """What fairseq writes beside the weights: parsed arguments, meters in numpy scalars, counters."""
    scalars = [np.float64(0.5), np.float32(2), np.int64(3), np.bool_(True), np.dtype("f4")]
    history = [{"criterion_name": "Wav2vec", "loss": np.float64(1.5), "optimizer": collections.OrderedDict(lr=1e-4)}]
    return {
        "model": model,
        "args": argparse.Namespace(arch="wav2vec2", dropout=0.1, seeds=[np.int64(1)]),
        "extra_state": {"meters": scalars, "best": scalars[0]},
        "optimizer_history": history,
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_settings_and_numpy_scalars_beside_the_weights_are_read(tmp_path, zipped):
    path = tmp_path / "checkpoint.pt"
    torch.save(fairseq_like(STATE), path, _use_new_zipfile_serialization=zipped)
    content = read_checkpoint(path)
    assert torch.equal(unwrap(content)["w"], STATE["w"])
    assert content["args"].seeds == [1]
    assert content["extra_state"]["best"] == 0.5


def test_objects_of_training_frameworks_are_passed_over(tmp_path, settings):
    path = tmp_path / "checkpoint.pt"
    torch.save({"model": STATE, "cfg": settings}, path)
    del sys.modules["omegaconf"]
    content = read_checkpoint(path)
    assert torch.equal(unwrap(content)["w"], STATE["w"])
    assert not any(hasattr(each, "value") for each in content["cfg"])
    assert "omegaconf" not in sys.modules


class Hostile:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin"])
@pytest.mark.parametrize("plain_pickle", [True, False])
@pytest.mark.parametrize("attack", ["os.system", "eval", "getattr", "numpy"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, suffix, plain_pickle, attack):
    touched, path = tmp_path / "touched", tmp_path / f"weights{suffix}"
    hostile = {
        "os.system": Hostile(os.system, f"touch {touched}"),
        "eval": Hostile(eval, f"open({str(touched)!r}, 'w')"),
        "getattr": Hostile(getattr, np.ones(1), "tofile"),
        "numpy": Hostile(np.savetxt, str(touched), [1.0]),
    }[attack]
    if plain_pickle:
        path.write_bytes(pickle.dumps({"model": STATE, "extra": hostile}))
    else:
        torch.save({"model": STATE, "extra": hostile}, path)
    with pytest.raises(WeightsError, match=r"refused.*convert it to .safetensors"):
        load_expert("ecgfounder", path)
    assert not touched.exists()


@pytest.mark.parametrize("content", [b"", b"hello world", b"PK\x03\x04 cut off", b"\x80\x02}q\x00."])
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_what_is_no_checkpoint_is_one_line_with_the_file(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        load_expert("ecgfounder", path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


WRAPPED = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"state_dict": s},
    "twice": lambda s: {"model": {"state_dict": s}},
    "beside tensors": lambda s: {"loss": torch.tensor(0.5), "model": s, "epoch": 3},
    "data parallel": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    "compiled": lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_weights_load_from_under_the_usual_wrappers(tmp_path, official_state, wrap):
    torch.save(wrap(official_state), tmp_path / "w.pth")
    expert = load_expert("ecgfounder", tmp_path / "w.pth")
    assert torch.equal(expert.module.state_dict()["dense.weight"], official_state["dense.weight"])
    assert not expert.module.training
    assert not any(parameter.requires_grad for parameter in expert.module.parameters())


def test_keys_that_do_not_match_are_listed(tmp_path, official_state):
    official_state["dense.gain"] = official_state.pop("dense.bias")
    official_state["first_conv.conv.bias"] = torch.zeros(3)
    save_file(official_state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError) as caught:
        load_expert("ecgfounder", tmp_path / "w.safetensors", dict(SMALL))
    message = str(caught.value)
    assert "missing 1: dense.bias" in message
    assert "unexpected 1: dense.gain" in message
    assert "first_conv.conv.bias [3] instead of [16]" in message


def test_a_folder_means_its_only_checkpoint(tmp_path, official_state):
    save_file(official_state, tmp_path / "one.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert load_expert("ecgfounder", tmp_path).spec.embedding_dim == 48
    save_file(official_state, tmp_path / "two.safetensors")
    with pytest.raises(WeightsError, match="holds 2 checkpoint files; name one file"):
        load_expert("ecgfounder", tmp_path)
    torch.save(official_state, tmp_path / "12_lead_ECGFounder.pth")  # the published name wins
    assert load_expert("ecgfounder", tmp_path).spec.embedding_dim == 48


def test_wrong_names_are_answered_with_the_right_ones(tmp_path):
    with pytest.raises(UsageError, match=r"unknown expert 'ecgfounder-13lead'; there are: .*ecgfounder-1lead"):
        load_expert("ecgfounder-13lead")
    with pytest.raises(UsageError, match="no preprocessing 'author'; it has: authors, ptbxl_eval"):
        load_expert("ecgfounder", preprocessing="author", random_weights=True)
    with pytest.raises(MissingFileError, match=r"no weights at .*ensemble experts ecgfounder"):
        load_expert("ecgfounder", tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="takes no weights"):
        load_expert("rocket", tmp_path / "none.pth")
    with pytest.raises(UsageError, match="exclude each other"):
        load_expert("ecgfounder", tmp_path / "none.pth", random_weights=True)
    with pytest.raises(WeightsError, match=r"no weights on the model hub.*--weights"):
        load_expert("timesnet")
