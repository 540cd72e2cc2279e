r"""A table as LaTeX that compiles with pdflatex, whatever its names hold, and fits a page.

Lives here: characters, widths, parts, long tables. Not here: what stands in a table. Widths are counted in
characters: a line of \footnotesize holds `LINE` of them in the narrowest of the usual classes (article, 345 points).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

PACKAGES = r"\usepackage{array,booktabs,longtable}"
LINE = 84
GAP = 1.5
"""What stands between two columns, in characters."""
SENTENCE = 40
"""Characters from which on a cell is a sentence."""
LONG_WORD = 14
PAGE_LINES = 48
"""Lines of a page; a longer table breaks across pages."""

_ASCII = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "<": "$<$",
    ">": "$>$",
    "|": r"\textbar{}",
    '"': "''",
    "[": "{[}",  # a row that begins with a bracket or a star would be an argument of the \\ before it
    "]": "{]}",
    "*": "{*}",
}
_MATHS = {
    "\N{MINUS SIGN}": "-",
    "\N{PLUS-MINUS SIGN}": r"\pm",
    "\N{GREATER-THAN OR EQUAL TO}": r"\geq",
    "\N{LESS-THAN OR EQUAL TO}": r"\leq",
    "\N{NOT EQUAL TO}": r"\neq",
    "\N{ALMOST EQUAL TO}": r"\approx",
    "\N{MULTIPLICATION SIGN}": r"\times",
    "\N{DIVISION SIGN}": r"\div",
    "\N{MIDDLE DOT}": r"\cdot",
    "\N{INFINITY}": r"\infty",
    "\N{SQUARE ROOT}": r"\surd",
    "\N{RIGHTWARDS ARROW}": r"\rightarrow",
    "\N{LEFTWARDS ARROW}": r"\leftarrow",
    "\N{UPWARDS ARROW}": r"\uparrow",
    "\N{DOWNWARDS ARROW}": r"\downarrow",
    "\N{DEGREE SIGN}": r"^\circ",
    "\N{MICRO SIGN}": r"\mu",
    "\N{INCREMENT}": r"\Delta",
    "\N{OHM SIGN}": r"\Omega",
    **{digit: f"^{k}" for k, digit in enumerate("\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")},
    **{chr(0x2080 + k): f"_{k}" for k in range(10)},
}
_TEXT = {
    "\N{EN DASH}": "--",
    "\N{EM DASH}": "---",
    "\N{HYPHEN}": "-",
    "\N{NON-BREAKING HYPHEN}": "-",
    "\N{NO-BREAK SPACE}": "~",
    "\N{NARROW NO-BREAK SPACE}": r"\,",
    "\N{THIN SPACE}": r"\,",
    "\N{HORIZONTAL ELLIPSIS}": r"\ldots{}",
    "\N{LEFT SINGLE QUOTATION MARK}": "`",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "\N{LEFT DOUBLE QUOTATION MARK}": "``",
    "\N{RIGHT DOUBLE QUOTATION MARK}": "''",
    "\N{BULLET}": r"\textbullet{}",
    "\N{EURO SIGN}": "EUR",
    "\N{TRADE MARK SIGN}": r"\texttrademark{}",
    "\N{LATIN SMALL LETTER SHARP S}": r"\ss{}",
}
_NEEDS_T1 = "\u00ab\u00bb\u00de\u00fe\u00d0\u00f0\u0110\u0111\u014a\u014b"
"""Letters that LaTeX's default encoding lacks."""
_LATIN_END = 0x180
_LIKE_LATIN = dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "ABEZHIKMNOPTYX", strict=True))  # noqa: RUF001 - Greek on purpose


def latex_text(words: str) -> str:
    r"""Escape what LaTeX reads otherwise; letters of Latin scripts stay, other ones that pdflatex lacks, too.

    Examples
    --------
    >>> latex_text("5 % of flag_1")
    '5 \\\\% of flag\\\\_1'
    >>> latex_text("QTc ≥ 500 µs²")
    'QTc $\\\\geq$ 500 $\\\\mu$s$^2$'
    """
    return "".join(_character(c) for c in unicodedata.normalize("NFC", " ".join(words.split())))


def beyond_pdflatex(words: str) -> str:
    """Return the characters, once each and sorted, that need XeLaTeX or LuaLaTeX."""
    left = {c for c in unicodedata.normalize("NFC", words) if ord(c) > 127 and _character(c) == c}
    return "".join(sorted(c for c in left if ord(c) >= _LATIN_END or c in _NEEDS_T1))


def _character(character: str) -> str:
    if character in _MATHS:
        return f"${_MATHS[character]}$"
    greek = re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER ([A-Z]+)", unicodedata.name(character, ""))
    if greek:
        return _greek(character, *greek.groups())
    return _ASCII.get(character) or _TEXT.get(character, character)


