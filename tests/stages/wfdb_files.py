"""Writes small WFDB records as carts, converters and people do, whatever wfdb itself would write."""

from pathlib import Path

import numpy as np

from cache.signals import LEADS


def ecg_mv(n: int = 1500, rate_hz: float = 500.0, seed: int = 0, leads: int = 12) -> np.ndarray:
    """Return beats as mV [time, lead], some other height in every lead, with a little noise."""
    time_s, rng = np.arange(n) / rate_hz, np.random.default_rng(seed)
    beat = np.exp(-(((time_s % 0.8) - 0.3) ** 2) / (2 * 0.012**2)) + 0.2 * np.exp(
        -(((time_s % 0.8) - 0.55) ** 2) / (2 * 0.05**2)
    )
    return beat[:, None] * np.linspace(0.6, 1.7, leads) + 0.01 * rng.standard_normal((n, leads))


def write_record(
    folder: Path,
    name: str = "r1",
    signals_mv: np.ndarray | None = None,
    leads: tuple[str, ...] = LEADS,
    units: tuple[str, ...] | str = "mV",
    gains: tuple[float, ...] | float = 1000.0,
    rate_hz: float = 500.0,
) -> np.ndarray:
    """Write counts = gain times value as format 16, with checksums; returns the counts [time, lead]."""
    folder.mkdir(parents=True, exist_ok=True)
    values = ecg_mv(rate_hz=rate_hz, leads=len(leads)) if signals_mv is None else signals_mv
    gains = (gains,) * len(leads) if isinstance(gains, int | float) else gains
    units = (units,) * len(leads) if isinstance(units, str) else units
    counts = np.rint(values * np.array([gain or 100.0 for gain in gains])).astype("<i2")
    counts.tofile(folder / f"{name}.dat")
    lines = [f"{name} {len(leads)} {rate_hz:g} {len(counts)}"]
    for lead, unit, gain, column in zip(leads, units, gains, counts.T, strict=True):
        total = int(column.astype(np.int64).sum()) % 65536
        lines.append(f"{name}.dat 16 {gain:g}(0)/{unit} 16 0 {column[0]} {total} 0 {lead}")
    (folder / f"{name}.hea").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return counts
