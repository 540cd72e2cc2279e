"""TEMPO against the official code's outputs, every key spelling and option, and EnECG's STL input."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cache.errors import InputError, UsageError, WeightsError
from stages.experts import load_expert
from stages.experts.models.time_series.tempo import TempoExpert

SMALL = {
    "seq_len": 64,
    "pred_len": 5,
    "d_model": 12,
    "gpt_layers": 2,
    "kernel_size": 7,
    "period": 10,
    "gpt2": {"n_head": 3, "n_layer": 3, "vocab_size": 97, "n_positions": 64},
}


@pytest.fixture
def fixture(parity_dir):
    with safe_open(parity_dir / "tempo-a.safetensors", "pt") as file:
        metadata = file.metadata()
    tensors = load_file(parity_dir / "tempo-a.safetensors")
    state = {k.removeprefix("state/"): v for k, v in tensors.items() if k.startswith("state/")}
    stack = torch.cat([tensors[f"in/{k}"] for k in ("x", "trend", "season", "noise")], -1).transpose(1, 2)
    return tensors, state, json.loads(metadata["config"]), stack, json.loads(metadata["prompt_token_ids"])


@pytest.fixture
def save(tmp_path):
    def write(state):
        save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "weights.safetensors")
        return tmp_path / "weights.safetensors"

    return write


def small(**config):
    torch.manual_seed(0)
    expert = load_expert("tempo", config=SMALL | config, random_weights=True)
    for parameter in expert.module.parameters():  # no LoRA factor and no affine term is trivially zero
        parameter.add_(0.1 * torch.randn_like(parameter))
    return expert


def test_outputs_are_the_official_ones(fixture, save):
    tensors, state, config, stack, _ = fixture
    encoding = load_expert("tempo", save(state), config).encode(stack)
    torch.testing.assert_close(encoding.embedding, tensors["out/embedding"], atol=1e-5, rtol=0)
    torch.testing.assert_close(encoding.output, tensors["out/y"].flatten(1), atol=1e-5, rtol=1e-5)
    for k in range(2):
        torch.testing.assert_close(encoding.layers[:, k + 1], tensors[f"out/hidden_{k}"].mean(1), atol=5e-5, rtol=0)


def test_prompt_tokens_may_be_given(fixture, save):
    tensors, state, config, stack, ids = fixture
    expert = load_expert("tempo", save(state), config | {"prompt_token_ids": ids})
    torch.testing.assert_close(expert.encode(stack).embedding, tensors["out/embedding"], atol=1e-5, rtol=0)
    with pytest.raises(UsageError, match="'season'"):
        small(prompt_token_ids={"trend": [1], "noise": [1]})


def older_peft(key):
    return key.replace(".base_layer.", ".")


def unnamed_adapter(key):
    return older_peft(key).replace(".default.", ".")


def data_parallel(key):
    return f"module.{key}"


@pytest.mark.parametrize("spelling", [older_peft, unnamed_adapter, data_parallel])
def test_other_key_spellings_load_alike(fixture, save, spelling):
    tensors, state, config, stack, _ = fixture
    expert = load_expert("tempo", save({spelling(k): v for k, v in state.items()}), config)
    torch.testing.assert_close(expert.encode(stack).embedding, tensors["out/embedding"], atol=1e-5, rtol=0)


def test_keys_that_nothing_uses_may_be_there_or_not(fixture, save):
    tensors, state, config, stack, _ = fixture
    del state["time_attn.weight"]
    state["gpt2_trend.base_model.model.h.0.attn.bias"] = torch.ones(1, 1, 192, 192)
    state["gpt2_trend.base_model.model.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    state["mu.weight"] = torch.zeros(24, 24)
    expert = load_expert("tempo", save(state), config)
    torch.testing.assert_close(expert.encode(stack).embedding, tensors["out/embedding"], atol=1e-5, rtol=0)


def test_weights_that_do_not_match_are_named(save):
    state = dict(small().module.state_dict())
    with pytest.raises(WeightsError, match="other shape"):
        load_expert("tempo", save(state), SMALL | {"pred_len": 6})
    del state["map_resid.bias"]
    with pytest.raises(WeightsError, match=r"missing 1: map_resid.bias"):
        load_expert("tempo", save(state), SMALL)


# peft still asks for a property that transformers has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_the_adapted_gpt2_is_what_peft_makes_of_it():
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Model

    expert = small()
    gpt2 = GPT2Model(expert.module.options.gpt2_config())
    lora = LoraConfig(r=16, lora_alpha=16, lora_dropout=0.1, bias="lora_only", fan_in_fan_out=True)
    wrapped = get_peft_model(gpt2, lora).eval()
    wrapped.load_state_dict(
        {k.removeprefix("gpt2_trend."): v for k, v in expert.module.gpt2_trend.state_dict().items() if k}
    )
    tokens = torch.randn(2, 20, 12)
    expected = wrapped(inputs_embeds=tokens).last_hidden_state
    torch.testing.assert_close(expert.module._run(tokens)[1], expected, atol=1e-6, rtol=1e-6)


def test_the_original_variant_derives_its_parts_from_x_alone():
    expert = small(variant="original")
    net, stack = expert.module, torch.randn(2, 4, 64)
    other = torch.cat([stack[:, :1], torch.zeros(2, 3, 64)], 1)
    assert torch.equal(expert.encode(stack).embedding, expert.encode(other).embedding)

    x = stack[:, 0]
    normed = (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-5)
    normed = normed * net.rev_in_trend.affine_weight + net.rev_in_trend.affine_bias
    ends = torch.cat([normed[:, :1].expand(-1, 3), normed, normed[:, -1:].expand(-1, 3)], 1)
    trend = net.map_trend(ends.unfold(1, 7, 1).mean(-1))
    season = net.map_season(normed - trend)
    given = TempoExpert.build(SMALL, net.state_dict())
    given.module.eval()
    parts = torch.stack([x, trend, season, normed - trend - season], 1)
    torch.testing.assert_close(expert.encode(stack).embedding, given.encode(parts).embedding, atol=1e-5, rtol=1e-5)


def test_without_prompts_each_part_passes_gpt2_before_all_of_them():
    expert = small(prompt=0)
    net, stack = expert.module, torch.randn(2, 4, 64)
    tokens = []
    for part, series in zip(("trend", "season", "noise"), stack[:, 1:].unbind(1), strict=True):
        ended = torch.cat([series, series[:, -1:].expand(-1, 8)], 1)
        patches = net.get_submodule(f"in_layer_{part}")(ended.unfold(1, 16, 8))
        tokens.append(net.gpt2(inputs_embeds=patches).last_hidden_state)
    expected = net.gpt2(inputs_embeds=torch.cat(tokens, 1)).last_hidden_state
    torch.testing.assert_close(expert.encode(stack).embedding, expected.mean(1), atol=1e-5, rtol=1e-5)
    assert expert.spec.layer_names == ("embed", "block_1", "block_2")


def test_the_prompt_pool_gives_each_record_the_prompts_nearest_to_it(save):
    expert = small(pool=True)
    net = expert.module
    tokens = torch.randn(3, net.options.patch_num, 12)
    summary = net.summary_map(tokens.reshape(3 * 12, -1)).reshape(3, 12)
    keys = torch.stack([net.prompt_key_dict[f"prompt_key_{i}"] for i in range(30)])
    nearest = torch.cosine_similarity(summary[:, None], keys[None], dim=-1).argsort(dim=1, descending=True)[:, :3]
    values = torch.stack([net.prompt_value_dict[f"prompt_value_{i}"] for i in range(30)])
    torch.testing.assert_close(net._pool_prompt(tokens), values[nearest].reshape(3, 9, 12))
    again = load_expert("tempo", save(net.state_dict()), SMALL | {"pool": True})
    stack = torch.randn(2, 4, 64)
    assert torch.equal(again.encode(stack).embedding, expert.encode(stack).embedding)


def test_prompt_tokens_may_be_read_out_too():
    expert = small(use_token=1)
    assert expert.module.out_layer_trend.in_features == 12 * (expert.module.options.patch_num + 9)
    assert expert.encode(torch.randn(2, 4, 64)).output.shape == (2, 5)


def test_impossible_options_and_inputs_are_refused():
    for config in ({"num_nodes": 2}, {"gpt2": SMALL["gpt2"] | {"n_embd": 24}}, {"kernel_size": 8}):
        with pytest.raises(UsageError):
            small(**config)
    with pytest.raises(InputError, match="expected"):
        small().encode(torch.zeros(1, 1, 64))


def test_runs_in_bfloat16_near_the_float32_result():
    expert = small(variant="original")
    stack = torch.randn(2, 4, 64)
    full = expert.encode(stack).embedding
    expert.module.to(torch.bfloat16)
    assert torch.cosine_similarity(expert.encode(stack).embedding, full).min() > 0.99


def test_prepared_stack_is_the_published_one(parity_dir):
    tensors = load_file(parity_dir / "enecg-preprocess.safetensors")
    torch.manual_seed(0)
    config = {"d_model": 12, "gpt_layers": 1, "gpt2": {"n_head": 3, "vocab_size": 11}, "leads": ["I"]}
    expert = load_expert("tempo", config=config, random_weights=True)
    x = expert.prepare(tensors["in/raw_mv_T_by_lead"].transpose(1, 2), 500)
    expected = [tensors["out/tempo336"][:, :, 0]] + [
        tensors[f"out/stl_{k}_lead0"] for k in ("trend", "seasonal", "resid")
    ]
    torch.testing.assert_close(x[:, 0], torch.stack(expected, 1), atol=1e-4, rtol=0)
    second = load_expert("tempo", config=config | {"leads": None}, random_weights=True)
    assert second.spec.leads == ("II",)
