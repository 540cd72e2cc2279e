"""Breslow's cumulative baseline hazard, and what it makes of log-hazards: probabilities of no event until a horizon."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cache.follow_up import times_and_events

if TYPE_CHECKING:
    from stages.heads.targets.tasks import Block

LARGEST = 700.0
"""Of log-hazards whose exponential is taken: beyond it a float64 overflows."""


def cumulative_hazard(signed: np.ndarray, log_hazard: np.ndarray, horizons: tuple[float, ...]) -> np.ndarray:
    """Estimate the cumulative hazard of a record with log-hazard 0 until each horizon (Breslow 1974).

    Parameters
    ----------
    signed
        Signed times [n] (`cache.follow_up`), all known.
    log_hazard
        [n], of models that have not been fitted to these records.

    Returns
    -------
    float64 [horizons]; 0 where no event has come by then.

    Examples
    --------
    >>> cumulative_hazard(np.array([1.0, 2.0, -3.0]), np.zeros(3), (1.0, 5.0)).round(4).tolist()
    [0.3333, 0.8333]
    """
    times, events = times_and_events(signed)
    order = np.argsort(-times, kind="stable")
    times, events = times[order], events[order]
    risk = np.exp(np.clip(np.asarray(log_hazard, np.float64)[order], -LARGEST, LARGEST))
    last = np.searchsorted(-times, -times, side="right") - 1
    at_risk = np.cumsum(risk)[last]
    steps = np.where(events, 1.0 / at_risk, 0.0)
    return np.array([steps[times <= horizon].sum() for horizon in horizons])


def survival_at(log_hazard: np.ndarray, hazard: np.ndarray) -> np.ndarray:
    """Return the probability of no event until each horizon, [n, horizons].

    Parameters
    ----------
    hazard
        Cumulative baseline hazard [horizons].
    """
    risk = np.exp(np.clip(np.asarray(log_hazard, np.float64), -LARGEST, LARGEST))
    return np.exp(-risk[:, None] * hazard)


def fold_hazards(
    log_hazards: np.ndarray, signed: np.ndarray, counted: np.ndarray, blocks: tuple[Block, ...]
) -> np.ndarray:
    """Return the cumulative baseline hazards of all survival tasks, [T, horizons]; 0 elsewhere.

    Parameters
    ----------
    log_hazards, signed, counted
        [n, C]: logits of records that the model was not fitted to, targets, and which of them have both.
    """
    survival = [b for b in blocks if b.task.kind == "survival"]
    out = np.zeros((len(blocks), max((len(b.task.horizons) for b in survival), default=0)))
    for t, block in enumerate(blocks):
        if block in survival:
            c, horizons = block.start, block.task.horizons
            rows = (counted[:, c] > 0) & np.isfinite(log_hazards[:, c])
            out[t, : len(horizons)] = cumulative_hazard(signed[rows, c], log_hazards[rows, c], horizons)
    return out
