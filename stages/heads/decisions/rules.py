"""The threshold that a rule chooses for one class, from probabilities and labels.

Lives here: the candidates, and the four rules. Not here: which records may choose (`held_out`), the file
(`operating_points`). A record is above a threshold when its probability is at least the threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stages.heads.decisions.settings import OperatingRule


@dataclass(frozen=True)
class ChosenThreshold:
    """A threshold and what it gives on the records that chose it; NaN where these cannot say.

    Attributes
    ----------
    n, positives
        Labelled records, and those of them that have the class.
    """

    threshold: float
    sensitivity: float
    specificity: float
    alarm_rate: float
    n: int
    positives: int


def choose_threshold(probability: np.ndarray, label: np.ndarray, rule: OperatingRule) -> ChosenThreshold:
    """Choose the threshold of one class.

    Candidates lie halfway between neighbouring probabilities, so that the last bit of a number decides nothing; beside
    these, 0 (every record is above it) and a number above the largest probability (none is). Of equally good
    candidates the highest wins: it alarms least.

    Parameters
    ----------
    probability
        [n], out of sample.
    label
        [n] of 0 and 1; NaN is missing and left out.

    Returns
    -------
    The choice; its threshold is NaN where the labels cannot decide (no record with or none without the class).

    Examples
    --------
    >>> choose_threshold(np.array([0.1, 0.2, 0.8]), np.array([0.0, 0.0, 1.0]), OperatingRule()).threshold
    0.5
    """
    known = np.isfinite(label) & np.isfinite(probability)
    p, positive = probability[known].astype(np.float64), label[known] == 1
    n, n_positive = len(p), int(positive.sum())
    if not 0 < n_positive < n:
        return ChosenThreshold(np.nan, np.nan, np.nan, np.nan, n, n_positive)
    thresholds, true_alarms, alarms = _candidates(p, positive)
    sensitivity, alarm_rate = true_alarms / n_positive, alarms / n
    specificity = 1 - (alarms - true_alarms) / (n - n_positive)
    best = _best(rule, sensitivity, specificity, alarm_rate)
    return ChosenThreshold(
        threshold=float(thresholds[best]),
        sensitivity=float(sensitivity[best]),
        specificity=float(specificity[best]),
        alarm_rate=float(alarm_rate[best]),
        n=n,
        positives=n_positive,
    )


def _candidates(p: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return thresholds, descending, and how many positives and records are above each."""
    values, index = np.unique(p, return_inverse=True)
    of_value = np.bincount(index, minlength=len(values))
    positive_of_value = np.bincount(index, weights=positive, minlength=len(values))
    between = (values[1:] + values[:-1]) / 2
    thresholds = np.concatenate([[(values[-1] + max(1.0, values[-1])) / 2 + 1e-6], between[::-1], [0.0]])
    true_alarms = np.concatenate([[0.0], np.cumsum(positive_of_value[::-1])])
    return thresholds, true_alarms, np.concatenate([[0], np.cumsum(of_value[::-1])])


_ROUNDING = 1e-12


def _best(rule: OperatingRule, sensitivity: np.ndarray, specificity: np.ndarray, alarm_rate: np.ndarray) -> int:
    """Return the position of the best candidate; they descend, and the first of equal ones wins."""
    if rule.rule == "youden" or rule.value is None:
        return int(np.argmax(np.round(sensitivity + specificity, 12)))
    if rule.rule == "sensitivity":
        return int(np.argmax(sensitivity >= rule.value - _ROUNDING))
    enough = specificity >= rule.value - _ROUNDING if rule.rule == "specificity" else None
    if enough is None:
        enough = alarm_rate <= rule.value + _ROUNDING
    last = np.flatnonzero(enough)[-1]  # specificity falls and alarms rise along the candidates
    return int(np.argmax(sensitivity == sensitivity[last]))
