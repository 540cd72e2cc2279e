"""MERL's ResNet against the official outputs: both checkpoint forms, the input path, a plain loop at other sizes."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cache.errors import InputError, UsageError, WeightsError
from stages.experts import load_expert
from stages.experts.models.ecg.merl import MerlExpert


@pytest.fixture
def fixture(parity_dir):
    with safe_open(parity_dir / "merl-resnet-a.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
    tensors = load_file(parity_dir / "merl-resnet-a.safetensors")
    return tensors, config, {k.removeprefix("state/"): v for k, v in tensors.items() if k.startswith("state/")}


def load(path, state, config):
    save_file({key: value.contiguous() for key, value in state.items()}, path / "weights.safetensors")
    return load_expert("merl", path / "weights.safetensors", config)


def close(found, expected, tolerance):
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(found, expected, atol=tolerance * scale, rtol=0)


def check(expert, tensors):
    with torch.inference_mode():
        encoding = expert.encode(tensors["in/x"])
    close(encoding.embedding, tensors["out/embedding"], 1e-5)
    names = ["out/embed_mean", *(f"out/stage_{k}_mean" for k in range(4))]
    for layer, name in zip(encoding.layers, names, strict=True):
        close(layer, tensors[name], 5e-5)
    close(encoding.tokens, tensors["out/tokens"], 5e-5)


def test_official_outputs_from_the_encoder_and_from_the_full_checkpoint(fixture, tmp_path):
    tensors, config, state = fixture
    check(load(tmp_path, state, config), tensors)
    check(load(tmp_path, state, None), tensors)  # shapes tell all
    full = {f"module.ecg_encoder.{key}": value for key, value in state.items()}
    text = {f"module.{k.removeprefix('state_clip/')}": v for k, v in tensors.items() if k.startswith("state_clip/")}
    assert text
    unread = {
        "module.linear1.weight": torch.zeros(2),
        "lm_model.embeddings.weight": torch.zeros(2),
        "proj_t.0.bias": torch.zeros(2),
    }
    for checkpoint in (full | text, full | text | unread):
        expert = load(tmp_path, checkpoint, None)
        check(expert, tensors)
        with torch.inference_mode():
            close(expert.encode(tensors["in/x"]).output, tensors["out/zeroshot_embedding"], 1e-5)
        with pytest.raises(InputError, match=r"32 tokens; the text-aligned vector is pooled from 313"):
            expert.encode(tensors["in/x"][..., :500])


def test_a_key_that_is_missing_or_left_over_is_named(fixture, tmp_path):
    _, config, state = fixture
    with pytest.raises(WeightsError, match=r"missing 1: layer2\.0\.shortcut\.0\.weight$"):
        load(tmp_path, {k: v for k, v in state.items() if k != "layer2.0.shortcut.0.weight"}, config)
    with pytest.raises(WeightsError, match=r"unexpected 1: head\.weight$"):
        load(tmp_path, state | {"head.weight": torch.zeros(1)}, config)


def test_published_size():
    with torch.device("meta"):
        expert = MerlExpert.build(None, None)
    unused = 10 * 512 + 10  # linear, which the published file holds
    assert expert.spec.parameters == expert.spec.published_parameters == 3_853_962 - unused
    assert len(expert.module.state_dict()) == 120


def test_the_authors_input(parity_dir):
    tensors = load_file(parity_dir / "merl-preprocess.safetensors")
    expert = load_expert("merl", config=MerlExpert.small_config(), random_weights=True)
    x = expert.prepare(tensors["in/raw_mv_standard_order"], 500)
    torch.testing.assert_close(x[:, 0], tensors["out/finetune_input"], atol=1e-5, rtol=0)
    assert not expert.prepare(np.full((1, 12, 5000), 0.3), 500).any()


def test_the_input_of_pretraining(parity_dir):
    tensors = load_file(parity_dir / "merl-preprocess.safetensors")
    config = MerlExpert.small_config()
    expert = load_expert("merl", config=config, random_weights=True, preprocessing="pretraining")
    swapped = tensors["in/raw_mv_mimic_order"].clone()
    swapped[:, [4, 5]] = swapped[:, [5, 4]]  # the fixture's is in MIMIC order; `prepare` takes the standard one
    x = expert.prepare(swapped, 500)
    torch.testing.assert_close(x[:, 0], tensors["out/pretrain_input"], atol=1e-6, rtol=0)
    assert not expert.prepare(np.full((1, 12, 5000), 0.3), 500).any()


def test_a_record_of_five_seconds_goes_on_with_zeros_as_the_authors_cpsc2018():
    signals = np.random.default_rng(0).normal(1, 0.3, (2, 12, 2500))
    expert = load_expert("merl", config=MerlExpert.small_config(), random_weights=True)
    padded = np.concatenate([signals, np.zeros_like(signals)], axis=2)
    low, high = padded.min((1, 2), keepdims=True), padded.max((1, 2), keepdims=True)
    scaled = (padded - low) / (high - low + 1e-8)
    scaled[:, [4, 5]] = scaled[:, [5, 4]]
    np.testing.assert_allclose(expert.prepare(signals, 500)[:, 0], scaled, atol=1e-6)


def test_other_sizes_equal_the_formulas():
    config = {"widths": [4, 4, 6], "num_blocks": [1, 2, 1]}
    expert = load_expert("merl", config=config, random_weights=True)
    state = expert.module.state_dict()
    generator = torch.Generator().manual_seed(0)
    for key, value in state.items():  # statistics that a new network does not have
        if key.endswith(("running_mean", "bias")):
            value.normal_(generator=generator)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 2, generator=generator)

    def norm(x, name):
        mean, var, weight, bias = (
            state[f"{name}.{k}"][:, None] for k in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    x = torch.randn(1, 12, 777, generator=generator)
    y = norm(F.conv1d(x, state["conv1.weight"], stride=2, padding=3), "bn1").relu()
    for name, stride in (("layer1.0", 1), ("layer2.0", 2), ("layer2.1", 1), ("layer3.0", 2)):
        branch = norm(F.conv1d(y, state[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn1").relu()
        branch = norm(F.conv1d(branch, state[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
        if f"{name}.shortcut.0.weight" in state:
            y = norm(F.conv1d(y, state[f"{name}.shortcut.0.weight"], stride=stride), f"{name}.shortcut.1")
        y = (branch + y).relu()
    with torch.inference_mode():
        found = expert.encode(x)
    torch.testing.assert_close(found.tokens, y.transpose(1, 2), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.embedding, y.mean(2), atol=1e-5, rtol=1e-5)


def test_wrong_inputs_and_options_are_named():
    expert = load_expert("merl", config=MerlExpert.small_config(), random_weights=True)
    with pytest.raises(InputError, match=r"expected \[batch, 12, time\]"):
        expert.encode(torch.zeros(1, 5000, 12))
    with pytest.raises(InputError, match=r"0\.2 s are shorter"):
        expert.prepare(np.zeros((1, 12, 100)), 500)
    for config, says in (
        ({"widths": [4, 4]}, "differ in length"),
        ({"num_blocks": [1, 0, 1, 1]}, "at least one block"),
        ({"num_leads": 8}, "only 12 are known"),
        ({"projection_size": 6}, "multiple of 4"),
        ({"width": [4]}, "did you mean 'widths'"),
    ):
        with pytest.raises(UsageError, match=says):
            load_expert("merl", config=config, random_weights=True)
