"""MERL's ViT against the official outputs: both checkpoint forms, other sizes against torch's own encoder layer."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file

from cache.errors import InputError, UsageError, WeightsError
from stages.experts import load_expert
from stages.experts.models.ecg.merl_vit import MerlVitExpert


@pytest.fixture
def fixture(parity_dir):
    with safe_open(parity_dir / "merl-vit-a.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
    tensors = load_file(parity_dir / "merl-vit-a.safetensors")
    return tensors, config, {k.removeprefix("state/"): v for k, v in tensors.items() if k.startswith("state/")}


def load(path, state, config):
    torch.save(dict(state), path / "weights.pth")
    return load_expert("merl-vit", path / "weights.pth", config)


def check(expert, tensors):
    with torch.inference_mode():
        encoding = expert.encode(tensors["in/x"])
    torch.testing.assert_close(encoding.embedding, tensors["out/embedding"], atol=1e-5, rtol=0)
    names = ["out/embed_mean", *(f"out/hidden_{k}_mean" for k in range(3))]
    for layer, name in zip(encoding.layers.unbind(1), names, strict=True):
        torch.testing.assert_close(layer, tensors[name], atol=5e-5, rtol=0)
    torch.testing.assert_close(encoding.tokens, tensors["out/tokens"], atol=5e-5, rtol=0)
    return encoding


def test_official_outputs_from_the_encoder_and_from_the_full_checkpoint(fixture, tmp_path):
    tensors, config, state = fixture
    assert check(load(tmp_path, state, config), tensors).output is None
    check(load(tmp_path, state, None), tensors)  # shapes tell all, with heads of 64
    torch.manual_seed(0)
    shapes = {"0.weight": (20, 48), "0.bias": (20,), "3.weight": (8, 20), "3.bias": (8,)}
    shapes |= {f"{k}.{name}": (n,) for k, n in ((1, 20), (4, 8)) for name in ("weight", "bias", "running_mean")}
    head = {f"proj_e.{name}": torch.randn(shape) for name, shape in shapes.items()}
    for k, n in ((1, 20), (4, 8)):
        head |= {f"proj_e.{k}.running_var": torch.rand(n) + 0.5, f"proj_e.{k}.num_batches_tracked": torch.tensor(3)}
    unread = {
        "lm_model.embeddings.weight": torch.zeros(2),
        "proj_t.0.bias": torch.zeros(2),
        "linear1.weight": torch.ones(1),
    }
    full = {f"ecg_encoder.{key}": value for key, value in state.items()} | head | unread
    found = check(load(tmp_path, {f"module.{key}": value for key, value in full.items()}, config), tensors)
    y = F.linear(tensors["out/embedding"], head["proj_e.0.weight"], head["proj_e.0.bias"])
    for k in (1, 4):
        mean, var, gain, bias = (
            head[f"proj_e.{k}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        )
        y = (y - mean) / (var + 1e-5).sqrt() * gain + bias
        y = F.linear(y.relu(), head["proj_e.3.weight"], head["proj_e.3.bias"]) if k == 1 else y
    torch.testing.assert_close(found.output, y, atol=1e-4, rtol=1e-5)


def test_a_key_that_is_missing_or_left_over_is_named(fixture, tmp_path):
    _, config, state = fixture
    with pytest.raises(WeightsError, match=r"missing 1: block2\.ff\.norm\.bias\)?$"):
        load(tmp_path, {k: v for k, v in state.items() if k != "block2.ff.norm.bias"}, config)
    with pytest.raises(WeightsError, match=r"unexpected 1: cls_token\)?$"):
        load(tmp_path, state | {"cls_token": torch.zeros(1)}, config)


def test_published_size():
    with torch.device("meta"):
        expert = MerlVitExpert.build(None, None)
    assert expert.spec.parameters == expert.spec.published_parameters == 5_473_152


def test_its_input_is_that_of_the_resnet(parity_dir):
    tensors = load_file(parity_dir / "merl-preprocess.safetensors")
    expert = load_expert("merl-vit", config=MerlVitExpert.small_config(), random_weights=True)
    x = expert.prepare(tensors["in/raw_mv_standard_order"], 500)
    torch.testing.assert_close(x[:, 0], tensors["out/finetune_input"], atol=1e-6, rtol=0)


def test_windows_are_as_long_as_the_positions():
    config = {**MerlVitExpert.small_config(), "seq_len": 2500}
    expert = load_expert("merl-vit", config=config, random_weights=True)
    x = expert.prepare(np.random.default_rng(0).normal(size=(1, 12, 5000)), 500)
    assert x.shape == (1, 2, 12, 2500)
    assert expert.encode(x[:, 1]).tokens.shape == (1, 50, 24)
    assert (expert.spec.seconds, expert.spec.tokens.per_window) == (5, 50)


@pytest.mark.parametrize(("width", "heads", "seed"), [(24, 3, 0), (16, 1, 1)])
def test_other_sizes_equal_torchs_encoder_layer(width, heads, seed):
    torch.manual_seed(seed)
    sizes = {"width": width, "depth": 1, "heads": heads, "dim_head": width // heads, "mlp_dim": 40, "patch_size": 100}
    expert = load_expert("merl-vit", config=sizes, random_weights=True)
    state = expert.module.state_dict()
    layer = torch.nn.TransformerEncoderLayer(width, heads, 40, 0.0, "gelu", batch_first=True, norm_first=True).eval()
    names = {"self_attn.in_proj_weight": "attn.fn.to_qkv.weight", "self_attn.in_proj_bias": "attn.fn.to_qkv.bias"}
    names |= {f"self_attn.out_proj.{k}": f"attn.fn.to_out.0.{k}" for k in ("weight", "bias")}
    names |= {
        f"{one}.{k}": f"{other}.{k}"
        for k in ("weight", "bias")
        for one, other in (
            ("linear1", "ff.fn.net.0"),
            ("linear2", "ff.fn.net.3"),
            ("norm1", "attn.norm"),
            ("norm2", "ff.norm"),
        )
    }
    layer.load_state_dict({one: state[f"block0.{other}"] for one, other in names.items()})
    x = torch.randn(2, 12, 5000)
    with torch.inference_mode():
        patches = F.conv1d(x, state["to_patch_embedding.weight"], stride=100).transpose(1, 2)
        expected = layer(patches + state["pos_embedding"])
        found = expert.encode(x)
    torch.testing.assert_close(found.tokens, expected, atol=2e-5, rtol=1e-5)


def test_wrong_inputs_and_options_are_named():
    expert = load_expert("merl-vit", config=MerlVitExpert.small_config(), random_weights=True)
    with pytest.raises(InputError, match=r"expected \[batch, 12, 5000\]"):
        expert.encode(torch.zeros(1, 12, 2500))
    with pytest.raises(InputError, match=r"'merl-vit': 0\.2 s are shorter"):
        expert.prepare(np.zeros((1, 12, 100)), 500)
    for config, says in (
        ({"num_leads": 8}, "only 12 are known"),
        ({"patch_size": 300}, "no multiple of patch_size"),
        ({"projection_size": 8}, "go together"),
        ({"widht": 8}, "did you mean 'width'"),
    ):
        with pytest.raises(UsageError, match=says):
            load_expert("merl-vit", config=config, random_weights=True)
