"""Stochastic depth on every expert that names residual branches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cache.errors import UsageError
from stages.experts import expert_class, load_expert
from stages.posttrain.drop_path import StochasticDepth, depth_rates, drop_records, residual_blocks

EXPERTS = ("stmem", "ecgfm", "ecgfm-physionet", "ecgfounder", "hubert", "jepa", "moment", "tempo")
N_RECORDS = 6


@pytest.fixture(params=EXPERTS)
def expert(request):
    cls, variant = expert_class(request.param)
    torch.manual_seed(0)
    found = load_expert(request.param, config=cls.small_config(variant), random_weights=True, trainable=True)
    for layer in found.module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
        if hasattr(layer, "dropout") and isinstance(layer.dropout, float):
            layer.dropout = 0.0
    return found


@pytest.fixture
def x(expert):
    time = np.arange(5000) / 500
    beats = np.sin(2 * np.pi * np.linspace(1, 2, N_RECORDS)[:, None] * time)[:, None] * np.linspace(1, 2, 12)[:, None]
    noise = np.random.default_rng(0).normal(0, 0.1, (N_RECORDS, 12, 5000))
    return expert.prepare(beats + noise, 500)


def branches_of(expert):
    return [branch for _, branches in residual_blocks(expert) for branch in branches]


def watch(branches):
    """Collect what the branches give, as the hooks registered so far leave it."""
    seen = []
    for branch in branches:
        branch.register_forward_hook(
            lambda _, __, out: seen.append((out[0] if isinstance(out, tuple) else out).detach().clone())
        )
    return seen


def test_whole_branches_of_whole_records_are_dropped_and_the_rest_is_scaled(expert, x):
    before = watch(branches_of(expert))
    depth = StochasticDepth(expert, 0.4)
    after = watch(branches_of(expert))
    depth.n_records = N_RECORDS
    expert.module.train()
    expert.encode(x.flatten(0, 1))
    n_dropped = 0
    assert len(before) == len(after) >= 5
    for plain, dropped in zip(before, after, strict=True):
        for own, left in zip(plain.chunk(N_RECORDS), dropped.chunk(N_RECORDS), strict=True):
            if (left == 0).all():
                n_dropped += 1
            else:
                torch.testing.assert_close(left, own / 0.6)
    assert 0 < n_dropped < len(before) * N_RECORDS


def test_eval_mode_and_removal_change_nothing(expert, x):
    flat = x.flatten(0, 1)
    expert.module.eval()
    with torch.no_grad():
        plain = expert.encode(flat).embedding
        depth = StochasticDepth(expert, 0.7)
        depth.n_records = N_RECORDS
        assert torch.equal(expert.encode(flat).embedding, plain)
    expert.module.train()
    dropped = expert.encode(flat).embedding
    assert not torch.allclose(dropped, plain, atol=1e-4)
    depth.remove()
    torch.testing.assert_close(expert.encode(flat).embedding.detach(), plain, atol=1e-5, rtol=1e-4)


def test_gradients_pass(expert, x):
    depth = StochasticDepth(expert, 0.3, "linear")
    depth.n_records = N_RECORDS
    expert.module.train()
    expert.encode(x.flatten(0, 1)).embedding.square().sum().backward()
    blocks = [path for path, _ in residual_blocks(expert)]
    reached = {name for name, p in expert.module.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert all(any(name.startswith(f"{path}.") for name in reached) for path in blocks)


@settings(max_examples=30, deadline=None)
@given(rate=st.floats(0.0, 0.8), rows=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_expectation_is_preserved(rate, rows, seed):
    torch.manual_seed(seed)
    branch = torch.linspace(-1, 2, 5).repeat(4000 * rows, 1)
    dropped = drop_records(branch, rate, 4000)
    error = np.sqrt(rate / (1 - rate) / 4000)
    torch.testing.assert_close(dropped.mean(0), branch[0], atol=12 * error + 1e-5, rtol=0)
    per_record = dropped.unflatten(0, (4000, rows))
    assert (per_record == per_record[:, :1]).all()


@settings(max_examples=50, deadline=None)
@given(rate=st.floats(0, 0.99), n=st.integers(1, 30))
def test_rates_over_depth(rate, n):
    assert depth_rates(rate, n, "constant") == [rate] * n
    linear = depth_rates(rate, n, "linear")
    assert linear[-1] == pytest.approx(rate)
    assert linear == sorted(linear)
    assert n == 1 or linear[0] == 0


def test_wrong_rates_and_experts_without_branches_are_refused():
    with pytest.raises(UsageError, match="0 <= rate < 1"):
        depth_rates(1.0, 3, "constant")
    with pytest.raises(UsageError, match="constant or linear"):
        depth_rates(0.1, 3, "cosine")
    with pytest.raises(UsageError, match="names no residual branches"):
        residual_blocks(load_expert("dlinear", random_weights=True))
