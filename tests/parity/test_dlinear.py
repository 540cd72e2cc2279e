"""DLinear against the official code's outputs, and EnECG's input path."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cache.errors import InputError, UsageError, WeightsError
from stages.experts import load_expert


@pytest.fixture
def fixture(parity_dir):
    with safe_open(parity_dir / "dlinear-a.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
    tensors = load_file(parity_dir / "dlinear-a.safetensors")
    return tensors, {k.removeprefix("state/"): v for k, v in tensors.items() if k.startswith("state/")}, config


@pytest.fixture
def save(tmp_path):
    def write(state):
        save_file(state, tmp_path / "weights.safetensors")
        return tmp_path / "weights.safetensors"

    return write


def small(**config):
    torch.manual_seed(0)
    return load_expert("dlinear", config=config, random_weights=True)


def test_outputs_are_the_official_ones(fixture, save):
    tensors, state, config = fixture
    expert = load_expert("dlinear", save(state), config)
    x = tensors["in/x"].transpose(1, 2)
    trend, season = expert.module.decompose(x)
    torch.testing.assert_close(trend.transpose(1, 2), tensors["out/trend_in"], atol=1e-5, rtol=0)
    torch.testing.assert_close(season.transpose(1, 2), tensors["out/seasonal_in"], atol=1e-5, rtol=0)
    encoding = expert.encode(x)
    torch.testing.assert_close(encoding.embedding, tensors["out/y"].flatten(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(encoding.layers.sum(1), encoding.output)


def test_y_is_flattened_in_the_official_order_with_maps_of_their_own():
    expert = small(seq_len=20, pred_len=2, enc_in=3, kernel_size=5, individual=True, leads=["I", "II", "V1"])
    x = torch.randn(4, 3, 20)
    padded = torch.cat([x[..., :1].expand(-1, -1, 2), x, x[..., -1:].expand(-1, -1, 2)], -1)
    trend = padded.unfold(-1, 5, 1).mean(-1)
    net = expert.module
    y = torch.stack(
        [net.Linear_Trend[c](trend[:, c]) + net.Linear_Seasonal[c]((x - trend)[:, c]) for c in range(3)], dim=-1
    )
    torch.testing.assert_close(expert.encode(x).embedding, y.flatten(1))
    assert expert.spec.leads == ("I", "II", "V1")


def test_lengths_come_from_the_weights_where_no_override_gives_them(save):
    state = small(seq_len=30, pred_len=4).module.state_dict()
    options = load_expert("dlinear", save(state)).module.options
    assert (options.seq_len, options.pred_len) == (30, 4)


def test_weights_that_do_not_match_are_named(save):
    state = small(seq_len=30).module.state_dict()
    with pytest.raises(WeightsError, match="other shape"):
        load_expert("dlinear", save(state), {"seq_len": 40})
    state["extra"] = state.pop("Linear_Trend.bias")
    with pytest.raises(WeightsError, match=r"missing 1: Linear_Trend.bias; unexpected 1: extra"):
        load_expert("dlinear", save(state), {"seq_len": 30})


@pytest.mark.parametrize("config", [{"kernel_size": 4}, {"leads": ["II"], "enc_in": 2}, {"leads": ["Z"], "enc_in": 1}])
def test_impossible_options_are_refused(config):
    with pytest.raises(UsageError):
        small(**config)


def test_input_of_another_length_is_refused():
    with pytest.raises(InputError, match="expected"):
        small(seq_len=30).encode(torch.zeros(1, 12, 31))


@pytest.mark.parametrize("preprocessing", ["authors", "enecg"])
def test_prepared_input_is_the_published_one(parity_dir, preprocessing):
    tensors = load_file(parity_dir / "enecg-preprocess.safetensors")
    raw = tensors["in/raw_mv_T_by_lead"].transpose(1, 2)
    expert = load_expert("dlinear", random_weights=True, preprocessing=preprocessing)
    x = expert.prepare(raw, 500)
    leads = [1] if preprocessing == "enecg" else list(range(12))
    torch.testing.assert_close(x[:, 0], tensors["out/ts500"].transpose(1, 2)[:, leads], atol=1e-4, rtol=0)


def test_a_missing_lead_is_zeros_and_leaves_the_others_as_they_are_without_it():
    rng = np.random.default_rng(0)
    signals = rng.normal(0.3, 1.0, (1, 12, 5000))
    signals[:, 3] = np.nan
    x = load_expert("dlinear", random_weights=True).prepare(signals, 500)[0, 0]
    present = np.delete(signals[0], 3, axis=0)
    expected = (present - present.mean()) / present.std()
    assert not x[3].any()
    np.testing.assert_allclose(x[0].mean(), expected[0].mean(), atol=1e-5)
    zeros = load_expert("dlinear", random_weights=True, preprocessing="enecg").prepare(signals, 500)
    assert torch.isfinite(zeros).all()


def test_long_records_are_covered_by_windows_and_short_ones_lengthened():
    expert = load_expert("dlinear", random_weights=True)
    signals = np.random.default_rng(0).normal(size=(2, 12, 12500))
    assert expert.prepare(signals, 500).shape == (2, 3, 12, 500)
    short = expert.prepare(signals[..., :2000], 500)
    assert short.shape == (2, 1, 12, 500)
    assert torch.isfinite(short).all()


def test_an_unusual_number_of_channels_has_to_be_named_before_records_are_prepared():
    with pytest.raises(UsageError, match="leads"):
        small(enc_in=5).prepare(np.zeros((1, 12, 5000)), 500)
