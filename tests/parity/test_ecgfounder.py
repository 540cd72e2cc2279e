"""ECGFounder against the official code's outputs, with and without batch norm, for 12 leads and one."""

import json

import numpy as np
import pytest
import scipy.signal
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cache.errors import InputError, UsageError, WeightsError
from stages.experts import load_expert
from stages.experts.models.ecg.ecgfounder import EcgFounder, running_median
from stages.experts.networks.net1d import same_max_pool

MIMIC_TO_STANDARD = [0, 1, 2, 3, 5, 4, 6, 7, 8, 9, 10, 11]
SMALL = {"base_filters": 8, "filter_list": [16, 24], "m_blocks_list": [1, 2], "kernel_size": 5, "groups_width": 4}


@pytest.fixture
def fixture(parity_dir):
    with safe_open(parity_dir / "ecgfounder-a.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
    tensors = load_file(parity_dir / "ecgfounder-a.safetensors")
    return tensors, config, {k.removeprefix("state/"): v for k, v in tensors.items() if k.startswith("state/")}


@pytest.fixture
def save(tmp_path):
    def write(state):
        path = tmp_path / "weights.safetensors"
        save_file({k: v.contiguous() for k, v in state.items()}, path)
        return path

    return write


@pytest.fixture
def raw_and_inputs(parity_dir):
    tensors = load_file(parity_dir / "ecgfounder-preprocess.safetensors")
    return tensors["in/raw_mv_mimic_order"][:, MIMIC_TO_STANDARD].numpy(), tensors


def small(seed=0, **options):
    torch.manual_seed(seed)
    preprocessing = options.pop("preprocessing", None)
    return load_expert("ecgfounder", config=SMALL | options, random_weights=True, preprocessing=preprocessing)


def encode(expert, x):
    with torch.inference_mode():
        return expert.encode(x)


@pytest.mark.parametrize("with_config", [True, False])
def test_official_outputs(fixture, save, with_config):
    tensors, config, state = fixture
    expert = load_expert("ecgfounder", save(state), config if with_config else None)
    encoding = encode(expert, tensors["in/x"])
    torch.testing.assert_close(encoding.embedding, tensors["out/embedding"], atol=1e-5, rtol=0)
    torch.testing.assert_close(encoding.output, tensors["out/logits"], atol=1e-5, rtol=0)
    for k, layer in enumerate(encoding.layers):
        torch.testing.assert_close(layer, tensors[f"out/stage_{k}_mean"], atol=5e-5, rtol=0)
    assert expert.spec.layer_dims == (16, 32, 32, 64, 64)
    assert expert.spec.layer_names[-1] == "stage_5"


def test_checkpoint_wrapped_as_published(fixture, tmp_path):
    tensors, _, state = fixture
    torch.save({"step": 3, "state_dict": state}, tmp_path / "12_lead_ECGFounder.pth")
    expert = load_expert("ecgfounder", tmp_path)
    torch.testing.assert_close(encode(expert, tensors["in/x"]).embedding, tensors["out/embedding"], atol=1e-5, rtol=0)


def test_batch_norm_uses_the_stored_statistics(save):
    state = small().module.state_dict()
    generator = torch.Generator().manual_seed(1)
    for key, value in state.items():
        if key.endswith("running_mean"):
            state[key] = torch.randn(value.shape, generator=generator)
        elif key.endswith("running_var"):
            state[key] = torch.rand(value.shape, generator=generator) + 0.5
    x = torch.randn(2, 12, 700, generator=generator)
    plain = encode(load_expert("ecgfounder", save(state)), x)
    normed = encode(load_expert("ecgfounder", save(state), {"use_bn": True}), x)
    assert not torch.allclose(plain.embedding, normed.embedding, atol=1e-2)
    alone = encode(load_expert("ecgfounder", save(state), {"use_bn": True}), x[:1])
    torch.testing.assert_close(alone.embedding, normed.embedding[:1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{"ratio": 0.5}, {"ratio": 2}, {"n_classes": 3}, {"in_channels": 1}])
def test_shapes_determine_the_architecture(save, options):
    state = small(**options).module.state_dict()
    expert = load_expert("ecgfounder", save(state))
    assert expert.module.state_dict().keys() == state.keys()
    assert len(expert.spec.leads) == options.get("in_channels", 12)
    encoding = encode(expert, torch.randn(2, len(expert.spec.leads), 333))
    assert [layer.shape[1] for layer in encoding.layers] == [16, 24]


def test_mismatch_is_told(fixture, save):
    _, config, state = fixture
    state["stage_list.0.block_list.0.se_fc3.bias"] = state.pop("stage_list.0.block_list.0.se_fc2.bias")
    with pytest.raises(WeightsError, match=r"missing 1: .*se_fc2.bias; unexpected 1: .*se_fc3.bias"):
        load_expert("ecgfounder", save(state), config)


def test_impossible_options_are_refused():
    with pytest.raises(UsageError, match="in_channels 3"):
        small(in_channels=3)
    with pytest.raises(UsageError, match="same length"):
        small(m_blocks_list=[1])
    with pytest.raises(UsageError, match="did you mean 'kernel_size'"):
        small(kernel_sizes=3)


def test_published_parameter_counts():
    for variant, count in (("12lead", 30_819_014), ("1lead", 30_807_750)):
        with torch.device("meta"):
            spec = EcgFounder.build(None, None, variant=variant).spec
        assert spec.parameters == spec.published_parameters == count
        assert spec == EcgFounder.published_spec(variant)


def test_shortcut_pools_against_zero_at_the_odd_end():
    assert same_max_pool(torch.tensor([[[-3.0, -2.0, -1.0]]]), 2).tolist() == [[[-2.0, 0.0]]]


def test_preprocessing_is_the_authors(raw_and_inputs):
    raw, tensors = raw_and_inputs
    for preprocessing, name in (("authors", "model_input"), ("ptbxl_eval", "ptbxl_eval_input_no_filter")):
        x = small(preprocessing=preprocessing).prepare(raw, 500)
        torch.testing.assert_close(x[:, 0].double(), tensors[f"out/{name}"], atol=1e-4, rtol=0)


def test_one_lead_sees_lead_one_alone(raw_and_inputs):
    raw, _ = raw_and_inputs
    x = small(in_channels=1).prepare(raw, 500)
    assert x.shape == (2, 1, 1, 5000)
    torch.testing.assert_close(x.mean((1, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    full = small().prepare(raw, 500)[:, :, :1]
    assert np.corrcoef(x[0, 0, 0], full[0, 0, 0])[0, 1] > 0.9999


@pytest.mark.parametrize("kernel", [3, 201])
def test_running_median_is_medfilt_bit_for_bit(kernel):
    signals = np.random.default_rng(0).normal(size=(2, 3, 900)).cumsum(-1).round(2)
    expected = [[scipy.signal.medfilt(lead, kernel) for lead in record] for record in signals]
    np.testing.assert_array_equal(running_median(signals, kernel), expected)


def test_gaps_and_missing_leads_follow_the_declared_policy(raw_and_inputs):
    raw, _ = raw_and_inputs
    clean = small().prepare(raw, 500)
    raw = raw.copy()
    raw[0, 3] = np.nan
    raw[0, 5, 100:120] = np.nan
    x = small().prepare(raw, 500)
    assert x.isfinite().all()
    assert (x[0, :, 3] == 0).all()
    torch.testing.assert_close(x[1], clean[1], atol=0, rtol=0)


def test_windows_of_long_short_and_slow_records(raw_and_inputs):
    raw, _ = raw_and_inputs
    expert = small()
    assert expert.prepare(np.concatenate([raw, raw, raw[..., :900]], -1), 500).shape == (2, 2, 12, 5000)
    assert expert.prepare(raw[..., :2000], 500).shape == (2, 1, 12, 2000)
    assert expert.prepare(raw[..., :2500], 250).shape == (2, 1, 12, 5000)
    with pytest.raises(InputError, match="shorter than 1 s"):
        expert.prepare(raw[..., :400], 500)


def test_bfloat16_stays_close_and_batch_does_not_matter():
    expert = small()
    x = torch.randn(4, 12, 1000)
    whole = encode(expert, x)
    alone = torch.cat([encode(expert, x[i : i + 1]).embedding for i in range(4)])
    torch.testing.assert_close(alone, whole.embedding, atol=1e-5, rtol=0)
    expert.module.to(torch.bfloat16)
    half = encode(expert, x.to(torch.bfloat16))
    assert half.embedding.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(half.embedding, whole.embedding).min() > 0.999
    with pytest.raises(UsageError, match="no mask"):
        expert.encode(x, torch.ones(4, 1000))
