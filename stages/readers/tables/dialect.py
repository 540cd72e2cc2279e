"""In which dialect of CSV a table is written: its encoding and what separates its cells, told by its beginning."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

DELIMITERS = (",", ";", "\t", "|")
"""Those before win where the head leaves a choice."""
N_LINES = 20
_QUOTE = '"'
_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


class Dialect(NamedTuple):
    """How a table is written."""

    encoding: str = "utf-8"
    delimiter: str = ","

    @property
    def note(self) -> str | None:
        """What a person may want to know of it; None of a usual CSV file."""
        names = {";": "semicolons", "\t": "tabs", "|": "bars"}
        odd = [f"cells parted by {names[self.delimiter]}"] if self.delimiter in names else []
        odd += [] if self.encoding == "utf-8" else [f"text in {self.encoding}"]
        return f"read as {' and '.join(odd)}" if odd else None


def dialect_of(beginning: bytes) -> Dialect:
    r"""Tell a dialect by the first bytes of a file.

    >>> dialect_of(b"record;age\nr1;61,5\n")
    Dialect(encoding='utf-8', delimiter=';')
    """
    encoding = _encoding(beginning)
    text = beginning.decode(encoding, errors="replace").lstrip("\ufeff")
    lines = [line for line in text.splitlines()[: N_LINES + 1] if line.strip()]
    # The last one may be cut off.
    lines = lines[:-1] if len(lines) > 1 and not text.endswith(("\n", "\r")) else lines
    return Dialect(encoding, _delimiter(lines[:N_LINES]))


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
    if not lines:
        return ","
    counts = {one: [_outside_quotes(line)[one] for line in lines] for one in DELIMITERS}
    found = [one for one in DELIMITERS if counts[one][0]]
    even = [one for one in found if len(set(counts[one])) == 1]
    return max(even or found or [","], key=lambda one: (counts[one][0], -DELIMITERS.index(one)))


def _outside_quotes(line: str) -> Counter[str]:
    return Counter(part for k, text in enumerate(line.split(_QUOTE)) if k % 2 == 0 for part in text)
