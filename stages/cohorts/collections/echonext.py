"""EchoNext (Poterucha et al., Nature 2025; PhysioNet 1.1.0): ECGs with what an echocardiogram found.

Its traps: the signals are z-scores whose mean and deviation are not published, so they are no millivolts; a flag of 0
may mean that nothing was measured; rows of the split `no_split` are earlier ECGs of validation and test patients.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from cache.errors import InputError
from cache.records import Target
from cache.signals import LEADS
from stages.cohorts import Cohort, Entries, Options, Published, register
from stages.cohorts.contract import check_not_empty, is_file
from stages.cohorts.labels.ages import age_of
from stages.readers import Recording, inside
from stages.readers.amplitude import Amplitude
from stages.readers.arrays.hdf5 import Stamp, stamp_of
from stages.readers.tables import numbers, read_table

RATE_HZ, N_SAMPLES = 250.0, 2500
METADATA = "echonext_metadata_100k.csv"
SPLITS = ("train", "val", "test")
COMPOSITE = "shd_moderate_or_greater_flag"
MEASURED_BY = {
    "lvef_lte_45_flag": ("lvef_value",),
    "lvwt_gte_13_flag": ("ivs_measurement", "lvpw_measurement"),
    "aortic_stenosis_moderate_or_greater_flag": ("aortic_stenosis_value",),
    "aortic_regurgitation_moderate_or_greater_flag": ("aortic_regurgitation_value",),
    "mitral_regurgitation_moderate_or_greater_flag": ("mitral_regurgitation_value",),
    "tricuspid_regurgitation_moderate_or_greater_flag": ("tricuspid_regurgitation_value",),
    "pulmonary_regurgitation_moderate_or_greater_flag": ("pulmonary_regurgitation_value",),
    "rv_systolic_dysfunction_moderate_or_greater_flag": ("rv_systolic_function_value",),
    "pericardial_effusion_moderate_large_flag": ("pericardial_effusion_value",),
    "pasp_gte_45_flag": ("pasp_value",),
    "tr_max_gte_32_flag": ("tr_max_velocity_value",),
}
"""Flag -> the measurements that it was made of: it is null where one of them is not there."""


class EchoNextOptions(Options):
    """What is made of flags without a measurement.

    Attributes
    ----------
    unmeasured
        Whether a flag without its measurement is null (`null`), or as published (`negative`).
    """

    unmeasured: Literal["null", "negative"] = "null"


@register("echonext")
class EchoNext(Cohort):
    """EchoNext in its own layout."""

    title = f"EchoNext ({METADATA}, EchoNext_train_waveforms.npy ...)"
    manifests = (METADATA,)
    licence = "PhysioNet Restricted Health Data License 1.5.0"
    options_type = EchoNextOptions
    options: EchoNextOptions

    @property
    def amplitude(self) -> Amplitude:
        """Z-scores whose means and deviations are not published."""
        return "z-score"

    def entries(self) -> Entries:
        """Read the list; a record is a row of the array of its split."""
        # The release's own README writes its name in capitals.
        other = self.folder / METADATA.replace("echonext", "EchoNext")
        path = other if is_file(other) else self.require(METADATA)
        table, notes = read_table(path)
        check_not_empty(table, path)
        notes.append("signals are z-scores: experts that need millivolts are refused unless asked (zscores_as_mv)")
        self._check(table, path)
        counts = table["split"].value_counts()
        table["row"] = table.groupby("split").cumcount()
        table = table[table["split"].isin(SPLITS)].reset_index(drop=True)
        left = int(counts.sum()) - len(table)
        if left:
            notes.append(f"{left} rows without a split are left out: they are of validation and test patients")
        frame = pd.DataFrame({"record_id": table["ecg_key"], "patient_id": table["patient_key"]})
        frame["path"] = [
            f"EchoNext_{split}_waveforms.npy#{row}" for split, row in zip(table["split"], table["row"], strict=True)
        ]
        frame["fold"] = table["split"].map({name: k for k, name in enumerate(SPLITS)}).astype(int)
        targets = self._labels(frame, table, notes)
        return Entries(frame, targets, notes, Published(len(SPLITS), val=1, test=2))

    def _check(self, table: pd.DataFrame, path: Path) -> None:
        absent = {"ecg_key", "patient_key", "split", COMPOSITE} - set(table.columns)
        if absent:
            raise InputError(f"{path}: has no column '{min(absent)}'; it has: {', '.join(table.columns)[:200]}")

    def _labels(self, frame: pd.DataFrame, table: pd.DataFrame, notes: list[str]) -> list[Target]:
        targets = []
        for flag in [*MEASURED_BY, COMPOSITE]:
            if flag not in table:
                continue
            values = numbers(table[flag])
            sources = [name for name in MEASURED_BY.get(flag, ()) if name in table]
            unknown = table[sources].isna().any(axis=1).to_numpy() if sources else np.zeros(len(table), dtype=bool)
            if self.options.unmeasured == "null" and unknown.any():
                notes.append(f"{flag}: {int(unknown.sum())} of {len(table)} were not measured and are null")
                values = np.where(unknown, np.nan, values)
            name = flag.removesuffix("_flag")
            frame[name] = values
            targets.append(Target(name, "binary", classes=("no", "yes")))
        if "age_at_ecg" in table:
            frame["age"] = [age_of(cell) for cell in table["age_at_ecg"]]
            targets.append(Target("age", "regression", unit="years"))
        if "sex" in table:
            frame["sex"] = table["sex"].str.lower().map({"male": 0.0, "female": 1.0}).astype(float)
            targets.append(Target("sex", "binary", classes=("male", "female"), description="0 male, 1 female"))
        return targets

    def read(self, path: str) -> Recording:
        """Read one record; `path` is FILE#ROW."""
        name, _, row = path.rpartition("#")
        place = inside(self.data, name)
        waveforms = _waveforms(place, stamp_of(place))
        if not row.isdigit() or int(row) >= len(waveforms):
            raise InputError(f"{name} has no row {row}")
        signals = np.asarray(waveforms[int(row), 0], dtype=np.float64).T
        return Recording(signals, LEADS, RATE_HZ, N_SAMPLES, notes=("z-scores: one deviation is stored as 1 mV",))


@lru_cache(maxsize=4)
def _waveforms(path: str, stamp: Stamp) -> np.ndarray:  # noqa: ARG001
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:
        raise InputError(f"{Path(path).name} is no .npy file of numbers") from error
    if rows.ndim != 4 or rows.shape[1:] != (1, N_SAMPLES, len(LEADS)) or rows.dtype.kind != "f":
        raise InputError(f"{Path(path).name} holds {rows.dtype} {rows.shape}, not numbers [record, 1, 2500, 12]")
    return rows
