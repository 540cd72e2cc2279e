"""ST-MEM against the official outputs: both input paths, other geometries, pretraining checkpoints, drop path."""

import json

import numpy as np
import pytest
import scipy.signal
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cache.errors import InputError, UsageError, WeightsError
from stages.experts import load_expert
from stages.experts.models.ecg.stmem import StMem, crop_starts
from stages.experts.networks.stmem_net import StMemOptions, StMemVit, drop_path
from stages.experts.run import run_expert

SMALL = {"width": 32, "depth": 2, "mlp_dim": 48, "heads": 2, "dim_head": 16}


@pytest.fixture
def read(parity_dir):
    def fixture(name):
        with safe_open(parity_dir / f"{name}.safetensors", "pt") as file:
            config = json.loads(file.metadata().get("config", "{}"))
        tensors = load_file(parity_dir / f"{name}.safetensors")
        return tensors, config, {k.removeprefix("state/"): v for k, v in tensors.items() if k.startswith("state/")}

    return fixture


@pytest.fixture
def save(tmp_path):
    def write(state):
        path = tmp_path / "weights.safetensors"
        save_file({k: v.clone() for k, v in state.items()}, path)
        return path

    return write


def small(**options):
    torch.manual_seed(0)
    return load_expert("stmem", config=SMALL | options, random_weights=True)


def encode(expert, x):
    with torch.inference_mode():
        return expert.encode(x)


def test_official_outputs(read, save):
    tensors, config, state = read("stmem-a")
    expert = load_expert("stmem", save(state), config)
    encoding = encode(expert, tensors["in/x"])
    torch.testing.assert_close(encoding.embedding, tensors["out/embedding"], atol=1e-5, rtol=0)
    assert expert.spec.layer_names == ("embed", "block_1", "block_2")
    assert expert.spec.layer_dims == (64, 64, 64)
    with torch.inference_mode():
        net = expert.module
        hidden = list(net.block_outputs(net.add_separators(net.embed_patches(tensors["in/x"]))))
    torch.testing.assert_close(hidden[-1], tensors["out/hidden_last"], atol=5e-5, rtol=0)
    for k, tokens in enumerate(hidden):  # these means of the fixture hold the separators, the cached layers do not
        torch.testing.assert_close(tokens.mean(1), tensors[f"out/hidden_{k}_mean"], atol=5e-5, rtol=0)
        without = tokens.view(3, 12, 32, 64)[:, :, 1:-1].mean((1, 2))
        torch.testing.assert_close(encoding.layers[:, k + 1], without, atol=5e-5, rtol=0)


@pytest.mark.parametrize("name", ["soup-ppa-a", "soup-pma-a"])
def test_soup_layers_and_gate_input(read, save, name):
    tensors, config, state = read(name)
    expert = load_expert("stmem", save(state), config)
    encoding = encode(expert, tensors["in/x"])
    torch.testing.assert_close(encoding.layers[:, 1:], tensors["out/u"], atol=5e-5, rtol=0)
    torch.testing.assert_close(encoding.embedding, tensors["out/baseline_z"], atol=1e-5, rtol=0)
    if "out/gate_input" in tensors:
        torch.testing.assert_close(encoding.layers[:, 0], tensors["out/gate_input"], atol=5e-5, rtol=0)
    assert (expert.preprocessing, expert.spec.sampling_rate_hz, expert.spec.seconds) == ("soup", 100, 10)


@pytest.mark.parametrize("name", ["stmem-pretrain-a", "soup-ipastmem-a"])
def test_whole_pretraining_checkpoint_without_config(read, save, name):
    tensors, config, state = read(name)
    inferred, configured = load_expert("stmem", save(state)), load_expert("stmem", save(state), config)
    wrapped = load_expert("stmem", save({f"model.{k}": v for k, v in state.items()}))
    assert inferred.module.options == configured.module.options == wrapped.module.options
    net = inferred.module
    kept = tensors["in/ids_keep"][..., None].expand(-1, -1, -1, 48)
    with torch.inference_mode():  # masked, as pretraining will do it
        patches = net.embed_patches(tensors["in/x"]).gather(2, kept)
        layers = [net.norm(hidden) for hidden in net.block_outputs(net.add_separators(patches))]
    expected = tensors["out/layers_normed"]
    for k in range(expected.shape[1]):
        torch.testing.assert_close(layers[k - expected.shape[1]], expected[:, k], atol=5e-5, rtol=0)


