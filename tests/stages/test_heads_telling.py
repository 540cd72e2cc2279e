"""Telling columns: which are found, without a leak, and what the heads gain by one column among many."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression

from stages.heads.crossfit import make_masks
from stages.heads.expert_head import HeadOptions
from stages.heads.in_memory.expert import fit_expert
from stages.heads.in_memory.probe import STRENGTHS, Problem
from stages.heads.in_memory.telling import find_telling, least_share
from stages.heads.targets.tasks import TaskSpec, layout

N, WIDTH, TELLING = 300, 200, 17


def made(noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Correlated features, and a target that is one of them up to noise (standard deviation 1 without)."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N, 5)) @ rng.normal(size=(5, WIDTH)) + 2 * rng.normal(size=(N, WIDTH))
    x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
    return x, (x[:, TELLING] + noise * rng.normal(size=N)).astype(np.float32)


def problem_of(x: np.ndarray, y: np.ndarray, task: TaskSpec, train: torch.Tensor) -> Problem:
    values = torch.from_numpy(y).reshape(1, len(x), 1)
    return Problem(torch.from_numpy(x)[None], values, torch.ones_like(values), train[None], layout([task]))


def test_a_telling_column_is_found_by_each_model_on_its_own_records() -> None:
    x, y = made(noise=0.1)
    x[:100, 40], x[100:, 40] = y[:100], 0  # the target itself, of records that the second model must not see
    train = torch.ones(2, N)
    train[1, :100] = 0
    telling = find_telling(x, problem_of(x, y, TaskSpec("rr", "regression"), train))
    assert telling is not None
    assert telling.tasks == [0]
    assert TELLING in telling.columns
    weight = dict(zip(telling.columns.tolist(), telling.weight[1, :, 0].tolist(), strict=True))
    assert weight.get(40, 0) == 0
    chosen = [column for column, value in weight.items() if value]
    expected = LinearRegression().fit(x[100:][:, chosen], y[100:]).coef_
    np.testing.assert_allclose([weight[column] for column in chosen], expected, atol=0.01)
    np.testing.assert_allclose(telling.logits(x)[1, :, 0], x[:, chosen] @ expected, atol=0.05)


@pytest.mark.parametrize("task", [TaskSpec("rr", "regression"), TaskSpec("flag", "binary")])
def test_noise_and_classes_have_none(task: TaskSpec) -> None:
    x, y = made(noise=0.0)
    noise = np.random.default_rng(1).normal(size=N).astype(np.float32)
    target = noise if task.kind == "regression" else (y > 0).astype(np.float32)
    assert find_telling(x, problem_of(x, target, task, torch.ones(1, N))) is None


def test_fewer_records_must_show_more() -> None:
    assert least_share(20, 5000) > least_share(60, 5000) > least_share(2000, 5000) == 0.25


@pytest.mark.parametrize("noise", [0.05, 6.0])
def test_the_head_gains_by_a_telling_column_and_keeps_the_probe_without_one(monkeypatch, noise: float) -> None:
    x, y = made(noise)
    y = (y - y.mean()) / y.std()
    rows = np.arange(N)
    masks = make_masks([(rows[:180], rows[180:220], rows[220:])], N, None, 3, 0)
    blocks = layout([TaskSpec("rr", "regression")])
    values = torch.from_numpy(y.astype(np.float32)).reshape(1, N, 1)
    options = HeadOptions(STRENGTHS, None, True, 0)

    def predicted() -> np.ndarray:
        judged = torch.nonzero(masks.judge[0] >= 0).ravel()
        head = fit_expert("a", [x], np.ones(N, bool), (values, torch.ones_like(values)), masks, judged, blocks, options)
        assert head.logits is not None
        got, _ = head.folds[0](x, blocks)
        validated = (masks.judge[0] == 0).numpy()[judged.numpy()]  # validation rows, judged by the model that is kept
        np.testing.assert_allclose(head.logits[0][validated], got[180:220], atol=1e-4)
        return got[220:, 0]

    with_columns = predicted()
    monkeypatch.setattr("stages.heads.in_memory.expert.find_telling", lambda x, problem: None)
    without = predicted()
    if noise > 1:
        np.testing.assert_array_equal(with_columns, without)
        return
    assert np.abs(with_columns - y[220:]).mean() < 0.6 * np.abs(without - y[220:]).mean()
