"""TimesNet against the official code's outputs, and against a plain reading of its formulas."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cache.errors import InputError, UsageError, WeightsError
from stages.experts import load_expert

SMALL = {"seq_len": 60, "pred_len": 3, "d_model": 6, "d_ff": 10, "num_kernels": 3, "top_k": 4, "e_layers": 2}


@pytest.fixture
def fixture(parity_dir):
    with safe_open(parity_dir / "timesnet-a.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
    tensors = load_file(parity_dir / "timesnet-a.safetensors")
    return tensors, {k.removeprefix("state/"): v for k, v in tensors.items() if k.startswith("state/")}, config


@pytest.fixture
def save(tmp_path):
    def write(state):
        save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "weights.safetensors")
        return tmp_path / "weights.safetensors"

    return write


def small(**config):
    torch.manual_seed(0)
    return load_expert("timesnet", config=SMALL | config, random_weights=True)


def test_outputs_are_those_of_the_official_code_on_single_records(fixture, save):
    tensors, state, config = fixture
    expert = load_expert("timesnet", save(state), config)
    with torch.inference_mode():
        encoding = expert.encode(tensors["in/x"].transpose(1, 2))
    torch.testing.assert_close(encoding.embedding, tensors["out/embedding"], atol=1e-5, rtol=0)
    torch.testing.assert_close(encoding.output, tensors["out/y"].flatten(1), atol=1e-5, rtol=0)
    for k in range(config["e_layers"]):
        torch.testing.assert_close(encoding.layers[:, k + 1], tensors[f"out/hidden_{k}"].mean(1), atol=5e-5, rtol=0)
    assert not torch.allclose(encoding.embedding, tensors["out/batch_embedding"], atol=1e-4)


def test_periods_are_the_official_ones(fixture, save):
    tensors, state, config = fixture
    net = load_expert("timesnet", save(state), config).module
    hidden = net(tensors["in/x"].transpose(1, 2))[1]
    for k, block in enumerate(net.model):
        assert torch.equal(block.periods(hidden[k])[0], tensors["out/periods"][:, k])


def block_by_formula(block, x, half):
    """One record, [1, time, dim]: equations 1 to 6 of the paper with every convolution on its own."""
    spectrum = torch.fft.rfft(x, dim=1)
    amplitude = (spectrum.real.half() if half else spectrum).abs().mean(-1)[0]
    amplitude[0] = 0
    strongest, frequency = amplitude.topk(block.top_k)
    views = []
    for f in frequency.tolist():
        period = x.shape[1] // f
        n = -(-x.shape[1] // period)
        grid = F.pad(x, (0, 0, 0, n * period - x.shape[1])).reshape(1, n, period, -1).permute(0, 3, 1, 2)
        for layer in block.conv:
            grid = torch.stack([k(grid) for k in layer.kernels]).mean(0) if hasattr(layer, "kernels") else layer(grid)
        views.append(grid.permute(0, 2, 3, 1).reshape(1, n * period, -1)[:, : x.shape[1]])
    return (torch.stack(views, -1) * strongest.softmax(0).float()).sum(-1) + x


@pytest.mark.parametrize("variant", ["enecg", "original"])
def test_batched_blocks_equal_the_formula_record_by_record(variant):
    expert = small(variant=variant, enc_in=2, c_out=2, leads=["I", "II"])
    block = expert.module.model[0]
    x = torch.randn(5, 63, 6).cumsum(1)
    expected = torch.cat([block_by_formula(block, x[i : i + 1], variant == "enecg") for i in range(5)])
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)


def test_a_record_alone_and_in_a_batch_gives_the_same_vector():
    expert = small(enc_in=3, c_out=3, leads=["I", "II", "V2"])
    x = torch.randn(6, 3, 60)
    alone = torch.cat([expert.encode(x[i : i + 1]).embedding for i in range(6)])
    torch.testing.assert_close(expert.encode(x).embedding, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("embed", "freq"), [("timeF", "s"), ("fixed", "h"), ("learned", "t")])
def test_sizes_and_calendar_are_read_from_the_weights(save, embed, freq):
    expert = small(embed=embed, freq=freq, enc_in=2, c_out=2)
    again = load_expert("timesnet", save(expert.module.state_dict()), {"top_k": 4})
    x = torch.randn(2, 2, 60)
    assert torch.equal(again.encode(x).embedding, expert.encode(x).embedding)
    assert again.spec.output_dim == expert.encode(x).output.shape[1] == 6


def test_calendar_keys_carry_the_official_names():
    assert "enc_embedding.temporal_embedding.hour_embed.emb.weight" in small(embed="fixed").module.state_dict()
    assert (
        "enc_embedding.temporal_embedding.minute_embed.weight" in small(embed="learned", freq="t").module.state_dict()
    )


def test_weights_that_do_not_match_are_named(save):
    state = dict(small().module.state_dict())
    with pytest.raises(WeightsError, match="other shape"):
        load_expert("timesnet", save(state), {"d_model": 8})
    del state["layer_norm.bias"]
    with pytest.raises(WeightsError, match=r"missing 1: layer_norm.bias"):
        load_expert("timesnet", save(state))


def test_impossible_options_and_inputs_are_refused():
    for config in ({"freq": "x"}, {"top_k": 99}, {"enc_in": 2, "c_out": 3}):
        with pytest.raises(UsageError):
            small(**config)
    with pytest.raises(InputError, match="expected"):
        small().encode(torch.zeros(1, 1, 61))


def test_runs_in_bfloat16_near_the_float32_result():
    expert = small()
    x = torch.randn(3, 1, 60)
    full = expert.encode(x).embedding
    expert.module.to(torch.bfloat16)
    assert torch.cosine_similarity(expert.encode(x).embedding, full).min() > 0.99


def test_prepared_input_is_the_published_one_of_lead_ii(parity_dir):
    tensors = load_file(parity_dir / "enecg-preprocess.safetensors")
    x = load_expert("timesnet", random_weights=True).prepare(tensors["in/raw_mv_T_by_lead"].transpose(1, 2), 500)
    torch.testing.assert_close(x[:, 0, 0], tensors["out/ts500"][:, :, 1], atol=1e-4, rtol=0)
