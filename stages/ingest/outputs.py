"""What ingest leaves for a person: records.parquet, bad_records.csv, and a summary by reason.

Not here: how a record is judged (stages/readers).
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cache.errors import InputError
from cache.records import BASE_COLUMNS, open_records, write_records
from cache.storage.locations import Location
from cache.storage.writing import Guard, store_text
from stages.ingest.label_lines import label_lines
from stages.ingest.record_notes import counted_kinds, notes_on
from stages.ingest.record_table import EXTRA, Rows
from stages.readers.pacing import SEVERAL
from stages.readers.rows import QUALITY, RowOptions


@dataclass(frozen=True)
class IngestSummary:
    """What came of it.

    Attributes
    ----------
    reasons
        First reason of a kind -> bad records of that kind, most frequent first; bad_records.csv names each.
    labels
        Target -> records that have it.
    splits
        train, val, test -> records.
    notes
        What the source left out of the labels and why.
    n_new
        Records that were not there before.
    """

    n_records: int
    n_bad: int
    n_patients: int
    reasons: dict[str, int]
    labels: dict[str, int]
    splits: dict[str, int]
    notes: list[str]
    n_new: int
    hint: str = ""
    """What to look at where no record can be read."""

    def refuse_all_bad(self, folder: Path) -> None:
        """Raise where no record could be read: nothing after ingest can work, and the reason is at hand.

        Raises
        ------
        InputError
            Naming the commonest reason, and what may help.
        """
        if self.n_bad < max(1, self.n_records):
            return
        reason = next(iter(self.reasons), "no reason given")
        hint = f"; {self.hint}" if self.hint else ""
        raise InputError(
            f"all {self.n_records} records of {folder} are bad ({reason}); bad_records.csv names each{hint}"
        )


def add_quality(rows: Rows, new: dict[str, pd.Series], records_path: Location) -> None:
    """Put the quality columns of the rows that were there, read one by one, and of the new ones into the table."""
    for name, column in new.items():
        if rows.kept is None:
            rows.frame[name] = column
        else:
            found = open_records(records_path, columns=[name])
            kept = found[name] if name in found else pd.Series([None] * rows.n_kept)
            parts = [kept.astype(QUALITY[name]), column]
            rows.frame[name] = pd.concat([part for part in parts if len(part)], ignore_index=True)


def write_tables(records_path: Location, rows: Rows, row_options: RowOptions, guard: Guard | None = None) -> None:
    """Write records.parquet, and bad_records.csv beside it."""
    frame = rows.frame
    columns = [*BASE_COLUMNS, *EXTRA, *(t.name for t in rows.targets)]
    write_records(records_path, frame[columns], rows.targets, EXTRA, row_options.to_json(), guard)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["record_id", "patient_id", "path", "reason"])
    bad = frame[frame["status"] == "bad"]
    writer.writerows(zip(bad["record_id"], bad["patient_id"], bad["path"], bad["reason"], strict=True))
    store_text(records_path.parent / "bad_records.csv", text.getvalue(), guard)


def summary_of(rows: Rows, hint: str = "") -> IngestSummary:
    """Count what a person wants to know."""
    frame = rows.frame
    bad = frame.loc[frame["status"] == "bad", "reason"]
    counts = frame["split"].value_counts()
    return IngestSummary(
        n_records=len(frame),
        n_bad=len(bad),
        n_patients=int(frame["patient_id"].nunique()),
        reasons=counted_kinds(bad),
        labels={t.name: int(frame[t.name].notna().sum()) for t in rows.targets},
        splits={name: int(counts.get(name, 0)) for name in ("train", "val", "test")},
        notes=[*rows.notes, *notes_on(frame), *_of_limbs(frame), *_of_pacing(frame), *label_lines(rows)],
        n_new=len(frame) - rows.n_kept,
        hint=hint,
    )


def _of_limbs(frame: pd.DataFrame) -> list[str]:
    """Say how many records have computed limb leads, or limb leads that look exchanged."""
    notes = []
    derived = int((frame["derived_leads"].str.len() > 0).sum())
    if derived:
        notes.append(f"derived_leads: {derived} records have limb leads computed from I and II")
    kinds = Counter(frame["limb_swap"].dropna())
    if kinds:
        counted = ", ".join(f"{n} x {kind}" for kind, n in sorted(kinds.items(), key=lambda item: (-item[1], item[0])))
        notes.append(f"limb_swap: limb leads of {kinds.total()} records look exchanged ({counted})")
    return notes


def _of_pacing(frame: pd.DataFrame) -> list[str]:
    paced = int((frame["pace_spikes"].fillna(0) >= SEVERAL).sum())
    return [f"pace_spikes: {paced} records have {SEVERAL} or more"] if paced else []
