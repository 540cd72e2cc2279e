"""ECG-CPC against the official outputs: kernels at other lengths, checkpoints as published, the input paths."""

import argparse
import json
import math
import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cache.errors import InputError, UsageError, WeightsError
from stages.experts import expert_class, load_expert
from stages.experts.contract import STANDARD_LEADS
from stages.experts.models.ecg.ecgcpc import EcgCpc
from stages.experts.run import set_precision
from stages.experts.signals.resampy import resample_kaiser_best

MIMIC = (*STANDARD_LEADS[:4], "aVF", "aVL", *STANDARD_LEADS[6:])


@pytest.fixture
def fixture(parity_dir):
    with safe_open(parity_dir / "ecgcpc-a.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
    tensors = load_file(parity_dir / "ecgcpc-a.safetensors")
    return tensors, config, {k.removeprefix("state/"): v for k, v in tensors.items() if k.startswith("state/")}


def load(path, state, config, name="ecgcpc"):
    save_file({key: value.contiguous() for key, value in state.items()}, path / "weights.safetensors")
    return load_expert(name, path / "weights.safetensors", config)


def check(expert, tensors):
    with torch.inference_mode():
        encoding = expert.encode(tensors["in/x"])
    torch.testing.assert_close(encoding.embedding, tensors["out/embedding"], atol=1e-5, rtol=0)
    names = ["out/embed_mean", *(f"out/hidden_{k}_mean" for k in range(3))]
    for layer, name in zip(encoding.layers, names, strict=True):
        torch.testing.assert_close(layer, tensors[name], atol=5e-5, rtol=0)
    torch.testing.assert_close(encoding.tokens, tensors["out/tokens"], atol=5e-5, rtol=0)
    torch.testing.assert_close(encoding.tokens[:, -1], tensors["out/last_token"], atol=5e-5, rtol=0)


def test_official_outputs_by_config_and_by_shapes(fixture, tmp_path):
    tensors, config, state = fixture
    check(load(tmp_path, state, config), tensors)
    check(load(tmp_path, state, None), tensors)
    sibling = load(tmp_path, state, {"ts": {"enc": config["enc"], "pred": config["pred"]}}, "ecgcpc-cpc")
    check(sibling, tensors)
    assert sibling.spec.seconds == 5


def test_kernels_saved_for_more_tokens_are_cut(fixture, tmp_path):
    tensors, config, state = fixture
    expert = load(tmp_path, state, config)
    with torch.inference_mode():
        short = expert.encode(tensors["in/x_short"])
        whole = expert.encode(tensors["in/x"])
    torch.testing.assert_close(short.embedding, tensors["out/embedding_short"], atol=1e-5, rtol=0)
    ahead = torch.equal(tensors["in/x"][..., :600], tensors["in/x_short"])
    if ahead:  # a causal network gives the same tokens, whatever follows
        torch.testing.assert_close(short.tokens[:, :-1], whole.tokens[:, :299], atol=1e-5, rtol=0)
    with pytest.raises(InputError, match=r"time up to 1200 samples: the saved kernels reach no further"):
        expert.encode(torch.zeros(1, 12, 1201))
    assert expert.prepare(np.zeros((1, 12, 5000)), 500).shape == (1, 2, 12, 1200)  # windows as long as they reach


def test_a_lightning_checkpoint_with_foreign_settings_loads(fixture, tmp_path):
    tensors, _, state = fixture
    foreign = types.ModuleType("clinical_ts")
    foreign.BaseConfig = type("BaseConfig", (), {"__module__": "clinical_ts", "__qualname__": "BaseConfig"})
    sys.modules["clinical_ts"] = foreign
    try:
        settings = foreign.BaseConfig()
        settings.lr = [0.003]
        extra = {"ts_encoder.head_ssl.head.0.weight": torch.ones(3), "ts_encoder.ema.model.0.weight": torch.ones(2)}
        content = {"epoch": 9, "pytorch-lightning_version": "2.5.2", "state_dict": state | extra}
        content |= {"hyper_parameters": {"base": settings, "args": argparse.Namespace(lr=1)}, "loops": {}}
        torch.save(content, tmp_path / "last.ckpt")
    finally:
        del sys.modules["clinical_ts"]
    check(load_expert("ecgcpc", tmp_path / "last.ckpt"), tensors)


def test_a_key_that_is_missing_or_left_over_is_named(fixture, tmp_path):
    _, config, state = fixture
    with pytest.raises(WeightsError, match=r"missing 1: ts_encoder\.predictor\.predictor\.s4_layers\.1\.D\)?$"):
        load(tmp_path, {key: v for key, v in state.items() if not key.endswith("s4_layers.1.D")}, config)
    with pytest.raises(WeightsError, match=r"unexpected 1: head\.weight\)?$"):
        load(tmp_path, state | {"head.weight": torch.zeros(1)}, config)


def test_published_sizes():
    with torch.device("meta"):
        module = EcgCpc.build(None, None).module
    state = module.state_dict()
    assert sum(p.numel() for p in module.parameters()) == 2_932_736
    assert (len(state), sum(v.numel() for v in state.values())) == (76, 3_014_036)


def test_the_authors_input(parity_dir):
    tensors = load_file(parity_dir / "ecgcpc-preprocess.safetensors")
    expert = load_expert("ecgcpc", config=EcgCpc.small_config(), random_weights=True)
    crops = load_expert("ecgcpc", config=EcgCpc.small_config(), random_weights=True, preprocessing="benchmark")
    standard, mimic = tensors["in/raw_mv_standard_order"], tensors["in/raw_mv_mimic_order"]
    by_name = mimic[:, [MIMIC.index(lead) for lead in STANDARD_LEADS]]
    close = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(expert.prepare(standard, 500)[:, 0], tensors["out/model_input_standard"], **close)
    torch.testing.assert_close(expert.prepare(by_name, 500)[:, 0], tensors["out/model_input_mimic"], **close)
    torch.testing.assert_close(crops.prepare(standard, 500), tensors["out/crops_standard"], **close)
    whole = torch.from_numpy(resample_kaiser_best(standard.double().numpy(), 500, 240)).float()
    torch.testing.assert_close(whole, tensors["out/no_clip_standard"], **close)


def test_gaps_are_bridged_as_the_authors_do():
    expert = load_expert("ecgcpc", config=EcgCpc.small_config(), random_weights=True)
    signals = np.ones((1, 12, 2400))
    signals[0, 0, :100] = signals[0, 1, 500:600] = signals[0, 2, -100:] = np.nan
    x = expert.prepare(signals, 240)[0, 0]
    assert not x[0, :100].any()
    assert (x[0, 100:] == 1).all()
    assert (x[1:] == 1).all()


def kernel_by_powers(part, n_tokens):
    """The kernel of one feature as C A^k B of the discretised system: what the generating function stands for."""
    c, b, p, q, w = (torch.view_as_complex(part[k]).to(torch.complex128) for k in ("C", "B", "P", "Q", "w"))
    n = w.shape[1] * 2
    kernels = []
    for h in range(w.shape[0]):
        full = [torch.cat([v, v.conj()]) for v in (c[0, h], b[0, h], p[0, h], q[0, h], w[h])]
        c_h, b_h, p_h, q_h, w_h = full
        dt = part["log_dt"][h].double().exp()
        matrix = torch.diag(w_h) - p_h[:, None] * q_h[None]
        eye = torch.eye(n, dtype=matrix.dtype)
        back = torch.linalg.inv(eye - dt / 2 * matrix)
        step, entry = back @ (eye + dt / 2 * matrix), dt * (back @ b_h)
        length = 2 * (len(part["omega"]) - 1)
        c_h = c_h @ torch.linalg.inv(eye - torch.linalg.matrix_power(step, length))  # the file's C has that inside
        kernels.append([(c_h @ torch.linalg.matrix_power(step, k) @ entry).real.item() for k in range(n_tokens)])
    return torch.tensor(kernels)


@pytest.mark.parametrize(("width", "state_dim", "seed"), [(5, 4, 0), (3, 10, 1)])
def test_kernels_equal_the_state_space_system_that_they_stand_for(width, state_dim, seed):
    torch.manual_seed(seed)
    config = {"base": {"input_size": 0.5}, "enc": {"features": [6, 6, 6, 4]}}
    config["pred"] = {"model_dim": width, "state_dim": state_dim, "layers": 1}
    expert = load_expert("ecgcpc", config=config, random_weights=True)
    kernel = expert.module.get_submodule("ts_encoder.predictor.predictor.s4_layers.0.kernel.kernel")
    for name in ("B", "P", "Q"):
        getattr(kernel, name).normal_()
    kernel.Q.copy_(kernel.P * torch.tensor([1.0, -1.0]))
    with torch.inference_mode():
        found = kernel(40)[0]
    torch.testing.assert_close(found, kernel_by_powers(kernel.state_dict(), 40), atol=2e-4, rtol=2e-3)
    predictor = expert.module.get_submodule("ts_encoder.predictor.predictor")
    x = torch.randn(1, 12, 100)
    with torch.inference_mode():  # of another width than the convolutions: a linear map stands between
        states = expert.module(x)
        mapped = states.entering @ predictor.encoder.weight.T + predictor.encoder.bias
        expected = predictor.norms[0](predictor.s4_layers[0](mapped) + mapped)
        torch.testing.assert_close(expert.encode(x).tokens, expected, atol=1e-5, rtol=1e-5)


def test_a_sibling_looks_both_ways():
    assert not EcgCpc.published_spec("jepa").tokens.causal
    assert "last" not in EcgCpc.published_spec("jepa").views
    torch.manual_seed(0)
    config = {"enc": {"features": [6, 6, 6, 8]}, "pred": {"model_dim": 8, "layers": 1}}
    expert = load_expert("ecgcpc-jepa", config=config, random_weights=True)
    layer = expert.module.get_submodule("ts_encoder.predictor.predictor.s4_layers.0")
    x = torch.randn(1, 20, 8)
    with torch.inference_mode():
        ahead, back = layer.kernel["kernel"](20)
        found = layer(x)[0]
    rows = []
    for t in range(20):  # token t sees those before it by one kernel, those behind it by the other
        past = sum(ahead[:, t - s] * x[0, s] for s in range(t + 1))
        future = sum((back[:, s - t - 1] * x[0, s] for s in range(t + 1, 20)), torch.zeros(8))
        rows.append(past + future + layer.D[0] * x[0, t])
    y = F.gelu(torch.stack(rows))
    linear = layer.output_linear[0]
    first, gate = (y @ linear.weight.T + linear.bias[:, 0]).chunk(2, -1)
    torch.testing.assert_close(found, first * gate.sigmoid(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_kernels_stay_exact_where_the_network_is_cast(precision):
    expert = load_expert("ecgcpc", config=EcgCpc.small_config(), random_weights=True)
    before = {key: value.clone() for key, value in expert.module.state_dict().items() if ".kernel." in key}
    set_precision(expert, precision)
    after = expert.module.state_dict()
    assert before
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_wrong_options_are_named():
    for config, says in (
        ({"enc": {"kss": [3, 1]}}, "differ in length"),
        ({"pred": {"state_dim": 7}}, "has to be even"),
        ({"base": {"input_channels": 8}}, "only 12 are known"),
        ({"base": {"fs": 100}}, "only 240 Hz"),
        ({"pred": {"prenorm": True}}, "only False is published"),
        ({"pred": {"modeldim": 8}}, "did you mean 'model_dim'"),
    ):
        with pytest.raises(UsageError, match=says):
            load_expert("ecgcpc", config=config, random_weights=True)
    assert math.isclose(expert_class("ecgcpc-dinosr")[0].published_spec("dinosr").seconds, 2.5)
