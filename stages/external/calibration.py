"""Is what a fit says true here? Calibration in the large, intercept and slope, with patient-bootstrap intervals.

Of a class: logistic regression of the label on the log-odds that were said (Cox 1958; Van Calster et al., J Clin
Epidemiol 2016): slope 1 and intercept 0 are perfect, a slope below 1 says answers that are too extreme; in the large,
the intercept where the slope is held at 1: above 0, more have it than was said. Of a value: least squares of the true
on the predicted value, and the mean of true minus predicted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cache.record_columns import Texts
from cache.records import Target
from stages.scoring.blocks import PredictionBlock
from stages.scoring.bootstrap import estimate, patient_index, resamples, resamples_at_once
from stages.scoring.comparison import Draws

Json = dict[str, Any]
LEAST = 10
"""Records with a class, and without, below which its calibration is not computed."""
CLIP = 1e-6
CELLS = 1 << 22
"""Records x resamples fitted at once: 32 MB of each of some ten arrays."""
STEPS = 60
ROUNDS = (1, 2, 3, 4, 6, 12)
FARTHEST = 2.0
FLAT = 1e-9


def calibration(target: Target, block: PredictionBlock, draws: Draws) -> Json:
    """Return {"in_the_large", "intercept", "slope"}, each with an interval; of several classes, class -> these.

    A class with too few records has `n_positive` alone. Survival: nothing; its calibration at the horizons is among
    the metrics.

    Parameters
    ----------
    block
        Labelled records.
    """
    if target.kind == "survival":
        return {}
    if target.kind == "regression":
        return _with_intervals(_line, block.y_pred.astype(np.float64), block.y_true, block.patients, draws)
    patients = block.patients
    found = {name: _of_class(y, p, patients, draws) for name, y, p in _columns(target, block)}
    return found if target.kind in ("multiclass", "multilabel") else found[target.name]


def _columns(target: Target, block: PredictionBlock) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Return (class, truth, probability), each over all records; NaN where the label is missing."""
    if target.kind == "binary":
        return [(target.name, block.y_true, block.y_pred)]
    if target.kind == "multiclass":
        hot = (block.y_true[:, None] == np.arange(len(target.classes))).astype(np.float64)
    else:
        hot = block.y_true
    return [(name, hot[:, k], block.y_pred[:, k]) for k, name in enumerate(target.classes)]


def _of_class(truth: np.ndarray, said: np.ndarray, patients: Texts, draws: Draws) -> Json:
    known = np.isfinite(truth)
    truth, said, patients = truth[known], said[known], patients.take(known)
    positive = int((truth == 1).sum())
    if min(positive, len(truth) - positive) < LEAST:
        return {"n_positive": positive}
    return {"n_positive": positive} | _with_intervals(_logistic, log_odds(said), truth, patients, draws)


def log_odds(probability: np.ndarray) -> np.ndarray:
    """Return log(p / (1 - p)), float64, of probabilities kept from 0 and 1."""
    p = np.clip(probability.astype(np.float64), CLIP, 1 - CLIP)
    return np.log(p / (1 - p))


def _with_intervals(fit: Any, x: np.ndarray, y: np.ndarray, patients: Texts, draws: Draws) -> Json:
    index, n_patients = patient_index(patients)
    plain = fit(x, y, np.ones((len(x), 1)))
    drawn = resamples(n_patients, draws.n, draws.seed, resamples_at_once(len(x), CELLS))
    parts = [fit(x, y, counts[index].astype(np.float64)) for counts in drawn]
    found = {}
    for name, value in plain.items():
        interval = estimate(float(value[0]), np.concatenate([part[name] for part in parts]))
        found[name] = {"value": interval.value, "low": interval.low, "high": interval.high}
    return found


def _line(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    total = weights.sum(0)
    mean_x, mean_y = x @ weights / total, y @ weights / total
    spread = (x**2) @ weights / total - mean_x**2
    together = (x * y) @ weights / total - mean_x * mean_y
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(spread > FLAT, together / spread, np.nan)
    return {"in_the_large": mean_y - mean_x, "intercept": mean_y - slope * mean_x, "slope": slope}


def _logistic(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    intercept, slope = logistic_line(x, y, weights)
    return {"in_the_large": logistic_shift(x, y, weights), "intercept": intercept, "slope": slope}


def logistic_shift(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Fit y ~ sigmoid(a + x) by Newton's method; returns a [resamples], NaN where it does not exist."""

    def step(state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        (a,) = state
        p = _sigmoid(a + x[:, None])
        gradient = (weights * (y[:, None] - p)).sum(0)
        a = a + np.clip(gradient / np.maximum((weights * p * (1 - p)).sum(0), FLAT), -FARTHEST, FARTHEST)
        return np.stack([a]), gradient

    (a,), gradient = _newton(step, np.zeros((1, weights.shape[1])))
    return np.where(np.abs(gradient) < 1e-6 * weights.sum(0), a, np.nan)


def logistic_line(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit y ~ sigmoid(a + b x) by Newton's method; returns a and b [resamples], NaN where they do not exist."""
    reach = np.abs(x).max(initial=0)

    def step(state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        a, b = state
        p = _sigmoid(a + b * x[:, None])
        missed = weights * (y[:, None] - p)
        ga, gb = missed.sum(0), x @ missed
        h = weights * p * (1 - p)
        haa, hab, hbb = h.sum(0), x @ h, (x**2) @ h
        determinant = np.maximum(haa * hbb - hab**2, FLAT)
        da, db = (hbb * ga - hab * gb) / determinant, (haa * gb - hab * ga) / determinant
        # no answer moves by more than FARTHEST log-odds in a step: far from the optimum, Newton's is too long
        part = np.minimum(1, FARTHEST / np.maximum(np.abs(da) + np.abs(db) * reach, FLAT))
        return np.stack([a + part * da, b + part * db]), np.maximum(np.abs(ga), np.abs(gb))

    (a, b), gradient = _newton(step, np.stack([np.zeros(weights.shape[1]), np.ones(weights.shape[1])]))
    ends = gradient < 1e-5 * weights.sum(0)
    return np.where(ends, a, np.nan), np.where(ends, b, np.nan)


def _newton(
    step: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], state: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return what `STEPS` steps lead to, and the last one's gradient, without those that repeat earlier ones.

    Near the optimum a fit stands still, or goes round by its last bits, some in two steps, some in three. Where all are
    again what they were so many steps ago, any multiple of that number of steps ends there as well.
    """
    states: list[np.ndarray] = []
    for left in reversed(range(STEPS)):
        state, gradient = step(state)
        rounds = (k for k in ROUNDS if k <= len(states) and left % k == 0)
        if any(np.array_equal(state, states[-k]) for k in rounds):
            break
        states = [*states[1 - max(ROUNDS) :], state]
    return state, gradient


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -500, 500)))
