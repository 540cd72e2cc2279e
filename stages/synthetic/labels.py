"""The fifteen report classes: how often each occurs, and what the cart prints for it.

Not here: what a class does to the heart (physiology.py) or to the noise (noise.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

MISSING = 29999
N_REPORT_LINES = 18
BLOCK_RECORDS = 200


class Report(IntEnum):
    """The class of a record's first report line, numbered as the published label is."""

    SINUS = 0
    BRADYCARDIA = 1
    TACHYCARDIA = 2
    FIBRILLATION = 3
    BORDERLINE_AV_BLOCK = 4
    AV_BLOCK = 5
    RAPID_FIBRILLATION = 6
    SINUS_ARRHYTHMIA = 7
    PAC = 8
    PACING = 9
    ST_ELEVATION = 10
    DATA_QUALITY = 11
    PVC = 12
    ECTOPIC_ATRIAL = 13
    OTHER = 14


class Other(IntEnum):
    """What class 14 hides."""

    FLUTTER = 0
    RIGHT_BUNDLE = 1
    LEFT_BUNDLE = 2
    HYPERTROPHY = 3
    JUNCTIONAL = 4


# Records of each class in a block of 200. Sinus rhythm is rarer, and everything else commoner, than in a hospital:
# a class with fewer than ten records in the demo's 600 could neither be learned nor evaluated.
QUOTAS = np.array([60, 22, 22, 16, 8, 8, 8, 8, 8, 8, 6, 6, 8, 4, 8])

FIRST_LINE = {
    Report.SINUS: "Sinus rhythm",
    Report.BRADYCARDIA: "Sinus bradycardia",
    Report.TACHYCARDIA: "Sinus tachycardia",
    Report.FIBRILLATION: "Atrial fibrillation",
    Report.BORDERLINE_AV_BLOCK: "Sinus rhythm with borderline 1st degree A-V block",
    Report.AV_BLOCK: "Sinus rhythm with 1st degree A-V block",
    Report.RAPID_FIBRILLATION: "Atrial fibrillation with rapid ventricular response",
    Report.SINUS_ARRHYTHMIA: "Sinus arrhythmia",
    Report.PAC: "Sinus rhythm with PAC(s)",
    Report.PACING: "Ventricular pacing",
    Report.ST_ELEVATION: "*** CONSIDER ACUTE ST ELEVATION MI ***",
    Report.DATA_QUALITY: "--- Warning: Data quality may affect interpretation ---",
    Report.PVC: "Sinus rhythm with PVC(s)",
    Report.ECTOPIC_ATRIAL: "Possible ectopic atrial rhythm",
}
OTHER_LINE = {
    Other.FLUTTER: "Atrial flutter",
    Other.RIGHT_BUNDLE: "Right bundle branch block",
    Other.LEFT_BUNDLE: "Left bundle branch block",
    Other.HYPERTROPHY: "Left ventricular hypertrophy",
    Other.JUNCTIONAL: "Probable junctional rhythm",
}
REGION_LINES = (
    "Inferior ST elevation, CONSIDER ACUTE INFARCT",
    "Anterior ST elevation, CONSIDER ACUTE INFARCT",
    "Lateral ST elevation, CONSIDER ACUTE INFARCT",
)
NORMAL_CLASSES = frozenset({Report.SINUS, Report.SINUS_ARRHYTHMIA})
BORDERLINE_CLASSES = frozenset({Report.BRADYCARDIA, Report.BORDERLINE_AV_BLOCK, Report.PAC})


@dataclass(frozen=True)
class Measurements:
    """What the cart measures; every array is [record] of whole numbers, `MISSING` where it measured nothing."""

    rr_interval: np.ndarray
    p_onset: np.ndarray
    p_end: np.ndarray
    qrs_onset: np.ndarray
    qrs_end: np.ndarray
    t_end: np.ndarray
    p_axis: np.ndarray
    qrs_axis: np.ndarray
    t_axis: np.ndarray


def draw_reports(rng: np.random.Generator) -> np.ndarray:
    """Return the report classes of one block, [200], shuffled; the counts are `QUOTAS`."""
    return rng.permutation(np.repeat(np.arange(len(QUOTAS)), QUOTAS))


def report_lines(
    report: np.ndarray,
    other: np.ndarray,
    region: np.ndarray,
    *,
    measured: Measurements,
    male: np.ndarray,
    capitals: np.ndarray,
) -> list[list[str]]:
    """Return the printed lines of every record, one to `N_REPORT_LINES` each.

    Parameters
    ----------
    report, other, region
        [record] class, what class 14 hides, the infarct's region (0 inferior, 1 anterior, 2 lateral).
    measured
        The cart's measurements, from which the further lines follow.
    male
        [record] bool; the limit of the QT interval differs.
    capitals
        [record] bool; older carts print in capitals and call the last line a summary.
    """
    return [
        _print(_lines_of(i, report, other, region, measured=measured, male=bool(male[i])), bool(capitals[i]))
        for i in range(len(report))
    ]


def _lines_of(
    i: int, report: np.ndarray, other: np.ndarray, region: np.ndarray, *, measured: Measurements, male: bool
) -> list[str]:
    kind = Report(report[i])
    lines = [OTHER_LINE[Other(other[i])] if kind is Report.OTHER else FIRST_LINE[kind]]
    if kind is Report.DATA_QUALITY:
        lines.append("Sinus rhythm" if measured.rr_interval[i] > 600 else "Sinus tachycardia")
    if kind is Report.ST_ELEVATION:
        lines.append(REGION_LINES[region[i]])
    if kind is Report.PACING:
        return [*lines, "Pacemaker rhythm - no further analysis", "Abnormal ECG"]
    findings = _findings(i, measured, male)
    return [*lines, *findings, _summary(kind, findings)]


def _findings(i: int, measured: Measurements, male: bool) -> list[str]:
    lines = []
    axis = measured.qrs_axis[i]
    if axis < -30:
        lines.append("Left axis deviation")
    elif 90 < axis < MISSING:
        lines.append("Right axis deviation")
    qtc = (measured.t_end[i] - measured.qrs_onset[i]) / np.sqrt(max(measured.rr_interval[i], 300) / 1000)
    if measured.rr_interval[i] != MISSING and qtc > (475 if male else 485):
        lines.append("Prolonged QT interval")
    if measured.t_axis[i] != MISSING and abs(measured.t_axis[i] - axis) > 75:
        lines.append("Nonspecific T wave abnormality")
    return lines


def _summary(kind: Report, findings: list[str]) -> str:
    if kind in NORMAL_CLASSES and not findings:
        return "Normal ECG"
    if (kind in NORMAL_CLASSES or kind in BORDERLINE_CLASSES) and len(findings) < 2:
        return "Borderline ECG"
    return "Abnormal ECG"


def _print(lines: list[str], capitals: bool) -> list[str]:
    return [*(line.upper() for line in lines[:-1]), f"Summary: {lines[-1].upper()}"] if capitals else lines
