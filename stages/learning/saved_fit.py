"""A saved fit, and what it needs besides features to predict. What `fit-heads`, `evaluate` and `predict` share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cache.errors import FingerprintError
from stages.heads import EnsembleHeads
from stages.learning.data import Data
from stages.readers.rows import RowOptions

ENECG_FOLDER = "enecg"
"""Of the enecg preset, inside the folder of the fit."""
COMPARED = ("derive_leads", "seconds", "amplitude")
"""How rows were made, where another way gives other answers."""


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


def seen_notes(history: Mapping[str, Any]) -> list[str]:
    """Say which experts have been trained on the patients that a fit (its `history_`) learnt from, and what followed.

    Examples
    --------
    >>> held = {"seed": {"records": [9, 10], "patients": [8, 9], "share": [[0.5]]}}
    >>> seen_notes({"gate": {"held": held}})
    ['seed was trained on 8 of the 9 patients that choose the weights: its weight is set by how many patients taught \
it, which only a clear gain on the 1 record that it has not seen changes (mean 0.50); all else is chosen without it']
    """
    notes = []
    for name, facts in history["gate"].get("held", {}).items():
        (n_seen, n_judged), patients = facts["records"], facts["patients"]
        n_strangers = n_judged - n_seen
        strangers = f"{n_strangers} {'record' if n_strangers == 1 else 'records'} that it has not seen"
        if "share" not in facts:
            words = f"the {strangers} alone choose them"
        else:
            shares = [share for fold in facts["share"] for share in fold]
            mean = f"(mean {sum(shares) / len(shares):.2f})"
            changed = f", which only a clear gain on the {strangers} changes" if n_strangers else ""
            words = f"its weight is set by how many patients taught it{changed} {mean}; all else is chosen without it"
        seen = f"{patients[0]} of the {patients[1]} patients that choose the weights"
        notes.append(f"{name} was trained on {seen}: {words}")
    return notes


def otherwise_made(rows: Mapping[str, Any], heads: EnsembleHeads) -> list[str]:
    """Say where a study's rows (`row_options` of records.parquet) were made in another way than a fit learnt from."""
    of_fit = heads.provenance_.get("rows") or {}
    if not rows or not of_fit:
        return []
    usual = asdict(RowOptions())
    pairs = {name: [made.get(name, usual[name]) for made in (rows, of_fit)] for name in COMPARED}
    return [
        f"the study was ingested with {name}: {as_made}, the fit learnt from rows with {name}: {in_fit}"
        for name, (as_made, in_fit) in pairs.items()
        if as_made != in_fit
    ]
