"""Small records of noise that wfdb itself writes, and edits of their headers."""

from pathlib import Path

import numpy as np
import wfdb

from cache.signals import LEADS
from stages.readers import Counts, Recording, standardise

NAMES = list(LEADS)


def write(
    folder: Path, name: str = "a", n: int = 5000, leads=NAMES, rate=500, gain=200.0, baseline=0, seed=0, fmt="16"
):
    rng = np.random.default_rng(seed)
    counts = rng.integers(-1500, 1500, (n, len(leads)))
    k = len(leads)
    wfdb.wrsamp(
        name,
        fs=rate,
        units=["mV"] * k,
        sig_name=list(leads),
        d_signal=counts,
        fmt=[fmt] * k,
        adc_gain=[gain] * k if np.isscalar(gain) else list(gain),
        baseline=[baseline] * k if np.isscalar(baseline) else list(baseline),
        write_dir=str(folder),
    )
    return counts


def edit(folder: Path, old: str, new: str, name: str = "a", count: int = 1) -> None:
    path = folder / f"{name}.hea"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def restate(folder: Path, name: str = "a") -> None:
    """State the checksums that the samples, format 16 in one file, have now."""
    path = folder / f"{name}.hea"
    first, *lines = path.read_text().splitlines()
    samples = np.fromfile(folder / f"{name}.dat", dtype="<i2").reshape(-1, len(lines))
    fields = [line.split(None, 8) for line in lines]
    for line, total in zip(fields, samples.sum(axis=0, dtype=np.int64), strict=True):
        line[6] = str(total % 65536)
    path.write_text("\n".join([first, *map(" ".join, fields)]) + "\n")


def row_of(recording):
    return standardise(recording)


def as_millivolts(recording) -> Recording:
    return recording.to_recording() if isinstance(recording, Counts) else recording


def one_file_each(folder: Path, k: int = 4) -> np.ndarray:
    counts = np.random.default_rng(3).integers(-1500, 1500, (1000, k)).astype("<i2")
    lines = [f"a {k} 500 1000"]
    for lead in range(k):
        counts[:, lead].tofile(folder / f"a{lead}.dat")
        total = int(counts[:, lead].sum(dtype=np.int64)) % 65536
        lines.append(f"a{lead}.dat 16 200/mV 16 0 {counts[0, lead]} {total} 0 {NAMES[lead]}")
    (folder / "a.hea").write_text("\n".join(lines) + "\n")
    return counts
