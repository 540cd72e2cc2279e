"""What the cart measures on a record: intervals, wave positions in its median beat, axes.

Not here: the words it prints (labels.py).
"""

from __future__ import annotations

import numpy as np

from stages.synthetic.heart import axes_deg
from stages.synthetic.labels import MISSING, Measurements, Report
from stages.synthetic.physiology import Atria, State

# Where the cart's median beat begins: P, or QRS where there is no P.
_P_ONSET_MS, _QRS_ONSET_MS = 40, 200


def measure(
    rng: np.random.Generator, state: State, mean_rr_ms: np.ndarray, tables: np.ndarray, lost: np.ndarray
) -> Measurements:
    """Return the cart's measurements: the truth in whole ms and degrees, 29999 where it finds nothing.

    Parameters
    ----------
    mean_rr_ms
        [record] true mean RR interval.
    tables
        The records' wave tables, from which the axes follow.
    lost
        [record] bool, records the cart could not measure at all.
    """
    has_p = np.isin(state.atria, [Atria.SINUS, Atria.LOW]) & (state.report != Report.PACING) & ~lost
    axes = np.rint(axes_deg(tables) + rng.normal(0, 2, (len(has_p), 3))).astype(int)
    axes = (axes + 180) % 360 - 180
    qrs_onset = np.where(has_p, _P_ONSET_MS + _ms(state.pr_s), _QRS_ONSET_MS)
    no_axis = lost | (state.report == Report.PACING)
    rr_missing = lost | np.isnan(mean_rr_ms) | (rng.random(len(lost)) < 0.004)
    return Measurements(
        rr_interval=_or_missing(np.nan_to_num(mean_rr_ms) / 1000, rr_missing),
        p_onset=np.where(has_p, _P_ONSET_MS, MISSING),
        p_end=np.where(has_p, _P_ONSET_MS + _ms(state.p_s), MISSING),
        qrs_onset=np.where(lost, MISSING, qrs_onset),
        qrs_end=np.where(lost, MISSING, qrs_onset + _ms(state.qrs_s)),
        t_end=np.where(lost, MISSING, qrs_onset + _ms(state.qt_s)),
        p_axis=np.where(has_p, axes[:, 0], MISSING),
        qrs_axis=np.where(no_axis, MISSING, axes[:, 1]),
        t_axis=np.where(no_axis, MISSING, axes[:, 2]),
    )


def _ms(seconds: np.ndarray) -> np.ndarray:
    return np.rint(1000 * seconds).astype(int)


def _or_missing(seconds: np.ndarray, missing: np.ndarray) -> np.ndarray:
    return np.where(missing, MISSING, _ms(seconds))
