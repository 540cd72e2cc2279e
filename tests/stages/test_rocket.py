"""The features of `rocket`: against a plain computation, and that nothing but the record itself can change them."""

import hashlib
import itertools

import numpy as np
import pytest
import torch

from cache.errors import InputError, UsageError
from stages.experts import load_expert
from stages.experts.models.signal_features.rocket import DRAWS, PER_DRAW, draw_groups
from stages.experts.signals.dsp import resample_rate
from stages.experts.signals.reference_ecgs import reference_signals, uniform

RATE_HZ = 500
# recorded once; a change here is a new version of the expert
GOLDEN_UNIFORM = [[0.6369616873214543, 0.2697867137638703], [0.04097352393619469, 0.016527635528529094]]
GOLDEN_WEIGHTS = "9a7c68e2858710f5"
GOLDEN_THRESHOLDS = [44.5, -70.5, -208.5, 827.5, -735.5, -1371.5, 693.5, -91.5]
GOLDEN_FEATURES = [0.237, 0.954, 0.667, 0.118, 0.856, 0.5, 0.233, 0.786]


@pytest.fixture(scope="module")
def expert():
    return load_expert("rocket")


@pytest.fixture(scope="module")
def signals():
    return reference_signals(5, 5000, RATE_HZ, seed=99)


def features(expert, signals_mv, rate_hz=RATE_HZ):
    return expert.encode(expert.prepare(signals_mv, rate_hz)[:, 0]).embedding.numpy()


def test_there_are_5040_features_of_84_kernels(expert, signals):
    embedding = features(expert, signals)
    assert embedding.shape == (5, 5040)
    assert embedding.shape[1] == expert.spec.embedding_dim
    assert embedding.min() >= 0
    assert embedding.max() <= 1


def test_no_kernel_reaches_over_more_than_a_beat(expert):
    assert max(8 * group.dilation / expert.spec.sampling_rate_hz for group in expert.groups) <= 0.64


def test_features_equal_a_plain_computation(expert, signals):
    x = expert.prepare(signals[:1], RATE_HZ)[0, 0].double().numpy()
    embedding = features(expert, signals[:1])[0]
    places = list(itertools.combinations(range(9), 3))
    column = 0
    for group, draws in zip(expert.groups, DRAWS.values(), strict=True):
        assert group.weights.shape == (84 * draws, 108)
        for row in (0, 17, 84 * draws - 1):
            leads = group.weights[row].reshape(9, 12).abs().amax(0) > 0
            y = np.zeros(1000)
            for j in range(9):
                weight = 2 if j in places[row % 84] else -1
                shifted = np.zeros((12, 1000))
                shift = (j - 4) * group.dilation
                inside = slice(max(0, -shift), min(1000, 1000 - shift))
                shifted[:, inside] = x[:, inside.start + shift : inside.stop + shift]
                y += weight * shifted[leads.numpy()].sum(0)
            expected = [(y > t).mean() for t in group.thresholds[:, row].numpy()]
            first = column + row * PER_DRAW
            np.testing.assert_allclose(embedding[first : first + PER_DRAW], expected, atol=1e-6)
        column += 84 * draws * PER_DRAW
    assert column == 5040


def test_every_kernel_sums_to_zero_and_sees_one_or_two_leads():
    seen = set()
    for group in draw_groups(5):
        assert (group.weights.sum(1) == 0).all()
        seen |= set((group.weights.reshape(-1, 9, 12).abs().amax(1) > 0).sum(1).tolist())
    assert seen == {1, 2}


def test_thresholds_lie_between_whole_microvolts(expert):
    for group in expert.groups:
        assert (group.thresholds % 1 == 0.5).all()


def test_a_record_has_the_same_features_alone_and_in_any_batch(expert, signals):
    together = features(expert, np.concatenate([signals, signals, signals]))
    np.testing.assert_array_equal(features(expert, signals[3:4])[0], together[3])
    np.testing.assert_array_equal(together[:5], together[10:])


def test_a_seed_always_gives_the_same_kernels_and_another_seed_others(expert, signals):
    np.testing.assert_array_equal(features(load_expert("rocket"), signals), features(expert, signals))
    other = load_expert("rocket", config={"seed": 7})
    assert other.spec.preprocessing != expert.spec.preprocessing
    assert not np.array_equal(features(other, signals), features(expert, signals))


