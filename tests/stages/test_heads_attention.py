"""Attention over seconds: the benchmark's head, trained from the mean-pooled probe on."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from cache.errors import InputError, UsageError
from stages.heads import EnsembleHeads
from stages.heads.layers.attention import ScaledAttention
from stages.heads.layers.attention_pool import AttentionPool

DIM, SECONDS = 32, 10


def test_it_is_the_benchmarks_head(parity_dir):
    tensors = load_file(parity_dir / "fmbench-attnpool-a.safetensors")
    state = {k.removeprefix("state/head."): v for k, v in tensors.items() if k.startswith("state/")}
    readout = state.pop("c_proj.weight")
    pool = AttentionPool(tensors["in/tokens"].shape[-1])
    pool.load_state_dict(state, strict=True)
    with torch.inference_mode():
        z = pool(tensors["in/tokens"])
    torch.testing.assert_close(z, tensors["out/embedding"], atol=1e-5, rtol=0)
    torch.testing.assert_close(z @ readout.T, tensors["out/logits"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("dim", "heads", "tokens"), [(48, 16, 7), (30, 5, 1), (64, 1, 313)])
def test_it_is_attention_in_other_sizes(dim, heads, tokens):
    torch.manual_seed(dim)
    pool, x = AttentionPool(dim, heads).double(), torch.randn(4, tokens, dim, dtype=torch.float64)
    plain = torch.nn.MultiheadAttention(dim, heads, bias=False, batch_first=True, dtype=torch.float64)
    plain.in_proj_weight.data = torch.cat([pool.q_proj.weight, pool.k_proj.weight, pool.v_proj.weight])
    plain.out_proj.weight.data = torch.eye(dim, dtype=torch.float64)
    with torch.inference_mode():
        expected, weights = plain(pool.query.expand(4, -1, -1), x, x, average_attn_weights=False)
        torch.testing.assert_close(pool(x), expected[:, 0])
        torch.testing.assert_close(pool.weights(x), weights[:, :, 0])


def test_seconds_that_are_missing_get_no_weight():
    torch.manual_seed(0)
    pool, x = AttentionPool(32), torch.randn(2, 10, 32)
    short = x.clone()
    short[:, 6:] = torch.nan
    torch.testing.assert_close(pool(short), pool(x[:, :6]))
    assert (pool.weights(short)[:, :, 6:] == 0).all()
    assert pool(torch.full((1, 10, 32), torch.nan)).isnan().all()


def test_it_starts_as_the_mean():
    x = torch.randn(50, 10, 32, generator=torch.Generator().manual_seed(0))
    start = ScaledAttention.of(x)
    torch.testing.assert_close(start(x), start.standardised(x).mean(1))
    assert ScaledAttention.of(torch.randn(5, 10, 30)).pool.heads == 15
    with pytest.raises(UsageError, match="dim 30 is no multiple of heads 16"):
        AttentionPool(30)


def synthetic(kind, n=1500, seed=0):
    """Seconds of noise; the label lies in one second, which a mark shows, or in all of them alike."""
    rng = np.random.default_rng(seed)
    segments = rng.normal(size=(n, SECONDS, DIM)).astype(np.float32)
    y = rng.integers(0, 2, n).astype(float)
    sign = (2 * y - 1).astype(np.float32)
    if kind == "one second":
        where = rng.integers(0, SECONDS, n)
        segments[np.arange(n), where, 0] += 5.0
        segments[np.arange(n), where, 1] += 1.5 * sign
        oracle = segments[np.arange(n), where]
    else:
        segments[..., 1] += 0.45 * sign[:, None]
        oracle = segments.mean(1)
    return segments, oracle, y


def auroc(features, y, layer_mix):
    n = len(y)
    train, val, test = np.arange(n // 2), np.arange(n // 2, 2 * n // 3), np.arange(2 * n // 3, n)
    heads = EnsembleHeads(layer_mix=layer_mix, lora=False, gate_epochs=0, gate_input="none")
    heads.fit({"net": features}, {"task": y}, splits=[(train, val, test)])
    scores = heads.predict_proba({"net": {k: v[test] for k, v in features.items()}})["task"]
    return roc_auc_score(y[test], scores), heads


@pytest.mark.parametrize("seed", [0, 1])
def test_where_the_label_lives_in_one_second_it_beats_the_mean_and_reaches_the_oracle(seed):
    segments, oracle, y = synthetic("one second", n=4500, seed=seed)
    mean, _ = auroc({"embedding": segments.mean(1)}, y, "embedding")
    best, _ = auroc({"embedding": oracle}, y, "embedding")
    found, heads = auroc({"embedding": segments.mean(1), "segments": segments}, y, "attention")
    assert found > mean + 0.15
    assert found > best - 0.02
    weights = heads.mixers_["net"][0].attention.weights(_features(segments))[0]
    marked = segments[..., 0].argmax(1)
    assert (weights.argmax(1) == marked).mean() > 0.8


def _features(segments):
    from stages.heads.inputs.expert_features import ExpertFeatures

    return ExpertFeatures(segments.mean(1), views={"segments": segments})


def test_where_the_label_lives_in_the_mean_it_does_not_lose():
    gaps = []
    for seed in range(3):
        segments, _, y = synthetic("mean", seed=seed)
        mean, _ = auroc({"embedding": segments.mean(1)}, y, "embedding")
        found, _ = auroc({"embedding": segments.mean(1), "segments": segments}, y, "attention")
        gaps.append(found - mean)
    assert np.mean(gaps) > -0.01


def test_a_saved_fit_gives_the_same_bits_and_joins_other_parts(tmp_path):
    segments, _, y = synthetic("one second", n=300)
    features = {"embedding": segments.mean(1), "segments": segments, "std": segments.std(1)}
    features["segments"][5] = features["embedding"][5] = np.nan
    _, heads = auroc(features, y, "embedding+std+attention")
    again = EnsembleHeads.load(heads.save(tmp_path / "heads"))
    np.testing.assert_array_equal(
        again.predict_proba({"net": features})["task"], heads.predict_proba({"net": features})["task"]
    )
    assert heads.models_[0].heads["net"].scaler.median.shape == (3 * DIM,)
    with pytest.raises(InputError, match="this fit pools segments"):
        again.predict_proba({"net": {k: v for k, v in features.items() if k != "segments"}})


def test_every_task_and_fold_has_its_own():
    segments, _, y = synthetic("one second", n=300)
    n = np.arange(300)
    splits = [(n[n % 3 != k], n[n % 3 == k], []) for k in range(3)]
    heads = EnsembleHeads(layer_mix="attention", lora=False, gate_epochs=0)
    age = 60 + 10 * segments[..., 2].mean(1)
    heads.fit({"net": {"embedding": segments.mean(1), "segments": segments}}, {"sex": y, "age": age}, splits=splits)
    assert [len(mix.attention.pools) for mix in heads.mixers_["net"]] == [2, 2, 2]
    assert heads.models_[0].heads["net"].scaler.median.shape == (2 * DIM,)


def test_without_segments_it_says_what_to_do():
    x = np.random.default_rng(0).normal(size=(60, 8))
    with pytest.raises(InputError, match=r"set experts.NAME.views: \[segments\] in params.yaml"):
        EnsembleHeads(layer_mix="attention").fit(
            {"net": x}, {"y": x[:, 0]}, splits=[(np.arange(40), np.arange(40, 60), [])]
        )
