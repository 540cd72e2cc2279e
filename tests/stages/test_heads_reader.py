"""What is read across classes and tasks beside the gate's mixture."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from stages.heads import EnsembleHeads, TaskSpec
from stages.heads.crossfit import make_masks
from stages.heads.expert_head import HeadOptions
from stages.heads.gate.reader import FoldReader, ReaderFit, fit_readers, impute, shifted, without_outliers
from stages.heads.gate.shares import at_its_best, equal_classes, fit_shares
from stages.heads.in_memory.probe import STRENGTHS
from stages.heads.targets.tasks import layout


def test_an_absent_expert_is_read_as_the_mean_of_the_others() -> None:
    logits = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]])
    found = impute(logits, torch.tensor([[1.0, 1.0, 0.0]]))
    np.testing.assert_allclose(found, [[1, 2, 3, 4, 2, 3]])


def test_a_shift_of_all_logits_is_taken_off_the_reading() -> None:
    rng = np.random.default_rng(0)
    reader = FoldReader(rng.normal(size=(6, 3)), rng.normal(size=3), rng.random(3))
    logits, mixed, present = rng.normal(size=(4, 2, 3)), rng.normal(size=(4, 3)), np.ones((4, 2))
    shift = rng.normal(size=3)
    fit = ReaderFit([reader], torch.zeros(1, 4, 3), [[(1.0, 0.0, 0.0)]])
    plain = shifted(fit, torch.from_numpy(shift)[None], 2).folds[0]
    raised = reader(mixed + shift, logits + shift, present) - shift
    np.testing.assert_allclose(plain(mixed, logits, present), raised, atol=1e-5)


def test_a_fit_of_before_there_were_readers_loads_and_predicts_by_its_mixture(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    x = {name: rng.normal(size=(200, 5)).astype(np.float32) for name in "ab"}
    y = {"t": (x["a"][:, 0] + x["b"][:, 1] > 0).astype(float)}
    heads = EnsembleHeads(lora=False, gate_epochs=0).fit(x, y, [TaskSpec("t", "binary")])
    path = heads.save(tmp_path / "fit") / "heads.safetensors"
    arrays = {name: array for name, array in load_file(path).items() if "/reader/" not in name}
    assert len(arrays) == len(load_file(path)) - 3
    save_file(arrays, path)
    old = EnsembleHeads.load(tmp_path / "fit")
    mixed = old._outputs(x, None, 0)[0]
    expected = (mixed.experts[..., 0] * mixed.weights[:, 0]).sum(1) / old.models_[0].temperature[0]
    np.testing.assert_allclose(mixed.mixed[:, 0], expected, rtol=1e-4, atol=1e-5)


def _logits(y: np.ndarray, skill: float, rng: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(skill * (2 * y - 1) + rng.normal(size=y.shape)).float()[None, :, None]


def test_shares_are_equal_without_evidence_and_one_members_with_it() -> None:
    rng = np.random.default_rng(2)
    blocks = layout([TaskSpec("flag", "binary")])
    y = (rng.random(2000) < 0.3).astype(np.float32)
    labels = torch.from_numpy(y)[None, :, None]
    good, bad = _logits(y, 1.5, rng), _logits(y, 0.0, rng)
    ((mixture, own, everything),) = fit_shares([good, bad], labels, torch.ones_like(labels), blocks)[0]
    assert mixture > 0.95
    assert mixture + own == pytest.approx(1)
    assert everything == 0
    alike = fit_shares([good, good, good], labels, torch.ones_like(labels), blocks)[0][0]
    assert alike == pytest.approx((0.5, 0.5, 0))
    few = [member[:, :12] for member in (good, bad)]
    assert fit_shares(few, labels[:, :12], torch.ones(1, 12, 1), blocks)[0][0][0] < mixture


def test_shares_follow_the_ranking_and_not_the_calibration() -> None:
    """A member that ranks better counts more, though the other's probabilities are right and its own are far off."""
    rng = np.random.default_rng(3)
    blocks = layout([TaskSpec("flag", "binary")])
    y = (rng.random(3000) < 0.1).astype(np.float32)
    labels = torch.from_numpy(y)[None, :, None]
    worse = _logits(y, 0.7, rng) * 1.4 - 2.0
    better = _logits(y, 1.2, rng) * 0.5 + 4.0
    ((first, second, _),) = fit_shares([worse, better], labels, torch.ones_like(labels), blocks)[0]
    assert second > 0.7 > first


def test_both_classes_of_a_column_weigh_alike_and_the_best_intercept_is_found() -> None:
    blocks = layout([TaskSpec("super", "multilabel", ("a", "b"))])
    y = torch.tensor([[[1.0, 0], [0, 0], [0, 0], [0, 0]]])
    weight = equal_classes(y, torch.ones_like(y), blocks)
    np.testing.assert_allclose(weight[0, :, 0], [2, 2 / 3, 2 / 3, 2 / 3], rtol=1e-6)
    np.testing.assert_allclose(weight[0, :, 1], 0)
    rng = np.random.default_rng(4)
    z = rng.normal(size=4000)
    truth = (rng.random(4000) < 1 / (1 + np.exp(-(2 * z - 1)))).astype(np.float32)
    one = layout([TaskSpec("flag", "binary")])
    labels = torch.from_numpy(truth)[None, :, None]
    logits = torch.from_numpy(z).float()[None, :, None]
    found = at_its_best(logits, labels, torch.ones_like(labels), one)[0, :, 0].numpy()
    slope, intercept = np.polyfit(z, found, 1)
    assert slope == pytest.approx(2, abs=0.15)
    assert intercept == pytest.approx(-1, abs=0.15)


def test_a_few_targets_far_off_do_not_turn_the_reading() -> None:
    """Two experts whose mean is nearly right; one label in twenty is off by fifty standard deviations."""
    rng = np.random.default_rng(5)
    blocks = layout([TaskSpec("age", "regression")])
    true = rng.normal(size=400).astype(np.float32)
    y = true.copy()
    y[::20] += 50 * rng.choice([-1, 1], size=20)
    outputs = torch.from_numpy(true[:, None] + 0.3 * rng.normal(size=(400, 2)).astype(np.float32))[None, :, :, None]
    labels = torch.from_numpy(y)[None, :, None], torch.ones(1, 400, 1)
    mixed = outputs.mean(2)
    pulled = without_outliers(mixed, *labels, blocks)[0, :, 0].numpy()
    assert np.abs(pulled - true).max() < 2
    rows, none = np.arange(400), np.empty(0, int)
    masks = make_masks([(rows, none, none)], 400, None, 5, 0)
    options = HeadOptions(STRENGTHS, None, True, 0)
    args = mixed, outputs, torch.ones(400, 2), labels, masks, blocks, options
    robust, plain = (fit_readers(*args, share_tasks=False, huber=huber).folds[0] for huber in (True, False))
    read = 1 - robust.share[0]
    said = outputs[0, :, :, 0].numpy() @ robust.weight[:, 0] + robust.bias[0]
    assert read > 0.2
    assert np.abs(said / read - true).mean() < 0.3
    assert plain.share[0] > 0.95
