"""HDF5 files of recordings, opened once a process. Needs h5py, which is imported only here and only then."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from cache.errors import InputError
from stages.readers.wfdb_record import MAX_SAMPLES


@lru_cache(maxsize=32)
def open_hdf5(path: str) -> Any:
    """Open a file for reading.

    Raises
    ------
    InputError
        Not there, not HDF5, or h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise InputError("reading HDF5 needs h5py; install it with `pip install h5py`") from error
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path.rsplit('/', 1)[-1]} cannot be opened as HDF5") from error


def dataset(path: str, name: str, n_axes: int) -> Any:
    """Return a dataset of a file; it must have `n_axes` axes."""
    found = open_hdf5(path).get(name)
    if getattr(found, "ndim", None) != n_axes:
        raise InputError(f"{path.rsplit('/', 1)[-1]} has no dataset '{name}' with {n_axes} axes")
    return found


def check_size(shape: tuple[int, ...]) -> None:
    """Refuse a record so large that no recording is: a packed file may promise any size."""
    if math.prod(shape) > MAX_SAMPLES:
        raise InputError(f"its array is {shape}, more than {MAX_SAMPLES} samples")
