"""Random changes of training records, and mixtures of them."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from stages.posttrain.inputs import WholeRecords
from stages.posttrain.tuned import TaskBatches, mixed
from stages.training.augment import augmented
from stages.training.settings import Augmentation

STRONG = Augmentation(crop=0.8, gain=0.1, lead_gain=0.05, noise=0.1, wander=0.2, lead_dropout=0.5, gap=0.2)


@pytest.fixture
def x():
    return torch.randn(64, 1, 12, 100, generator=torch.Generator().manual_seed(0))


def changed(x, seed=0, **how):
    return augmented(x, Augmentation(**how), np.random.default_rng(seed))


def test_the_same_generator_gives_the_same_records(x):
    first, again, other = (augmented(x, STRONG, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (64, 1, 12, 80)


def test_nothing_is_changed_by_default(x):
    before = x.clone()
    assert torch.equal(changed(x), x)
    augmented(x, STRONG, np.random.default_rng(0))
    assert torch.equal(x, before)
    assert not Augmentation().changes


def test_the_unit_of_the_input_does_not_matter(x):
    in_volts, in_mv = (augmented(unit * x, STRONG, np.random.default_rng(3)) for unit in (1, 1000))
    torch.testing.assert_close(in_mv, 1000 * in_volts, rtol=1e-4, atol=1e-2)


def test_a_crop_is_a_piece_of_the_record(x):
    piece = changed(x, crop=0.5)
    for record, part in zip(x, piece, strict=True):
        assert any(torch.equal(record[..., start : start + 50], part) for start in range(51))


def test_leads_are_dropped_whole_and_gaps_in_all_leads(x):
    silent = (changed(x, lead_dropout=0.5) == 0).all(-1)[:, 0]
    assert 0.02 < silent.float().mean() < 0.3
    assert torch.equal(changed(x, lead_dropout=0.5)[:, 0][~silent], x[:, 0][~silent])
    empty = changed(x, gap=0.3) == 0
    assert torch.equal(empty.all(2), empty.any(2))
    assert 0 < empty.float().mean() < 0.2


def test_noise_and_wander_are_added_to_half_of_the_records(x):
    for how in ({"noise": 0.5}, {"wander": 0.5}):
        touched = (changed(x, **how) != x).flatten(1).any(1).float().mean()
        assert 0.25 < touched < 0.75


def test_a_gain_is_one_factor_for_each_lead(x):
    ratio = changed(x, gain=0.2, lead_gain=0.1) / x
    assert (ratio.std(-1) < 1e-4).all()
    assert 0.15 < ratio[..., 0].log().std() < 0.3


@pytest.mark.parametrize("wrong", [{"crop": 0}, {"noise": -1}, {"gap": 1.0}, {"blur": 1}])
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValidationError):
        Augmentation(**wrong)


def test_labels_are_mixed_as_their_records_are():
    x, known = torch.arange(8.0)[:, None], torch.ones(8, 1)
    known[3] = 0
    mixture, y, labelled = mixed(x, 2 * x, known, 0.4, np.random.default_rng(0))
    assert torch.allclose(y, 2 * mixture)
    assert not torch.equal(mixture, x)
    assert labelled[3] == 0
    assert 1 <= (labelled == 0).sum() <= 2


def test_batches_are_a_function_of_the_generator():
    inputs = np.random.default_rng(0).normal(size=(10, 1, 12, 50)).astype(np.float32)
    y, known = torch.arange(10.0)[:, None], torch.ones(10, 1)
    whole, rows = WholeRecords(inputs), np.arange(2, 8)
    batches = TaskBatches(whole, rows, y, known, augment=STRONG, mixup=0.4)
    first, again = (batches.fetch(np.array([0, 5, 2]), np.random.default_rng(7)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    plain = TaskBatches(whole, rows, y, known).fetch(np.array([0, 5, 2]), np.random.default_rng(7))
    assert plain[1][:, 0].tolist() == [2, 7, 4]
    assert np.array_equal(plain[0].numpy(), inputs[[2, 7, 4]])
