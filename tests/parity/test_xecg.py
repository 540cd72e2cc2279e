"""xECG against the official outputs: both cell layouts, padding, the input path, and a plain loop over other sizes."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cache.errors import InputError, UsageError, WeightsError
from stages.experts import load_expert
from stages.experts.contract import STANDARD_LEADS
from stages.experts.models.ecg.xecg import XecgExpert
from stages.experts.networks.xecg_net import XecgOptions, published_layout

KERNEL, BIAS = "._recurrent_kernel_", "._bias_"


@pytest.fixture
def fixture(parity_dir):
    with safe_open(parity_dir / "xecg-a.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
    tensors = load_file(parity_dir / "xecg-a.safetensors")
    return tensors, config, {k.removeprefix("state/"): v for k, v in tensors.items() if k.startswith("state/")}


def load(path, state, config):
    save_file({key: value.contiguous() for key, value in state.items()}, path / "weights.safetensors")
    return load_expert("xecg", path / "weights.safetensors", config)


def check(expert, tensors):
    with torch.inference_mode():
        encoding = expert.encode(tensors["in/x"])
    torch.testing.assert_close(encoding.embedding, tensors["out/embedding"], atol=1e-5, rtol=0)
    names = ["out/embed_mean", *(f"out/hidden_{k}_mean" for k in range(3))]
    for layer, name in zip(encoding.layers.unbind(1), names, strict=True):
        torch.testing.assert_close(layer, tensors[name], atol=5e-5, rtol=0)
    torch.testing.assert_close(encoding.tokens, tensors["out/tokens"], atol=5e-5, rtol=0)


def plain(state):
    """Turn the cells of the published file into the package's plain layout."""
    turned = dict(state)
    for key in [key for key in state if key.endswith(KERNEL)]:
        kernel, bias = state[key], key.removesuffix(KERNEL) + BIAS
        turned[key] = kernel.permute(0, 2, 1)
        turned[bias] = state[bias].reshape(len(kernel), 4, -1).transpose(0, 1).flatten()
    return turned


def test_official_outputs_from_the_published_layout(fixture, tmp_path):
    tensors, config, state = fixture
    check(load(tmp_path, state, config), tensors)
    check(load(tmp_path, state, None), tensors)  # shapes tell all


def test_the_plain_layout_gives_the_same(fixture, tmp_path):
    tensors, config, state = fixture
    turned = plain(state)
    check(load(tmp_path, turned, config), tensors)
    back = published_layout(turned)
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_a_key_that_is_missing_or_left_over_is_named(fixture, tmp_path):
    _, config, state = fixture
    with pytest.raises(WeightsError, match=r"missing 1: core\.model\.blocks\.1\.xlstm\.learnable_skip$"):
        load(tmp_path, {k: v for k, v in state.items() if not k.endswith("learnable_skip")}, config)
    with pytest.raises(WeightsError, match=r"unexpected 1: head\.weight$"):
        load(tmp_path, state | {"head.weight": torch.zeros(1)}, config)


def test_published_size():
    with torch.device("meta"):
        expert = XecgExpert.build(None, None)
    assert expert.spec.parameters == expert.spec.published_parameters == 57_021_472
    assert len(expert.module.state_dict()) == 123


