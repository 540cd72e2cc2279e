"""A saved fit, and what it needs besides features to predict. What `fit-heads`, `evaluate` and `predict` share."""

from __future__ import annotations

from pathlib import Path

from cache.errors import FingerprintError
from stages.heads import EnsembleHeads
from stages.learning.data import Data

ENECG_FOLDER = "enecg"
"""Of the enecg preset, inside the folder of the fit."""


def load_heads(folder: Path, data: Data) -> EnsembleHeads:
    """Load a fit for the embeddings it was made on.

    Raises
    ------
    FingerprintError
        Naming the expert whose store is not the one that the heads were fitted on.
    """
    heads = EnsembleHeads.load(folder)
    for name, digest in heads.provenance_["fingerprints"].items():
        now = data.fingerprints.get(name)
        if now is None:
            raise FingerprintError(f"{folder}: was fitted on expert '{name}', whose embeddings are not given")
        if now != digest:
            raise FingerprintError(
                f"{folder}: was fitted on other embeddings of '{name}' ({digest[:12]}, now {now[:12]}); "
                "run `ensemble fit-heads` again"
            )
    return heads
