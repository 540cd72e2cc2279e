"""Counts what was noted of single records, so that a person sees it without reading thousands of lines."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import pandas as pd

from stages.readers.amplitude import PREFIX as AMPLITUDE
from stages.readers.pacing import SEVERAL
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


class ReadingNotes:
    """What reading showed of all records together, counted from their rows a row group at a time."""

    def __init__(self) -> None:
        self.n_read, self.n_derived, self.n_paced = 0, 0, 0
        self.notes, self.missing, self.swaps = Counter[str](), Counter[str](), Counter[str]()

    def add(self, group: pd.DataFrame) -> None:
        """Count some rows of records.parquet."""
        good = group["status"] == "ok"
        self.n_read += int(good.sum())
        self.notes.update(note for cell in group["notes"] if hasattr(cell, "__len__") for note in cell)
        self.missing.update(name for cell in group.loc[good, "missing_leads"] for name in cell)
        self.n_derived += int((group["derived_leads"].str.len() > 0).sum())
        self.swaps.update(group["limb_swap"].dropna())
        self.n_paced += int((group["pace_spikes"].fillna(0) >= SEVERAL).sum())

    def lines(self) -> list[str]:
        """Say what the columns say of each record: notes, leads that all lack, computed and exchanged leads, pacing."""
        left_out = Counter[str]()
        for note, n in self.notes.items():
            if note.startswith(LEFT_OUT):
                for name in note[len(LEFT_OUT) :].split(", "):
                    left_out[name] += n
        amplitudes = counted_kinds(note for note in self.notes.elements() if note.startswith(AMPLITUDE))
        others = Counter({note: n for note, n in self.notes.items() if not note.startswith((LEFT_OUT, AMPLITUDE))})
        lines = _left_out_lines(left_out) + self._missing_lines()
        lines += [f"{note} ({n} of {self.n_read} records)" for note, n in amplitudes.items()]
        lines += [f"{note} ({n} of {self.n_read} records)" for note, n in others.most_common(N_SHOWN)]
        return [*lines, *self._limb_lines(), *self._pacing_lines()]

    def _missing_lines(self) -> list[str]:
        """Say which standard leads every record lacks; the column `missing_leads` says it of each."""
        missing = [name for name, n in self.missing.items() if n == self.n_read]
        return [f"missing_leads: no record has {', '.join(missing)}"] if missing else []

    def _limb_lines(self) -> list[str]:
        """Say how many records have computed limb leads, or limb leads that look exchanged."""
        lines = []
        if self.n_derived:
            lines.append(f"derived_leads: {self.n_derived} records have limb leads computed from I and II")
        if self.swaps:
            ordered = sorted(self.swaps.items(), key=lambda item: (-item[1], item[0]))
            counted = ", ".join(f"{n} x {kind}" for kind, n in ordered)
            lines.append(f"limb_swap: limb leads of {self.swaps.total()} records look exchanged ({counted})")
        return lines

    def _pacing_lines(self) -> list[str]:
        return [f"pace_spikes: {self.n_paced} records have {SEVERAL} or more"] if self.n_paced else []


def _left_out_lines(left_out: Counter[str]) -> list[str]:
    if not left_out:
        return []
    named = ", ".join(f"{n} x {name}" for name, n in left_out.most_common(N_SHOWN))
    more = f" and {len(left_out) - N_SHOWN} other names" if len(left_out) > N_SHOWN else ""
    return [f"{LEFT_OUT}{named}{more}; cohort.options: {{lead_names: {{NAME: I}}}} says that one is a standard lead"]
