"""Sums over the records of each patient, and what they are when other patients come.

Lives here: what operating points, decision curves and coverage share of the patient bootstrap. Not here: any of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from stages.scoring.bootstrap import estimate, patient_index, resamples
from stages.scoring.comparison import Draws


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


def patient_sums(columns: Iterable[np.ndarray], patient_ids: np.ndarray, draws: Draws) -> PatientSums:
    """Sum the records' values, column by column [n], over the patients, and over every resample of them."""
    index, n_patients = patient_index(patient_ids)
    of_patient = np.stack([np.bincount(index, np.asarray(c, dtype=np.float64), n_patients) for c in columns], 1)
    drawn = [counts.T.astype(np.float64) @ of_patient for counts in resamples(n_patients, draws.n, draws.seed)]
    return PatientSums(of_patient.sum(axis=0), np.concatenate(drawn))


def patient_mean(values: np.ndarray, patient_ids: np.ndarray, draws: Draws) -> dict[str, float]:
    """Return the mean over patients of the mean over their records [n], with its interval; NaN without records."""
    if not len(values):
        return {"value": np.nan, "low": np.nan, "high": np.nan}
    index, n_patients = patient_index(patient_ids)
    of_patient = np.bincount(index, values.astype(np.float64), n_patients) / np.bincount(index, minlength=n_patients)
    drawn = np.concatenate([of_patient @ counts / n_patients for counts in resamples(n_patients, draws.n, draws.seed)])
    return interval(float(of_patient.mean()), drawn)


def interval(value: float, drawn: np.ndarray) -> dict[str, float]:
    """Return the value with its percentile interval, as metrics.json writes it."""
    found = estimate(value, drawn)
    return {"value": found.value, "low": found.low, "high": found.high}
