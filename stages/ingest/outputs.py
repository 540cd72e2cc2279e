"""What ingest leaves for a person: records.parquet, bad_records.csv, and a summary by reason.

Not here: how a record is judged (stages/readers).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cache.errors import InputError
from cache.records import check_records, write_record_groups
from cache.storage.locations import Location
from cache.storage.writing import Guard, store_text
from stages.ingest.label_lines import label_lines
from stages.ingest.record_notes import ReadingNotes, counted_kinds
from stages.ingest.record_table import EXTRA, Rows
from stages.ingest.row_groups import Columns, row_groups
from stages.readers.rows import RowOptions


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


def write_tables(
    records_path: Location,
    rows: Rows,
    quality: Iterable[Columns],
    row_options: RowOptions,
    hint: str = "",
    guard: Guard | None = None,
) -> IngestSummary:
    """Write records.parquet, and bad_records.csv beside it, and count what a person wants to know.

    In memory are the list of records, which is there already, and one row group of what reading showed.

    Parameters
    ----------
    quality
        Columns of `QUALITY` of the new rows, in order, any number of rows at a time.
    """
    check_records(rows.frame)
    notes, bad = ReadingNotes(), []

    def counted() -> Iterator[pd.DataFrame]:
        for group in row_groups(rows, quality, records_path):
            notes.add(group)
            bad.append(group.loc[group["status"] == "bad", ["record_id", "patient_id", "path", "reason"]])
            yield group

    write_record_groups(records_path, counted(), rows.targets, EXTRA, row_options.to_json(), guard)
    unread = pd.concat(bad, ignore_index=True)
    store_text(records_path.parent / "bad_records.csv", unread.to_csv(index=False, lineterminator="\n"), guard)
    return _summary(rows, notes, unread["reason"], hint)


def _summary(rows: Rows, notes: ReadingNotes, reasons: pd.Series, hint: str) -> IngestSummary:
    frame = rows.frame
    counts = frame["split"].value_counts()
    return IngestSummary(
        n_records=len(frame),
        n_bad=len(reasons),
        n_patients=int(frame["patient_id"].nunique()),
        reasons=counted_kinds(reasons),
        labels={t.name: int(frame[t.name].notna().sum()) for t in rows.targets},
        splits={name: int(counts.get(name, 0)) for name in ("train", "val", "test")},
        notes=[*rows.notes, *notes.lines(), *label_lines(rows)],
        n_new=len(frame) - rows.n_kept,
        hint=hint,
    )
