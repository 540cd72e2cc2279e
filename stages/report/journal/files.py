"""tables/: the report's tables as CSV and as LaTeX.

Lives here: the table, CSV, the folder. Not here: what stands in the tables, LaTeX (`latex`).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cache.files import write_text
from stages.report.journal.latex import latex_table


@dataclass(frozen=True)
class JournalTable:
    """A table of text.

    Attributes
    ----------
    n_keys
        Columns that say what a row is about: repeated where LaTeX sets the table in several parts.

    Examples
    --------
    >>> print(JournalTable("flow", "Flow", ["split", "n"], [["test", "3"]]).csv(), end="")
    split,n
    test,3
    """

    name: str
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    n_keys: int = 1

    def csv(self) -> str:
        """Return comma-separated values."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.head, *self.rows])
        return out.getvalue()

    def latex(self) -> str:
        """Return the text that a manuscript inputs; `stages.report.journal.latex` lays out wide and long tables."""
        return latex_table(self.name, self.caption, self.head, self.rows, self.n_keys)


def write_tables(tables: Sequence[JournalTable], folder: Path) -> tuple[Path, ...]:
    """Write NAME.csv and NAME.tex of every table; files of tables that are gone are removed."""
    written = []
    for table in tables:
        for suffix, text in (("csv", table.csv()), ("tex", table.latex())):
            path = folder / f"{table.name}.{suffix}"
            write_text(path, text)
            written.append(path)
    for pattern in ("*.csv", "*.tex"):
        for path in folder.glob(pattern):
            if path not in written:
                path.unlink()
    return tuple(written)
