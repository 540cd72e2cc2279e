"""Sums over the records of each patient, and what they are when other patients come.

Lives here: what operating points, decision curves and coverage share of the patient bootstrap. Not here: any of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from cache.record_columns import Texts
from stages.scoring.bootstrap import estimate, patient_index, resamples, resamples_at_once
from stages.scoring.comparison import Draws

SUMS = 1 << 26
"""Patients x columns that are summed in one pass over the resamples: 0.5 GB."""
CELLS = 1 << 22
"""Patients x resamples at once: some 100 MB while they are drawn; more patients draw fewer at a time, and the same."""


@dataclass(frozen=True)
class PatientSums:
    """Values summed over all patients: as they came, and once per resample.

    Attributes
    ----------
    plain
        [columns].
    drawn
        [resamples, columns].
    """

    plain: np.ndarray
    drawn: np.ndarray


def patient_sums(columns: Iterable[np.ndarray], patients: Texts, draws: Draws) -> PatientSums:
    """Sum the records' values, column by column [n], over the patients, and over every resample of them."""
    index, n_patients = patient_index(patients)
    parts = [_sums(part, index, n_patients, draws) for part in batched(columns, max(1, SUMS // max(n_patients, 1)))]
    plain, drawn = zip(*parts, strict=True)
    return PatientSums(np.concatenate(plain), np.concatenate(drawn, 1))


def batched(columns: Iterable[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    """Give lists of at most `size` columns."""
    rest = iter(columns)
    while part := list(islice(rest, size)):
        yield part


def _sums(
    columns: Iterable[np.ndarray], index: np.ndarray, n_patients: int, draws: Draws
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums of some columns, [columns] and [resamples, columns]."""
    of_patient = np.stack([np.bincount(index, np.asarray(c, dtype=np.float64), n_patients) for c in columns], 1)
    drawn = [counts.T.astype(np.float64) @ of_patient for counts in _resamples(n_patients, draws)]
    return of_patient.sum(axis=0), np.concatenate(drawn)


def _resamples(n_patients: int, draws: Draws) -> Iterator[np.ndarray]:
    return resamples(n_patients, draws.n, draws.seed, resamples_at_once(n_patients, CELLS))


def patient_mean(values: np.ndarray, patients: Texts, draws: Draws) -> dict[str, float]:
    """Return the mean over patients of the mean over their records [n], with its interval; NaN without records."""
    if not len(values):
        return {"value": np.nan, "low": np.nan, "high": np.nan}
    index, n_patients = patient_index(patients)
    of_patient = np.bincount(index, values.astype(np.float64), n_patients) / np.bincount(index, minlength=n_patients)
    drawn = np.concatenate([of_patient @ counts / n_patients for counts in _resamples(n_patients, draws)])
    return interval(float(of_patient.mean()), drawn)


def interval(value: float, drawn: np.ndarray) -> dict[str, float]:
    """Return the value with its percentile interval, as metrics.json writes it."""
    found = estimate(value, drawn)
    return {"value": found.value, "low": found.low, "high": found.high}
