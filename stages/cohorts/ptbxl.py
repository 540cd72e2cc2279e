"""PTB-XL (Wagner et al., Scientific Data 2020; PhysioNet 1.0.1 to 1.0.3): SCP statements, age, sex, official folds.

Statements are aggregated as in the published benchmark (Strodthoff et al., IEEE JBHI 2021): every statement listed in
`scp_codes` counts, whatever its likelihood, unless the option `likelihood` asks for a least one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import Field

from cache.errors import InputError, MissingFileError, UsageError
from cache.records import Target
from stages.cohorts._registry import register
from stages.cohorts.contract import Cohort, Entries, Options, Published, check_not_empty
from stages.cohorts.labels.ptbxl_plus import add_features
from stages.readers.prefixes import relocated, some_exist
from stages.readers.tables import numbers, read_table

COLUMNS = ["ecg_id", "patient_id", "age", "sex", "scp_codes", "strat_fold", "filename_lr", "filename_hr"]
AGE_OVER_89 = 300.0
_CODE = re.compile(r"""['"]([A-Za-z0-9_()/+-]{1,20})['"]\s*:\s*(-?\d+(?:\.\d*)?|nan|None)""")
_WHOLE = re.compile(r"\{\s*(?:['\"][^'\"{}]{1,20}['\"]\s*:\s*[^,{}'\"\s][^,{}'\"]*(?:,\s*|(?=\})))*\}")
LONGEST_CELL = 10_000
# Target, its columns in scp_statements.csv (which statements count, what each is called), what it is.
GROUPS = {
    "superclass": ("diagnostic", "diagnostic_class", "diagnostic superclasses"),
    "subclass": ("diagnostic", "diagnostic_subclass", "diagnostic subclasses"),
    "diag44": ("diagnostic", None, "diagnostic statements"),
    "form": ("form", None, "form statements"),
    "rhythm": ("rhythm", None, "rhythm statements"),
    "all71": (None, None, "all SCP-ECG statements"),
}


class PtbxlOptions(Options):
    """Which of the two sets of files is read, which statements count, and which features of PTB-XL+ are labels.

    Attributes
    ----------
    plus
        Folder of PTB-XL+; None: no features.
    plus_features
        `PROVIDER:COLUMN`, with `*` for any characters: `unig:PR_Int_*`.
    strat_folds
        Numbers of `strat_fold` (1 to 10) whose records are taken; all if not given.
    """

    plus: str | None = None
    plus_features: list[str] = Field(default_factory=list)
    rate: int = 500
    likelihood: float = Field(0.0, ge=0, le=100)
    strat_folds: list[Annotated[int, Field(ge=1, le=10)]] = Field(default_factory=list)


@register("ptbxl")
class Ptbxl(Cohort):
    """PTB-XL in its own layout."""

    title = "PTB-XL (ptbxl_database.csv, scp_statements.csv, records500/ or records100/)"
    manifests = ("ptbxl_database.csv", "scp_statements.csv")
    licence = "CC BY 4.0"
    options_type = PtbxlOptions
    options: PtbxlOptions

    @property
    def hint(self) -> str:
        """Name the rate that this copy of PTB-XL has, where it lacks the one asked for."""
        asked = self.options.rate
        other = 100 if asked == 500 else 500
        if (self.folder / f"records{asked}").is_dir() or not (self.folder / f"records{other}").is_dir():
            return ""
        return f"this copy has records{other}/ alone: set cohort.options: {{rate: {other}}}"

    def entries(self) -> Entries:
        """Read ptbxl_database.csv and scp_statements.csv."""
        rate, likelihood = self.options.rate, self.options.likelihood
        if rate not in (100, 500):
            raise UsageError(f"source 'ptbxl', option 'rate': PTB-XL has 500 and 100, got {rate}")
        path = self.require("ptbxl_database.csv")
        table, notes = read_table(path, COLUMNS)
        check_not_empty(table, path)
        frame = pd.DataFrame({"record_id": table["ecg_id"], "patient_id": table["patient_id"].map(_whole)})
        frame["path"] = self._paths(table, rate, notes)
        targets = self._add_statements(frame, table["scp_codes"], likelihood, notes)
        targets += _add_age_and_sex(frame, table, notes)
        if self.options.plus is not None or self.options.plus_features:
            targets += self._features(frame, notes)
        folds = numbers(table["strat_fold"])
        if not np.isin(folds, np.arange(1, 11)).all():
            raise InputError(f"{path}: strat_fold is not a number from 1 to 10 in every row")
        frame["fold"] = folds.astype(int) - 1
        if self.options.strat_folds:
            frame = frame[np.isin(folds, self.options.strat_folds)].reset_index(drop=True)
            check_not_empty(frame, path)
        return Entries(frame, targets, notes, Published(n_folds=10, val=8, test=9))

    def _features(self, frame: pd.DataFrame, notes: list[str]) -> list[Target]:
        if self.options.plus is None or not self.options.plus_features:
            raise UsageError("source 'ptbxl': options 'plus' and 'plus_features' are needed together")
        return add_features(frame, Path(self.options.plus).expanduser(), self.options.plus_features, notes)

    def _paths(self, table: pd.DataFrame, rate: int, notes: list[str]) -> pd.Series:
        """Return the path of each record at a rate; where only those of the other rate are there, that is an error."""
        columns, other = {500: "filename_hr", 100: "filename_lr"}, 600 - rate
        paths = relocated(self.folder, table[columns[rate]], ".hea", notes)
        if not some_exist(self.folder, paths, ".hea") and some_exist(self.folder, table[columns[other]], ".hea"):
            raise MissingFileError(
                f"{self.folder / f'records{rate}'} holds no record, records{other} does; "
                f"cohort.options: {{rate: {other}}} reads these"
            )
        return paths

    def _add_statements(
        self, frame: pd.DataFrame, cells: pd.Series, likelihood: float, notes: list[str]
    ) -> list[Target]:
        names = _names_of_statements(self.require("scp_statements.csv"))
        parsed = [_parse(cell) for cell in cells]
        unreadable = sum(codes is None for codes in parsed)
        if unreadable:
            notes.append(f"{unreadable} scp_codes cells cannot be read: their statements are null")
        unknown = sorted({code for codes in parsed for code in codes or {}} - set(names["all71"]))
        if unknown:
            notes.append(f"statements that scp_statements.csv does not have are left out: {', '.join(unknown)[:200]}")
        targets = []
        for target, (_, _, description) in GROUPS.items():
            name_of = names[target]
            classes = tuple(sorted(set(name_of.values())))
            # Only diagnostic statements carry a likelihood; form and rhythm statements are listed with 0.
            frame[target] = [_present(codes, name_of, names["diag44"], likelihood) for codes in parsed]
            targets.append(
                Target(target, "multilabel", classes=classes, description=description, parents=_parents(target, names))
            )
        return targets


