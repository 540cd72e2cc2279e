"""HuBERT-ECG against the official code's outputs, in both spellings, with masks, and in its three sizes."""

import json

import numpy as np
import pytest
import scipy.signal
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import HubertConfig, HubertModel

from cache.errors import InputError, UsageError, WeightsError
from stages.experts import load_expert
from stages.experts.models.ecg.hubert import BAND_HZ, Hubert, filter_band, fir_taps, preprocess

SMALL = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 64,
    "conv_dim": [16, 24, 24],
    "conv_kernel": [8, 3, 2],
    "conv_stride": [5, 2, 2],
    "num_conv_pos_embeddings": 9,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 8,
    "ensemble_length": 2,
    "vocab_sizes": [5, 7],
}


@pytest.fixture
def fixture(parity_dir):
    with safe_open(parity_dir / "hubert-a.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
    tensors = load_file(parity_dir / "hubert-a.safetensors")
    return tensors, config, {k.removeprefix("state/"): v for k, v in tensors.items() if k.startswith("state/")}


@pytest.fixture
def save(tmp_path):
    def write(state):
        path = tmp_path / "weights.safetensors"
        save_file({k: v.contiguous() for k, v in state.items()}, path)
        return path

    return write


def small(**options):
    torch.manual_seed(0)
    return load_expert("hubert", config=SMALL | options, random_weights=True)


def small_config():
    own = ("ensemble_length", "vocab_sizes")
    return {k: v for k, v in SMALL.items() if k not in own} | {"num_feat_extract_layers": 3}


def encode(expert, x, mask=None):
    with torch.inference_mode():
        return expert.encode(x, mask)


def check_official(expert, tensors):
    encoding = encode(expert, tensors["in/x"])
    torch.testing.assert_close(encoding.embedding, tensors["out/embedding"], atol=1e-5, rtol=0)
    assert expert.spec.layer_names == ("embed", "block_1", "block_2")
    for k in range(3):
        torch.testing.assert_close(encoding.layers[:, k], tensors[f"out/hidden_{k}"].mean(1), atol=5e-5, rtol=0)


def test_official_outputs(fixture, save):
    tensors, config, state = fixture
    check_official(load_expert("hubert", save(state), config), tensors)
    check_official(load_expert("hubert-large", save(state), {"num_attention_heads": 4}), tensors)


def test_older_spelling_and_finetuned_prefix(fixture, save):
    tensors, config, state = fixture
    stem = "encoder.pos_conv_embed.conv."
    rename = {stem + "parametrizations.weight.original0": stem + "weight_g"}
    rename[stem + "parametrizations.weight.original1"] = stem + "weight_v"
    older = {rename.get(k, k): v for k, v in state.items()}
    assert stem + "weight_v" in older
    check_official(load_expert("hubert", save(older), config), tensors)
    heads = ("final_proj.", "label_embedding.")
    finetuned = {f"hubert_ecg.{k}": v for k, v in older.items() if not k.startswith(heads)}
    finetuned |= {"classifier.weight": torch.zeros(5, 64), "classifier.bias": torch.zeros(5)}
    expert = load_expert("hubert", save(finetuned), {"num_attention_heads": 4})
    check_official(expert, tensors)


def test_mask_token_is_there_or_not_as_in_the_state(save):
    for probability in (0.0, 0.3):
        state = small(mask_time_prob=probability).module.state_dict()
        assert ("masked_spec_embed" in state) == (probability > 0)
        expert = load_expert("hubert", save(state), SMALL | {"mask_time_prob": 0.1})
        assert expert.module.state_dict().keys() == state.keys()


OTHERS = [{}, {"conv_bias": True, "feat_proj_layer_norm": False}, {"conv_pos_batch_norm": True}]


def test_every_option_of_a_published_config_json_is_understood():
    everything = HubertConfig(**small_config()).to_dict() | {"ensemble_length": 2, "vocab_sizes": [5, 7]}
    expert = load_expert("hubert", config=everything, random_weights=True)
    assert expert.module.state_dict().keys() == small().module.state_dict().keys()


@pytest.mark.parametrize("option", [{}, {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}])
@pytest.mark.parametrize("other", OTHERS)
def test_same_as_transformers_with_and_without_a_mask(option, other):
    expert = small(**option, **other)
    reference = HubertModel(HubertConfig(**small_config(), **option, **other)).eval()
    state = {k: v for k, v in expert.module.state_dict().items() if not k.startswith(("final_proj", "label_emb"))}
    reference.load_state_dict(state)
    x = torch.randn(2, 900)
    mask = torch.ones(2, 900, dtype=torch.long)
    mask[1, 500:] = 0
    with torch.inference_mode():
        plain = reference(x).last_hidden_state
        masked = reference(x, attention_mask=mask).last_hidden_state
    valid = reference._get_feature_vector_attention_mask(plain.shape[1], mask)
    expected = (masked * valid.unsqueeze(-1)).sum(1) / valid.sum(1, keepdim=True)
    torch.testing.assert_close(encode(expert, x).embedding, plain.mean(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(encode(expert, x, mask).embedding, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(encode(expert, x, valid).embedding, expected, atol=1e-5, rtol=0)


def test_shapes_alone_determine_all_but_heads_and_strides(save):
    state = small().module.state_dict()
    partial = {"num_attention_heads": 3, "conv_stride": [5, 2, 2]}
    assert load_expert("hubert", save(state), partial).module.state_dict().keys() == state.keys()
    with pytest.raises(WeightsError, match="conv_stride and num_attention_heads"):
        load_expert("hubert", save(state))


def test_published_widths_need_no_config(save):
    thin = {"num_hidden_layers": 1, "intermediate_size": 8, "conv_dim": [8] * 5, "num_conv_pos_embeddings": 4}
    torch.manual_seed(0)
    state = load_expert("hubert-large", config=thin, random_weights=True).module.state_dict()
    expert = load_expert("hubert", save(state))
    assert expert.spec.embedding_dim == 960
    assert expert.module.encoder.layers[0].attention.num_heads == 12


def test_mismatch_and_bad_options_are_told(fixture, save):
    _, config, state = fixture
    state["encoder.layers.0.attention.o_proj.bias"] = state.pop("encoder.layers.0.attention.out_proj.bias")
    with pytest.raises(WeightsError, match=r"missing 1: .*out_proj.bias; unexpected 1: .*o_proj.bias"):
        load_expert("hubert", save(state), config)
    with pytest.raises(WeightsError, match="missing"):
        load_expert("hubert", save({"weight": torch.zeros(2)}))
    with pytest.raises(UsageError, match="no multiple"):
        small(num_attention_heads=5)
    with pytest.raises(UsageError, match="did you mean 'hidden_size'"):
        small(hidden_sizes=5)


def test_published_parameter_counts():
    for variant, count in (("small", 30_366_592), ("base", 93_021_312), ("large", 188_187_968)):
        with torch.device("meta"):
            spec = Hubert.build(None, None, variant=variant).spec
        assert spec.parameters == spec.published_parameters == count
        assert spec == Hubert.published_spec(variant)


def test_bfloat16_stays_close_and_batch_does_not_matter():
    expert = small()
    x = torch.randn(4, 900)
    whole = encode(expert, x)
    alone = torch.cat([encode(expert, x[i : i + 1]).embedding for i in range(4)])
    torch.testing.assert_close(alone, whole.embedding, atol=1e-5, rtol=0)
    expert.module.to(torch.bfloat16)
    mask = torch.ones(4, 900)
    mask[1, 300:] = 0
    half = encode(expert, x.to(torch.bfloat16), mask)
    assert torch.nn.functional.cosine_similarity(half.embedding[[0, 2]], whole.embedding[[0, 2]]).min() > 0.999


def test_preprocessing_is_the_authors(parity_dir):
    tensors = load_file(parity_dir / "hubert-preprocess.safetensors")
    raw = tensors["in/raw_mv"].numpy()
    np.testing.assert_allclose(preprocess(raw, 500.0), tensors["out/preprocessed_500"], atol=1e-4)
    x = small().prepare(raw, 500)
    torch.testing.assert_close(x[:, 0], tensors["out/model_input"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("n_samples", [700, 2500, 5000])
def test_filter_is_filtfilt(n_samples):
    signals = np.random.default_rng(0).normal(size=(2, 3, n_samples)).cumsum(-1)
    taps = scipy.signal.firwin(151, BAND_HZ, pass_zero=False, fs=500)
    assert np.array_equal(taps, fir_taps(500.0))
    np.testing.assert_allclose(filter_band(signals, 500.0), scipy.signal.filtfilt(taps, 1.0, signals), atol=1e-9)


@pytest.mark.parametrize(("rate_hz", "n_taps"), [(100, 31), (250, 75), (257, 77), (360, 109), (400, 121), (1000, 301)])
def test_records_of_other_rates_are_filtered_before_they_are_resampled(rate_hz, n_taps):
    signals = np.random.default_rng(rate_hz).normal(size=(1, 12, 10 * rate_hz)).cumsum(-1) / 10
    taps = scipy.signal.firwin(n_taps, np.array(BAND_HZ) / (rate_hz / 2), pass_zero=False)  # as biosppy calls it
    filtered = scipy.signal.filtfilt(taps, [1.0], signals[0], axis=-1)
    x = scipy.signal.resample(filtered, 5000, axis=1)
    x = 2 * (x - x.min(1, keepdims=True)) / (x.max(1, keepdims=True) - x.min(1, keepdims=True) + 1e-8) - 1
    expected = scipy.signal.decimate(x[:, :2500].reshape(-1), 5)
    np.testing.assert_allclose(small().prepare(signals, float(rate_hz))[0, 0], expected, atol=1e-5)


def test_a_rate_below_the_filter_s_band_is_refused():
    with pytest.raises(InputError, match="records of 90 Hz; its filter needs more than 94 Hz"):
        small().prepare(np.zeros((1, 12, 900)), 90.0)


def test_gaps_and_missing_leads_follow_the_declared_policy():
    expert = small()
    signals = np.random.default_rng(0).normal(size=(2, 12, 5000))
    clean = expert.prepare(signals, 500)
    signals[0, 3] = np.nan
    signals[0, 5, 100:120] = np.nan
    x = expert.prepare(signals, 500)
    assert x.isfinite().all()
    torch.testing.assert_close(x[1], clean[1], atol=0, rtol=0)
    lead = x[0, 0].reshape(12, 500)[3]
    assert lead[100:-100].abs().max() < 1e-3


def test_other_rates_and_short_records():
    expert = small()
    assert expert.prepare(np.ones((1, 12, 3600)), 360).shape == (1, 1, 6000)
    with pytest.raises(InputError, match="shorter than 5 s"):
        expert.prepare(np.ones((1, 12, 1000)), 250)
