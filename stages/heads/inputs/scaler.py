"""Robust standardisation of one expert's features, fitted on training rows, with missing values made explicit.

Lives here: winsorised mean and standard deviation, median imputation, indicator columns for features that are often
missing. Not here: rows without the expert altogether (absent: the gate masks them).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TAILS = (0.01, 0.99)
CLIP_SD = 8.0
"""A standardised value further out than this is an artefact, and is pulled in."""
MIN_MISSING, MAX_MISSING = 0.02, 0.98
MAX_FIT_ROWS = 20_000
"""Quantiles of more rows than this are taken from an even subset."""


@dataclass(frozen=True)
class RobustScaler:
    """Features [n, d] -> standardised float32 [n, d + indicators], without NaN.

    The mean and standard deviation are those of the training values pulled in to their 1 % and 99 % quantiles, so that
    one artefact moves neither, and a feature that is constant but for rare records is not blown up as it would be by
    the interquartile range. A missing value becomes the training median.
    """

    median: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    indicators: np.ndarray
    """Indices of the features whose missingness is a feature of its own."""

    @classmethod
    def fit(cls, x: np.ndarray) -> RobustScaler:
        """Fit on training rows [n, d]; NaN is missing. A feature never seen, or constant, becomes 0."""
        x = np.asarray(x[:: max(1, len(x) // MAX_FIT_ROWS)], dtype=np.float32)
        missing = np.isnan(x)
        rate = missing.mean(0)
        low, median, high = _quantiles(x, (TAILS[0], 0.5, TAILS[1]), bool(missing.any()))
        x = np.clip(np.where(missing, median, x), low, high)
        mean, scale = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
        flat = scale <= 1e-6 * np.maximum(1e-6, np.abs(mean))
        scale[flat] = np.inf
        indicators = _distinct_patterns(missing, np.flatnonzero((rate >= MIN_MISSING) & (rate <= MAX_MISSING)))
        return cls(median, mean.astype(np.float32), scale.astype(np.float32), indicators)

    def transform(self, x: np.ndarray) -> np.ndarray:
        """Standardise [n, d]; an absent row (all NaN) becomes what the median record is."""
        x = np.asarray(x, dtype=np.float32)
        missing = np.isnan(x)
        z = (np.where(missing, self.median, x) - self.mean) / self.scale
        np.clip(z, -CLIP_SD, CLIP_SD, out=z)
        return np.concatenate([z, missing[:, self.indicators].astype(np.float32)], axis=1)

    @property
    def width(self) -> int:
        """Number of columns that `transform` gives."""
        return len(self.median) + len(self.indicators)

    def state(self) -> dict[str, np.ndarray]:
        """Arrays that `RobustScaler(**state)` reads."""
        return {n: getattr(self, n) for n in ("median", "mean", "scale", "indicators")}


def _distinct_patterns(missing: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Keep one of the features that are missing in the very same records (those of one absent expert, say)."""
    code = missing[:, features].T @ np.random.default_rng(0).random(len(missing))
    return np.sort(features[np.unique(code, return_index=True)[1]])


def _quantiles(x: np.ndarray, levels: tuple[float, ...], has_missing: bool) -> np.ndarray:
    """Quantiles per column, NaN left out; a column without any value gives 0."""
    if not has_missing:
        # sorting whole columns with the processor's own instructions is faster than looking for a few ranks
        ordered = np.ascontiguousarray(x.T)
        ordered.sort(axis=1)
        return np.quantile(ordered, levels, axis=1).astype(np.float32)
    holes = np.isnan(x).any(0)  # numpy's nanquantile is slow: a Python loop over columns
    out = np.empty((len(levels), x.shape[1]), np.float32)
    out[:, ~holes] = np.quantile(x[:, ~holes], levels, axis=0)
    filled = np.where(np.isnan(x[:, holes]).all(0), np.float32(0), x[:, holes])
    out[:, holes] = np.nanquantile(filled, levels, axis=0)
    return out
