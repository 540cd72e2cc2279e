"""The measurements of `morphology`: on beats built to known intervals, on damaged records, on LUDB's annotations."""

import numpy as np
import pytest
import wfdb

from cache.errors import UsageError
from stages.experts import load_expert
from stages.experts.contract import STANDARD_LEADS
from stages.experts.models.signal_features.morphology import FEATURES, RR_FEATURE, measure
from stages.experts.signals.beats import find_beats, remove_spikes

RATE_HZ = 500
# lead vectors in the frontal plane (right, down) and, for the chest leads, their own size
ANGLES_DEG = {"I": 0, "II": 60, "III": 120, "aVR": -150, "aVL": -30, "aVF": 90}
CHEST = {"V1": -0.5, "V2": -0.3, "V3": 0.4, "V4": 1.0, "V5": 1.1, "V6": 0.9}


def lead_gain(axis_deg: float) -> np.ndarray:
    limb = {
        lead: (np.sqrt(3) / 2 if lead.startswith("aV") else 1) * np.cos(np.radians(axis_deg - angle))
        for lead, angle in ANGLES_DEG.items()
    }
    return np.array([(limb | CHEST)[lead] for lead in STANDARD_LEADS])


def beat_train(
    rr_ms: float | np.ndarray = 850.0,
    pr_ms: float = 160.0,
    qrs_ms: float = 90.0,
    qt_ms: float = 390.0,
    *,
    axis_deg: float = 60.0,
    seconds: float = 10.0,
    p_mv: float = 0.15,
) -> tuple[np.ndarray, np.ndarray]:
    """Raised-cosine waves that begin and end where the intervals say; gives [12, time] and the R peaks in s."""
    rr = np.full(40, rr_ms) if np.isscalar(rr_ms) else np.asarray(rr_ms)
    peaks = 0.45 + np.concatenate([[0], np.cumsum(rr)]) / 1000
    peaks = peaks[peaks < seconds - 0.1]
    time = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    signal = np.zeros((12, time.size))
    for peak in peaks:
        onset = peak - qrs_ms / 2000
        for start_ms, end_ms, height_mv in (
            (-pr_ms, -pr_ms + 100, p_mv),
            (0, qrs_ms, 1.2),
            (qt_ms - 180, qt_ms, 0.35),
        ):
            phase = np.clip(((time - onset) * 1000 - start_ms) / (end_ms - start_ms), 0, 1)
            signal += lead_gain(axis_deg)[:, None] * height_mv * (1 - np.cos(2 * np.pi * phase)) / 2
    return signal + np.random.default_rng(0).normal(0, 0.004, signal.shape), peaks


@pytest.fixture(scope="module")
def expert():
    return load_expert("morphology")


def test_intervals_of_a_constructed_beat_are_measured():
    values = measure(beat_train(rr_ms=850, pr_ms=160, qrs_ms=90, qt_ms=390)[0])
    assert values["rr_mean_ms"] == pytest.approx(850, abs=0.5)
    assert values["rr_median_ms"] == pytest.approx(850, abs=0.5)
    assert values["heart_rate_bpm"] == pytest.approx(60_000 / 850, rel=1e-3)
    assert values["rr_sd_ms"] < 2
    assert values["pnn50"] == 0
    assert values["pr_interval_ms"] == pytest.approx(160, abs=20)
    assert values["qrs_duration_ms"] == pytest.approx(90, abs=12)
    assert values["qt_interval_ms"] == pytest.approx(390, abs=30)
    assert values["qtc_bazett_ms"] == pytest.approx(values["qt_interval_ms"] / np.sqrt(0.85), rel=1e-3)


@pytest.mark.parametrize(
    ("option", "feature", "low", "high"),
    [
        ("pr_ms", "pr_interval_ms", 130, 200),
        ("qrs_ms", "qrs_duration_ms", 80, 140),
        ("qt_ms", "qt_interval_ms", 350, 450),
    ],
)
def test_a_longer_interval_is_measured_longer_by_as_much(option, feature, low, high):
    short, long = (measure(beat_train(rr_ms=1000, **{option: ms})[0])[feature] for ms in (low, high))
    assert long - short == pytest.approx(high - low, abs=14)


