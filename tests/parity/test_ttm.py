"""TinyTimeMixer against the official outputs: the fixture, and a few numbers of granite-tsfm for each kind of net."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cache.errors import InputError, UsageError, WeightsError
from stages.experts import load_expert
from stages.experts.models.time_series.ttm import Ttm

SMALL = {
    "context_length": 128,
    "patch_length": 16,
    "patch_stride": 16,
    "num_input_channels": 3,
    "prediction_length": 24,
    "d_model": 32,
    "num_layers": 2,
    "adaptive_patching_levels": 2,
    "decoder_num_layers": 2,
    "decoder_d_model": 16,
    "expansion_factor": 2,
}
# granite-tsfm 0.3.11 on `filled` weights and `wave` input, second record: options over SMALL, number of hidden states,
# three values of the embedding, three of the forecast, one of the middle hidden state (mean over its patches).
OFFICIAL = [
    ({}, 13, [-0.222405, 0.564515, -0.484992], [0.840946, 1.277339, 1.065839], [-0.508199]),
    ({"gated_attn": False}, 13, [-3.921342, -2.736465, 0.424156], [0.740073, 1.832958, 0.341322], [-1.070941]),
    (
        {"mode": "mix_channel", "decoder_mode": "mix_channel"},
        13,
        [-0.734658, 1.008926, -0.347086],
        [1.426752, 0.461788, 1.755947],
        [-1.136894],
    ),
    (
        {"decoder_mode": "mix_channel", "expansion_factor": 3},
        13,
        [-0.28776, 0.600729, -0.305101],
        [1.380779, 0.254838, 1.595452],
        [-0.472236],
    ),
    (
        {"adaptive_patching_levels": 0, "decoder_adaptive_patching_levels": 2},
        13,
        [-0.065274, 0.36324, -0.487895],
        [0.563711, 1.592243, 0.756251],
        [-0.158856],
    ),
    (
        {"adaptive_patching_levels": 3, "d_model": 16},
        17,
        [-0.424655, -0.155471, 0.340994],
        [-0.187434, 1.370021, 0.306177],
        [-0.756864],
    ),
    ({"norm_mlp": "BatchNorm"}, 13, [0.062619, -0.073134, -0.273894], [0.920108, 0.78119, 1.342093], [0.263939]),
    (
        {"self_attn": True, "self_attn_heads": 2},
        13,
        [-0.650734, -0.823938, 1.083684],
        [-1.082103, 2.847644, -1.097301],
        [-0.314321],
    ),
    (
        {"use_positional_encoding": True},
        13,
        [-0.217991, 0.570956, -0.498482],
        [0.746308, 1.526305, 0.538661],
        [-0.499008],
    ),
    ({"scaling": "mean"}, 13, [-0.603355, -0.060252, -0.638819], [-0.185753, 0.34961, 0.085465], [-0.76332]),
    ({"scaling": None}, 13, [-0.575557, -0.067593, -0.631004], [-0.191528, 0.340088, 0.087485], [-0.748133]),
    ({"use_decoder": False}, 10, [-0.222405, 0.564515, -0.484992], [-0.072445, -0.244568, 0.049889], [-0.508199]),
    (
        {"decoder_raw_residual": True, "resolution_prefix_tuning": True},
        14,
        [-0.311698, -0.452916, -0.45746],
        [1.654579, 1.238848, 1.545525],
        [0.347191],
    ),
    (
        {"context_length": 133, "decoder_d_model": 32},
        12,
        [0.392175, -0.2728, -0.38543],
        [-0.167601, 0.061872, 0.166716],
        [-0.076525],
    ),
    (
        {"prediction_channel_indices": [2, 0], "prediction_filter_length": 10},
        13,
        [-0.222405, 0.564515, -0.484992],
        [0.840946, 1.730781, 0.416193],
        [-0.508199],
    ),
]


@pytest.fixture
def fixture(parity_dir):
    with safe_open(parity_dir / "ttm-a.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
    tensors = load_file(parity_dir / "ttm-a.safetensors")
    return tensors, config, {k.removeprefix("state/"): v for k, v in tensors.items() if k.startswith("state/")}


@pytest.fixture
def save(tmp_path):
    def write(state):
        path = tmp_path / "weights.safetensors"
        save_file({k: v.clone() for k, v in state.items()}, path)
        return path

    return write


def small(**options):
    torch.manual_seed(0)
    return load_expert("ttm", config=SMALL | options, random_weights=True)


def encode(expert, x):
    with torch.inference_mode():
        return expert.encode(x)


def filled(state):
    """Weights that any machine can write down: a sine over the values of each key, in the order of the keys."""
    values = {}
    for index, key in enumerate(sorted(state)):
        wave = torch.sin(torch.arange(state[key].numel(), dtype=torch.float64) * 0.7 + index)
        value = 0.5 + 0.4 * wave if key.endswith("running_var") else 0.3 * wave
        values[key] = (
            value.view(state[key].shape).to(state[key].dtype) if state[key].is_floating_point() else state[key]
        )
    return values


def wave(n_samples):
    return torch.sin(torch.arange(6 * n_samples, dtype=torch.float64) * 0.37).float().view(2, 3, -1) + 1


def test_official_outputs(fixture, save):
    tensors, config, state = fixture
    for expert in (load_expert("ttm", save(state), config), load_expert("ttm-r1", save(state), {"scaling": True})):
        encoding = encode(expert, tensors["in/x"].transpose(1, 2))
        torch.testing.assert_close(encoding.embedding, tensors["out/embedding"].flatten(1), atol=1e-5, rtol=0)
        torch.testing.assert_close(encoding.output, tensors["out/y"].flatten(1), atol=1e-5, rtol=0)
        assert expert.spec.layer_names == tuple(f"block_{k + 1}" for k in range(13))
        for k, layer in enumerate(encoding.layers):
            expected = tensors[f"out/hidden_{k}"].mean(2).flatten(1)
            torch.testing.assert_close(layer, expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize(("options", "n_hidden", "embedding", "forecast", "hidden"), OFFICIAL)
def test_kinds_of_networks(save, options, n_hidden, embedding, forecast, hidden):
    config = SMALL | options
    state = filled(small(**options).module.state_dict())
    expert = load_expert("ttm", save(state), config)
    encoding = encode(expert, wave(config["context_length"]))
    assert len(encoding.layers) == n_hidden
    values = encoding.embedding[1]
    torch.testing.assert_close(values[[0, 41 % len(values), -1]], torch.tensor(embedding), atol=1e-5, rtol=0)
    torch.testing.assert_close(encoding.output[1, [0, 7, -1]], torch.tensor(forecast), atol=1e-5, rtol=0)
    torch.testing.assert_close(encoding.layers[n_hidden // 2][1, [5]], torch.tensor(hidden), atol=5e-5, rtol=0)
    assert expert.spec.layer_dims == tuple(layer.shape[1] for layer in encoding.layers)
    assert (expert.spec.embedding_dim, expert.spec.output_dim) == (len(values), encoding.output.shape[1])
    untold = {"context_length", "scaling", "self_attn", "prediction_channel_indices"} & options.keys()
    if not untold:  # the keys and shapes tell the rest
        again = encode(load_expert("ttm", save(state), {"num_input_channels": 3}), wave(128))
        assert torch.equal(again.embedding, encoding.embedding)
        assert torch.equal(again.output, encoding.output)


@pytest.mark.parametrize("variant", ["r2", "r1"])
def test_published_size(variant):
    with torch.device("meta"):
        expert = Ttm.build(None, None, variant=variant)
    assert expert.spec.parameters == expert.spec.published_parameters == 805_280
    assert Ttm.published_spec(variant) == expert.spec


def test_longer_windows_keep_their_end():
    expert, x = small(), torch.randn(2, 3, 200)
    assert torch.equal(encode(expert, x).embedding, encode(expert, x[..., -128:]).embedding)


def test_unmixed_channels_may_be_any_number():
    expert, x = small(), torch.randn(2, 5, 128)
    together = encode(expert, x)
    for lead in range(5):
        alone = encode(expert, x[:, [lead]])
        torch.testing.assert_close(
            alone.embedding, together.embedding[:, 32 * lead : 32 * lead + 32], atol=1e-6, rtol=0
        )


def test_mixed_channels_are_not_broadcast():
    for x in (torch.randn(2, 1, 128), torch.randn(2, 12, 128)):
        with pytest.raises(InputError, match="mix 3 channels"):
            small(decoder_mode="mix_channel").encode(x)


def test_mismatch_names_the_keys(fixture, save):
    _, config, state = fixture
    del state["head.base_forecast_block.bias"]
    with pytest.raises(WeightsError, match=r"missing 1: head\.base_forecast_block\.bias$"):
        load_expert("ttm", save(state), config)
    with pytest.raises(WeightsError, match="other shape"):
        load_expert("ttm", save(fixture[2]), config | {"prediction_length": 7})


def test_what_is_not_supported_says_so():
    for options, message in (
        ({"enable_forecast_channel_mixing": True}, "forecast channel mixing"),
        ({"multi_quantile_heads": [0.1, 0.9]}, "quantile heads"),
        ({"register_tokens": 2}, "release r3"),
        ({"gate_mode": "glu"}, "only softmax"),
        ({"loss": "nll"}, "distribution head"),
        ({"d_models": 16}, "did you mean 'd_model'"),
        ({"d_model": 34, "adaptive_patching_levels": 3}, "no multiple of 4"),
        ({"context_length": 16}, "must be more than patch_length"),
    ):
        with pytest.raises(UsageError, match=message):
            small(**options)


def test_attention_heads_must_be_told(save):
    state = small(self_attn=True).module.state_dict()
    with pytest.raises(WeightsError, match="self_attn_heads"):
        load_expert("ttm", save(state))


@pytest.mark.parametrize(
    ("context", "patch", "windows", "rate_hz"), [(512, 64, 2, 102.4), (1024, 128, 1, 102.4), (1536, 128, 1, 153.6)]
)
def test_ten_seconds_are_whole_windows(context, patch, windows, rate_hz):
    expert = small(context_length=context, patch_length=patch, patch_stride=patch, num_input_channels=1)
    assert (expert.spec.sampling_rate_hz, expert.spec.seconds) == (rate_hz, context / rate_hz)
    time = np.arange(5000) / 500
    x = expert.prepare(np.tile(np.sin(2 * np.pi * 3 * time), (1, 12, 1)), 500)
    assert x.shape == (1, windows, 12, context)
    expected = np.sin(2 * np.pi * 3 * np.arange(context * windows) / rate_hz)
    middle = slice(50, -50)
    np.testing.assert_allclose(x[0, :, 4].flatten().numpy()[middle], expected[middle], atol=0.01)


def test_longer_records_have_more_windows_and_too_short_ones_are_refused():
    expert = load_expert("ttm", random_weights=True)
    assert expert.prepare(np.zeros((1, 12, 15000)), 500).shape == (1, 6, 12, 512)
    assert expert.prepare(np.zeros((1, 12, 3500)), 500).shape == (1, 2, 12, 512)
    with pytest.raises(InputError, match="4 s are shorter than 5 s"):
        expert.prepare(np.zeros((1, 12, 2000)), 500)


def test_the_config_says_which_leads():
    assert small().spec.leads == ("I", "II", "III")
    assert small().prepare(np.zeros((1, 12, 5000)), 500).shape == (1, 8, 3, 128)
    with pytest.raises(InputError, match="13 channels"):
        small(num_input_channels=13, mode="mix_channel").prepare(np.zeros((1, 12, 5000)), 500)


def test_missing_lead_is_zeros_and_gaps_are_bridged():
    signals = np.random.default_rng(1).normal(size=(2, 12, 5000))
    expert = load_expert("ttm", random_weights=True)
    whole = expert.prepare(signals, 500)
    signals[1, 6], signals[1, 0, 40:60] = np.nan, np.nan
    x = expert.prepare(signals, 500)
    assert torch.equal(x[0], whole[0])
    assert (x[1, :, 6] == 0).all()
    assert x.isfinite().all()
    encoding = encode(expert, x[:, 0])
    assert encoding.embedding.isfinite().all()
    assert encoding.output.isfinite().all()


@pytest.mark.parametrize("options", [{}, {"norm_mlp": "BatchNorm"}, {"scaling": "mean"}])
def test_batch_and_repetition_change_nothing(options):
    expert, x = small(**options), torch.randn(4, 3, 128)
    together = encode(expert, x)
    for layer, again in zip(together.layers, encode(expert, x).layers, strict=True):
        assert torch.equal(layer, again)
    for k in range(4):
        torch.testing.assert_close(encode(expert, x[[k]]).embedding[0], together.embedding[k], atol=1e-5, rtol=0)


def test_bfloat16():
    expert, x = small(), torch.randn(2, 3, 128)
    exact = encode(expert, x)
    expert.module.to(torch.bfloat16)
    rough = encode(expert, x.bfloat16())
    assert F.cosine_similarity(exact.embedding, rough.embedding.float()).min() > 0.999
