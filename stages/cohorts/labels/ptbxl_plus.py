"""Features of PTB-XL+ (Strodthoff et al. 2023; PhysioNet 1.0.1) as labels of PTB-XL's records.

Three providers measured the same records: `12sl`, `unig` and `ecgdeli`. `ecg_id` may stand anywhere in a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import pandas as pd

from cache.errors import InputError, MissingFileError, UsageError
from cache.records import Target
from stages.readers.tables import numbers, read_table

PROVIDERS = ("12sl", "unig", "ecgdeli")
MAX_FEATURES = 1000
KEY = "ecg_id"


def add_features(frame: pd.DataFrame, folder: Path, wanted: Sequence[str], notes: list[str]) -> list[Target]:
    """Add a column for each feature of `wanted`, `PROVIDER:COLUMN` with `*` in it, such as `unig:PR_Int_*`.

    Parameters
    ----------
    frame
        PTB-XL's records; `record_id` is the ecg_id.
    folder
        Of PTB-XL+, which holds `features/`.
    """
    targets: list[Target] = []
    by_provider: dict[str, list[str]] = {}
    for one in wanted:
        provider, _, pattern = one.partition(":")
        if provider not in PROVIDERS or not pattern:
            raise UsageError(f"option 'plus_features': '{one}' is not PROVIDER:COLUMN of {', '.join(PROVIDERS)}")
        by_provider.setdefault(provider, []).append(pattern)
    for provider, patterns in by_provider.items():
        path = folder / "features" / f"{provider}_features.csv"
        if not path.is_file():
            raise MissingFileError(f"{path} does not exist; option 'plus' must name the folder of PTB-XL+")
        targets += _of_provider(frame, path, provider, patterns, notes)
    if len(targets) > MAX_FEATURES:
        raise UsageError(f"option 'plus_features' names {len(targets)} features, more than {MAX_FEATURES}")
    return targets


def _of(block: pd.DataFrame, known: set[str]) -> pd.Series:
    return block[KEY].isin(known) if KEY in block else pd.Series(True, index=block.index)


def _of_provider(frame: pd.DataFrame, path: Path, provider: str, patterns: list[str], notes: list[str]) -> list[Target]:
    known = set(frame["record_id"].dropna().astype(str))
    table, more = read_table(path, keep=lambda block: _of(block, known))
    notes += more
    if KEY not in table:
        raise InputError(f"{path}: has no column '{KEY}'")
    names = [name for name in table if name != KEY and any(fnmatchcase(str(name), one) for one in patterns)]
    if not names:
        raise InputError(f"{path}: has no column like {', '.join(patterns)[:100]}")
    rows = table.drop_duplicates(KEY).set_index(KEY).reindex(frame["record_id"].astype(str))
    without = int(rows[names].isna().all(axis=1).sum())
    if without:
        notes.append(f"{path.name}: {without} records have no row or value")
    targets = []
    for name in names:
        column = f"{provider}_{name}"
        frame[column] = numbers(rows[name])
        targets.append(Target(column, "regression", description=f"feature of PTB-XL+ ({provider})"))
    return targets