def test_the_authors_input(parity_dir):
    tensors = load_file(parity_dir / "xecg-preprocess.safetensors")
    expert = load_expert("xecg", config=XecgExpert.small_config(), random_weights=True)
    x = expert.prepare(tensors["in/raw_mv"], 500)
    torch.testing.assert_close(x[:, 0], tensors["out/model_input"], atol=1e-5, rtol=0)
    names = ["I", "II", "III", "aVR", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
    placed = torch.full((1, 12, 4330), torch.nan)
    placed[:, [STANDARD_LEADS.index(name) for name in names]] = tensors["in/raw_mv_11_leads"]
    x = expert.prepare(placed, 500)
    torch.testing.assert_close(x[:, 0], tensors["out/model_input_11_leads"], atol=1e-5, rtol=0)


def recurrent(state, name, x, heads):
    """One sLSTM layer, token by token, unit by unit, from the formulas."""
    norm = F.layer_norm(x, x.shape[-1:]) * (1 + state[f"{name}.xlstm_norm.weight"])
    taps, bias = state[f"{name}.xlstm.conv1d.conv.weight"][:, 0], state[f"{name}.xlstm.conv1d.conv.bias"]
    padded = torch.cat([torch.zeros(3, x.shape[1]), norm])
    smooth = F.silu(torch.stack([(padded[t : t + 4].T * taps).sum(1) + bias for t in range(len(x))]))
    dim = x.shape[1] // heads
    kernel, biases = state[f"{name}.xlstm.slstm_cell{KERNEL}"], state[f"{name}.xlstm.slstm_cell{BIAS}"]
    y, c, n, m = (torch.zeros(heads, dim) for _ in range(4))
    rows = []
    for t in range(len(x)):
        raw = []
        for gate, (layer, source) in enumerate(
            (("fgate", smooth), ("igate", smooth), ("zgate", norm), ("ogate", norm))
        ):
            weight = state[f"{name}.xlstm.{layer}.weight"]
            raw.append(
                torch.stack(
                    [
                        weight[h] @ source[t, h * dim : (h + 1) * dim]
                        + kernel[h, :, gate * dim : (gate + 1) * dim].T @ y[h]
                        + biases.view(heads, 4, dim)[h, gate]
                        for h in range(heads)
                    ]
                )
            )
        i, f, z, o = raw
        after = i if t == 0 else torch.maximum(i, m + F.logsigmoid(f))
        take, keep = (i - after).exp(), (m + F.logsigmoid(f) - after).exp().clamp(max=1)
        c, n, m = keep * c + take * z.tanh(), keep * n + take, after
        y = o.sigmoid() * c / n
        rows.append(F.layer_norm(y, (dim,)).flatten() * (1 + state[f"{name}.xlstm.group_norm.weight"]))
    x = x + torch.stack(rows)
    norm = F.layer_norm(x, x.shape[-1:]) * (1 + state[f"{name}.ffn_norm.weight"])
    gate, value = (norm @ state[f"{name}.ffn.proj_up.weight"].T).chunk(2, -1)
    return x + (F.gelu(gate) * value) @ state[f"{name}.ffn.proj_down.weight"].T


def test_another_width_equals_the_formulas():
    config = {"embedding_size": 24, "num_heads": 2, "xlstm_config": ["s", "s"], "patch_size": 10}
    torch.manual_seed(0)
    expert = load_expert("xecg", config=config, random_weights=True)
    x = torch.randn(1, 70, 12)
    state = expert.module.state_dict()
    tokens = F.conv1d(x.transpose(1, 2), state["patch_embedding.conv.weight"], stride=10)[0].T
    first = recurrent(state, "core.model.blocks.0", tokens, 2)
    second = recurrent(state, "core.model.blocks.1", first.flip(0), 2).flip(0)
    with torch.inference_mode():
        found = expert.encode(x)
    torch.testing.assert_close(found.tokens[0], second, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.layers[0, 1], first.mean(0), atol=1e-5, rtol=0)


def test_padding_leaves_the_means_and_a_record_of_zeros_has_a_vector():
    expert = load_expert("xecg", config=XecgExpert.small_config(), random_weights=True)
    x = torch.randn(1, 500, 12)
    x[:, 100:125] = 0
    with torch.inference_mode():
        found, nothing = expert.encode(x), expert.encode(torch.zeros(1, 500, 12))
    kept = [k for k in range(20) if k != 4]
    torch.testing.assert_close(found.embedding, found.tokens[:, kept].mean(1), atol=1e-6, rtol=0)
    assert nothing.embedding.isfinite().all()


def test_wrong_inputs_and_options_are_named():
    expert = load_expert("xecg", config=XecgExpert.small_config(), random_weights=True)
    for shape in ((1, 12, 1000), (1, 990, 12), (1000, 12)):
        with pytest.raises(InputError, match=r"expected \[batch, time, 12\]"):
            expert.encode(torch.zeros(shape))
    with pytest.raises(InputError, match=r"0\.2 s are shorter"):
        expert.prepare(np.zeros((1, 12, 100)), 500)
    for config, says in (
        ({"xlstm_config": ["s", "x"]}, "list of 's' and 'm'"),
        ({"embedding_size": 30}, "no multiple of num_heads"),
        ({"use_final_layer_norm": True}, "only False is published"),
        ({"embeding_size": 32}, "did you mean 'embedding_size'"),
    ):
        with pytest.raises(UsageError, match=says):
            load_expert("xecg", config=config, random_weights=True)
    assert XecgOptions().xlstm_config.count("s") == 5
