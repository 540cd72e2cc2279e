"""Writes blocks in MIMIC-IV-ECG's own layout: WFDB records, its CSV files, and the hosp tables beside them.

Not here: what is written (cohort.py). Headers and samples are written directly, far faster than through wfdb;
the tests read every record back with wfdb.
"""

from __future__ import annotations

import csv
import gzip
import io
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from stages.synthetic.cohort import Chunk, Defect, PatientBlock
from stages.synthetic.heart import LEADS, N_SAMPLES, RATE_HZ
from stages.synthetic.labels import N_REPORT_LINES
from stages.synthetic.labs import COLUMNS as LAB_COLUMNS
from stages.synthetic.mortality import ADMISSION_COLUMNS, admission_rows
from stages.synthetic.patients import ANCHOR_GROUPS

RECORD_COLUMNS = ["subject_id", "study_id", "file_name", "ecg_time", "path"]
MEASURED = ["rr_interval", "p_onset", "p_end", "qrs_onset", "qrs_end", "t_end", "p_axis", "qrs_axis", "t_axis"]
MACHINE_COLUMNS = [
    "subject_id",
    "study_id",
    "cart_id",
    "ecg_time",
    *(f"report_{k}" for k in range(N_REPORT_LINES)),
    "bandwidth",
    "filtering",
    *MEASURED,
]
PATIENT_COLUMNS = ["subject_id", "gender", "anchor_age", "anchor_year", "anchor_year_group", "dod"]
_FIRST_STAY = 20_000_000
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


class MimicWriter:
    """Open a cohort folder, add blocks in order, close it; rows are streamed, so memory does not grow."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = ExitStack()

    def __enter__(self) -> MimicWriter:
        """Create the folders and the tables with their heads."""
        hosp = self._folder / "hosp"
        hosp.mkdir(parents=True)
        self._records = self._table(self._folder / "record_list.csv", RECORD_COLUMNS)
        self._machine = self._table(self._folder / "machine_measurements.csv", MACHINE_COLUMNS)
        self._patients = self._table(hosp / "patients.csv.gz", PATIENT_COLUMNS)
        self._labs = self._table(hosp / "labevents.csv.gz", LAB_COLUMNS)
        self._stays = self._table(hosp / "admissions.csv.gz", ADMISSION_COLUMNS)
        self._names = self._files.enter_context((self._folder / "RECORDS").open("w", encoding="ascii", newline="\n"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Close every table."""
        self._files.close()

    def _table(self, path: Path, columns: list[str]) -> Any:
        file = self._files.enter_context(path.open("wb"))
        text = self._files.enter_context(_pack(file) if path.suffix == ".gz" else _as_text(file))
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        return writer

    def add_tables(self, block: PatientBlock, n_records: int) -> None:
        """Write the patients, laboratory rows and hospital stays of the block's first `n_records` records."""
        people = block.people
        shown = int(block.schedule.patient[n_records - 1]) + 1
        for i in range(shown):
            death = "" if np.isnat(people.death[i]) else str(people.death[i])
            self._patients.writerow(
                [
                    people.subject_id[i],
                    "M" if people.male[i] else "F",
                    people.anchor_age[i],
                    people.anchor_year[i],
                    ANCHOR_GROUPS[people.anchor_group[i]],
                    death,
                ]
            )
        last = int(people.subject_id[shown - 1])
        self._labs.writerows(row for row in block.labs if int(row[1]) <= last)
        stays = admission_rows(block.stays, block.schedule.patient, people.subject_id, _FIRST_STAY + block.first_record)
        self._stays.writerows(row for row in stays if int(row[0]) <= last)

    def add_signals(self, block: PatientBlock, chunk: Chunk) -> None:
        """Write the records of one chunk and their rows in the lists."""
        for i, row in enumerate(range(chunk.rows.start, chunk.rows.stop)):
            subject = int(block.people.subject_id[block.schedule.patient[row]])
            study = int(block.study_id[row])
            path = f"files/p{subject // 10_000}/p{subject}/s{study}/{study}"
            time = block.schedule.time[row].astype("datetime64[s]")
            stamp = str(time).replace("T", " ")
            self._names.write(path + "\n")
            self._records.writerow([subject, study, study, stamp, path])
            lines = chunk.reports[i] + [""] * (N_REPORT_LINES - len(chunk.reports[i]))
            measured = [getattr(chunk.measured, name)[i] for name in MEASURED]
            cart = block.cart
            conditions = [cart.bandwidth[row], cart.filtering[row]]
            self._machine.writerow([subject, study, cart.cart_id[row], stamp, *lines, *conditions, *measured])
            kept = ~chunk.losses.absent[i]
            write_record(
                self._folder / path, subject, time, chunk.counts[i], kept=kept, defect=Defect(block.defect[row])
            )


def _as_text(file: BinaryIO | gzip.GzipFile) -> io.TextIOWrapper:
    return io.TextIOWrapper(file, encoding="utf-8", newline="")


def _pack(file: BinaryIO) -> io.TextIOWrapper:
    # No name and no time in the gzip head: equal rows give equal bytes.
    return _as_text(gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0))


def write_record(
    path: Path, subject: int, time: np.datetime64, counts: np.ndarray, *, kept: np.ndarray, defect: Defect
) -> None:
    """Write one WFDB record: `path`.hea and `path`.dat, format 16, 200 per mV.

    Parameters
    ----------
    counts
        int16 [12, time].
    kept
        [12] bool; the other leads are not in the files at all.
    defect
        What is to be broken; a truncated file keeps the header that promises more.
    """
    if defect is Defect.NO_FILE:
        return
    path.parent.mkdir(parents=True)
    names = [name for name, keep in zip(LEADS, kept, strict=True) if keep]
    samples = np.ascontiguousarray(counts[kept].T).astype("<i2", copy=False)
    header = header_text(path.name, subject, time, names, samples)
    if defect is Defect.BAD_DATE:
        header = header.replace(_date(time), _spoken_date(time), 1)
    path.with_suffix(".hea").write_bytes(header.encode("ascii"))
    data = samples.tobytes()
    path.with_suffix(".dat").write_bytes(data[: len(data) * 3 // 5 + 1] if defect is Defect.TRUNCATED else data)


def header_text(name: str, subject: int, time: np.datetime64, leads: list[str], samples: np.ndarray) -> str:
    """Return a WFDB header (header(5) of the WFDB manual) with first values and 16-bit checksums.

    `samples` is int16 [time, lead].
    """
    first = samples[0]
    checksums = samples.sum(axis=0, dtype=np.int64) % 65536
    clock = str(time)[11:19]
    lines = [f"{name} {len(leads)} {RATE_HZ} {N_SAMPLES} {clock} {_date(time)}"]
    lines += [
        f"{name}.dat 16 200.0(0)/mV 16 0 {value} {checksum} 0 {lead}"
        for value, checksum, lead in zip(first.tolist(), checksums.tolist(), leads, strict=True)
    ]
    return "\n".join([*lines, f"# subject_id: {subject}", ""])


def _date(time: np.datetime64) -> str:
    year, month, day = str(time)[:10].split("-")
    return f"{day}/{month}/{year}"


def _spoken_date(time: np.datetime64) -> str:
    year, month, day = str(time)[:10].split("-")
    return f"{day}-{_MONTHS[int(month) - 1]}-{year}"
