"""Labels in the comments of WFDB headers (`#Age`, `#Sex`, `#Dx`), as the PhysioNet Challenges 2020 and 2021 write them.

Lives here: reading those comments, and the Challenge's scored diagnoses. Not here: which records there are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cache.errors import InputError
from cache.records import Target
from stages.cohorts.labels.ages import age_of
from stages.readers.paths import DataFolder
from stages.readers.wfdb.header import read_header

# The 30 scored diagnoses of the Challenge 2021; four pairs count as one class, as its evaluation merges them.
SCORED = {
    "270492004": "IAVB",
    "164889003": "AF",
    "164890007": "AFL",
    "6374002": "BBB",
    "426627000": "Brady",
    "733534002": "CLBBB|LBBB",
    "164909002": "CLBBB|LBBB",
    "713427006": "CRBBB|RBBB",
    "59118001": "CRBBB|RBBB",
    "713426002": "IRBBB",
    "445118002": "LAnFB",
    "39732003": "LAD",
    "251146004": "LQRSV",
    "698252002": "NSIVCB",
    "426783006": "NSR",
    "284470004": "PAC|SVPB",
    "63593006": "PAC|SVPB",
    "10370003": "PR",
    "365413008": "PRWP",
    "427172004": "PVC|VPB",
    "17338001": "PVC|VPB",
    "164947007": "LPR",
    "111975006": "LQT",
    "164917005": "QAb",
    "47665007": "RAD",
    "427393009": "SA",
    "426177001": "SB",
    "427084000": "STach",
    "164934002": "TAb",
    "59931005": "TInv",
}
_COMMENT = re.compile(r"#\s*([A-Za-z]+)\s*:\s*(.*)$")
_SEX = {"male": 0.0, "m": 0.0, "female": 1.0, "f": 1.0}


@dataclass(frozen=True)
class Comments:
    """What the header of one record says; None or NaN where it says nothing usable."""

    age_years: float
    sex: float
    codes: tuple[str, ...] | None


def read_comments(folder: DataFolder, path: str) -> Comments:
    """Read the comments of `path`.hea; of a header that cannot be read, nothing (the record will be bad then)."""
    try:
        header = read_header(folder, path)
    except InputError:
        return Comments(np.nan, np.nan, None)
    said: dict[str, str] = {}
    for comment in header.comments:
        found = _COMMENT.match(comment)
        if found:
            said.setdefault(found[1].lower(), found[2].strip())
    codes = tuple(re.findall(r"\d{5,18}", said.get("dx", "")))
    return Comments(age_of(said.get("age")), _SEX.get(said.get("sex", "").lower(), np.nan), codes or None)


def add_comments(
    frame: pd.DataFrame, folder: DataFolder, notes: list[str]
) -> tuple[list[tuple[str, ...] | None], list[Target]]:
    """Add age and sex from the headers to `frame`; returns each record's codes and the two targets."""
    read = [read_comments(folder, path) for path in frame["path"]]
    frame["age"], frame["sex"] = [c.age_years for c in read], [c.sex for c in read]
    codes = [c.codes for c in read]
    missing = {"age": int(frame["age"].isna().sum()), "sex": int(frame["sex"].isna().sum()), "Dx": codes.count(None)}
    notes += [f"{name}: {n} headers give none that can be used" for name, n in missing.items() if n]
    return codes, [
        Target("age", "regression", unit="years", description="at the recording"),
        Target("sex", "binary", classes=("male", "female"), description="0 male, 1 female"),
    ]


def add_classes(
    frame: pd.DataFrame, name: str, codes: list[tuple[str, ...] | None], class_of: Mapping[str, str], description: str
) -> Target:
    """Add a multilabel column from SNOMED CT codes; null where a record has no codes at all."""
    frame[name] = [None if given is None else sorted({class_of[c] for c in given if c in class_of}) for given in codes]
    return Target(name, "multilabel", classes=tuple(sorted(set(class_of.values()))), description=description)
