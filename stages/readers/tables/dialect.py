"""In which dialect of CSV a table is written: encoding, what parts its cells, lines before its head."""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

DELIMITERS = (",", ";", "\t", "|")
"""Those before win where the head leaves a choice."""
N_LINES = 20
_QUOTE = '"'
_SEP = re.compile(r'"?sep=(.)"?', re.IGNORECASE)
"""First line by which Excel says what parts the cells."""
MOST_SKIPPED = 10
_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


class Dialect(NamedTuple):
    """How a table is written."""

    encoding: str = "utf-8"
    delimiter: str = ","
    skipped: int = 0
    """Lines before the head: a title, comments, Excel's `sep=;`."""

    @property
    def note(self) -> str | None:
        """What a person may want to know of it; None of a usual CSV file."""
        names = {";": "semicolons", "\t": "tabs", "|": "bars"}
        odd = [f"cells parted by {names[self.delimiter]}"] if self.delimiter in names else []
        odd += [] if self.encoding == "utf-8" else [f"text in {self.encoding}"]
        odd = [f"read as {' and '.join(odd)}"] if odd else []
        if self.skipped:
            odd.append(f"its first {self.skipped} lines, before the head, are passed over")
        return "; ".join(odd) or None


def dialect_of(beginning: bytes) -> Dialect:
    r"""Tell a dialect by the first bytes of a file.

    >>> dialect_of(b"record;age\nr1;61,5\n")
    Dialect(encoding='utf-8', delimiter=';', skipped=0)
    """
    encoding = _encoding(beginning)
    text = beginning.decode(encoding, errors="replace").lstrip("\ufeff")
    lines = text.splitlines()[: MOST_SKIPPED + N_LINES + 1]
    # The last one may be cut off.
    lines = lines[:-1] if len(lines) > 1 and not text.endswith(("\n", "\r")) else lines
    named = _SEP.fullmatch(lines[0].strip()) if lines else None
    if named is not None:
        return Dialect(encoding, named[1] if named[1] in DELIMITERS else _delimiter(lines[1:]), 1)
    skipped = _lines_before_head(lines)
    return Dialect(encoding, _delimiter(lines[skipped:]), skipped)


def _lines_before_head(lines: list[str]) -> int:
    """Count the lines of one cell, or of a comment, behind which all lines have the same number of several cells."""
    for k in range(1, min(MOST_SKIPPED, len(lines) - 1) + 1):
        rest = [line for line in lines[k:][:N_LINES] if line.strip()]
        before = [line for line in lines[:k] if line.strip()]
        one = _delimiter(rest)
        counts = {_outside_quotes(line)[one] for line in rest}
        if len(rest) > 1 and len(counts) == 1 and counts != {0} and lines[k].strip():
            plain = all(one not in line for line in before)
            comments = all(line.lstrip().startswith("#") for line in before)
            uneven = {_outside_quotes(line)[one] for line in before}.isdisjoint(counts)
            return k if before and (plain or (comments and uneven)) else 0
    return 0


def _encoding(beginning: bytes) -> str:
    marked = _MARKS.get(beginning[:2])
    if marked is not None:
        return marked
    zeros = [beginning[k:2000:2].count(0) for k in (0, 1)]
    half = len(beginning[:2000]) // 4
    if zeros[1] > half and not zeros[0]:
        return "utf-16-le"
    return "utf-16-be" if zeros[0] > half and not zeros[1] else "utf-8"


def _delimiter(lines: list[str]) -> str:
    """Return what parts the head into most cells and the rows into as many; a comma where nothing does."""
    lines = [line for line in lines if line.strip()][:N_LINES]
    if not lines:
        return ","
    counts = {one: [_outside_quotes(line)[one] for line in lines] for one in DELIMITERS}
    found = [one for one in DELIMITERS if counts[one][0]]
    even = [one for one in found if len(set(counts[one])) == 1]
    return max(even or found or [","], key=lambda one: (counts[one][0], -DELIMITERS.index(one)))


def _outside_quotes(line: str) -> Counter[str]:
    return Counter(part for k, text in enumerate(line.split(_QUOTE)) if k % 2 == 0 for part in text)