def _parents(target: str, names: dict[str, dict[str, str]]) -> tuple[tuple[str, str, str], ...]:
    """List (class, target, parent class): a subclass is a kind of its superclass, a statement of its subclass."""
    above = {"superclass": None, "subclass": "superclass", "rhythm": None}.get(target, "subclass")
    if above is None:
        return ()
    parent_of = names[above]
    return tuple(sorted({(name, above, parent_of[code]) for code, name in names[target].items() if code in parent_of}))


def _names_of_statements(path: Path) -> dict[str, dict[str, str]]:
    """Map target -> statement -> name of the class it counts as."""
    frame, _ = read_table(path)
    frame = frame.rename(columns={frame.columns[0]: "code"})
    needed = {"diagnostic", "form", "rhythm", "diagnostic_class", "diagnostic_subclass"}
    absent = sorted(needed - set(frame.columns))
    if absent:
        raise InputError(f"{path}: has no column '{absent[0]}'")
    found = {}
    for target, (group, called, _) in GROUPS.items():
        rows = frame if group is None else frame[numbers(frame[group]) == 1]
        names = rows["code"] if called is None else rows[called]
        found[target] = {c: n for c, n in zip(rows["code"], names, strict=True) if isinstance(c, str) and n is not None}
    return found


def _parse(cell: str | None) -> dict[str, float] | None:
    """Read a cell such as {'NORM': 100.0, 'SR': 0.0}; None where it is not one."""
    if cell is None or len(cell) > LONGEST_CELL or not _WHOLE.fullmatch(cell):
        return None
    return {code: float(value) if value[0] in "-0123456789" else 0.0 for code, value in _CODE.findall(cell)}


def _present(
    codes: dict[str, float] | None, name_of: dict[str, str], diagnostic: dict[str, str], likelihood: float
) -> list[str] | None:
    """Return the classes of one record; null where it has no statement of this group (left out by the benchmark)."""
    if codes is None:
        return None
    counted = (c for c, value in codes.items() if c in name_of and (c not in diagnostic or value >= likelihood))
    return sorted({name_of[code] for code in counted}) or None


def _add_age_and_sex(frame: pd.DataFrame, table: pd.DataFrame, notes: list[str]) -> list[Target]:
    age, sex = numbers(table["age"]), numbers(table["sex"])
    capped = int((age == AGE_OVER_89).sum())
    if capped:
        notes.append(f"age: {capped} patients over 89 are given as 300 and become null")
    frame["age"] = np.where((age >= 0) & (age < AGE_OVER_89), age, np.nan)
    frame["sex"] = np.where(np.isin(sex, (0, 1)), sex, np.nan)
    return [
        Target("age", "regression", unit="years", description="at the recording; over 89 is null"),
        Target("sex", "binary", classes=("male", "female"), description="0 male, 1 female"),
    ]


def _whole(text: str | None) -> str | None:
    """Write 15709.0 as 15709."""
    return text.removesuffix(".0") if isinstance(text, str) else None