def _greek(character: str, size: str, name: str) -> str:
    """Return a Greek letter in mathematics; those that look as Latin ones are these, as LaTeX has no others."""
    if size == "CAPITAL" and character in _LIKE_LATIN:
        return _LIKE_LATIN[character]
    command = {"LAMDA": "lambda", "FINAL": "varsigma", "OMICRON": "o"}.get(name, name.lower())
    if command == "o":
        return command
    return f"$\\{command.capitalize() if size == 'CAPITAL' else command}$"


def latex_table(name: str, caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], n_keys: int) -> str:
    """Return a table that fits the width of a page: its cells broken, or its columns in several parts.

    Parameters
    ----------
    n_keys
        Columns that every part repeats.
    """
    columns = [[head[k], *(row[k] for row in rows)] for k in range(len(head))]
    label = f"tab:{re.sub('[^a-z0-9]+', '-', name.lower())}"
    lines = [f"% needs {PACKAGES}"]
    if unusual := beyond_pdflatex("".join(cell for column in columns for cell in column) + caption):
        lines.append(f"% pdflatex lacks {unusual}: use xelatex or lualatex with a font that has them")
    for number, part in enumerate(_parts(columns, n_keys)):
        numbered = f"{caption} (continued)" if number else caption
        marks = "" if number else rf"\label{{{label}}}"
        lines += _part([columns[k] for k in part], rf"\caption{{{latex_text(numbered)}}}{marks}")
    return "\n".join([*lines, ""])


def _longest(column: Sequence[str]) -> tuple[int, int]:
    """Return characters of the longest cell, and of the longest word; in sentences LaTeX breaks long words."""
    cell, word = max(map(len, column)), max((len(word) for cell in column for word in cell.split()), default=1)
    return cell, min(word, LONG_WORD) if cell > SENTENCE else word


def _parts(columns: Sequence[Sequence[str]], n_keys: int) -> list[list[int]]:
    """Return the columns of each part, keys first."""
    least = [_longest(column)[1] + GAP for column in columns]
    keys = list(range(n_keys))
    parts: list[list[int]] = []
    used = LINE + 1.0
    for k in range(n_keys, len(columns)):
        if used + least[k] > LINE:
            parts.append([*keys])
            used = sum(least[:n_keys])
        parts[-1].append(k)
        used += least[k]
    return parts or [keys]


def _widths(columns: Sequence[Sequence[str]]) -> list[float | None]:
    """Return the width of each column, in characters; None: as wide as its longest cell."""
    whole, least = zip(*map(_longest, columns), strict=True)
    if sum(whole) + GAP * len(whole) <= LINE:
        return [None] * len(whole)
    room = LINE - GAP * len(whole) - sum(least)
    wishes = [
        float(sum(map(len, column))) if w > n else 0.0 for column, w, n in zip(columns, whole, least, strict=True)
    ]
    shares = [room * wish / (sum(wishes) or 1.0) for wish in wishes]
    return [min(w, n + share) if w > n else None for w, n, share in zip(whole, least, shares, strict=True)]


def _part(columns: Sequence[Sequence[str]], caption: str) -> list[str]:
    widths = _widths(columns)
    form = "".join(_form(column, width) for column, width in zip(columns, widths, strict=True))
    table = list(zip(*columns, strict=True))
    head, *body = [" & ".join(map(latex_text, row)) + r" \\" for row in table]
    begin = [r"\begingroup\footnotesize\setlength{\tabcolsep}{3pt}"]
    if sum(_height(row, widths) for row in table) <= PAGE_LINES:
        inner = [
            rf"\begin{{tabular}}{{{form}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
        ]
        return [r"\begin{table}", caption, *begin, *inner, r"\par\endgroup", r"\end{table}"]
    repeated = [r"\toprule", head, r"\midrule"]
    return [
        *begin,
        rf"\begin{{longtable}}{{{form}}}",
        rf"{caption} \\",
        *repeated,
        r"\endfirsthead",
        *repeated,
        r"\endhead",
        r"\bottomrule",
        r"\endfoot",
        *body,
        r"\end{longtable}",
        r"\endgroup",
    ]


def _form(column: Sequence[str], width: float | None) -> str:
    """Return how a column is set: numbers to the right, words to the left, what is too wide as paragraphs."""
    if width is None:
        numbers = all(re.match("[-+\N{MINUS SIGN}]?[0-9]|$", cell) for cell in column[1:])
        return "r" if numbers else "l"
    return rf">{{\raggedright\arraybackslash}}p{{{width / LINE:.3f}\linewidth}}"


def _height(row: Sequence[str], widths: Sequence[float | None]) -> int:
    """Return the lines that a row takes."""
    return max(1, *(-(-len(cell) // int(width)) for cell, width in zip(row, widths, strict=True) if width), 1)
