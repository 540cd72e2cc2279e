"""Version 2 of `morphology`: vectorcardiogram, shape of the beat and differences between beats, on built signals."""

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal

from stages.experts.models.signal_features.morphology import measure
from stages.experts.signals.beat_shape import measure_shape
from stages.experts.signals.beats import remove_spikes
from stages.experts.signals.same_bits import Sosfiltfilt, median_first_axis, median_of_all, quantile_and_median
from stages.experts.signals.vectorcardiogram import INDEPENDENT, KORS, measure_vectors
from stages.experts.signals.waves import Waves
from tests.stages.test_morphology import RATE_HZ, beat_train

WAVES = Waves(p_on=60, p_peak=85, p_off=110, qrs_on=180, qrs_off=230, t_on=300, t_peak=350, t_off=400)
LEAD_I, V1 = 0, 6


def bump(start: float, stop: float) -> np.ndarray:
    phase = np.clip((np.arange(520) - start) / (stop - start), 0, 1)
    return (1 - np.cos(2 * np.pi * phase)) / 2


def beat_of(p: list[float], qrs: list[float], t: list[float]) -> np.ndarray:
    """Make twelve leads of waves whose vectors (x, y, z) in mV are given."""
    space = sum(
        np.outer(vector, bump(start, stop)) for vector, start, stop in ((p, 60, 110), (qrs, 180, 230), (t, 300, 400))
    )
    beat = np.zeros((12, 520))
    beat[list(INDEPENDENT)] = np.linalg.pinv(KORS) @ space
    one, two = beat[0], beat[1]
    beat[2], beat[3], beat[4], beat[5] = two - one, -(one + two) / 2, one - two / 2, two - one / 2
    return beat


@pytest.mark.parametrize(("t", "angle_deg"), [([0.3, 0, 0], 0), ([0, 0.3, 0], 90), ([-0.2, 0, 0], 180)])
def test_the_spatial_angle_is_that_between_the_vectors(t, angle_deg):
    values = measure_vectors(beat_of([0, 0.1, 0], [1.2, 0, 0], t), WAVES)
    assert values["qrs_t_peak_angle_deg"] == pytest.approx(angle_deg, abs=0.5)
    assert values["qrs_t_area_angle_deg"] == pytest.approx(angle_deg, abs=0.5)
    assert values["total_cosine_r_to_t"] == pytest.approx(np.cos(np.radians(angle_deg)), abs=0.01)
    assert values["qrs_peak_size"] == pytest.approx(1.2, abs=0.01)
    assert values["t_peak_size"] == pytest.approx(np.linalg.norm(t), abs=0.01)
    assert (values["qrs_peak_x"], values["p_peak_y"]) == (pytest.approx(1), pytest.approx(1))


def test_a_loop_encloses_an_area_and_a_line_does_not():
    line = beat_of([0, 0.1, 0], [1, 0, 0], [0.3, 0, 0])
    round_beat = line.copy()
    time = np.arange(180, 231)
    circle = np.zeros((3, 520))
    circle[0, time], circle[1, time] = np.cos(2 * np.pi * (time - 180) / 50), np.sin(2 * np.pi * (time - 180) / 50)
    round_beat[list(INDEPENDENT)] = np.linalg.pinv(KORS) @ circle
    flat, turning = measure_vectors(line, WAVES), measure_vectors(round_beat, WAVES)
    assert flat["qrs_loop_frontal"] == pytest.approx(0, abs=1e-6)
    assert flat["qrs_second_axis_share"] == pytest.approx(0, abs=1e-6)
    assert turning["qrs_loop_frontal"] == pytest.approx(np.pi, rel=0.02)
    assert turning["qrs_second_axis_share"] == pytest.approx(1, abs=0.1)
    assert turning["qrs_third_axis_share"] == pytest.approx(0, abs=1e-6)


def test_without_a_lead_there_are_no_vectors_and_without_a_t_wave_none_of_it():
    beat = beat_of([0, 0.1, 0], [1, 0, 0], [0.3, 0, 0])
    damaged = beat.copy()
    damaged[V1] = np.nan
    assert measure_vectors(damaged, WAVES) == {}
    values = measure_vectors(beat, Waves(qrs_on=180, qrs_off=230))
    assert "qrs_peak_size" in values
    assert not any(name.startswith(("t_", "p_", "ventricular")) for name in values)


def test_the_course_is_the_mean_of_each_lead_between_the_edges():
    beat = np.tile(np.arange(520.0), (12, 1)) * np.arange(1, 13)[:, None]
    values = measure_shape(beat, WAVES)
    assert values["I_at_0_ms"] == pytest.approx(np.arange(180, 186).mean())
    assert values["V1_at_-220_ms"] == pytest.approx(7 * np.arange(70, 90).mean())
    assert values["V6_at_520_ms"] == pytest.approx(12 * np.arange(440, 460).mean())


