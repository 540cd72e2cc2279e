"""How many CPU threads a fit uses. Not here: memory (`blockwise.blocks`), the device (`stages.devices`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

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
