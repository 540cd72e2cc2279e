"""Mantis against the official outputs: both architectures, old key spellings, layers, tokens, the input path."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cache.errors import InputError, UsageError, WeightsError
from stages.experts import load_expert
from stages.experts.models.time_series.mantis import MantisExpert


@pytest.fixture(params=["mantis", "mantis2"])
def fixture(request, parity_dir):
    with safe_open(parity_dir / f"{request.param}-a.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state = {key.removeprefix("state/"): value for key, value in tensors.items() if key.startswith("state/")}
    return request.param, tensors, config, state


def load(path, state, config, name="mantis"):
    save_file(state, path / "weights.safetensors")
    return load_expert(name, path / "weights.safetensors", config)


def check(expert, tensors):
    with torch.inference_mode():
        encoding = expert.encode(tensors["in/x"])
    torch.testing.assert_close(encoding.embedding, tensors["out/embedding"].flatten(1), atol=1e-5, rtol=0)
    names = ["out/embed_mean", *(f"out/hidden_{k}_mean" for k in range(3))]
    for layer, name in zip(encoding.layers.unbind(1), names, strict=True):
        torch.testing.assert_close(layer, tensors[name].flatten(1), atol=5e-5, rtol=0)
    by_lead = tensors["out/tokens"].transpose(1, 2).flatten(2)
    torch.testing.assert_close(encoding.tokens, by_lead, atol=5e-5, rtol=0)


def test_official_outputs_under_every_name(fixture, tmp_path):
    name, tensors, config, state = fixture
    check(load(tmp_path, state, config), tensors)
    check(load(tmp_path, state, config, "mantis-v2" if name == "mantis2" else "mantis-utica"), tensors)


def test_the_old_spelling_of_the_keys_loads(fixture, tmp_path):
    _, tensors, config, state = fixture
    old = {key.replace("transf_unit.", "vit_unit."): value for key, value in state.items()}
    check(load(tmp_path, old, config), tensors)


@pytest.mark.parametrize(("token", "expected"), [("cls_token", "out/cls_last"), ("mean_token", "out/mean_last")])
def test_other_embeddings_of_the_last_layer(fixture, tmp_path, token, expected):
    _, tensors, config, state = fixture
    expert = load(tmp_path, state, config | {"output_token": token, "return_transf_layer": -1})
    with torch.inference_mode():
        found = expert.encode(tensors["in/x"]).embedding
    torch.testing.assert_close(found, tensors[expected].flatten(1), atol=1e-5, rtol=0)


def test_shapes_tell_what_the_config_leaves_out(fixture, tmp_path):
    _, tensors, config, state = fixture
    told = {"hidden_dim", "transf_depth", "transf_mlp_dim", "hidden_dim_scalar_enc", "kernel_size"}
    check(load(tmp_path, state, {key: value for key, value in config.items() if key not in told}), tensors)


def test_a_key_that_is_missing_or_left_over_is_named(fixture, tmp_path):
    _, _, config, state = fixture
    with pytest.raises(WeightsError, match=r"missing 1: prj\.1\.bias\)?$"):
        load(tmp_path, {key: value for key, value in state.items() if key != "prj.1.bias"}, config)
    with pytest.raises(WeightsError, match=r"unexpected 1: head\.weight\)?$"):
        load(tmp_path, state | {"head.weight": torch.zeros(1)}, config)


@pytest.mark.parametrize(("variant", "n"), [("8m", 8_103_936), ("plus", 8_103_936), ("v2", 4_188_672)])
def test_published_sizes(variant, n):
    with torch.device("meta"):
        expert = MantisExpert.build(None, None, variant=variant)
    assert expert.spec.parameters == expert.spec.published_parameters == n


def test_wrong_options_are_named():
    for config, says in (
        ({"num_patches": 30}, "no multiple of num_patches"),
        ({"return_transf_layer": 6}, "there are 6 layers"),
        ({"output_token": "all"}, "combined, cls_token or mean_token"),
        ({"hidden_dims": 8}, "did you mean 'hidden_dim'"),
    ):
        with pytest.raises(UsageError, match=says):
            load_expert("mantis", config=config, random_weights=True)


def test_each_lead_is_resized_from_its_own_rate_without_a_filter():
    expert = load_expert("mantis", config=MantisExpert.small_config(), random_weights=True)
    for rate_hz, seconds in ((500, 10), (257, 10), (500, 4)):
        signals = np.random.default_rng(0).normal(size=(2, 12, rate_hz * seconds)).astype(np.float32)
        wanted = torch.nn.functional.interpolate(torch.from_numpy(signals), size=512, mode="linear")
        torch.testing.assert_close(expert.prepare(signals, rate_hz)[:, 0], wanted, atol=0, rtol=0)
    assert expert.prepare(np.zeros((1, 12, 12_500)), 500).shape == (1, 3, 12, 512)


def test_other_inputs_are_refused():
    expert = load_expert("mantis", config=MantisExpert.small_config(), random_weights=True)
    with pytest.raises(InputError, match=r"expected \[batch, lead, 512\]"):
        expert.encode(torch.zeros(1, 12, 500))
    with pytest.raises(UsageError, match="no mask"):
        expert.encode(torch.zeros(1, 12, 512), torch.ones(1, 512))
