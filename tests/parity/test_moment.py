"""MOMENT against the official code's outputs, its configurations and masks."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cache.errors import InputError, UsageError, WeightsError
from stages.experts import load_expert
from stages.experts.models.time_series.moment import Moment

T5 = {"d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 3, "num_heads": 2, "vocab_size": 11}


@pytest.fixture
def fixture(parity_dir):
    with safe_open(parity_dir / "moment-a.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
    tensors = load_file(parity_dir / "moment-a.safetensors")
    return tensors, {k.removeprefix("state/"): v for k, v in tensors.items() if k.startswith("state/")}, config


@pytest.fixture
def save(tmp_path):
    def write(state):
        save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "weights.safetensors")
        return tmp_path / "weights.safetensors"

    return write


def small(preprocessing=None, **config):
    torch.manual_seed(0)
    return load_expert("moment", config={"t5_config": T5} | config, random_weights=True, preprocessing=preprocessing)


def test_outputs_are_the_official_ones_under_a_mask(fixture, save):
    tensors, state, config = fixture
    expert = load_expert("moment", save(state), config)
    encoding = expert.encode(tensors["in/x"], tensors["in/input_mask"])
    torch.testing.assert_close(encoding.embedding, tensors["out/embedding"], atol=1e-5, rtol=0)
    weight = tensors["in/input_mask"].unfold(-1, 8, 8).amin(-1, keepdim=True)
    for k in range(2):
        per_patch = tensors[f"out/hidden_{k}"].unflatten(0, (3, 3)).mean(1)
        expected = (per_patch * weight).sum(1) / weight.sum(1)
        torch.testing.assert_close(encoding.layers[:, k + 1], expected, atol=5e-5, rtol=0)
    tokens = tensors["out/tokens"].mean(1)[0].mean(0)
    torch.testing.assert_close(expert.encode(tensors["in/x"][:1]).embedding[0], tokens, atol=1e-5, rtol=0)


def test_no_mask_is_a_mask_of_ones():
    expert = small()
    x = torch.randn(2, 3, 64)
    torch.testing.assert_close(expert.encode(x).layers, expert.encode(x, torch.ones(2, 64)).layers)


def test_masked_samples_never_change_the_vector():
    expert = small()
    x = torch.randn(1, 2, 64)
    mask = torch.ones(1, 64)
    mask[:, :20] = 0  # the third patch is only partly masked: it counts as masked, its real samples in the mean
    other = x.clone()
    other[..., :20] = 1e3
    torch.testing.assert_close(expert.encode(x, mask).embedding, expert.encode(other, mask).embedding)
    assert not torch.allclose(expert.encode(x).embedding, expert.encode(x, mask).embedding)


@pytest.mark.parametrize("extra", [{}, {"value_embedding_bias": True, "revin_affine": True, "patch_len": 4}])
def test_state_dicts_go_round(save, extra):
    if "patch_len" in extra:
        extra = extra | {"patch_stride_len": extra["patch_len"], "add_positional_embedding": False}
    expert = small(**extra)
    again = load_expert("moment", save(expert.module.state_dict()), {"t5_config": T5} | extra)
    x = torch.randn(2, 2, 40)
    assert torch.equal(again.encode(x).layers, expert.encode(x).layers)


@pytest.mark.parametrize(("variant", "width", "layers"), [("small", 512, 8), ("base", 768, 12), ("large", 1024, 24)])
def test_published_sizes_follow_from_the_backbone_alone(variant, width, layers):
    config = {"d_model": None, "transformer_backbone": f"google/flan-t5-{variant}", "seq_len": 512}
    for given, size in ((config, None), (None, variant)):
        with torch.device("meta"):
            expert = Moment.build(given, None, variant=size)
        assert expert.spec.embedding_dim == width
        assert len(expert.spec.layer_names) == layers + 1
        assert expert.spec.parameters == Moment.published_spec(variant).published_parameters


def test_a_partial_t5_config_keeps_the_rest_of_the_backbone():
    expert = small(t5_config={"num_layers": 1, "vocab_size": 11})
    assert expert.module.encoder.config.num_layers == 1
    assert expert.module.encoder.config.d_ff == 1024
    assert expert.spec.embedding_dim == 512


def test_heads_of_other_tasks_and_a_saved_decoder_are_passed_over(save):
    expert = small()
    state = {k: v for k, v in expert.module.state_dict().items() if not k.startswith("head.")}
    state |= {"head.linear.weight": torch.zeros(5, 288), "head.linear.bias": torch.zeros(5)}
    state |= {"decoder.embed_tokens.weight": torch.zeros(11, 24)}
    again = load_expert("moment", save(state), {"t5_config": T5})
    x = torch.randn(1, 1, 64)
    assert torch.equal(again.encode(x).embedding, expert.encode(x).embedding)


def test_weights_that_do_not_match_are_named(save):
    state = dict(small().module.state_dict())
    with pytest.raises(WeightsError, match="other shape"):
        load_expert("moment", save(state), {"t5_config": T5 | {"d_ff": 48}})
    state["encoder.block.9.x"] = state.pop("encoder.final_layer_norm.weight")
    with pytest.raises(WeightsError, match=r"missing 1: encoder.final_layer_norm.weight; unexpected 1"):
        load_expert("moment", save(state), {"t5_config": T5})


def test_weights_of_another_size_say_which(save):
    with pytest.raises(WeightsError, match="use 'moment-base'"):
        load_expert("moment", save({"patch_embedding.mask_embedding": torch.zeros(768)}))


def test_impossible_options_and_inputs_are_refused():
    for config in ({"transformer_backbone": "bert"}, {"d_model": 32}, {"transformer_type": "decoder_only"}):
        with pytest.raises(UsageError):
            small(**config)
    with pytest.raises(InputError, match="mask"):
        small().encode(torch.zeros(2, 1, 64), torch.ones(2, 8))


@pytest.mark.parametrize(
    ("preprocessing", "shape"), [("authors", (2, 1, 12, 512)), ("enecg", (2, 1, 12, 5000)), ("beats", (2, 5, 12, 512))]
)
def test_prepared_windows_have_the_declared_shape(preprocessing, shape):
    x = small(preprocessing).prepare(np.random.default_rng(0).normal(size=(2, 12, 5000)), 500)
    assert x.shape == shape
    assert x.dtype == torch.float32


def test_enecg_input_is_the_published_one(parity_dir):
    tensors = load_file(parity_dir / "enecg-preprocess.safetensors")
    x = small("enecg").prepare(tensors["in/raw_mv_T_by_lead"].transpose(1, 2), 500)
    torch.testing.assert_close(x[:, 0], tensors["out/fm5000"].transpose(1, 2), atol=1e-4, rtol=0)


def test_authors_input_is_interpolated_and_standardised_per_lead():
    signals = np.random.default_rng(0).normal(2.0, 3.0, (1, 12, 1000))
    signals[0, 4] = np.nan
    x = small().prepare(signals, 100)[0, 0].numpy()
    at = np.interp(np.linspace(0, 1, 512), np.linspace(0, 1, 1000), signals[0, 0])
    np.testing.assert_allclose(x[0], (at - at.mean()) / at.std(), atol=1e-5)
    assert not x[4].any()
    assert torch.isfinite(small().encode(torch.from_numpy(x)[None]).embedding).all()


def test_runs_in_bfloat16_near_the_float32_result():
    expert = small()
    x = torch.randn(2, 3, 64)
    full = expert.encode(x).embedding
    expert.module.to(torch.bfloat16)
    assert torch.cosine_similarity(expert.encode(x, torch.ones(2, 64)).embedding, full).min() > 0.99


def test_a_batch_that_is_encoded_in_pieces_gives_what_each_record_gives_alone():
    expert = small()
    x, mask = torch.randn(5, 12, 512), torch.ones(5, 512)
    mask[3, :100] = 0
    alone = torch.cat([expert.encode(x[i : i + 1], mask[i : i + 1]).layers for i in range(5)])
    torch.testing.assert_close(expert.encode(x, mask).layers, alone, atol=1e-5, rtol=0)
