"""Decision curves: what acting on the probabilities is worth beside acting on everybody or nobody.

Lives here: the net benefit of Vickers and Elkin (2006), in true positives per record. Not here: pictures.
"""

from __future__ import annotations

from itertools import chain

import numpy as np

from cache.record_columns import Texts
from stages.scoring.bootstrap import LEVEL
from stages.scoring.comparison import Draws
from stages.scoring.decisions.patients import patient_sums

GRID = np.arange(1, 100) / 100
"""Threshold probabilities: who acts from 20 % on accepts four false alarms for a true one."""


def decision_curve(
    probability: np.ndarray, truth: np.ndarray, patients: Texts, draws: Draws
) -> dict[str, list[float]] | None:
    """Return the net benefit of one class at every threshold of `GRID`; None without a label.

    Net benefit: true positives per record, minus false positives per record times t / (1 - t).

    Parameters
    ----------
    probability, truth
        [n]; a truth of NaN is left out.

    Returns
    -------
    `threshold`, `net_benefit`, `low`, `high` (95 % over the patients), `treat_all` (everybody is acted on; nobody: 0).
    """
    known = np.isfinite(truth)
    p, positive = probability[known].astype(np.float64), truth[known] == 1
    if not len(p):
        return None
    weights = GRID / (1 - GRID)
    acted = (np.where(positive, 1.0, -w) * (p >= t) for t, w in zip(GRID, weights, strict=True))
    sums = patient_sums(chain(acted, [np.ones(len(p))]), patients.take(known), draws)
    drawn = sums.drawn[:, :-1] / sums.drawn[:, -1:]
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return {
        "threshold": GRID.tolist(),
        "net_benefit": (sums.plain[:-1] / sums.plain[-1]).tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "treat_all": (positive.mean() - (1 - positive.mean()) * weights).tolist(),
    }
