"""What lies in a reader's home before a tutorial begins."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import wfdb

from cache.signals import LEADS
from tests.hospital import write_binary, write_xml
from tests.hospital.ecgs import EIGHT, ecg_of

CARTS = (
    ("muse/MUSE_{:05d}.xml", write_xml.muse, 4.88, EIGHT),
    ("pacs/{:05d}.dcm", write_binary.dicom, 2.5, LEADS),
    ("old-cart/{:05d}.scp", write_binary.scp, 5.0, LEADS),
)


def real_records() -> Path:
    """Return the folder with real ECGs (of ENSEMBLE_TEST_DATA)."""
    return Path(os.environ["ENSEMBLE_TEST_DATA"]) / "ptbxl"


def with_ptbxl(home: Path) -> None:
    """Lay a copy of PTB-XL's first 400 records where its download would lie."""
    (home / "ptb-xl").symlink_to(real_records().resolve())


def with_files_of_carts(home: Path) -> None:
    """Write 240 real ECGs as three carts would, one of them damaged, a text file beside, and a table of patients."""
    source = real_records()
    table = pd.read_csv(source / "ptbxl_database.csv").head(240)
    rows = []
    for at, row in enumerate(table.itertuples()):
        name, write, step_uv, leads = CARTS[at % len(CARTS)]
        path = home / "export" / name.format(int(row.ecg_id))
        path.parent.mkdir(parents=True, exist_ok=True)
        signals_mv = wfdb.rdrecord(str(source / row.filename_hr)).p_signal.T
        ecg = ecg_of(np.nan_to_num(signals_mv) * 1000, step_uv, 500, leads, patient_id=f"{int(row.patient_id):06d}")
        write(replace(ecg, test_id=f"1.2.840.{int(row.ecg_id)}"), path)
        rows.append((path.name, f"{int(row.patient_id):06d}", ("male", "female")[int(row.sex)], f"{row.age:g}"))
    labels = pd.DataFrame(rows, columns=["file", "patient", "sex", "age_years"])
    labels.to_csv(home / "labels.csv", sep=";", index=False)
    damaged = home / "export" / CARTS[0][0].format(int(table.ecg_id.iloc[0]))
    damaged.write_bytes(damaged.read_bytes()[:20_000])
    (home / "export" / "readme.txt").write_text("exported on Monday\n")


def with_nothing(home: Path) -> None:
    """Leave the home empty: the tutorial generates its ECGs."""


HOMES = {
    "ptb-xl-in-five-minutes": with_ptbxl,
    "a-hospitals-folder": with_files_of_carts,
    "embeddings-of-your-own": with_nothing,
    "adapting-a-backbone": with_nothing,
}
