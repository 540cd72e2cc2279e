"""ECG-JEPA against the official outputs: kinds of positions, chosen leads, whole pretraining checkpoints."""

import json
import math

import numpy as np
import pytest
import scipy.signal
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cache.errors import InputError, UsageError, WeightsError
from stages.experts import load_expert
from stages.experts.models.ecg.jepa import LEADS, Jepa

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.fixture
def fixture(parity_dir):
    with safe_open(parity_dir / "jepa-a.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
    tensors = load_file(parity_dir / "jepa-a.safetensors")
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
    return load_expert("jepa", config=SMALL | options, random_weights=True)


def encode(expert, x):
    with torch.inference_mode():
        return expert.encode(x)


def check_official(expert, tensors):
    encoding = encode(expert, tensors["in/x"])
    torch.testing.assert_close(encoding.embedding, tensors["out/embedding"], atol=1e-5, rtol=0)
    assert expert.spec.layer_names == ("embed", "block_1", "block_2")
    for k in range(2):
        torch.testing.assert_close(encoding.layers[:, k + 1], tensors[f"out/hidden_{k}"].mean(1), atol=5e-5, rtol=0)


def test_official_outputs(fixture, save):
    tensors, config, state = fixture
    check_official(load_expert("jepa", save(state), config), tensors)
    check_official(load_expert("jepa", save(state), {"num_heads": 4}), tensors)


def test_whole_pretraining_model(fixture, save):
    tensors, config, state = fixture
    whole = {f"encoder.{k}": v for k, v in state.items()}
    whole |= {f"target_encoder.{k}": v + 1 for k, v in state.items()} | {"predictor.mask_token": torch.zeros(1, 1, 8)}
    check_official(load_expert("jepa", save(whole), config), tensors)


def test_sincos_positions_are_the_official_ones(fixture):
    _, _, state = fixture
    torch.testing.assert_close(small(embed_dim=64).module.pos_embed.data, state["pos_embed"], atol=1e-6, rtol=0)


def test_published_size():
    with torch.device("meta"):
        expert = Jepa.build(None, None)
    assert expert.spec.parameters == expert.spec.published_parameters == 85_374_720
    assert Jepa.published_spec() == expert.spec


def naive(state, x, options):
    """The official `representation`, written out: a dense mask, positions before every block, rotary where chosen."""

    def norm(name, tokens):
        return F.layer_norm(tokens, tokens.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def linear(name, tokens):
        return F.linear(tokens, state[f"{name}.weight"], state.get(f"{name}.bias"))

    c, p, heads = options.c, options.p, options.num_heads
    chosen = [lead * p + patch for lead in options.lead_index for patch in range(p)]
    allowed = torch.zeros(c * p, c * p, dtype=torch.bool)
    for row in range(c * p):
        for column in range(c * p):
            allowed[row, column] = row // p == column // p or row % p == column % p
    allowed = allowed[chosen][:, chosen]
    position = state["pos_embed"][chosen] if "pos_embed" in state else 0.0
    turn = None if "pos_embed" in state else rotary(options)
    hidden = linear("W_P", x.reshape(len(x), -1, options.t))
    for k in range(options.depth):
        name = f"encoder_blocks.blocks.{k}"
        hidden = hidden + position
        qkv = linear(f"{name}.attn.qkv", norm(f"{name}.norm1", hidden))
        q, key, v = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in qkv.chunk(3, -1))
        if turn is not None:
            q, key = turned(q, turn), turned(key, turn)
        scores = (q @ key.transpose(2, 3) * (options.embed_dim // heads) ** -0.5).masked_fill(~allowed, -torch.inf)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        hidden = hidden + linear(f"{name}.attn.proj", mixed)
        hidden = hidden + linear(f"{name}.mlp.fc2", F.gelu(linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", hidden))))
    return norm("norm", hidden).mean(1)


def rotary(options):
    """Angle of every token and pair of features, one at a time."""
    width = options.embed_dim // options.num_heads
    rows = []
    for lead in range(len(options.lead_index)):
        for patch in range(options.p):
            at = {"lead": (2 * lead + 1) / options.c - 1, "time": (2 * patch + 1) / options.p - 1}
            if len(options.lead_index) < options.c:
                half = [2 * math.pi * at["time"] / 10000 ** (2 * i / width) for i in range(width // 2)]
            else:
                half = [2 * math.pi * at[axis] / 10000 ** (4 * i / width) for axis in at for i in range(width // 4)]
            rows.append(half)
    return torch.tensor(rows)


def turned(x, angles):
    """Rotate the pairs (i, i + half) of every head."""
    first, second = x.chunk(2, -1)
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


@pytest.mark.parametrize(
    "options",
    [
        {"pos_type": "learnable", "qkv_bias": True, "mlp_ratio": 2.0, "depth": 3},
        {"c": 12, "p": 5, "t": 20},
        {"leads": [0, 1, 4], "p": 6, "t": 10},
        {"pos_type": "rope", "p": 7, "t": 10},
        {"pos_type": "rope", "p": 7, "t": 10, "leads": [2]},
    ],
)
def test_other_configurations(save, options):
    expert = small(**options)
    state = expert.module.state_dict()
    loaded = load_expert("jepa", save(state), SMALL | options)
    merged = loaded.module.options
    x = torch.randn(2, len(merged.lead_index), merged.p * merged.t)
    torch.testing.assert_close(encode(loaded, x).embedding, naive(state, x, merged), atol=1e-5, rtol=0)


def test_shapes_tell_the_geometry(save):
    expert = small(p=20, t=25, qkv_bias=True, mlp_ratio=3.0)
    assert (
        load_expert("jepa", save(expert.module.state_dict()), {"num_heads": 2}).module.options == expert.module.options
    )
    expert = small(c=12, p=20)
    loaded = load_expert("jepa", save(expert.module.state_dict()), {"num_heads": 2, "c": 12})
    assert loaded.module.options == expert.module.options


def test_undetermined_heads_are_an_error(fixture, save):
    with pytest.raises(WeightsError, match="num_heads"):
        load_expert("jepa", save(fixture[2]))


def test_mismatch_names_the_keys(fixture, save):
    _, config, state = fixture
    del state["norm.bias"]
    with pytest.raises(WeightsError, match=r"missing 1: norm\.bias$"):
        load_expert("jepa", save(state), config)


def test_wrong_options():
    for options, message in (
        ({"pos_type": "alibi"}, "has to be sincos"),
        ({"num_heads": 5}, "no multiple"),
        ({"leads": [8]}, "beyond c 8"),
        ({"embed_dims": 32}, "did you mean 'embed_dim'"),
    ):
        with pytest.raises(UsageError, match=message):
            small(**options)


def test_weights_none_says_where_to_get_them():
    with pytest.raises(WeightsError, match=r"drive\.google\.com"):
        load_expert("jepa")


def test_model_input_is_eight_leads_in_mv_at_250_hz():
    signals = np.random.default_rng(0).normal(size=(2, 12, 6000))
    x = small().prepare(signals, 500)
    expected = scipy.signal.resample(signals[:, [0, 1, 6, 7, 8, 9, 10, 11], :5000], 2500, axis=-1)
    assert small().spec.leads == LEADS
    assert x.shape == (2, 1, 8, 2500)
    np.testing.assert_allclose(x[:, 0].numpy(), expected, atol=1e-6)


def test_missing_lead_is_zeros_and_gaps_are_bridged():
    signals = np.random.default_rng(1).normal(size=(2, 12, 5000))
    whole = small().prepare(signals, 500)
    signals[1, 6], signals[1, 0, 40:60] = np.nan, np.nan
    x = small().prepare(signals, 500)
    assert torch.equal(x[0], whole[0])
    assert (x[1, 0, 2] == 0).all()
    assert x.isfinite().all()


def test_chosen_leads_are_prepared_by_name():
    expert = small(leads=[1, 7])
    assert expert.spec.leads == ("II", "V6")
    assert expert.prepare(np.zeros((1, 12, 5000)), 500).shape == (1, 1, 2, 2500)


def test_short_records_and_other_shapes_are_refused():
    with pytest.raises(InputError, match=r"9\.5 s are shorter"):
        small().prepare(np.zeros((1, 12, 4750)), 500)
    for shape in ((1, 1, 2500), (1, 12, 2500), (1, 8, 2450), (8, 2500)):
        with pytest.raises(InputError, match=r"expected \[batch, 8, 2500\]"):
            small().encode(torch.zeros(shape))
    with pytest.raises(InputError, match="only 8 or 12"):
        small(c=3).prepare(np.zeros((1, 12, 5000)), 500)


def test_batch_and_repetition_change_nothing():
    expert, x = small(), torch.randn(4, 8, 2500)
    together = encode(expert, x)
    assert torch.equal(together.layers, encode(expert, x).layers)
    for k in range(4):
        torch.testing.assert_close(encode(expert, x[k : k + 1]).layers[0], together.layers[k], atol=1e-5, rtol=0)


@pytest.mark.parametrize("pos_type", ["sincos", "rope"])
def test_bfloat16(pos_type):
    expert, x = small(pos_type=pos_type), torch.randn(2, 8, 2500)
    exact = encode(expert, x)
    expert.module.to(torch.bfloat16)
    rough = encode(expert, x.bfloat16())
    assert F.cosine_similarity(exact.embedding, rough.embedding.float()).min() > 0.995
