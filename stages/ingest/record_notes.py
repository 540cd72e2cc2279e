"""Counts what was noted of single records, so that a person sees it without reading thousands of lines."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import pandas as pd

from stages.readers.amplitude import PREFIX as AMPLITUDE
from stages.readers.standard_leads import LEFT_OUT

_PARTICULAR = re.compile(r"'[^']*'|\S*\d\S*|\S+\.(?:hea|dat|mat)\b")
N_SHOWN = 20


def counted_kinds(texts: Iterable[str]) -> dict[str, int]:
    """Count texts by kind, most frequent first; a kind is shown by its first text.

    What differs from record to record (names, numbers) does not make another kind.

    >>> counted_kinds(["r1.dat is cut short", "r2.dat is cut short", "it has no samples"])
    {'r1.dat is cut short, and the like': 2, 'it has no samples': 1}
    """
    counts: Counter[str] = Counter()
    members: dict[str, dict[str, None]] = {}
    for text in texts:
        kind = _PARTICULAR.sub("*", text)
        counts[kind] += 1
        members.setdefault(kind, {})[text] = None
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {next(iter(members[k])) + (", and the like" if len(members[k]) > 1 else ""): n for k, n in ordered}


def notes_on(frame: pd.DataFrame) -> list[str]:
    """Say of all records together what the column `notes` says of each, and which leads are missing throughout."""
    notes = [
        note for cell in frame["notes"] if isinstance(cell, list | tuple) or hasattr(cell, "__len__") for note in cell
    ]
    left_out = Counter(
        name for note in notes if note.startswith(LEFT_OUT) for name in note[len(LEFT_OUT) :].split(", ")
    )
    amplitudes = counted_kinds(note for note in notes if note.startswith(AMPLITUDE))
    others = Counter(note for note in notes if not note.startswith((LEFT_OUT, AMPLITUDE)))
    n_read = int((frame["status"] == "ok").sum())
    lines = _left_out_lines(left_out) + _missing_lines(frame, n_read)
    lines += [f"{note} ({n} of {n_read} records)" for note, n in amplitudes.items()]
    return lines + [f"{note} ({n} of {n_read} records)" for note, n in others.most_common(N_SHOWN)]


def _left_out_lines(left_out: Counter[str]) -> list[str]:
    if not left_out:
        return []
    named = ", ".join(f"{n} x {name}" for name, n in left_out.most_common(N_SHOWN))
    more = f" and {len(left_out) - N_SHOWN} other names" if len(left_out) > N_SHOWN else ""
    return [f"{LEFT_OUT}{named}{more}; cohort.options: {{lead_names: {{NAME: I}}}} says that one is a standard lead"]


def _missing_lines(frame: pd.DataFrame, n_read: int) -> list[str]:
    """Say which standard leads every record lacks; the column `missing_leads` says it of each."""
    cells = frame.loc[frame["status"] == "ok", "missing_leads"]
    counts = Counter(name for cell in cells for name in cell)
    missing = [name for name, n in counts.items() if n == n_read]
    return [f"missing_leads: no record has {', '.join(missing)}"] if missing else []
