"""What a fit is computed with: CPU threads, the device. Not here: memory (`blockwise.blocks`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from cache.errors import UsageError
from stages.settings import usable_cores

SMALL = 1 << 22
"""Fits of fewer feature values (records * features * folds) than this gain nothing from a second thread."""


@contextlib.contextmanager
def fit_threads(n_values: int) -> Iterator[None]:
    """Use one thread for a small fit, else those torch has, but no more than the cores this process may use.

    A fit is many short matrix products; threads that wait for each other at every one of them cost more than they
    bring where the products are small or the cores are busy. The former number is put back afterwards.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if n_values < SMALL else min(before, usable_cores()))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pick_device(name: str) -> torch.device:
    """Resolve auto (a GPU if there is one), cpu, cuda or cuda:i.

    Raises
    ------
    UsageError
        Another name, or a GPU that is not there.
    """
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if n_gpus else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and (kind == "cpu" or not index.isdecimal())):
        raise UsageError(f"device '{name}' is none of auto, cpu, cuda, cuda:0, ...")
    if kind == "cuda" and int(index or 0) >= n_gpus:
        raise UsageError(f"device '{name}': torch sees {n_gpus} GPU(s); use cpu or auto")
    return torch.device(name)
