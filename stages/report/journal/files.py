"""tables/: the report's tables as CSV and as LaTeX.

Lives here: both formats. Not here: what stands in the tables.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cache.files import write_text

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\N{EN DASH}": "--",
    "\N{MINUS SIGN}": "$-$",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    "\N{SUPERSCRIPT TWO}": "$^2$",
    "<": "$<$",
    ">": "$>$",
    "\N{HORIZONTAL ELLIPSIS}": r"\ldots{}",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
}
LONG = 60
"""Characters from which on a column's cells are set as paragraphs."""


@dataclass(frozen=True)
class JournalTable:
    """A table of text.

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

    def csv(self) -> str:
        """Return comma-separated values."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.head, *self.rows])
        return out.getvalue()

    def latex(self) -> str:
        """Return a `table` environment that needs the package booktabs and nothing else."""
        long = [any(len(row[k]) > LONG for row in self.rows) for k in range(len(self.head))]
        width = f"p{{{0.8 / max(1, sum(long)):.2f}\\textwidth}}"
        columns = "".join(width if wide else "l" if k == 0 else "r" for k, wide in enumerate(long))
        lines = [" & ".join(map(latex_text, row)) + r" \\" for row in [self.head, *self.rows]]
        return "\n".join(
            [
                r"% needs \usepackage{booktabs}",
                r"\begin{table}",
                rf"\caption{{{latex_text(self.caption)}}}",
                rf"\label{{tab:{re.sub('[^a-z0-9]+', '-', self.name.lower())}}}",
                rf"\begin{{tabular}}{{{columns}}}",
                r"\toprule",
                lines[0],
                r"\midrule",
                *lines[1:],
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
                "",
            ]
        )


def latex_text(words: str) -> str:
    r"""Escape what LaTeX reads otherwise.

    Examples
    --------
    >>> latex_text("5 % of flag_1")
    '5 \\\\% of flag\\\\_1'
    """
    return "".join(_LATEX.get(character, character) for character in words)


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
