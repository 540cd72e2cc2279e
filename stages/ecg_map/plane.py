"""From vectors to a plane: UMAP with a fixed seed, or PCA."""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import numpy as np

from cache.errors import InputError, UsageError

NEIGHBOURS, LEAST_DISTANCE = 15, 0.1
"""UMAP's own defaults."""
AXES_BEFORE = 50
LEAST_RECORDS, LEAST_FOR_UMAP = 3, 20
WITHOUT_UMAP = "umap-learn is not installed: PCA is used; `pip install 'ecg-ensemble[maps]'` adds it"


def plane(vectors: np.ndarray, method: str, seed: int) -> tuple[np.ndarray, str, list[str]]:
    """Place vectors in a plane.

    Parameters
    ----------
    vectors
        float [n, width], all finite.
    method
        auto, umap or pca.

    Returns
    -------
    Coordinates float32 [n, 2]; UMAP or PCA; what is to be known of them.

    Raises
    ------
    UsageError
        UMAP is asked for and not installed.
    InputError
        Fewer than three vectors.

    Examples
    --------
    >>> points = np.random.default_rng(0).normal(size=(30, 4)) * [9, 3, 1, 1]
    >>> xy, method, _ = plane(points, "pca", seed=0)
    >>> method, abs(float(np.corrcoef(xy[:, 0], points[:, 0])[0, 1])) > 0.95
    ('PCA', True)
    """
    n, notes = len(vectors), []
    if n < LEAST_RECORDS:
        raise InputError(f"a map needs at least {LEAST_RECORDS} records with a vector; there are {n}")
    chosen = method
    if method == "auto":
        chosen = "umap" if find_spec("umap") is not None else "pca"
        notes += [WITHOUT_UMAP] if chosen == "pca" else []
    elif method == "umap" and find_spec("umap") is None:
        raise UsageError("--method umap: umap-learn is not installed; run `pip install 'ecg-ensemble[maps]'`")
    if chosen == "umap" and n < LEAST_FOR_UMAP:
        chosen = "pca"
        notes.append(f"UMAP needs {LEAST_FOR_UMAP} records, there are {n}: PCA is used")
    if chosen == "umap":
        return _umap(_principal(vectors, AXES_BEFORE, seed), seed), "UMAP", notes
    return _principal(vectors, 2, seed), "PCA", notes


def _principal(vectors: np.ndarray, n_axes: int, seed: int) -> np.ndarray:
    """Return the coordinates on the first principal axes, float32; as many as there are, filled up to two."""
    from sklearn.decomposition import PCA

    n_axes = min(n_axes, *vectors.shape)
    found = PCA(n_axes, svd_solver="randomized", random_state=seed).fit_transform(vectors.astype(np.float32))
    return np.pad(found, ((0, 0), (0, max(2 - found.shape[1], 0)))).astype(np.float32)


def _umap(vectors: np.ndarray, seed: int) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries below umap-learn, about each other's versions
        from umap import UMAP

        reducer = UMAP(
            n_neighbors=min(NEIGHBOURS, len(vectors) - 1),
            min_dist=LEAST_DISTANCE,
            random_state=seed,
            n_jobs=1,
            init="pca",
        )
        return np.asarray(reducer.fit_transform(vectors), dtype=np.float32)