@pytest.mark.parametrize("axis_deg", [-60.0, 0.0, 60.0, 110.0])
def test_axes_follow_the_direction_of_the_waves(axis_deg):
    values = measure(beat_train(axis_deg=axis_deg)[0])
    assert values["qrs_axis_deg"] == pytest.approx(axis_deg, abs=3)
    assert values["p_axis_deg"] == pytest.approx(axis_deg, abs=3)
    assert values["qrs_t_angle_deg"] < 5
    assert values["qrs_axis_cos"] == pytest.approx(np.cos(np.radians(values["qrs_axis_deg"])), abs=1e-6)


def test_amplitudes_are_those_of_each_lead():
    values = measure(beat_train(axis_deg=60.0)[0])
    for lead, gain in zip(STANDARD_LEADS, lead_gain(60.0), strict=True):
        height = values[f"{lead}_r_mv"] + min(values[f"{lead}_q_mv"], values[f"{lead}_s_mv"])
        assert height == pytest.approx(1.2 * gain, abs=0.12)
        assert values[f"{lead}_t_mv"] == pytest.approx(0.35 * gain, abs=0.05)


def test_st_elevation_is_seen_in_its_lead_only():
    signal, peaks = beat_train(qt_ms=420)
    time = np.arange(signal.shape[-1]) / RATE_HZ
    for peak in peaks:
        signal[6] += 0.3 * ((time > peak + 0.05) & (time < peak + 0.2))
    values = measure(signal)
    assert values["V1_st60_mv"] == pytest.approx(0.3, abs=0.08)
    assert abs(values["V6_st60_mv"]) < 0.08


def test_without_p_waves_the_p_measurements_are_missing():
    values = measure(beat_train(p_mv=0.0)[0])
    assert values["p_present"] == 0
    assert np.isnan(values["pr_interval_ms"])
    assert "II_p_mv" not in values
    assert np.isfinite(values["qrs_duration_ms"])


def test_irregular_rhythm_is_measured_as_irregular():
    rr_ms = np.random.default_rng(3).uniform(500, 1100, 30)
    signal, peaks = beat_train(rr_ms=rr_ms, p_mv=0.0, qt_ms=330)
    whole = peaks[(peaks >= 0.25) & (peaks < 9.6)]
    values = measure(signal)
    assert values["rr_mean_ms"] == pytest.approx(np.diff(whole).mean() * 1000, abs=3)
    assert values["rmssd_ms"] == pytest.approx(np.sqrt(np.mean(np.diff(whole, 2) ** 2)) * 1000, rel=0.05)
    assert values["pnn50"] > 0.5


def test_pacing_spikes_are_not_taken_for_beats():
    signal, peaks = beat_train(rr_ms=900, qrs_ms=140)
    for peak in peaks:
        for lead_ms in (180, 80):  # atrial and ventricular spike
            at = int(peak * RATE_HZ - lead_ms / 2)
            signal[:, at : at + 2] += 3.0
    values = measure(signal)
    assert values["rr_mean_ms"] == pytest.approx(900, abs=1)
    assert values["beats"] == len(peaks[(peaks >= 0.25) & (peaks < 9.6)])


def test_removing_spikes_leaves_an_ordinary_complex_alone():
    signal, _ = beat_train(qrs_ms=80)
    np.testing.assert_allclose(remove_spikes(signal), signal, atol=0.2)
    assert np.abs(remove_spikes(signal) - signal).mean() < 1e-4


@pytest.mark.parametrize("scale", [0.1, 5.0])
def test_low_and_high_voltage_give_the_same_rhythm(scale):
    signal, _ = beat_train(rr_ms=700)
    assert measure(signal * scale)["rr_mean_ms"] == pytest.approx(700, abs=1)


def test_an_interval_across_a_gap_in_all_leads_is_left_out():
    signal, _ = beat_train(rr_ms=800)
    signal[:, 1900:2500] = np.nan
    beats = find_beats(signal)
    assert beats is not None
    np.testing.assert_allclose(beats.rr_ms, 800, atol=3)
    assert beats.rr_ms.size < len(beats.peaks) - 1


