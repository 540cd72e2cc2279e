"""What metrics.json says of a survival task beside what every task has: events, horizons, thirds by predicted risk."""

from __future__ import annotations

from typing import Any

import numpy as np

from cache.follow_up import status_at, times_and_events
from cache.records import Target
from stages.scoring.blocks import PredictionBlock
from stages.scoring.bootstrap import Bootstrap, estimate
from stages.scoring.survival.curves import risk_thirds

Json = dict[str, Any]


def events_of(block: PredictionBlock) -> int:
    """Return how many labelled records had the event."""
    return int(times_and_events(block.y_true)[1].sum())


def horizons_of(target: Target, block: PredictionBlock, samples: dict[str, Bootstrap]) -> list[Json]:
    """Return, for each horizon, what was observed and every method's metrics there.

    Parameters
    ----------
    block
        Labelled test records of the main method.
    samples
        Method -> its bootstrap.
    """
    status = status_at(block.y_true, target.horizons)
    return [
        {
            "horizon": horizon,
            "events": int((status[:, h] == 0).sum()),
            "beyond": int((status[:, h] == 1).sum()),
            "censored_before": int(np.isnan(status[:, h]).sum()),
            "methods": {name: _metrics(sample, h) for name, sample in samples.items()},
        }
        for h, horizon in enumerate(target.horizons)
    ]


def _metrics(sample: Bootstrap, h: int) -> Json:
    found = {
        name: estimate(float(values[h]), sample.per_class_replicates[name][h])
        for name, values in sample.per_class.items()
    }
    return {name: {"value": one.value, "low": one.low, "high": one.high} for name, one in found.items()}


def thirds_of(target: Target, block: PredictionBlock) -> list[Json]:
    """Return the thirds by predicted risk: records, events, numbers at risk at 0 and at each horizon."""
    return [
        {"name": group.name, "n": group.n, "events": group.events, "at_risk": group.at_risk}
        for group in risk_thirds(target, block)
    ]