def test_q_waves_and_st_elevation_count_in_their_region():
    beat = beat_of([0, 0.1, 0], [1, 0.5, 0.2], [0.3, 0, 0])
    before = measure_shape(beat, WAVES)
    sick = beat.copy()
    for lead in (1, 2, 5):
        sick[lead] = (
            -0.6 * bump(180, 215) + 0.4 * bump(215, 232) + 0.25 * ((np.arange(520) > 231) & (np.arange(520) < 290))
        )
    after = measure_shape(sick, WAVES)
    assert (before["inferior_pathological_q"], after["inferior_pathological_q"]) == (0, 3)
    assert after["inferior_st_high_mv"] == pytest.approx(0.25, abs=0.01)
    assert after["st_elevated_leads"] - before["st_elevated_leads"] == 3
    assert after["septal_pathological_q"] == before["septal_pathological_q"]


def test_each_notch_is_two_more_turns():
    beat = beat_of([0, 0.1, 0], [1, 0.5, 0.2], [0.3, 0, 0])
    notched = beat.copy()
    notched[LEAD_I] -= 0.5 * beat[LEAD_I].max() * bump(197, 213)
    assert measure_shape(beat, WAVES)["I_qrs_turns"] == 1
    assert measure_shape(notched, WAVES)["I_qrs_turns"] == 3


def test_p_waves_are_alike_in_sinus_rhythm_and_not_in_fibrillation():
    rng = np.random.default_rng(3)
    sinus = measure(beat_train(rr_ms=850)[0])
    signal, _ = beat_train(rr_ms=rng.uniform(500, 1000, 30), p_mv=0.0, qt_ms=330)
    signal[V1] += 0.1 * np.sin(2 * np.pi * 6.2 * np.arange(signal.shape[1]) / RATE_HZ)
    fibrillating = measure(signal)
    assert sinus["p_likeness"] > 0.95
    assert fibrillating["p_likeness"] < 0.6
    assert fibrillating["between_V1_peak_hz"] == pytest.approx(6.25, abs=0.26)
    assert fibrillating["between_V1_peak_share"] > 0.5
    assert fibrillating["p_log_rest_v1"] > sinus["p_log_rest_v1"] + 2
    assert sinus["early_share"] == 0
    assert fibrillating["early_share"] > 0.2


def test_early_beats_are_counted_by_their_shape():
    rr_ms = np.array([800, 800, 800, 500, 1100, 800, 800, 800, 800, 800, 800, 800])
    signal, peaks = beat_train(rr_ms=rr_ms)
    alike = measure(signal)
    assert (alike["early_alike_beats"], alike["early_odd_beats"]) == (1, 0)
    at = int(peaks[4] * RATE_HZ)
    signal[:, at - 60 : at + 60] = -signal[:, at - 60 : at + 60] - 1.5 * np.hanning(120) * np.sign(signal[:, [at]])
    odd = measure(signal)
    assert (odd["early_alike_beats"], odd["early_odd_beats"]) == (0, 1)
    assert odd["similarity_lowest"] < alike["similarity_lowest"] - 0.2


def test_the_running_median_is_that_of_scipy():
    noise_mv = np.array([[1.0], [0.05], [0.0]])  # everywhere steep, here and there, nowhere
    signal = np.random.default_rng(0).normal(size=(3, 300)) * noise_mv
    signal[1:, [0, 100, 101, 299]] += 1
    median = scipy.ndimage.median_filter(signal, size=(1, 7), mode="nearest")
    np.testing.assert_array_equal(remove_spikes(signal), np.where(np.abs(signal - median) > 0.2, median, signal))


@pytest.mark.parametrize("n", [1, 2, 7, 12])
def test_medians_are_numpys_to_the_bit(n):
    x = np.random.default_rng(n).normal(size=(n, 3, 41))
    np.testing.assert_array_equal(median_first_axis(x), np.median(x, axis=0))
    assert median_of_all(x) == np.median(x)


@pytest.mark.parametrize("n", [500, 501, 1000, 5000, 5001])
def test_quantile_and_median_are_numpys_to_the_bit(n):
    x = np.random.default_rng(n).normal(size=(3, n))
    for share in (0.25, 0.98):
        quantile, median = quantile_and_median(x, share)
        np.testing.assert_array_equal(quantile, np.quantile(x, share, axis=-1))
        np.testing.assert_array_equal(median, np.median(x, axis=-1))


@pytest.mark.parametrize(("kind", "hz"), [("bandpass", [5, 25]), ("bandpass", [0.5, 40]), ("lowpass", 20)])
def test_filters_are_scipys_to_the_bit(kind, hz):
    sections = scipy.signal.butter(2, hz, kind, fs=RATE_HZ, output="sos")
    x = np.random.default_rng(0).normal(size=(3, 520)).cumsum(-1)
    np.testing.assert_array_equal(Sosfiltfilt(sections)(x), scipy.signal.sosfiltfilt(sections, x, axis=-1))
