"""Curves of a survival task: Kaplan-Meier of the thirds by predicted risk, and predicted against observed risk.

Lives here: arrays, of one method's labelled test records. Not here: drawings (`stages.report.survival`), metrics
(`survival.scorer`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cache.follow_up import times_and_events
from cache.records import Target
from stages.scoring.blocks import PredictionBlock
from stages.scoring.survival.kaplan_meier import KaplanMeier
from stages.scoring.survival.scorer import FIFTHS

THIRDS = ("lowest third", "middle third", "highest third")


@dataclass(frozen=True)
class RiskGroup:
    """Observed survival of records of similar predicted risk.

    Attributes
    ----------
    time, alive
        Steps of the Kaplan-Meier curve, from (0, 1) on.
    at_risk
        Records under observation at 0 and at each horizon.
    n, events
        Records, and how many of them had the event.
    """

    name: str
    time: np.ndarray
    alive: np.ndarray
    at_risk: list[int]
    n: int
    events: int


def risk_thirds(target: Target, block: PredictionBlock) -> list[RiskGroup]:
    """Return the thirds of the records by predicted risk at the last horizon, the lowest first."""
    order = np.argsort(-block.y_pred[:, -1].astype(np.float64), kind="stable")
    parts = zip(THIRDS, np.array_split(order, len(THIRDS)), strict=True)
    return [_group(name, target, block.y_true[rows]) for name, rows in parts if len(rows)]


def _group(name: str, target: Target, signed: np.ndarray) -> RiskGroup:
    times, events = times_and_events(signed)
    estimator = KaplanMeier(signed)
    curve = estimator.curve(np.ones((len(signed), 1)))[:, 0]
    at_risk = [int((times >= moment).sum()) for moment in (0.0, *target.horizons)]
    return RiskGroup(
        name, np.append(0.0, estimator.times), np.append(1.0, curve), at_risk, len(signed), int(events.sum())
    )


@dataclass(frozen=True)
class HorizonCalibration:
    """Predicted and observed risk of the event by a horizon, in fifths of predicted risk, [fifths] each."""

    predicted: np.ndarray
    observed: np.ndarray
    n: np.ndarray


def horizon_calibration(target: Target, block: PredictionBlock, h: int) -> HorizonCalibration:
    """Return the calibration at horizon number `h`; observed risk is 1 minus Kaplan-Meier's estimate there."""
    alive = block.y_pred[:, 1 + h].astype(np.float64)
    parts = [rows for rows in np.array_split(np.argsort(-alive, kind="stable"), FIFTHS) if len(rows)]
    observed = []
    for rows in parts:
        estimator = KaplanMeier(block.y_true[rows])
        curve = estimator.curve(np.ones((len(rows), 1)))
        observed.append(1 - float(estimator.at(curve, target.horizons[h])[0]))
    predicted = [1 - float(alive[rows].mean()) for rows in parts]
    return HorizonCalibration(np.array(predicted), np.array(observed), np.array([len(rows) for rows in parts]))
