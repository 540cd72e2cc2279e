"""ECG-FM against the official code's outputs, in every spelling and kind of checkpoint."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cache.errors import InputError, UsageError, WeightsError
from stages.experts import load_expert
from stages.experts.models.ecg.ecgfm import MIMIC_LABELS, EcgFm
from stages.experts.networks.ecgfm_net import parse_conv_layers
from stages.experts.run import run_expert
from tests.stages.small_experts import RATE_HZ, records, small_expert

SMALL = {
    "encoder_embed_dim": 32,
    "encoder_layers": 3,
    "encoder_ffn_embed_dim": 48,
    "encoder_attention_heads": 2,
    "conv_feature_layers": "[(16, 4, 3)] + [(24, 2, 2)] * 2",
    "conv_pos": 9,
    "conv_pos_groups": 4,
    "final_dim": 12,
    "latent_vars": 6,
    "latent_groups": 3,
    "in_d": 5,
}

OFFICIAL_TRAINING_OPTIONS = (
    *("_name", "mask_prob", "mask_length", "mask_selection", "mask_other", "no_mask_overlap", "mask_min_space"),
    *("mask_channel_length", "mask_channel_prob", "mask_channel_selection", "mask_channel_other"),
    *("no_mask_channel_overlap", "mask_channel_min_space", "dropout", "attention_dropout", "activation_dropout"),
    *("encoder_layerdrop", "dropout_input", "dropout_features", "final_dropout", "feature_grad_mult", "logit_temp"),
    *("num_negatives", "negatives_from_everywhere", "cross_sample_negatives", "codebook_negatives", "latent_temp"),
    *("all_gather", "freeze_finetune_updates", "no_pretrained_weights", "model_path", "sample_rate", "filter"),
    *("normalize", "data", "args", "saliency"),
)


@pytest.fixture
def fixture(parity_dir):
    with safe_open(parity_dir / "ecgfm-a.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
    return load_file(parity_dir / "ecgfm-a.safetensors"), config


def official_state(tensors):
    return {k.removeprefix("state/"): v for k, v in tensors.items() if k.startswith("state/")}


@pytest.fixture
def save(tmp_path):
    def write(state):
        path = tmp_path / "weights.safetensors"
        save_file({k: v.contiguous() for k, v in state.items()}, path)
        return path

    return write


def random_state(config):
    torch.manual_seed(0)
    return load_expert("ecgfm", config=config, random_weights=True).module.state_dict()


def encode(expert, x, mask=None):
    with torch.inference_mode():
        return expert.encode(x, mask)


def check_official(expert, tensors):
    encoding = encode(expert, tensors["in/x"])
    torch.testing.assert_close(encoding.embedding, tensors["out/embedding"], atol=1e-5, rtol=0)
    for k, name in enumerate(expert.spec.layer_names[1:]):
        assert name == f"block_{k + 1}"
        expected = tensors[f"out/hidden_{k}"].mean(1)
        torch.testing.assert_close(encoding.layers[:, k + 1], expected, atol=5e-5, rtol=0)


def test_official_outputs(fixture, save):
    tensors, config = fixture
    expert = load_expert("ecgfm", save(official_state(tensors)), config)
    check_official(expert, tensors)
    assert expert.spec.embedding_dim == 64
    assert expert.spec.output_dim is None


def test_older_weight_norm_spelling(fixture, save):
    tensors, config = fixture
    stem = "conv_pos.pos_conv.0."
    rename = {stem + "parametrizations.weight.original0": stem + "weight_g"}
    rename[stem + "parametrizations.weight.original1"] = stem + "weight_v"
    state = {rename.get(k, k): v for k, v in official_state(tensors).items()}
    assert stem + "weight_g" in state
    check_official(load_expert("ecgfm", save(state), config), tensors)


def test_partial_config_is_completed_from_the_shapes(fixture, save):
    tensors, _ = fixture
    expert = load_expert("ecgfm", save(official_state(tensors)), {"encoder_attention_heads": 4})
    check_official(expert, tensors)


def test_backbone_alone_loads(fixture, save):
    tensors, config = fixture
    parts = ("quantizer.", "project_q.", "final_proj.", "mask_emb")
    state = {k: v for k, v in official_state(tensors).items() if not k.startswith(parts)}
    check_official(load_expert("ecgfm", save(state), config | {"apply_mask": False}), tensors)


def test_classifier_is_recognised_and_gives_logits(fixture, save):
    tensors, _ = fixture
    parts = ("quantizer.", "project_q.", "final_proj.", "mask_emb")
    state = {f"encoder.{k}": v for k, v in official_state(tensors).items() if not k.startswith(parts)}
    state |= {"proj.weight": torch.randn(26, 64), "proj.bias": torch.randn(26)}
    expert = load_expert("ecgfm", save(state), {"encoder_attention_heads": 4})
    check_official(expert, tensors)
    output = encode(expert, tensors["in/x"]).output
    expected = tensors["out/embedding"] @ state["proj.weight"].T + state["proj.bias"]
    torch.testing.assert_close(output, expected, atol=1e-4, rtol=0)
    assert expert.spec.output_dim == 26


def test_published_width_needs_no_config(save):
    narrow = {"encoder_layers": 1, "encoder_ffn_embed_dim": 8, "conv_pos": 2, "num_labels": 26}
    state = random_state(narrow)
    expert = load_expert("ecgfm", save(state))
    assert expert.module.encoder.encoder.layers[0].self_attn.heads == 12
    assert expert.spec.output_dim == 26
    assert expert.spec.layer_names == ("embed", "block_1")


@pytest.mark.parametrize("option", [{}, {"layer_norm_first": True}, {"extractor_mode": "layer_norm"}])
@pytest.mark.parametrize("other", [{}, {"conv_bias": True}, {"quantize_targets": False}, {"num_labels": 4}])
def test_other_architectures_round_trip(save, option, other):
    config = SMALL | option | other
    state = random_state(config)
    expert = load_expert("ecgfm", save(state), config)
    assert expert.module.state_dict().keys() == state.keys()
    encoding = encode(expert, torch.randn(2, 5, 600))
    assert encoding.layers.shape == (2, 4, 32)
    assert encoding.embedding.isfinite().all()


def test_shapes_alone_determine_all_but_heads_and_strides(save):
    config = {k: SMALL[k] for k in ("encoder_attention_heads", "conv_feature_layers")}
    state = random_state(SMALL)
    assert load_expert("ecgfm", save(state), config).module.state_dict().keys() == state.keys()
    with pytest.raises(WeightsError, match="encoder_attention_heads and conv_feature_layers"):
        load_expert("ecgfm", save(state))


def test_mismatch_lists_missing_and_unexpected_keys(fixture, save):
    tensors, config = fixture
    state = official_state(tensors)
    state["encoder.layers.1.fc3.weight"] = state.pop("encoder.layers.1.fc2.weight")
    with pytest.raises(WeightsError, match=r"missing 1: encoder.layers.1.fc2.*unexpected 1: encoder.layers.1.fc3"):
        load_expert("ecgfm", save(state), config)
    with pytest.raises(WeightsError, match=r"other shape.*\[64, 128\] instead of \[64, 96\]"):
        load_expert("ecgfm", save(official_state(tensors)), config | {"encoder_ffn_embed_dim": 96})


def test_classifier_asked_for_but_not_there(fixture, save):
    tensors, config = fixture
    with pytest.raises(WeightsError, match="hold no classifier"):
        load_expert("ecgfm-finetuned", save(official_state(tensors)), config)


def test_misspelt_option_is_refused_and_training_options_are_not():
    official = dict.fromkeys(OFFICIAL_TRAINING_OPTIONS, 0.1)
    load_expert("ecgfm", config=SMALL | official, random_weights=True)
    with pytest.raises(UsageError, match="did you mean 'encoder_layers'"):
        load_expert("ecgfm", config=SMALL | {"encoder_layer": 2}, random_weights=True)


@pytest.mark.parametrize("text", ["__import__('os').getcwd()", "[(1, 2)]", "[(2, 2, 0)]", "[(1,2,3)] * 10**9", ""])
def test_conv_layers_are_data_not_code(text):
    with pytest.raises(UsageError, match="conv_feature_layers"):
        parse_conv_layers(text)


def test_published_parameter_counts():
    for variant, count in (("pretrained", 90_883_072), ("finetuned", 90_386_321), ("physionet", 90_393_242)):
        with torch.device("meta"):
            spec = EcgFm.build(None, None, variant=variant).spec
        assert spec.parameters == spec.published_parameters == count
        assert spec == EcgFm.published_spec(variant)


def test_padding_changes_nothing_but_group_norm_and_conv_context(save):
    torch.manual_seed(0)
    expert = load_expert("ecgfm", config=SMALL | {"extractor_mode": "layer_norm"}, random_weights=True)
    x = torch.randn(3, 5, 600)
    mask = torch.ones(3, 600)
    mask[1, 400:] = 0
    masked = encode(expert, x, mask)
    plain = encode(expert, x)
    torch.testing.assert_close(masked.embedding[[0, 2]], plain.embedding[[0, 2]])
    changed = x.clone()
    changed[1, :, 480:] = 7.0  # beyond the reach of the position convolution
    torch.testing.assert_close(encode(expert, changed, mask).layers, masked.layers)
    assert not torch.allclose(masked.embedding[1], plain.embedding[1])


def test_bfloat16_stays_close_and_batch_does_not_matter():
    torch.manual_seed(0)
    expert = load_expert("ecgfm", config=SMALL | {"num_labels": 3}, random_weights=True)
    x = torch.randn(4, 5, 600)
    whole = encode(expert, x)
    alone = torch.cat([encode(expert, x[i : i + 1]).embedding for i in range(4)])
    torch.testing.assert_close(alone, whole.embedding, atol=1e-5, rtol=0)
    expert.module.to(torch.bfloat16)
    half = encode(expert, x.to(torch.bfloat16))
    assert torch.nn.functional.cosine_similarity(half.embedding.float(), whole.embedding).min() > 0.999
    assert half.output.isfinite().all()


@pytest.mark.parametrize("rate_hz", [250, 500, 1000])
def test_preprocessing_is_the_authors(parity_dir, rate_hz):
    tensors = load_file(parity_dir / "ecgfm-preprocess.safetensors")
    expert = load_expert("ecgfm", config=SMALL, random_weights=True)
    segments = expert.prepare(tensors[f"in/raw_{rate_hz}hz"], rate_hz)
    torch.testing.assert_close(segments, tensors[f"out/segments_{rate_hz}hz"], atol=1e-4, rtol=0)


def test_enecg_preprocessing(parity_dir):
    tensors = load_file(parity_dir / "enecg-preprocess.safetensors")
    expert = load_expert("ecgfm", config=SMALL, random_weights=True, preprocessing="enecg")
    window = expert.prepare(tensors["in/raw_mv_T_by_lead"].transpose(1, 2), 500)
    torch.testing.assert_close(window[:, 0], tensors["out/fm5000"].transpose(1, 2), atol=1e-4, rtol=0)
    assert expert.spec.seconds == 10


@pytest.mark.parametrize("preprocessing", ["authors", "enecg"])
def test_gaps_and_missing_leads_follow_the_declared_policy(preprocessing):
    signals = np.random.default_rng(0).normal(size=(2, 12, 5000))
    expert = load_expert("ecgfm", config=SMALL, random_weights=True, preprocessing=preprocessing)
    clean = expert.prepare(signals, 500)
    signals[0, 3] = np.nan
    signals[0, 5, 100:120] = np.nan
    gappy = expert.prepare(signals, 500)
    assert gappy.isfinite().all()
    torch.testing.assert_close(gappy[1], clean[1], atol=0, rtol=0)
    if preprocessing == "authors":
        assert (gappy[0, :, 3] == 0).all()
        torch.testing.assert_close(gappy[0, :, 4], clean[0, :, 4], atol=0, rtol=0)


@pytest.mark.parametrize("level_mv", [0.0, 0.1, -0.235])
def test_flat_lead_is_zeros(level_mv):
    signals = np.random.default_rng(0).normal(size=(1, 12, 5000))
    signals[0, 7] = level_mv
    x = load_expert("ecgfm", config=SMALL, random_weights=True).prepare(signals, 500)
    assert (x[0, :, 7] == 0).all()
    assert (x[0, :, 6] != 0).any()


def test_long_records_give_more_windows_and_short_ones_are_refused():
    expert = load_expert("ecgfm", config=SMALL, random_weights=True)
    assert expert.prepare(np.ones((1, 12, 6400)), 400).shape == (1, 3, 12, 2500)
    with pytest.raises(InputError, match="shorter than 5 s"):
        expert.prepare(np.ones((1, 12, 2000)), 500)


AUTHORS_AGGREGATION = {
    "Poor data quality": "max",
    "Sinus rhythm": "mean",
    "Premature ventricular contraction": "max",
    "Tachycardia": "mean",
    "Ventricular tachycardia": "max",
    "Supraventricular tachycardia with aberrancy": "max",
    "Atrial fibrillation": "mean",
    "Atrial flutter": "mean",
    "Bradycardia": "mean",
    "Accessory pathway conduction": "mean",
    "Atrioventricular block": "mean",
    "1st degree atrioventricular block": "mean",
    "Bifascicular block": "mean",
    "Right bundle branch block": "mean",
    "Left bundle branch block": "mean",
    "Infarction": "mean",
    "Electronic pacemaker": "max",
}
"""`AGG_METHODS` of ECG-FM's infer_quickstart.ipynb, in the order of its label_def.csv."""


