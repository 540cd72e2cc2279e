"""Memberships of made-up records, for tests of what is chosen by them."""

import numpy as np

from cache.record_columns import Texts
from stages.learning.membership import Membership


def membership(n, *, fold=None, split=None, source=None, patient=None):
    """Of n records: each a patient of its own from one source, in the split train, where nothing else is said."""
    return Membership(
        Texts.of([f"p{k:06d}" for k in range(n)] if patient is None else list(patient)),
        Texts.of(["one"] * n if source is None else list(source)),
        Texts.of(["train"] * n if split is None else list(split)),
        np.array([0] * n if fold is None else fold, np.int16),
    )
