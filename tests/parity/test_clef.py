"""CLEF against the official outputs: checkpoint forms, the ill-conditioned filter, leads alone and together."""

import argparse
import json
import sys
import types

import numpy as np
import pytest
import scipy.signal
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from cache.errors import InputError, UsageError, WeightsError
from stages.experts import load_expert
from stages.experts.models.ecg.clef import Clef, bandpass


@pytest.fixture
def fixture(parity_dir):
    with safe_open(parity_dir / "clef-a.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
    tensors = load_file(parity_dir / "clef-a.safetensors")
    return tensors, config, {k.removeprefix("state/"): v for k, v in tensors.items() if k.startswith("state/")}


def load(path, content, config, name="clef"):
    torch.save(content, path / "weights.ckpt")
    return load_expert(name, path / "weights.ckpt", config)


def check(expert, tensors):
    with torch.inference_mode():
        encoding = expert.encode(tensors["in/x"])
    torch.testing.assert_close(encoding.embedding, tensors["out/embedding"], atol=1e-5, rtol=0)
    names = ["out/embed_mean", *(f"out/stage_{k}_mean" for k in range(5))]
    for layer, name in zip(encoding.layers, names, strict=True):
        torch.testing.assert_close(layer, tensors[name], atol=5e-5, rtol=0)
    torch.testing.assert_close(encoding.tokens, tensors["out/tokens"], atol=5e-5, rtol=0)


def test_official_outputs_of_every_size_and_of_side_by_side(fixture, tmp_path):
    tensors, config, state = fixture
    check(load(tmp_path, dict(state), config), tensors)
    check(load(tmp_path, dict(state), None), tensors)  # shapes tell all
    check(load(tmp_path, dict(state), config, "clef-large"), tensors)
    check(load(tmp_path, dict(state), config | {"lead_pooling": "concatenate"}), tensors)
    bare = {key.removeprefix("backbone."): value for key, value in state.items()}
    assert bare.keys() != state.keys()
    check(load(tmp_path, bare, config), tensors)


def test_a_lightning_checkpoint_with_foreign_settings_loads(fixture, tmp_path):
    tensors, _, state = fixture
    foreign = types.ModuleType("clef")
    foreign.Settings = type("Settings", (), {"__module__": "clef", "__qualname__": "Settings"})
    sys.modules["clef"] = foreign
    try:
        settings = foreign.Settings()
        settings.lr = 0.1
        leftovers = {"queue_ptr": torch.zeros(1), "predictor.0.weight": torch.ones(2)}
        content = {"epoch": 3, "state_dict": state | leftovers, "hyper_parameters": {"args": argparse.Namespace(lr=1)}}
        torch.save(content | {"callbacks": {"x": settings}}, tmp_path / "clef_small.ckpt")
    finally:
        del sys.modules["clef"]
    check(load_expert("clef-small", tmp_path / "clef_small.ckpt"), tensors)


def test_a_key_that_is_missing_or_left_over_is_named(fixture, tmp_path):
    _, config, state = fixture
    lost = "backbone.stage_list.1.block_list.0.se_fc1.bias"
    with pytest.raises(WeightsError, match=r"missing 1: stage_list\.1\.block_list\.0\.se_fc1\.bias\)?$"):
        load(tmp_path, {key: value for key, value in state.items() if key != lost}, config)
    with pytest.raises(WeightsError, match=r"unexpected 1: head\.weight\)?$"):
        load(tmp_path, state | {"backbone.head.weight": torch.zeros(1)}, config)


@pytest.mark.parametrize(("size", "n"), [("small", 447_792), ("medium", 30_654_000), ("large", 296_623_360)])
def test_published_sizes(size, n):
    with torch.device("meta"):
        expert = Clef.build(None, None, variant=size)
    assert expert.spec.parameters == expert.spec.published_parameters == n


def test_the_authors_inputs(parity_dir):
    tensors = load_file(parity_dir / "clef-preprocess.safetensors")
    config = Clef.small_config()
    expert = load_expert("clef", config=config, random_weights=True)
    x = expert.prepare(tensors["in/raw_mv"], 500)[:, 0]
    torch.testing.assert_close(x, tensors["out/pretrain_input"], atol=1e-5, rtol=0)
    assert not x[0, 9].any()
    raw = load_expert("clef", config=config, random_weights=True, preprocessing="authors-ptbxl")
    signals = torch.zeros(1, 12, 1000)
    signals[:, 0] = tensors["in/lead_i_100hz"]
    torch.testing.assert_close(
        raw.prepare(signals, 100)[:, 0, 0], tensors["out/ptbxl_downstream_lead_i"], atol=1e-5, rtol=0
    )


def test_the_filter_is_that_of_the_authors_but_for_its_own_rounding():
    """Second-order sections are exact; the authors' form, ours and scipy's here, lies within 0.02 of them."""
    leads = np.random.default_rng(0).normal(size=(3, 5000))
    found = bandpass(leads)
    official = scipy.signal.filtfilt(*scipy.signal.butter(5, (0.67, 40), "bandpass", fs=500), leads)
    exact = scipy.signal.sosfiltfilt(
        scipy.signal.butter(5, (0.67, 40), "bandpass", fs=500, output="sos"), leads, padlen=33
    )
    spread = exact[:, 500:-500].std()
    assert np.abs(found - official)[:, 500:-500].max() < 0.02 * spread
    assert np.abs(found - exact)[:, 500:-500].max() < 0.02 * spread


def test_leads_run_alone_and_flat_ones_leave_the_mean():
    expert = load_expert("clef", config=Clef.small_config(), random_weights=True)
    side = load_expert("clef", config={**Clef.small_config(), "lead_pooling": "concatenate"}, random_weights=True)
    side.module.load_state_dict(expert.module.state_dict())
    x = torch.randn(1, 4, 1000)
    x[:, 2] = 0
    with torch.inference_mode():
        alone = [expert.encode(x[:, k : k + 1]) for k in range(4)]
        mean, beside = expert.encode(x), side.encode(x)
    expected = torch.stack([alone[k].embedding for k in (0, 1, 3)]).mean(0)
    torch.testing.assert_close(mean.embedding, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        mean.tokens, torch.stack([alone[k].tokens for k in (0, 1, 3)]).mean(0), atol=1e-6, rtol=1e-5
    )
    torch.testing.assert_close(beside.embedding, torch.cat([each.embedding for each in alone], 1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(beside.tokens, torch.cat([each.tokens for each in alone], 2), atol=1e-6, rtol=1e-5)
    assert side.spec.embedding_dim == 12 * expert.spec.embedding_dim


def test_wrong_inputs_and_options_are_named():
    expert = load_expert("clef", config=Clef.small_config(), random_weights=True)
    with pytest.raises(InputError, match=r"expected \[batch, lead, time\]"):
        expert.encode(torch.zeros(1, 5000))
    with pytest.raises(InputError, match=r"'clef': 0\.2 s are shorter"):
        expert.prepare(np.zeros((1, 12, 100)), 500)
    for config, says in (
        ({"in_channels": 12}, "one lead at a time"),
        ({"filter_list": (8, 16)}, "same length"),
        ({"lead_pooling": "max"}, "mean or concatenate"),
        ({"base_filter": 8}, "did you mean 'base_filters'"),
    ):
        with pytest.raises(UsageError, match=says):
            load_expert("clef", config=config, random_weights=True)