def test_a_missing_or_flat_lead_has_no_measurements_and_the_others_keep_theirs(expert):
    signal, _ = beat_train()
    damaged = signal.copy()
    damaged[6] = np.nan
    damaged[1] = 0.3
    before, after = (expert.prepare(s[None], RATE_HZ)[0, 0].numpy() for s in (signal, damaged))
    names = np.array(FEATURES)
    gone = np.array([name.startswith(("V1_", "II_")) for name in names])
    assert np.isnan(after[gone]).all()
    same = np.array([name.startswith(("V5_", "aVF_")) for name in names])
    np.testing.assert_allclose(after[same], before[same], atol=0.5)
    assert after[FEATURES.index("quality")] < before[FEATURES.index("quality")]


@pytest.mark.parametrize(
    "signal",
    [
        np.zeros((12, 5000)),
        np.full((12, 5000), np.nan),
        np.full((12, 5000), 1e3),
        np.ones((12, 500)),
    ],
    ids=["flat", "missing", "constant", "of one second"],
)
def test_a_record_without_beats_has_quality_zero_and_nothing_else(expert, signal):
    row = expert.prepare(signal[None], RATE_HZ)[0, 0].numpy()
    assert row[FEATURES.index("quality")] == 0
    assert row[FEATURES.index("beats")] == 0
    assert np.isfinite(row).sum() == 2


@pytest.mark.parametrize("seed", range(4))
def test_noise_of_any_length_raises_neither_error_nor_warning(expert, seed):
    rng = np.random.default_rng(seed)
    for n_samples in (500, 501, 777, 1500, 5000):
        x = expert.prepare(rng.normal(0, 0.3, (2, 12, n_samples)).cumsum(-1), RATE_HZ)
        assert x.shape == (2, 1, len(FEATURES))


def test_another_sampling_rate_gives_the_same_intervals(expert):
    signal, _ = beat_train(rr_ms=840)
    fine = expert.prepare(signal[None], 500)[0, 0]
    coarse = expert.prepare(signal[None, :, ::2], 250)[0, 0]
    for name, tolerance in (("rr_mean_ms", 0.5), ("qrs_duration_ms", 6), ("qt_interval_ms", 6), ("II_r_mv", 0.02)):
        assert float(coarse[FEATURES.index(name)]) == pytest.approx(float(fine[FEATURES.index(name)]), abs=tolerance)


def test_a_record_is_measured_the_same_alone_and_in_a_batch(expert):
    batch = np.stack([beat_train(rr_ms=rr)[0] for rr in (600, 900, 1200)])
    together = expert.prepare(batch, RATE_HZ).numpy()
    for i in range(3):
        np.testing.assert_array_equal(expert.prepare(batch[i : i + 1], RATE_HZ).numpy()[0], together[i])


def test_encode_hands_the_measurements_on(expert):
    x = expert.prepare(beat_train()[0][None], RATE_HZ)[:, 0]
    encoding = expert.encode(x)
    np.testing.assert_array_equal(encoding.embedding.numpy(), x.numpy())
    assert encoding.layers.shape == (1, 1, len(FEATURES))


def test_every_column_has_one_name_and_the_rr_feature_is_among_them(expert):
    assert len(set(FEATURES)) == len(FEATURES) == expert.spec.embedding_dim
    assert RR_FEATURE in FEATURES
    assert set(measure(beat_train()[0])) == set(FEATURES)
    assert expert.spec.store_dtype == "float32"


def test_options_are_refused():
    with pytest.raises(UsageError, match="no options"):
        load_expert("morphology", config={"wavelet": "haar"})


def test_rr_on_ludb_agrees_with_the_annotated_r_peaks(expert, test_data):
    errors_ms = []
    for header in sorted((test_data / "ludb" / "data").glob("*.hea")):
        path = str(header.with_suffix(""))
        record = wfdb.rdrecord(path)
        order = [[name.upper() for name in record.sig_name].index(lead.upper()) for lead in STANDARD_LEADS]
        annotation = wfdb.rdann(path, "ii")
        peaks = annotation.sample[np.array(annotation.symbol) == "N"]
        row = expert.prepare(record.p_signal.T[None, order], record.fs)[0, 0].numpy()
        errors_ms.append(abs(row[FEATURES.index(RR_FEATURE)] - np.diff(peaks).mean() / record.fs * 1000))
    assert len(errors_ms) >= 50
    assert np.median(errors_ms) <= 4
    assert np.mean(errors_ms) <= 10