def test_drawn_numbers_and_lead_choices_never_change(expert):
    np.testing.assert_allclose(uniform(0, 2, 2), GOLDEN_UNIFORM, rtol=1e-12)
    weights = torch.cat([group.weights for group in expert.groups]).to(torch.int8).numpy()
    assert hashlib.sha256(weights.tobytes()).hexdigest()[:16] == GOLDEN_WEIGHTS


def test_thresholds_and_features_stay_at_their_recorded_values(expert, signals):
    thresholds = torch.cat([group.thresholds.flatten() for group in expert.groups]).numpy()
    np.testing.assert_allclose(thresholds[::630], GOLDEN_THRESHOLDS, atol=1)
    embedding = features(expert, signals[:1])[0]
    np.testing.assert_allclose(embedding[5::630], GOLDEN_FEATURES, atol=0.004)


def test_a_flat_or_missing_record_is_finite_and_a_missing_lead_is_a_flat_one(expert, signals):
    flat = features(expert, np.zeros((1, 12, 5000)))
    np.testing.assert_array_equal(features(expert, np.full((1, 12, 5000), np.nan)), flat)
    with pytest.raises(InputError, match="0 s are shorter than 1 s"):
        expert.prepare(np.full((1, 12, 0), np.nan), RATE_HZ)
    assert np.isfinite(flat).all()
    missing, zero = signals[:1].copy(), signals[:1].copy()
    missing[:, 4], zero[:, 4] = np.nan, 0
    np.testing.assert_array_equal(features(expert, missing), features(expert, zero))


def test_a_constant_offset_in_a_lead_changes_nothing(expert, signals):
    moved = signals[:2] + np.linspace(-2, 2, 12)[:, None]
    assert np.abs(features(expert, moved) - features(expert, signals[:2])).max() <= 0.002


def test_wave_heights_count(expert, signals):
    assert np.abs(features(expert, 2 * signals[:1]) - features(expert, signals[:1])).max() > 0.05


def test_content_above_50_hz_does_not_fold_back(expert, signals):
    hum = 0.5 * np.sin(2 * np.pi * 97 * np.arange(5000) / RATE_HZ)
    clean, noisy = (expert.prepare(s, RATE_HZ).numpy() for s in (signals[:1], signals[:1] + hum))
    assert np.abs(noisy - clean)[..., 50:-50].max() < 15


@pytest.mark.parametrize("n_samples", [2500, 4000, 9000])
def test_records_of_other_lengths_are_extended_or_cut(expert, signals, n_samples):
    long = np.concatenate([signals[:1], signals[1:2]], axis=-1)[..., :n_samples]
    x = expert.prepare(long, RATE_HZ)
    assert x.shape == (1, 1, 12, 1000)
    assert torch.isfinite(x).all()
    whole = expert.prepare(signals[:1], RATE_HZ)
    assert (x - whole)[..., 200 : min(n_samples // 5, 1000) - 200].abs().max() < 120


def test_resampling_keeps_gaps_and_a_slow_wave():
    time = np.arange(5000) / RATE_HZ
    wave = np.sin(2 * np.pi * 3 * time)[None, None].repeat(2, axis=1)
    wave[0, 1, 1000:1500] = np.nan
    resampled = resample_rate(wave, RATE_HZ, 100)
    assert resampled.shape == (1, 2, 1000)
    np.testing.assert_allclose(
        resampled[0, 0, 20:-20], np.sin(2 * np.pi * 3 * np.arange(1000) / 100)[20:-20], atol=0.01
    )
    assert np.isnan(resampled[0, 1, 201:299]).all()
    assert np.isfinite(resampled[0, 1, :199]).all()


@pytest.mark.parametrize("config", [{"kernels": 100}, {"seed": -1}, {"seed": "a"}])
def test_other_options_are_refused(config):
    with pytest.raises(UsageError, match="rocket"):
        load_expert("rocket", config=config)


def test_input_of_another_shape_is_refused(expert):
    with pytest.raises(UsageError, match="expected"):
        expert.encode(torch.zeros(1, 12, 500))


def test_a_lower_matmul_precision_elsewhere_changes_nothing(expert, signals):
    before = features(expert, signals[:1])
    torch.set_float32_matmul_precision("medium")
    try:
        np.testing.assert_array_equal(features(expert, signals[:1]), before)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_features_on_a_gpu_equal_those_on_the_processor(expert, signals):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    x = expert.prepare(signals, RATE_HZ)[:, 0]
    on_gpu = load_expert("rocket", device="cuda").encode(x).embedding.cpu().numpy()
    np.testing.assert_array_equal(on_gpu, expert.encode(x).embedding.numpy())
