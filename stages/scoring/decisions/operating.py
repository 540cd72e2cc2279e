"""Thresholds on test records: sensitivity, specificity, predictive values, likelihood ratios, alarms.

Lives here: the rates of a two by two table and their intervals. Not here: choosing a threshold (`stages.heads`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cache.record_columns import Texts
from stages.scoring.comparison import Draws
from stages.scoring.decisions.patients import interval, patient_sums

CELLS = ("true_positives", "false_positives", "false_negatives", "true_negatives")
RATES = (
    "sensitivity",
    "specificity",
    "ppv",
    "npv",
    "likelihood_ratio_positive",
    "likelihood_ratio_negative",
    "alarm_rate",
)


def judge_threshold(
    above: np.ndarray, truth: np.ndarray, patients: Texts, draws: Draws, prevalence: float | None = None
) -> dict[str, Any]:
    """Return the table of one class at its threshold, every rate with its interval over the patients.

    Parameters
    ----------
    above
        [n] of 1 (the probability reaches the threshold) and 0; NaN: no threshold, left out.
    truth
        [n] of 1 and 0; NaN: no label, left out.
    prevalence
        Where the thresholds are to be used: predictive values follow from sensitivity and specificity by Bayes' rule.

    Returns
    -------
    Counts (`CELLS`, n, positives), `prevalence` in these records, `RATES` as {"value", "low", "high"} (NaN where a
    denominator is 0), and `given`: {"prevalence", "ppv", "npv"}, or None.
    """
    known = np.isfinite(above) & np.isfinite(truth)
    alarm, positive = above[known] == 1, truth[known] == 1
    cells = np.stack([alarm & positive, alarm & ~positive, ~alarm & positive, ~alarm & ~positive], axis=1)
    if not len(cells):
        return {"n": 0, "positives": 0}
    sums = patient_sums(cells.T, patients.take(known), draws)
    plain, drawn = rates_of(sums.plain), rates_of(sums.drawn)
    found: dict[str, Any] = {"n": len(cells), "positives": int(positive.sum()), "prevalence": float(positive.mean())}
    found |= {name: int(count) for name, count in zip(CELLS, sums.plain, strict=True)}
    found |= {name: interval(float(plain[name]), drawn[name]) for name in RATES}
    found["given"] = None
    if prevalence is not None:
        values, replicates = predictive_values(plain, prevalence), predictive_values(drawn, prevalence)
        found["given"] = {"prevalence": prevalence}
        found["given"] |= {name: interval(float(values[name]), replicates[name]) for name in ("ppv", "npv")}
    return found


def rates_of(cells: np.ndarray) -> dict[str, np.ndarray]:
    """Return the rates of tables [..., 4] in the order of `CELLS`; NaN where undefined, infinity included."""
    tp, fp, fn, tn = np.moveaxis(np.asarray(cells, dtype=np.float64), -1, 0)
    sensitivity, specificity = _share(tp, tp + fn), _share(tn, tn + fp)
    return {
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": _share(tp, tp + fp),
        "npv": _share(tn, tn + fn),
        "likelihood_ratio_positive": _share(sensitivity, 1 - specificity),
        "likelihood_ratio_negative": _share(1 - sensitivity, specificity),
        "alarm_rate": _share(tp + fp, tp + fp + fn + tn),
    }


def predictive_values(rates: dict[str, np.ndarray], prevalence: float) -> dict[str, np.ndarray]:
    """Return what sensitivity and specificity predict where the class has another prevalence."""
    sensitivity, specificity = rates["sensitivity"], rates["specificity"]
    true_alarms, false_alarms = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    true_silences, false_silences = specificity * (1 - prevalence), (1 - sensitivity) * prevalence
    return {
        "ppv": _share(true_alarms, true_alarms + false_alarms),
        "npv": _share(true_silences, true_silences + false_silences),
    }


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 1e-12)
