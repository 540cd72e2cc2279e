"""How well disturbed records are answered beside undisturbed ones, on the same patients and resamples.

Lives here: the metric of one condition and its paired difference. Not here: answers (`answering`), files (`stage`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cache.record_columns import names_of
from cache.records import Target
from stages.scoring.blocks import PredictionBlock
from stages.scoring.bootstrap import Bootstrap, estimate, paired_difference
from stages.scoring.comparison import Draws, Resampling
from stages.scoring.metrics import HEADLINE

Json = dict[str, Any]


@dataclass
class ConditionJudge:
    """One task and method: judges conditions against the undisturbed answers.

    Parameters
    ----------
    undisturbed
        Labelled records, with NaN in `y_pred` where there is no answer.
    """

    target: Target
    undisturbed: PredictionBlock
    draws: Draws

    def __post_init__(self) -> None:
        self.metric = HEADLINE[self.target.kind][0]
        self._everybody = names_of([self.undisturbed.patients])
        self._known = answered(self.undisturbed.y_pred)
        self._whole = self._sample(self.undisturbed, self._known)

    def plain(self) -> Json:
        """Return the metric of the undisturbed records."""
        return {**self._interval(self._whole), "records": int(self._known.sum())}

    def condition(self, y_pred: np.ndarray) -> Json:
        """Return the metric of disturbed records, and its difference to the undisturbed ones that both answer."""
        both = self._known & answered(y_pred)
        found: Json = {"records": int(both.sum()), "without": int(self._known.sum() - both.sum())}
        if not both.any():
            nothing = {"value": np.nan, "low": np.nan, "high": np.nan}
            return found | nothing | {"difference": nothing}
        block = replace(self.undisturbed, y_pred=y_pred)
        sample = self._sample(block, both)
        base = self._whole if np.array_equal(both, self._known) else self._sample(self.undisturbed, both)
        difference = paired_difference(sample, base, self.metric)
        ends = {"value": difference.value, "low": difference.low, "high": difference.high}
        return found | self._interval(sample) | {"difference": ends}

    def _sample(self, block: PredictionBlock, rows: np.ndarray) -> Bootstrap:
        return Resampling.of(self.target, block.take(rows), self._everybody, self.draws)()

    def _interval(self, sample: Bootstrap) -> Json:
        found = estimate(sample.values[self.metric], sample.replicates[self.metric])
        return {"value": found.value, "low": found.low, "high": found.high}


def answered(y_pred: np.ndarray) -> np.ndarray:
    """Return which records [n] have an answer."""
    return np.asarray(np.isfinite(y_pred.reshape(len(y_pred), -1)).all(axis=1))
