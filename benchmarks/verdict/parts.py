"""What a setting is fitted on: vectors, splits, and whom an expert has seen.

Usually one part, whose five splits share the vectors. The packaged `seed` has learnt the labels of PTB-XL, so on that
cohort its place is taken by `seed-ssl`, which has learnt from signals alone, or, with `encoders` (a folder of
`weights.seed_expert`), by networks of which each has not seen a fifth of the patients: then every fifth is a part with
vectors of its own. Up to 300 labelled patients come from the same fifth, so that heads learn from strangers, as in
another hospital: two thirds of it can teach, and one is tested, in turn. More come from the four other fifths, whom
the network has seen; the fit is told so, as `ensemble fit-heads` is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.verdict.cohorts import VALIDATION_SHARE, Split, read_vectors, rotations
from cache.records import open_records
from stages.heads.crossfit import inner_folds

LEARNT = {"ptbxl": ("seed", "seed-ssl")}
"""Cohort -> the expert that has learnt its labels, and what takes its place."""
STRANGERS_UP_TO, STRANGER_PARTS = 300, 3


@dataclass(frozen=True)
class Part:
    """Vectors of each expert, (train, validation, test) rows of each fit, and expert -> rows that it has seen."""

    features: dict[str, dict[str, np.ndarray]]
    splits: list[Split]
    seen: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Encoders:
    """Networks in FOLDER/encoders, `members` side by side, that have each not seen a rotation's patients."""

    folder: Path
    members: int

    def read(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Vectors [n, width] of rotation k's networks, and the rows that taught them."""
        homes = [self.folder / "encoders" / (f"{k}-{member}" if member else str(k)) for member in range(self.members)]
        found = []
        for home in homes:
            with np.load(home / "seed.npz") as stored:
                found.append(stored["embedding"])
        taught = open_records(homes[0] / "records.parquet")["split"] == "train"
        return np.concatenate(found, axis=1), np.flatnonzero(taught)


def experts_of(cohort: str, experts: tuple[str, ...], encoders: Encoders | None) -> tuple[str, ...]:
    """Return the experts that may be asked of a cohort, whose labels none of them has learnt."""
    learnt, other = LEARNT.get(cohort, ("", ""))
    return experts if encoders is not None else tuple(other if name == learnt else name for name in experts)


def parts_of(
    study: Path,
    experts: tuple[str, ...],
    patients: np.ndarray,
    size: int | None,
    n_rotations: int,
    encoders: Encoders | None,
) -> Iterator[Part]:
    """Give the parts of a setting, at most one's vectors in memory at a time."""
    learnt, _ = LEARNT.get(study.name, ("", ""))
    if encoders is None or learnt not in experts:
        yield Part(
            read_vectors(study, experts_of(study.name, experts, encoders)), rotations(patients, size)[:n_rotations]
        )
        return
    others = read_vectors(study, tuple(name for name in experts if name != learnt))
    for k in range(n_rotations):
        vectors, taught = encoders.read(k)
        features: dict[str, Any] = {name: others.get(name, {"embedding": vectors}) for name in experts}
        if size is not None and size <= STRANGERS_UP_TO:
            yield Part(features, strangers(patients, k, size))
        else:
            yield Part(features, [rotations(patients, size)[k]], {learnt: taught})


def strangers(patients: np.ndarray, k: int, size: int) -> list[Split]:
    """Split rotation k's own records: each third is tested by fits on labelled patients of the two others."""
    rows = rotations(patients, None)[k][2]
    part = inner_folds(rows, patients, STRANGER_PARTS, 2)
    out = []
    for f in range(STRANGER_PARTS):
        known = rows[part != f]
        labelled = np.random.default_rng(3).permutation(np.unique(patients[known]))[:size]
        n_val = max(1, round(VALIDATION_SHARE * len(labelled)))
        train, val = (known[np.isin(patients[known], those)] for those in (labelled[n_val:], labelled[:n_val]))
        out.append((train, val, rows[part == f]))
    return out
