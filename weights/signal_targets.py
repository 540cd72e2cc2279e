"""What `seed-ssl` learns to tell of a record: principal components of the other packaged experts' vectors, no label.

`rocket` sees forms, `morphology` intervals and amplitudes; both are computed from the signal alone. A network that
tells their components from a disturbed part of the record has to see what they see (distillation across features:
Hinton et al. 2015, arXiv 1503.02531, without the labels). The packaged weights learnt components of version 2 of both.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from sklearn.decomposition import PCA

COMPONENTS = {"rocket": 64, "morphology": 32}
WIDEST = 5.0
"""Spreads beyond which a standardised value is cut."""


def signal_targets(vectors: Mapping[str, np.ndarray], learnt: np.ndarray) -> dict[str, np.ndarray]:
    """Return EXPERT_COMPONENT -> values [record] of unit variance, in the order of what they explain.

    Parameters
    ----------
    vectors
        Of each expert, [record, width]; a single NaN becomes the median.
    learnt
        Rows that decide spreads and directions.
    """
    found = {}
    for name, count in COMPONENTS.items():
        x = _standardised(vectors[name].astype(np.float64), learnt)
        fitted = PCA(min(count, *x[learnt].shape), whiten=True, svd_solver="randomized", random_state=0).fit(x[learnt])
        components = np.clip(fitted.transform(x), -WIDEST, WIDEST)
        found |= {f"{name}_{k}": components[:, k] for k in range(components.shape[1])}
    return found


def _standardised(x: np.ndarray, learnt: np.ndarray) -> np.ndarray:
    """Standardise by the rows `learnt`; columns that are constant there, or missing, are left out."""
    x = x[:, np.isfinite(x[learnt]).any(0)]
    x = np.where(np.isfinite(x), x, np.nanmedian(x[learnt], axis=0))
    mean, spread = x[learnt].mean(0), x[learnt].std(0)
    kept = spread > 1e-6 * np.abs(mean).max(initial=1.0)
    return np.clip((x[:, kept] - mean[kept]) / spread[kept], -WIDEST, WIDEST)
