"""Writes one WFDB record: format 16, a count is a microvolt, with first values and checksums (header(5))."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cache.files import write_text


def write_wfdb(
    path: Path, signals_uv: np.ndarray, leads: Sequence[str], rate_hz: float, derived: Sequence[str] = ()
) -> None:
    """Write `path`.dat and `path`.hea.

    Parameters
    ----------
    signals_uv
        int16 microvolts [lead, time]; -32768 = missing, which is what format 16 has for it.
    derived
        Leads that were computed; a comment names them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.ascontiguousarray(signals_uv.T).astype("<i2", copy=False)
    samples.tofile(path.with_name(f"{path.name}.dat"))
    sums = samples.sum(axis=0, dtype=np.int64) % 65536
    lines = [f"{path.name} {len(leads)} {rate_hz:.10g} {len(samples)}"]
    lines += [
        f"{path.name}.dat 16 1000(0)/mV 16 0 {first} {total} 0 {lead}"
        for first, total, lead in zip(samples[0].tolist(), sums.tolist(), leads, strict=True)
    ]
    comment = [f"# computed from I and II: {', '.join(derived)}"] if derived else []
    write_text(path.with_name(f"{path.name}.hea"), "\n".join([*lines, *comment, ""]))
