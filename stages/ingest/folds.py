"""Folds: by patient always, stratified where there are labels, the same for a seed whatever the order of the rows.

A patient in two folds is impossible by construction: folds are dealt to patients, and records take their patient's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from cache.record_columns import Texts
from cache.records import Target

N_FOLDS = 10
_MAX_CATEGORIES = 2


def assign_folds(
    patients: Sequence[str] | pd.Series,
    strata: Sequence[str] | None = None,
    *,
    n_folds: int,
    seed: int,
    kept: Mapping[str, int] | None = None,
) -> np.ndarray:
    """Deal patients to folds; int64 [record].

    Patients come in an order drawn from the seed, and each goes to the fold that has the fewest records of its stratum,
    then the fewest records at all. A patient's stratum is that of its first record in the order of the strata's names.

    Parameters
    ----------
    patients
        Per record.
    strata
        Per record; None = all alike.
    kept
        Patient -> the fold it has already, and keeps.
    """
    patient, names = _coded(patients)
    kind, kinds = _coded([""] * len(patients) if strata is None else strata)
    sizes = np.bincount(patient, minlength=len(names))
    stratum = np.full(len(names), len(kinds))
    np.minimum.at(stratum, patient, kind)
    order = np.random.default_rng(seed).permutation(len(names))
    # Large patients first: a late one would unbalance what is already dealt.
    order = order[np.argsort(-sizes[order], kind="stable")]
    held, total = np.zeros((len(kinds), n_folds), dtype=np.int64), np.zeros(n_folds, dtype=np.int64)
    fold = np.full(len(names), -1)
    if kept:
        fold[:] = [kept.get(name, -1) for name in names.to_pylist()]
    placed = fold >= 0
    np.add.at(held, (stratum[placed], fold[placed]), sizes[placed])
    np.add.at(total, fold[placed], sizes[placed])
    for p in order[~placed[order]]:
        row = held[stratum[p]]
        chosen = int(np.lexsort((total, row))[0])
        fold[p] = chosen
        row[chosen] += sizes[p]
        total[chosen] += sizes[p]
    return fold[patient]


def _coded(texts: Sequence[str] | pd.Series) -> tuple[np.ndarray, pa.Array]:
    """Return each text's place among the different ones, and these, sorted.

    Not np.unique: an array of texts gives each of them the room of the longest one.
    """
    plain = texts if isinstance(texts, pd.Series) else [str(text) for text in texts]
    known = Texts.of(pa.chunked_array([pa.array(plain, pa.string())]))
    return known.codes.astype(np.int64), known.names


def split_names(folds: np.ndarray, *, val: int, test: int) -> np.ndarray:
    """Return train, val or test of each record."""
    names = np.array(["train", "val", "test"], dtype=object)  # each once, whatever the number of records
    return names[np.where(folds == test, 2, np.where(folds == val, 1, 0))]


def strata_of(frame: pd.DataFrame, targets: Sequence[Target]) -> list[str]:
    """Return a stratum per record: up to two categorical targets, else the quarters of the first regression."""
    parts: list[pd.Series] = []
    for kind in ("multiclass", "multilabel", "binary"):
        for target in targets:
            if target.kind == kind and len(parts) < _MAX_CATEGORIES:
                parts.append(_category(frame[target.name], target))
    if not parts:
        parts = [_quarter(frame[t.name]) for t in targets if t.kind == "regression"][:1]
    if not parts:
        return [""] * len(frame)
    known: dict[str, str] = {}
    joined = ("|".join(cells) for cells in zip(*parts, strict=True))
    return [known.setdefault(name, name) for name in joined]


def _category(column: pd.Series, target: Target) -> pd.Series:
    if target.kind != "multilabel":
        return column.map(lambda value: "" if pd.isna(value) else str(int(value)))
    counts = column.explode().value_counts()
    rarity = {name: (int(n), str(name)) for name, n in counts.items()}
    return column.map(
        lambda present: min((rarity[c] for c in present), default=(0, ""))[1] if _is_list(present) else ""
    )


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def _quarter(column: pd.Series) -> pd.Series:
    ranks = column.rank(pct=True)
    return ranks.map(lambda share: "" if pd.isna(share) else str(int(min(share, 0.9999) * 4)))