def test_official_model_input(parity_dir):
    tensors = load_file(parity_dir / "stmem-preprocess.safetensors")
    x = small().prepare(tensors["in/raw_mv"], 500)
    torch.testing.assert_close(x, tensors["out/model_input"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("variant", "count"), [("base", 85_150_614), ("small", 21_341_718)])
def test_published_sizes(variant, count):
    with torch.device("meta"):
        expert = StMem.build(None, None, variant=variant)
    assert expert.spec.parameters == expert.spec.published_parameters == count
    assert StMem.published_spec(variant) == expert.spec


def naive(state, x, options):
    """The official forward, written out without fused attention."""

    def norm(name, tokens):
        return F.layer_norm(tokens, tokens.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def linear(name, tokens):
        return F.linear(tokens, state[f"{name}.weight"], state.get(f"{name}.bias"))

    batch, leads, _ = x.shape
    tokens = norm("to_patch_embedding.1", x.reshape(batch, leads, -1, options.patch_size))
    tokens = norm("to_patch_embedding.3", linear("to_patch_embedding.2", tokens))
    n = tokens.shape[2]
    position = state["pos_embedding"][0]
    tokens = tokens + position[1 : n + 1]
    left, right = ((state["sep_embedding"] + position[at]).expand(batch, leads, 1, -1) for at in (0, -1))
    tokens = torch.cat([left, tokens, right], 2)
    tokens = tokens + torch.stack([state[f"lead_embeddings.{k}"] for k in range(leads)])[:, None]
    hidden = tokens.flatten(1, 2)
    for k in range(options.depth):
        qkv = linear(f"block{k}.attn.fn.to_qkv", norm(f"block{k}.attn.norm", hidden))
        q, v_k, v = (each.unflatten(-1, (options.heads, -1)).transpose(1, 2) for each in qkv.chunk(3, -1))
        mixed = (q @ v_k.transpose(2, 3) * options.dim_head**-0.5).softmax(-1) @ v
        mixed = mixed.transpose(1, 2).flatten(2)
        if f"block{k}.attn.fn.to_out.0.weight" in state:
            mixed = linear(f"block{k}.attn.fn.to_out.0", mixed)
        hidden = hidden + mixed
        inner = F.gelu(linear(f"block{k}.ff.fn.net.0", norm(f"block{k}.ff.norm", hidden)))
        hidden = hidden + linear(f"block{k}.ff.fn.net.3", inner)
    return norm("norm", hidden.view(batch, leads, n + 2, -1)[:, :, 1:-1].mean((1, 2)))


@pytest.mark.parametrize(
    "options",
    [
        {"heads": 1, "dim_head": 32},  # no output projection
        {"heads": 3, "dim_head": 8, "qkv_bias": False},
        {"seq_len": 400, "patch_size": 80, "num_leads": 8, "depth": 3},
        {"num_classes": 5},
    ],
)
def test_other_geometries(save, options):
    expert = small(**options)
    state = expert.module.state_dict()
    loaded = load_expert("stmem", save(state), SMALL | options)
    merged = loaded.module.options
    x = torch.randn(2, merged.num_leads, merged.seq_len)
    encoding = encode(loaded, x)
    torch.testing.assert_close(encoding.embedding, naive(state, x, merged), atol=1e-5, rtol=0)
    shorter = x[..., : -merged.patch_size]
    torch.testing.assert_close(encode(loaded, shorter).embedding, naive(state, shorter, merged), atol=1e-5, rtol=0)
    if merged.num_classes:
        assert encoding.output.shape == (2, 5)
        torch.testing.assert_close(encoding.output, loaded.module(x), atol=1e-6, rtol=0)


def test_heads_of_64_need_no_config(save):
    expert = small(width=64, heads=2, dim_head=64, seq_len=300, num_leads=3, qkv_bias=False)
    assert load_expert("stmem", save(expert.module.state_dict())).module.options == expert.module.options


def test_undetermined_heads_are_an_error(save):
    with pytest.raises(WeightsError, match="heads and dim_head"):
        load_expert("stmem", save(small().module.state_dict()))


def test_mismatch_names_the_keys(read, save):
    _, config, state = read("stmem-a")
    del state["block1.ff.norm.bias"]
    state["extra.weight"] = torch.zeros(2)
    with pytest.raises(WeightsError, match=r"missing 1: block1\.ff\.norm\.bias; unexpected 1: extra\.weight"):
        load_expert("stmem", save(state), config)
    with pytest.raises(WeightsError, match="other shape"):
        load_expert("stmem", save(state), config | {"mlp_dim": 99})


def test_misspelt_option_and_impossible_geometry():
    with pytest.raises(UsageError, match="did you mean 'num_leads'"):
        small(num_lead=3)
    with pytest.raises(UsageError, match="no multiple of patch_size 70"):
        small(patch_size=70)


def test_weights_none_says_where_to_get_them():
    with pytest.raises(WeightsError, match=r"drive\.google\.com"):
        load_expert("stmem")


@pytest.mark.parametrize("leads", [1, 11, 13])
def test_missing_leads_are_refused_not_broadcast(leads):
    with pytest.raises(InputError, match="every lead"):
        small().encode(torch.randn(2, leads, 2250))


@pytest.mark.parametrize("n_samples", [2251, 2325, 100, 0])
def test_odd_windows_are_refused(n_samples):
    with pytest.raises(InputError, match="expected 2250"):
        small().encode(torch.randn(1, 12, n_samples))


def test_crops_follow_the_official_grid():
    assert [*crop_starts(2500, 2250)] == [0, 125, 250]
    assert [*crop_starts(2250, 2250)] == [0]
    assert [*crop_starts(15000, 2250)] == [0, 6375, 12750]


def test_short_records_are_refused():
    with pytest.raises(InputError, match=r"8 s are shorter than 9 s"):
        small().prepare(np.zeros((1, 12, 4000)), 500)
    soup = load_expert("stmem", config=SMALL, preprocessing="soup", random_weights=True)
    with pytest.raises(InputError, match="10 s"):
        soup.prepare(np.zeros((1, 12, 4500)), 500)


def test_soup_input_is_every_lead_z_scored():
    signals = np.random.default_rng(0).normal(size=(2, 12, 1000)) * np.arange(1, 13)[:, None] + 3
    signals[1, 4] = 0.7
    soup = load_expert("stmem", config=SMALL, preprocessing="soup", random_weights=True)
    x = soup.prepare(signals, 100).numpy()
    assert x.shape == (2, 1, 12, 1000)
    expected = (signals - signals.mean(-1, keepdims=True)) / signals.std(-1, keepdims=True)
    np.testing.assert_allclose(x[0, 0], expected[0], atol=1e-6)
    assert (x[1, 0, 4] == 0).all()


def test_missing_lead_is_zeros_and_leaves_the_others_their_scale():
    signals = np.random.default_rng(1).normal(size=(3, 12, 5000))
    expert = small()
    whole = expert.prepare(signals, 500)
    signals[1, 7] = np.nan
    signals[2, 3, 100:160] = np.nan
    x = expert.prepare(signals, 500)
    assert torch.equal(x[0], whole[0])
    assert (x[1, :, 7] == 0).all()
    others = [lead for lead in range(12) if lead != 7]
    torch.testing.assert_close(x[1][:, others].std((1, 2), correction=0), torch.ones(3), atol=1e-5, rtol=0)
    assert x.isfinite().all()


def test_filters_are_the_authors(read):
    tone = np.sin(2 * np.pi * 60 * np.arange(5000) / 500) + np.sin(2 * np.pi * 10 * np.arange(5000) / 500)
    x = small().prepare(np.tile(tone, (1, 12, 1)), 500)[0, 1, 0].numpy()
    spectrum = np.abs(np.fft.rfft(x * scipy.signal.windows.hann(2250)))
    assert spectrum[540] < 0.03 * spectrum[90]  # 60 Hz against 10 Hz at 9 s


def test_batch_and_repetition_change_nothing():
    expert, x = small(), torch.randn(5, 12, 2250)
    together = encode(expert, x)
    assert torch.equal(together.layers, encode(expert, x).layers)
    for k in range(5):
        alone = encode(expert, x[k : k + 1])
        torch.testing.assert_close(alone.layers[0], together.layers[k], atol=1e-5, rtol=0)


def test_bfloat16():
    expert, x = small(), torch.randn(2, 12, 2250)
    exact = encode(expert, x)
    expert.module.to(torch.bfloat16)
    rough = encode(expert, x.bfloat16())
    assert rough.layers.dtype == torch.float32
    assert F.cosine_similarity(exact.embedding, rough.embedding.float()).min() > 0.999


def test_stochastic_depth_drops_whole_records_and_keeps_the_mean():
    torch.manual_seed(0)
    branch = torch.ones(4000, 3, 2)
    dropped = drop_path(branch, 0.25, training=True)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (dropped == dropped[:, :1, :1]).all()
    assert dropped.mean() == pytest.approx(1, abs=0.05)
    assert drop_path(branch, 0.25, training=False) is branch


def test_drop_path_rises_from_none_to_the_given_rate():
    net = StMemVit(StMemOptions(**SMALL | {"depth": 5}, drop_path_rate=0.4))
    assert [block.drop_path_rate for block in net.blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_a_classifier_s_probabilities_are_the_mean_of_the_crops():
    expert = small(num_classes=5)
    x = torch.randn(2, 3, expert.module.options.num_leads, expert.module.options.seq_len)
    expected = torch.stack([encode(expert, x[:, k]).output.softmax(-1) for k in range(3)]).mean(0)
    found = torch.from_numpy(run_expert(expert, x).output)
    torch.testing.assert_close(found.softmax(-1), expected, rtol=0, atol=1e-6)
    assert (found.exp().sum(-1) - 1).abs().max() < 1e-5
