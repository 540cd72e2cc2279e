"""Laboratory results around the ECGs, as MIMIC-IV's labevents has them: potassium and what else the same tube gave.

Not here: what potassium does to the heart (physiology.py), the file (write_mimic.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SERUM_POTASSIUM, BLOOD_POTASSIUM = 50971, 50822
WINDOW_HOURS = (-4.0, 1.0)  # from the ECG; a draw inside it gives the ECG its label
COLUMNS = [
    "labevent_id",
    "subject_id",
    "hadm_id",
    "specimen_id",
    "itemid",
    "order_provider_id",
    "charttime",
    "storetime",
    "value",
    "valuenum",
    "valueuom",
    "ref_range_lower",
    "ref_range_upper",
    "flag",
    "priority",
    "comments",
]


@dataclass(frozen=True)
class Analyte:
    """One laboratory item: how it is distributed and how it is printed."""

    itemid: int
    mean: float
    spread: float
    low: float
    high: float
    unit: str
    decimals: int


POTASSIUM = {
    SERUM_POTASSIUM: Analyte(SERUM_POTASSIUM, 4.2, 0.4, 3.3, 5.1, "mEq/L", 1),
    BLOOD_POTASSIUM: Analyte(BLOOD_POTASSIUM, 4.1, 0.4, 3.3, 5.1, "mEq/L", 1),
}
# What comes with it; urine potassium (51097) is there to be mistaken for the real one.
DISTRACTORS = (
    Analyte(50983, 138.5, 4.0, 133, 145, "mEq/L", 0),
    Analyte(50902, 102.0, 5.0, 96, 108, "mEq/L", 0),
    Analyte(50882, 25.0, 3.5, 22, 32, "mEq/L", 0),
    Analyte(50912, 1.2, 0.6, 0.5, 1.2, "mg/dL", 1),
    Analyte(50931, 125.0, 40.0, 70, 105, "mg/dL", 0),
    Analyte(51221, 35.0, 6.0, 36, 48, "%", 1),
    Analyte(51097, 45.0, 18.0, 12, 62, "mEq/L", 0),
)
_SPOILT = 0.03


@dataclass(frozen=True)
class LabDraws:
    """Blood draws of one block, one row each; `potassium` is the value in the tube."""

    record: np.ndarray
    offset_h: np.ndarray
    potassium: np.ndarray


def draw_times(rng: np.random.Generator, potassium: np.ndarray) -> LabDraws:
    """Draw the times of blood draws: one in seven ECGs has none in its window, most have more outside of it.

    The draw nearest to the ECG tells the potassium of the ECG; the others have moved on towards normal.
    """
    record = np.arange(len(potassium))
    labelled = rng.random(len(record)) < 0.86
    low, high = WINDOW_HOURS
    nearest = np.where(rng.random(len(record)) < 0.75, rng.uniform(0.6 * low, -0.1, len(record)), 0.85 * high)
    again = labelled & (rng.random(len(record)) < 0.25)
    parts = [
        (record[labelled], nearest[labelled], potassium[labelled] + rng.normal(0, 0.08, labelled.sum())),
        (record[again], rng.uniform(low + 0.05, 0.75 * low, again.sum()), _moved_on(rng, potassium[again], 0.8)),
    ]
    for first, last in ((-47, -5), (1.5, 47)):
        rows = np.repeat(record, rng.integers(0, 3, len(record)))
        parts.append((rows, rng.uniform(first, last, len(rows)), _moved_on(rng, potassium[rows], 0.4)))
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return LabDraws(*joined)


def _moved_on(rng: np.random.Generator, potassium: np.ndarray, keeps: float) -> np.ndarray:
    return 4.2 + keeps * (potassium - 4.2) + rng.normal(0, 0.3, len(potassium))


def lab_rows(
    rng: np.random.Generator, draws: LabDraws, subject_id: np.ndarray, ecg_time: np.ndarray, first_id: int
) -> list[list[str]]:
    """Return the rows of labevents for one block, in MIMIC's columns, sorted by patient and time.

    Parameters
    ----------
    draws
        The block's blood draws; `draws.record` indexes the next two.
    subject_id, ecg_time
        [record] whose ECG it is and when (datetime64[m]) it was taken.
    first_id
        The number before the first row's `labevent_id`.
    """
    time = ecg_time[draws.record] + np.rint(draws.offset_h * 60).astype(int).astype("timedelta64[m]")
    subject = subject_id[draws.record]
    order = np.lexsort((time, subject))
    rows: list[list[str]] = []
    for i in order:
        rows.extend(_tube(rng, int(subject[i]), time[i], float(draws.potassium[i]), first_id + len(rows)))
    return rows


def _tube(
    rng: np.random.Generator, subject: int, time: np.datetime64, potassium: float, last_id: int
) -> list[list[str]]:
    kind = POTASSIUM[SERUM_POTASSIUM if rng.random() < 0.85 else BLOOD_POTASSIUM]
    others = rng.choice(len(DISTRACTORS), size=int(rng.integers(1, 4)), replace=False)
    hadm = str(20_000_000 + int(rng.integers(10_000_000))) if rng.random() < 0.6 else ""
    specimen, provider = (
        str(int(rng.integers(100_000_000))),
        f"P{int(rng.integers(10)):d}{int(rng.integers(1000)):03d}X",
    )
    stored = time + np.timedelta64(int(rng.integers(25, 110)), "m")
    priority = "STAT" if rng.random() < 0.5 else "ROUTINE"
    spoilt = rng.random() < _SPOILT
    results = [_spoilt(kind) if spoilt else _result(kind, potassium)]
    results += [_result(DISTRACTORS[k], rng.normal(DISTRACTORS[k].mean, DISTRACTORS[k].spread)) for k in others]
    head = [hadm, specimen]
    stamps = [provider, _stamp(time), _stamp(stored)]
    return [
        [str(last_id + 1 + k), str(subject), *head, itemid, *stamps, *measured, priority, comment]
        for k, (itemid, measured, comment) in enumerate(results)
    ]


def _result(kind: Analyte, raw: float) -> tuple[str, list[str], str]:
    number = round(max(raw, 0.1 * kind.mean), kind.decimals)
    value = f"{number:.{kind.decimals}f}"
    outside = not kind.low <= number <= kind.high
    limits = [f"{kind.low:g}", f"{kind.high:g}"]
    return str(kind.itemid), [value, value, kind.unit, *limits, "abnormal" if outside else ""], ""


def _spoilt(kind: Analyte) -> tuple[str, list[str], str]:
    """Return a tube that could not be measured: no number, no flag."""
    limits = [f"{kind.low:g}", f"{kind.high:g}"]
    return str(kind.itemid), ["___", "", kind.unit, *limits, ""], "HEMOLYZED.  TEST NOT PERFORMED."


def _stamp(time: np.datetime64) -> str:
    return str(time.astype("datetime64[s]")).replace("T", " ")
