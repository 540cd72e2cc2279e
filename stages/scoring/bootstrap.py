"""The patient bootstrap: what a metric would be had other patients come.

Lives here: resampling, percentile intervals, paired differences. Not here: metrics (`metrics`), which methods are
compared (`summary`). A resample draws as many patients as there are, with replacement, and takes all their records
(Efron & Tibshirani 1993, ch. 13); methods are compared on the same resamples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from cache.record_columns import Texts
from stages.scoring.metrics import Scorer

RESAMPLES = 1000
SEED = 0
LEVEL = 0.95
KEPT_CELLS = 1 << 22
"""Patients x resamples that are kept: at most 8 MB each, 32 of them."""
FLOAT32_RECORDS = 1 << 23
"""Records up to which a resample, which may have more of them, is scored in float32."""
_CHUNK_CELLS = 1 << 20
"""Records x resamples scored at once: bounds memory and stays in the processor's cache."""


@dataclass(frozen=True)
class Bootstrap:
    """One method's metrics: the plain value, and one value per resample.

    Attributes
    ----------
    values, replicates
        Metric -> value, and metric -> [resamples].
    n_classes
        Macro metric -> classes for which it is defined.
    per_class, per_class_replicates
        "auroc", "auprc" -> [classes], and [classes, resamples].
    """

    values: dict[str, float]
    replicates: dict[str, np.ndarray]
    n_classes: dict[str, int]
    per_class: dict[str, np.ndarray]
    per_class_replicates: dict[str, np.ndarray]


@dataclass(frozen=True)
class Estimate:
    """A value with its percentile interval; NaN where undefined."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is beyond what other patients would explain."""
        return bool(self.low > 0 or self.high < 0)


def patient_index(patients: Texts | np.ndarray) -> tuple[np.ndarray, int]:
    """Return the number of each record's patient in sorted order, and how many patients there are."""
    known = (patients if isinstance(patients, Texts) else Texts.of(np.asarray(patients, dtype=str))).used()
    return known.codes, len(known.names)


def resamples_at_once(n_rows: int, cells: int, most: int = 100) -> int:
    """Return how many resamples of so many rows fit a number of cells: at least one, at most `most`."""
    return int(np.clip(cells // max(n_rows, 1), 1, most))


def resamples(
    n_patients: int, n_resamples: int = RESAMPLES, seed: int = SEED, chunk: int = 100
) -> Iterator[np.ndarray]:
    """Give how often each patient is drawn, [patients, <= chunk] float32; `chunk` does not change what is drawn.

    Of few patients all resamples are kept: an evaluation asks for the same ones class by class and group by group.
    """
    if n_patients * n_resamples <= KEPT_CELLS:
        whole = _kept_resamples(n_patients, n_resamples, seed)
        for start in range(0, n_resamples, chunk):
            yield whole[:, start : start + chunk].astype(np.float32, order="C")
        return
    rng = np.random.default_rng(seed)
    for start in range(0, n_resamples, chunk):
        yield np.ascontiguousarray(_draw(rng, n_patients, min(chunk, n_resamples - start)).T, np.float32)


@lru_cache(maxsize=32)
def _kept_resamples(n_patients: int, n_resamples: int, seed: int) -> np.ndarray:
    """How often each patient is drawn, uint16 [patients, resamples]."""
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK_CELLS // max(n_patients, 1))
    parts = [_draw(rng, n_patients, min(step, n_resamples - start)) for start in range(0, n_resamples, step)]
    if not parts:
        return np.zeros((n_patients, 0), np.uint16)
    return np.ascontiguousarray(np.concatenate(parts).T, np.uint16)


def _draw(rng: np.random.Generator, n_patients: int, n_resamples: int) -> np.ndarray:
    """Draw as many patients as there are, so many times; counts [resamples, patients]."""
    drawn = rng.integers(n_patients, size=(n_resamples, n_patients))
    drawn += np.arange(n_resamples)[:, None] * n_patients
    return np.bincount(drawn.ravel(), minlength=n_resamples * n_patients).reshape(n_resamples, n_patients)


def bootstrap(
    scorer: Scorer, patients: np.ndarray, n_patients: int, n_resamples: int = RESAMPLES, seed: int = SEED
) -> Bootstrap:
    """Score one method on all records and on every resample of the patients.

    Parameters
    ----------
    patients
        Number of each record's patient, [n], from `patient_index`.
    n_patients
        Of the whole comparison, so that methods with fewer records see the same resamples.
    """
    plain = scorer(np.ones((len(patients), 1)))
    chunk = resamples_at_once(len(patients), _CHUNK_CELLS, n_resamples)
    # running sums of counts are whole numbers: float32 has all of them up to 2 ** 24
    dtype = np.float32 if len(patients) <= FLOAT32_RECORDS else np.float64
    drawn = resamples(n_patients, n_resamples, seed, chunk)
    parts = [scorer(counts[patients].astype(dtype, copy=False)) for counts in drawn]
    return Bootstrap(
        values={name: float(value[0]) for name, value in plain.values.items()},
        replicates={name: np.concatenate([part.values[name] for part in parts]) for name in plain.values},
        n_classes={name: int(count[0]) for name, count in plain.n_classes.items()},
        per_class={name: value[:, 0] for name, value in plain.per_class.items()},
        per_class_replicates={
            name: np.concatenate([part.per_class[name] for part in parts], axis=1) for name in plain.per_class
        },
    )


def estimate(value: float, replicates: np.ndarray, level: float = LEVEL) -> Estimate:
    """Return the value with its percentile interval over the resamples in which it is defined.

    Where fewer than four of five resamples define it (a class of one patient only) there is no interval.
    """
    defined = replicates[np.isfinite(replicates)]
    if not np.isfinite(value) or 5 * len(defined) < 4 * len(replicates) or not len(defined):
        return Estimate(value, np.nan, np.nan)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high))


def paired_difference(first: Bootstrap, second: Bootstrap, metric: str, level: float = LEVEL) -> Estimate:
    """Return first minus second with its interval; both must come from the same records and resamples."""
    replicates = first.replicates[metric] - second.replicates[metric]
    return estimate(first.values[metric] - second.values[metric], replicates, level)
