"""D-BETA and MELP against the official outputs: checkpoint forms, poolers, inputs, and ECG-FM's encoder inside."""

import argparse
import json
import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file

from cache.errors import InputError, UsageError, WeightsError
from stages.experts import expert_class, load_expert
from stages.experts.models.ecg.dbeta import DBetaExpert
from stages.experts.models.ecg.melp import MelpExpert

NAMES = ("dbeta", "melp")
CLASSES = {"dbeta": DBetaExpert, "melp": MelpExpert}


def official(parity_dir, name):
    with safe_open(parity_dir / f"{name}-a.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
    tensors = load_file(parity_dir / f"{name}-a.safetensors")
    return tensors, config, {k.removeprefix("state/"): v for k, v in tensors.items() if k.startswith("state/")}


def load(path, name, content, config):
    torch.save(content, path / "weights.ckpt")
    return load_expert(name, path / "weights.ckpt", config)


def check(expert, tensors):
    with torch.inference_mode():
        encoding = expert.encode(tensors["in/x"])
    torch.testing.assert_close(encoding.embedding, tensors["out/embedding"], atol=1e-5, rtol=0)
    names = ["out/embed_mean", "out/hidden_0_mean", "out/hidden_1_mean"]
    for layer, name in zip(encoding.layers.unbind(1), names, strict=True):
        torch.testing.assert_close(layer, tensors[name], atol=5e-5, rtol=0)
    torch.testing.assert_close(encoding.tokens, tensors["out/tokens"], atol=5e-5, rtol=0)
    return encoding


def test_dbeta_from_the_checkpoint_and_from_either_spelling(parity_dir, tmp_path):
    tensors, config, state = official(parity_dir, "dbeta")
    check(load(tmp_path, "dbeta", dict(state), config), tensors)
    text = {"language_encoder.embed.weight": torch.zeros(2), "mlm_head.decoder.bias": torch.zeros(2)}
    text |= {"multi_modal_language_proj.weight": torch.zeros(2), "multi_modal_ecg_layers.0.x": torch.zeros(1)}
    text |= {"ecg_encoder.mask_emb": torch.zeros(48), "modality_type_embeddings.weight": torch.zeros(2)}
    new = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    spelt = {
        key.replace("weight_g", new["weight_g"]).replace("weight_v", new["weight_v"]): v for key, v in state.items()
    }
    assert spelt.keys() != state.keys()
    for weights in (state | text, spelt):
        check(load(tmp_path, "dbeta", {"model": weights, "epoch": 3}, {"model": config}), tensors)


def test_dbetas_class_token_goes_through_every_block(parity_dir, tmp_path):
    tensors, config, state = official(parity_dir, "dbeta")
    expert = load(tmp_path, "dbeta", dict(state), config)
    backbone = expert.module.ecg_encoder
    with torch.inference_mode():
        tokens = backbone.positioned(tensors["in/x"])
        first = expert.module.class_embedding.expand(3, 1, -1)
        hidden, _ = backbone.encoder(torch.cat([first, tokens], 1), None)
        projected = expert.module.multi_modal_ecg_proj(hidden[-1])
    for found, name in zip(hidden, ("embed_cls", "hidden_0_cls", "hidden_1_cls"), strict=True):
        torch.testing.assert_close(found[:, 0], tensors[f"out/{name}"], atol=5e-5, rtol=0)
    torch.testing.assert_close(projected[:, 0], tensors["out/proj_cls"], atol=5e-5, rtol=0)
    torch.testing.assert_close(projected[:, 1:].mean(1), tensors["out/proj_tokens_mean"], atol=5e-5, rtol=0)


def test_melp_from_the_lightning_file_and_from_the_ecg_side_alone(parity_dir, tmp_path):
    tensors, config, state = official(parity_dir, "melp")
    foreign = types.ModuleType("melp")
    foreign.Settings = type("Settings", (), {"__module__": "melp", "__qualname__": "Settings"})
    sys.modules["melp"] = foreign
    try:
        settings = foreign.Settings()
        settings.lr = 0.1
        text = {"lm_model.x.weight": torch.zeros(2), "proj_t.0.bias": torch.zeros(2), "sent_proj.bias": torch.ones(2)}
        content = {"state_dict": state | text, "hyper_parameters": {"a": settings, "args": argparse.Namespace(lr=1)}}
        full = load(tmp_path, "melp", content, config)
    finally:
        del sys.modules["melp"]
    bare = {key.removeprefix("ecg_encoder."): value for key, value in state.items()}
    for expert in (full, load(tmp_path, "melp", bare, config), load(tmp_path, "melp", dict(state), config)):
        encoding = check(expert, tensors)
        torch.testing.assert_close(encoding.output, tensors["out/text_embedding"], atol=1e-5, rtol=0)
        torch.testing.assert_close(encoding.layers[:, -1], tensors["out/raw_features"], atol=5e-5, rtol=0)
        with torch.inference_mode():
            captions = expert.module.caption_tokens(tensors["in/x"])
            by_query = expert.module.ln_contrast(expert.module.attn_pool_contrast(encoding.tokens))
            by_query = by_query @ expert.module.proj_contrast
        torch.testing.assert_close(captions, tensors["out/caption_tokens"], atol=5e-5, rtol=0)
        torch.testing.assert_close(by_query, tensors["out/beat_embedding"], atol=5e-5, rtol=0)


def test_melps_queries_are_told_by_the_shapes(parity_dir, tmp_path):
    tensors, config, state = official(parity_dir, "melp")
    told = ("n_queries_contrast", "n_queries_caption", "shared_emb_dim", "embed_dim_caption", "encoder_layers")
    check(load(tmp_path, "melp", dict(state), {k: v for k, v in config.items() if k not in told}), tensors)


@pytest.mark.parametrize("name", NAMES)
def test_a_key_that_is_missing_or_left_over_is_named(name, parity_dir, tmp_path):
    _, config, state = official(parity_dir, name)
    outer = "ecg_encoder." if name == "melp" else ""
    lost = next(key for key in state if key.endswith("encoder.layers.1.fc2.bias"))
    with pytest.raises(WeightsError, match=r"missing 1: ecg_encoder\.encoder\.layers\.1\.fc2\.bias\)?$"):
        load(tmp_path, name, {key: value for key, value in state.items() if key != lost}, config)
    with pytest.raises(WeightsError, match=r"unexpected 1: other\.weight\)?$"):
        load(tmp_path, name, state | {f"{outer}other.weight": torch.zeros(1)}, config)
    with pytest.raises(WeightsError, match="do not say encoder_attention_heads; give the config"):
        load(tmp_path, name, dict(state), None)


def test_published_sizes():
    with torch.device("meta"):
        dbeta, melp = (CLASSES[name].build(None, None) for name in NAMES)
    for expert in (dbeta, melp):
        assert sum(p.numel() for p in expert.module.ecg_encoder.parameters()) == 62_021_760
    assert dbeta.spec.parameters == dbeta.spec.published_parameters == 63_203_712
    codebook = 2 * 320 * 128 + 2 * 320 * 257  # vars, weight_proj
    pretraining_only = 1 + 768 + codebook + 256 * 257 + 256 * 769  # logit_scale, mask_emb, project_q, final_proj
    assert melp.spec.parameters == melp.spec.published_parameters == 65_593_601 - pretraining_only


def test_the_authors_inputs(parity_dir):
    tensors = load_file(parity_dir / "melp-preprocess.safetensors")
    expert = load_expert("melp", config=MelpExpert.small_config(), random_weights=True)
    close = {"atol": 1e-6, "rtol": 0}
    torch.testing.assert_close(
        expert.prepare(tensors["in/raw_mv_standard_order"], 500)[:, 0], tensors["out/finetune_input"], **close
    )
    swapped = tensors["in/raw_mv_mimic_order"].clone()
    swapped[:, [4, 5]] = swapped[:, [5, 4]]  # the fixture's is in MIMIC order; `prepare` takes the standard one
    torch.testing.assert_close(expert.prepare(swapped, 500)[:, 0], tensors["out/pretrain_input"], **close)
    plain = load_expert("dbeta", config=DBetaExpert.small_config(), random_weights=True)
    raw = tensors["in/raw_mv_standard_order"]
    assert torch.equal(plain.prepare(raw, 500)[:, 0], raw)


@pytest.mark.parametrize(("width", "heads", "queries", "seed"), [(24, 3, 2, 0), (32, 8, 5, 1)])
def test_other_sizes_of_the_pooler_equal_the_formula(width, heads, queries, seed):
    torch.manual_seed(seed)
    config = {**MelpExpert.small_config(), "shared_emb_dim": width, "attn_pooler_heads": heads} | {
        "n_queries_contrast": queries,
        "embed_dim_caption": 48,
    }
    pooler = load_expert("melp", config=config, random_weights=True).module.attn_pool_contrast
    tokens = torch.randn(2, 7, 32)
    q_bias, k_bias, v_bias = pooler.attn.in_proj_bias.chunk(3)
    with torch.inference_mode():
        q = F.layer_norm(pooler.query, (width,)) @ pooler.attn.q_proj_weight.T + q_bias if width != 32 else None
        if q is None:  # of the encoder's width: torch keeps the three maps in one
            q_map, k_map, v_map = pooler.attn.in_proj_weight.chunk(3)
            q = F.layer_norm(pooler.query, (width,)) @ q_map.T + q_bias
        else:
            k_map, v_map = pooler.attn.k_proj_weight, pooler.attn.v_proj_weight
        keys = F.layer_norm(tokens, (32,))
        k, v = keys @ k_map.T + k_bias, keys @ v_map.T + v_bias
        heads_of = (part.unflatten(-1, (heads, -1)).transpose(-2, -3) for part in (q.expand(2, -1, -1), k, v))
        q, k, v = heads_of
        weights = (q @ k.transpose(-1, -2) / (width / heads) ** 0.5).softmax(-1)
        expected = pooler.attn.out_proj((weights @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(pooler(tokens), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_inputs_and_options_are_named(name):
    cls, _ = expert_class(name)
    expert = load_expert(name, config=cls.small_config(), random_weights=True)
    with pytest.raises(InputError, match=r"expected \[batch, 12, time\]"):
        expert.encode(torch.zeros(1, 5000, 12))
    with pytest.raises(InputError, match=rf"'{name}': 0\.2 s are shorter"):
        expert.prepare(np.zeros((1, 12, 100)), 500)
    for config, says in (
        ({"encoder_attention_heads": 5}, "no multiple of encoder_attention_heads"),
        ({"encoder_layer": 2}, "did you mean 'encoder_layers'"),
    ):
        with pytest.raises(UsageError, match=says):
            load_expert(name, config=config, random_weights=True)
