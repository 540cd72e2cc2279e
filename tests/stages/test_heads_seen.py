"""An expert whose own training has seen the labels that would weigh it: what it says of them does not count."""

from typing import Any

import numpy as np
import pytest
import torch

from cache.errors import InputError
from stages.heads import EnsembleHeads, TaskSpec
from stages.heads.gate.seen import _divide
from stages.learning.saved_fit import seen_notes

N, N_NEW = 240, 600
KINDS = ("rr", "sex", "report", "super", "death")
TASKS = (
    TaskSpec("rr", "regression", unit="ms"),
    TaskSpec("sex", "binary", ("male", "female")),
    TaskSpec("report", "multiclass", ("a", "b", "c")),
    TaskSpec("super", "multilabel", ("x", "y")),
    TaskSpec("death", "survival", horizons=(1.0,)),
)
ROWS = np.arange(N)
SPLITS = [(ROWS[80:], ROWS[40:80], ROWS[:40]), (ROWS[:160], ROWS[160:200], ROWS[200:])]
FAST = {"lora": False, "gate_epochs": 3}
START = np.sqrt(120 / 100)
"""Head start of an expert that all 120 patients have taught, where 100 have labels in each fold."""


def make(n: int, seed: int, remembered: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Three experts of one state; `leak` knows the labels of the records that it remembers, and less of others'."""
    rng = np.random.default_rng(seed)
    u = rng.normal(size=(n, 7))
    maps = np.random.default_rng(99)
    good = (u @ maps.normal(size=(7, 20)) + 3 * rng.normal(size=(n, 20))).astype(np.float32)
    fair = (u @ maps.normal(size=(7, 20)) + 4 * rng.normal(size=(n, 20))).astype(np.float32)
    # as wide for strangers as for those it remembers: only what it says of the labels differs
    known = np.where(remembered, 0.99, 0.6)[:, None]
    leak = (known * u + np.sqrt(1 - known**2) * rng.normal(size=(n, 7))).astype(np.float32)
    hazard = np.exp(u[:, 6])
    time = rng.exponential(1 / hazard) + 1e-3
    targets = {
        "rr": 800 + 100 * u[:, 0] + 10 * rng.normal(size=n),
        "sex": (u[:, 1] > 0).astype(float),
        "report": u[:, 2:5].argmax(1).astype(float),
        "super": (u[:, 4:6] > 0.5).astype(float),
        "death": np.where(time < 2, time, -2.0),
    }
    return {"good": good, "fair": fair, "leak": leak}, targets


@pytest.fixture(scope="module")
def study() -> Any:
    return make(N, 0, np.ones(N, bool)), make(N_NEW, 1, np.zeros(N_NEW, bool))


def fit(study: Any, seen: Any = None, experts: tuple[str, ...] = ("good", "fair", "leak"), **options: Any) -> Any:
    features, targets = study[0]
    chosen = {name: features[name] for name in experts}
    return EnsembleHeads(**FAST, **options).fit(chosen, targets, TASKS, splits=SPLITS, groups=ROWS // 2, seen=seen)


@pytest.fixture(scope="module")
def fits(study: Any) -> dict[str, Any]:
    return {
        "today": fit(study),
        "held": fit(study, {"leak": ROWS}),
        "without": fit(study, experts=("good", "fair")),
    }


def scores(heads: Any, study: Any, experts: tuple[str, ...] = ("good", "fair", "leak")) -> dict[str, float]:
    """Losses on new records: log losses of classes, mean absolute error."""
    features, targets = study[1]
    new = {name: features[name] for name in experts}
    found = {}
    p = heads.predict_proba(new)
    for name in ("sex", "super"):
        y, q = targets[name], np.clip(p[name], 1e-6, 1 - 1e-6)
        found[name] = float(-(y * np.log(q) + (1 - y) * np.log(1 - q)).mean())
    found["report"] = float(-np.log(p["report"][np.arange(N_NEW), targets["report"].astype(int)]).mean())
    found["rr"] = float(np.abs(p["rr"] - targets["rr"]).mean())
    return found


def test_a_gate_that_counts_what_is_remembered_follows_the_leak_and_one_that_does_not_loses_nothing(fits, study):
    today, held = scores(fits["today"], study), scores(fits["held"], study)
    without = scores(fits["without"], study, ("good", "fair"))
    weight = {name: f.gate_weights(study[1][0])["sex"].mean(0)[2] for name, f in fits.items() if name != "without"}
    assert weight["today"] > 0.6
    assert weight["held"] == pytest.approx(START / (2 + START), abs=1e-5)
    for name in today:
        assert today[name] > 1.05 * held[name], name
        assert held[name] < 1.05 * without[name], name


def test_the_others_are_weighed_as_if_it_were_not_there(fits, study):
    features = study[1][0]
    held, without = fits["held"], fits["without"]
    absent = {"good": features["good"], "fair": features["fair"]}
    for task in KINDS:
        both = held.gate_weights(features)[task]
        np.testing.assert_allclose(
            both[:, :2] / both[:, :2].sum(1, keepdims=True), without.gate_weights(absent)[task], atol=1e-5
        )
        np.testing.assert_allclose(both[:, 2], START / (2 + START), atol=1e-5)
    # and without it they answer alone
    for task, weights in held.gate_weights(absent).items():
        np.testing.assert_allclose(weights[:, :2], without.gate_weights(absent)[task], atol=1e-5)
        assert (weights[:, 2] == 0).all()
    alone = held.gate_weights({"leak": features["leak"]})["sex"]
    np.testing.assert_allclose(alone, np.eye(3)[[2] * N_NEW], atol=1e-6)


def test_thresholds_and_intervals_come_from_what_the_others_say(fits):
    held, without = fits["held"].held_out_, fits["without"].held_out_
    for one, other in zip(held.y_pred, without.y_pred, strict=True):
        for task in KINDS:
            np.testing.assert_allclose(one[task], other[task], rtol=1e-4, atol=1e-4)
    for a, b in zip(fits["held"].models_, fits["without"].models_, strict=True):
        np.testing.assert_allclose(a.interval, b.interval, rtol=1e-4, atol=1e-4)


def test_nobody_seen_changes_no_bit(fits, study):
    again = fit(study, {"leak": np.zeros(N, bool)})
    said, before = again.predict_proba(study[1][0]), fits["today"].predict_proba(study[1][0])
    for task in KINDS:
        np.testing.assert_array_equal(said[task], before[task])
    assert "held" not in again.history_["gate"]
    assert "held" not in again.models_[0].gate.arrays
    assert seen_notes(again.history_) == []


def test_a_saved_fit_predicts_the_same_and_says_who_was_held(fits, study, tmp_path):
    fits["held"].save(tmp_path / "heads")
    loaded = EnsembleHeads.load(tmp_path / "heads")
    for task, values in fits["held"].predict_proba(study[1][0]).items():
        np.testing.assert_array_equal(values, loaded.predict_proba(study[1][0])[task])
    [note] = seen_notes(loaded.history_)
    assert note.startswith("leak was trained on 120 of the 120 patients that choose the weights: its weight is set")
    assert "(mean 0.35)" in note


@pytest.mark.parametrize(("taught", "start"), [(None, 1.0), (30, 1.0), (1080, 3.0)])
def test_an_expert_counts_more_where_more_patients_have_taught_it_than_have_labels_here(study, taught, start):
    features, targets = study[0]
    said = None if taught is None else {"leak": taught}
    heads = EnsembleHeads(**FAST).fit(
        features, {"sex": targets["sex"]}, TASKS[1:2], groups=ROWS // 2, seen={"leak": ROWS}, taught=said
    )
    weights = heads.gate_weights(study[1][0])["sex"]
    np.testing.assert_allclose(weights[:, 2], start / (2 + start), atol=1e-5)
    pair = heads.gate_weights({name: study[1][0][name] for name in ("good", "leak")})["sex"]
    np.testing.assert_allclose(pair[:, 2], start / (1 + start), atol=1e-5)


def with_strangers(n_seen: int, noise: float) -> Any:
    """Fit beside `leak`, which says of strangers what it says of those it remembers, with so much noise on top."""
    remembered = np.arange(N) < n_seen
    features, targets = make(N, 0, remembered)
    u = make(N, 0, np.ones(N, bool))[0]["leak"]
    guessed = noise * np.random.default_rng(3).normal(size=u.shape) * ~remembered[:, None]
    features["leak"] = (u + guessed).astype(np.float32)
    fit = EnsembleHeads(**FAST).fit(
        features, {"sex": targets["sex"]}, TASKS[1:2], groups=ROWS, seen={"leak": remembered}
    )
    [note] = seen_notes(fit.history_)
    assert f"a clear gain on the {N - n_seen} records that it has not seen changes" in note
    return fit


@pytest.mark.parametrize(("n_seen", "noise", "low", "high"), [(130, 0.5, 0.45, 0.9), (200, 8.0, 0.0, 0.25)])
def test_strangers_move_the_share_of_an_expert_that_knows_or_guesses_them(n_seen, noise, low, high):
    [[share]] = with_strangers(n_seen, noise).history_["gate"]["held"]["leak"]["share"]
    assert low < share < high


def test_strangers_that_show_no_gain_leave_an_equal_share_and_few_hardly_move_the_temperature():
    few = with_strangers(200, 1.5)
    assert few.history_["gate"]["held"]["leak"]["share"] == [[pytest.approx(1 / 3, abs=1e-5)]]
    features, targets = make(N, 0, np.ones(N, bool))
    nobody = EnsembleHeads(**FAST).fit(features, {"sex": targets["sex"]}, TASKS[1:2], groups=ROWS, seen={"leak": ROWS})
    ratio = few.models_[0].temperature / nobody.models_[0].temperature
    assert ratio[0] == pytest.approx(1, abs=0.05)


def test_where_most_are_strangers_they_alone_choose_the_weights(study):
    features, targets = study[0]
    seen = {"good": ROWS < 20}
    heads = EnsembleHeads(**FAST).fit(features, {"sex": targets["sex"]}, TASKS[1:2], groups=ROWS, seen=seen)
    assert "held" not in heads.models_[0].gate.arrays
    assert (heads.out_of_sample_.judge[:, :20] == -1).all() or 0 not in heads.out_of_sample_.rows[:20]
    [note] = seen_notes(heads.history_)
    assert note.endswith("the 220 records that it has not seen alone choose them")


def test_experts_that_have_seen_everybody_count_alike(study):
    features, targets = study[0]
    heads = EnsembleHeads(**FAST).fit(features, {"sex": targets["sex"]}, TASKS[1:2], seen=dict.fromkeys(features, ROWS))
    np.testing.assert_allclose(heads.gate_weights(study[1][0])["sex"], 1 / 3, atol=1e-6)
    pair = {name: study[1][0][name] for name in ("good", "leak")}
    np.testing.assert_allclose(heads.gate_weights(pair)["sex"][:, 1], 0)
    np.testing.assert_allclose(heads.gate_weights(pair)["sex"][:, 0], 0.5, atol=1e-6)


@pytest.mark.parametrize(("top_k", "kept"), [(1, (0, 1)), (2, (1, 2))])
def test_held_experts_are_among_those_kept_or_make_room(study, top_k, kept):
    features, targets = study[0]
    heads = EnsembleHeads(**FAST, top_k=top_k).fit(features, {"sex": targets["sex"]}, TASKS[1:2], seen={"leak": ROWS})
    weights = heads.gate_weights(study[1][0])["sex"]
    assert ((weights > 1e-9).sum(1) == top_k).all()
    np.testing.assert_allclose(weights[:, 2], 0.0 if top_k == 1 else 0.5, atol=1e-6)


def test_balanced_and_the_signal_go_with_it(study):
    features, targets = study[0]
    signal = np.random.default_rng(0).normal(size=(N, 40)).astype(np.float32)
    options: dict[str, Any] = {"balanced": True, "gate_input": "all"}
    data = {"super": targets["super"]}, TASKS[3:4]
    held = EnsembleHeads(**FAST, **options).fit(features, *data, gate_signal=signal, seen={"fair": ROWS})
    pair = {name: features[name] for name in ("good", "leak")}
    without = EnsembleHeads(**FAST, **options).fit(pair, *data, gate_signal=signal)
    both = held.gate_weights(features, gate_signal=signal)["super"]
    alone = without.gate_weights(pair, gate_signal=signal)["super"]
    np.testing.assert_allclose(both[:, [0, 2]] * 1.5, alone, atol=1e-5)


def test_as_few_are_held_as_can_be_and_a_stranger_to_nobody_is():
    judge = np.zeros((1, 10), int)
    seen = np.zeros((10, 3), bool)
    seen[:3, 0], seen[3:9, 1], seen[:1, 2] = True, True, True
    held, unused = _divide(seen, torch.from_numpy(judge))
    assert held.tolist() == [False, True, False]
    assert unused.tolist() == [True] * 3 + [False] * 7


@pytest.mark.parametrize(
    ("seen", "words"), [({"nobody": [0]}, "seen names expert 'nobody'"), ({"leak": [N]}, "records that leak has seen")]
)
def test_mistakes_are_named(study, seen, words):
    with pytest.raises(InputError, match=words):
        fit(study, seen)
