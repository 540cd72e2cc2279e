"""Which rows of a table are those of a record: by path, by file name, and by what spreadsheets leave of both."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import pandas as pd

from cache.errors import InputError

NAMES = ("record_id", "record", "path", "file_name", "filename", "id")
"""Columns that name the record, before all others."""
_ALSO = frozenset(
    {
        *("recordid", "recordname", "record", "path", "filepath", "filename", "file", "id", "name", "ecg", "ecgid"),
        *("ecgpath", "ecgname", "ecgfile", "examid", "exam", "studyid", "study", "waveform", "waveformpath", "signal"),
    }
)
_INDEX = re.compile(r"|unnamed:? ?\d*|index|level_0|#", re.IGNORECASE)
_SUFFIX = re.compile(r"\.(?:hea|dat|mat)$", re.IGNORECASE)
_DIGITS = re.compile(r"\d+", re.ASCII)
MOST_FOLDERS = 6
Form = Callable[[str], Hashable | None]


def plain_key(key: object) -> str:
    """Return a key with slashes, without `./` before and the suffix of a WFDB file behind it."""
    text = str(key).replace("\\", "/")
    while text.startswith("./"):
        text = text[2:]
    return _SUFFIX.sub("", text)


def is_index(name: str) -> bool:
    """Whether a column is the row index that a program has written beside the table."""
    return _INDEX.fullmatch(name) is not None


def key_candidates(table: pd.DataFrame) -> list[str]:
    """Return the columns that may name the record, the likeliest first."""
    by_name = [name for name in NAMES if name in table]
    also = [name for name in table if re.sub(r"[\W_]", "", str(name)).lower() in _ALSO]
    rest = [name for name in table if not is_index(str(name))]
    return list(dict.fromkeys([*by_name, *also, *rest, *table]))


class KeyMatcher:
    """Finds the rows of each record in a column of keys.

    Parameters
    ----------
    paths
        Of the records within their folder, without suffix.
    table_path
        For messages.
    """

    def __init__(self, paths: Sequence[str], table_path: Path) -> None:
        self._paths, self._table = list(paths), table_path
        self._names = [path.rsplit("/", 1)[-1] for path in paths]

    def is_record(self, text: str) -> bool:
        """Whether a text is exactly the path or file name of a record."""
        return plain_key(text) in self._known

    @property
    def _known(self) -> set[str]:
        return {*self._paths, *self._names}

    def count(self, keys: pd.Series) -> int:
        """Return how many different keys are the path or file name of a record, in any spelling."""
        known = self._known | {form for name in self._names if (form := _bare(name)) is not None}
        plain = {plain_key(key) for key in keys if key is not None}
        return sum(key in known or key.rsplit("/", 1)[-1] in known or _bare(key) in known for key in plain)

    def rows(self, keys: pd.Series, notes: list[str]) -> list[list[int]]:
        """Return the rows of each record; none where it has none.

        Raises
        ------
        InputError
            No key is a record, one is the file name of several records, or a record is named in two ways.
        """
        where: dict[str, list[int]] = defaultdict(list)
        for row, key in enumerate(keys):
            if key is not None:
                where[plain_key(key)].append(row)
        found = self._exact(where)
        used = {key for key in found if key is not None}
        for form, says in self._forms():
            self._by_form(form, says, where, found, used, notes)
        self._report(where, found, used, notes)
        return [[] if key is None else where[key] for key in found]

    def _exact(self, where: dict[str, list[int]]) -> list[str | None]:
        short = self._short_names(where)
        for path, name in zip(self._paths, short, strict=True):
            if path != name and path in where and name in where:
                raise InputError(
                    f"{self._table}: names the record {path[:80]!r} more than once, by its path and by its file name"
                )
        return [
            path if path in where else name if name in where else None
            for path, name in zip(self._paths, short, strict=True)
        ]

    def _short_names(self, where: dict[str, list[int]]) -> list[str]:
        """Return the file name by which a key may name each record; its path where that is another one's path."""
        counts, whole = Counter(self._names), set(self._paths)
        for name, path in zip(self._names, self._paths, strict=True):
            if counts[name] > 1 and name in where and name not in whole:
                other = next(q for q, n in zip(self._paths, self._names, strict=True) if n == name and q != path)
                raise InputError(
                    f"{self._table}: the key '{name[:80]}' names {counts[name]} records (such as '{path}' and "
                    f"'{other}'); give their paths instead"
                )
        return [path if name in whole else name for path, name in zip(self._paths, self._names, strict=True)]

    @staticmethod
    def _forms() -> list[tuple[Form, str]]:
        """Return the ways to compare a key with a record, the strictest first, and what is said of each."""
        tails = [(_tail(n), "by the end of their paths") for n in range(MOST_FOLDERS, 0, -1)]
        return [
            *tails,
            (lambda text: text.rsplit("/", 1)[-1].casefold(), "without regard to case"),
            (_bare, "without the zeros or the .0 that spreadsheets take away or add"),
        ]

    def _by_form(
        self,
        form: Form,
        says: str,
        where: dict[str, list[int]],
        found: list[str | None],
        used: set[str],
        notes: list[str],
    ) -> None:
        """Match the keys that are left to the records that are left where only one of each has a form."""
        records: dict[Hashable, list[int]] = defaultdict(list)
        # A form that a record has which is matched already is nobody else's.
        for k, path in enumerate(self._paths):
            if (shape := form(path)) is not None:
                records[shape].append(k)
        keys: dict[Hashable, list[str]] = defaultdict(list)
        for key in where:
            if key not in used and (shape := form(key)) is not None:
                keys[shape].append(key)
        matched = []
        for shape, same in keys.items():
            if len(same) == 1 and len(records.get(shape, ())) == 1 and found[records[shape][0]] is None:
                found[records[shape][0]] = same[0]
                matched.append(same[0])
        used.update(matched)
        if matched:
            notes.append(f"{self._table.name}: {len(matched)} keys (such as {matched[0][:80]!r}) are matched {says}")

    def _report(self, where: dict[str, list[int]], found: list[str | None], used: set[str], notes: list[str]) -> None:
        if not used:
            raise InputError(
                f"{self._table}: none of its {len(where)} keys (such as {next(iter(where), '')[:80]!r}) is a record "
                f"(such as '{self._paths[0]}'); name the right column by the option 'id'"
            )
        unused = [key for key in where if key not in used]
        if unused:
            notes.append(f"{self._table.name}: {len(unused)} keys (such as {unused[0][:80]!r}) have no record")
        if None in found:
            notes.append(f"{self._table.name}: {found.count(None)} records have no row; their labels are null")


def _tail(n_parts: int) -> Form:
    def form(text: str) -> str | None:
        parts = text.split("/")
        return "/".join(parts[-n_parts:]) if len(parts) >= n_parts else None

    return form


def _bare(text: str) -> str | None:
    """Return a number's digits without zeros before them and .0 behind; None of what is no number."""
    name = text.rsplit("/", 1)[-1].removesuffix(".0")
    return (name.lstrip("0") or "0") if _DIGITS.fullmatch(name) else None