def test_a_record_s_logits_are_those_of_its_windows_probabilities_as_the_authors_take_them():
    expert = small_expert("ecgfm-finetuned")
    x = expert.prepare(records(3), RATE_HZ)
    with torch.inference_mode():
        chances = torch.stack([expert.encode(x[:, k]).output.sigmoid() for k in range(2)])
    largest = torch.tensor([way == "max" for way in AUTHORS_AGGREGATION.values()])
    expected = torch.where(largest, chances.amax(0), chances.mean(0))
    assert (expected - chances.mean(0)).abs().max() > 1e-4
    found = torch.from_numpy(run_expert(expert, x).output).sigmoid()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert tuple(AUTHORS_AGGREGATION) == MIMIC_LABELS
    assert expert.spec.version == "3"


def test_a_classifier_of_unknown_labels_pools_mean_probabilities():
    expert = small_expert("ecgfm-physionet")
    x = expert.prepare(records(3), RATE_HZ)
    with torch.inference_mode():
        chances = torch.stack([expert.encode(x[:, k]).output.sigmoid() for k in range(2)]).mean(0)
    found = run_expert(expert, x).output
    torch.testing.assert_close(torch.from_numpy(found).sigmoid(), chances, rtol=0, atol=1e-6)
    assert expert.spec.version == "2"
    assert small_expert("ecgfm").spec.version == "1"
