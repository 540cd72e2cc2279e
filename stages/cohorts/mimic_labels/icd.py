"""Discharge diagnoses of MIMIC-IV-ECG-Ext-ICD (Strodthoff et al. 2024; PhysioNet 1.0.1): ICD-10-CM codes of each ECG.

The five columns hold lists as text, empty where no stay of the patient holds the ECG: such a record is null, not
without disease.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pandas as pd

from cache.errors import InputError, MissingFileError
from cache.records import Target
from stages.readers.tables import find_table, read_table

NAME = "records_w_diag_icd10.csv"
COLUMNS = ("all_diag_all", "all_diag_hosp", "hosp_diag_hosp", "ed_diag_hosp", "ed_diag_ed")
_CODE = re.compile(r"'([A-Z]\d[0-9A-Z]{1,5})'")


def add_diagnoses(
    frame: pd.DataFrame, given: str, column: str, digits: int, least: int, notes: list[str]
) -> list[Target]:
    """Add the multilabel `icd`.

    Parameters
    ----------
    given
        The table or its folder.
    column
        One of `COLUMNS`.
    digits
        Codes are cut to so many characters (3: the category).
    least
        Codes that fewer records have are left out.
    """
    base = Path(given).expanduser()
    path = find_table([base], NAME) if base.is_dir() else base
    if path is None or not path.is_file():
        raise MissingFileError(f"{base} holds no {NAME}; option 'icd' must name it or its folder")
    known = set(frame["record_id"].dropna())
    table, more = read_table(path, ["study_id", column], lambda block: block["study_id"].isin(known))
    notes += more
    if not len(table):
        raise InputError(f"{path}: none of its studies is in record_list.csv")
    cells = table.drop_duplicates("study_id").set_index("study_id")[column].reindex(frame["record_id"])
    codes = [_codes(cell, digits) for cell in cells]
    counts = Counter(code for one in codes for code in one or ())
    kept = {code for code, n in counts.items() if n >= least}
    if not kept:
        raise InputError(f"{path}: no code is that of {least} records; lower the option 'icd_least'")
    frame["icd"] = [None if one is None else sorted(one & kept) for one in codes]
    notes.append(
        f"icd: {codes.count(None)} of {len(codes)} records are of no stay with a diagnosis and null; "
        f"{len(counts) - len(kept)} codes of fewer than {least} records are left out"
    )
    return [Target("icd", "multilabel", classes=tuple(sorted(kept)), description=f"ICD-10-CM, {column}")]


def _codes(cell: object, digits: int) -> set[str] | None:
    """Return the codes of a cell, cut; None where it has none."""
    found = _CODE.findall(cell) if isinstance(cell, str) else []
    return {code[:digits] for code in found} or None
