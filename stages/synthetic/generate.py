"""Generates a whole cohort, block by block, into a folder.

Not here: one block (cohort.py), the files (write_mimic.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cache.errors import UsageError
from stages.synthetic.cohort import draw_block, draw_chunks
from stages.synthetic.labels import BLOCK_RECORDS
from stages.synthetic.write_mimic import MimicWriter

MAX_VARIETY = 2.0


def generate(
    folder: Path,
    n_records: int = 600,
    seed: int = 0,
    *,
    defect_rate: float = 0.01,
    variety: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a synthetic cohort in MIMIC-IV-ECG's layout, the hosp tables in `folder`/hosp.

    Parameters
    ----------
    folder
        A new or empty folder.
    n_records
        ECGs listed. A smaller cohort is the beginning of a larger one of the same seed.
    seed
        Equal seeds give equal bytes.
    defect_rate
        Share of records with broken files: truncated samples, a malformed date, no file, in turn.
    variety
        Spread of shapes, axes, gains and noise beyond the embedded cohort's: 0 none, 1 wide (`variety`).
    progress
        Called with (records done, records in all) as the work goes on.

    Raises
    ------
    UsageError
        If a number is out of range or the folder is not empty.
    """
    _check(folder, n_records, seed, defect_rate)
    if not 0 <= variety <= MAX_VARIETY:
        raise UsageError(f"variety is {variety}; give a number between 0 and {MAX_VARIETY:g}")
    done = 0
    with MimicWriter(folder) as writer:
        for number in range(-(-n_records // BLOCK_RECORDS)):
            block = draw_block(seed, number, defect_rate, variety)
            wanted = min(BLOCK_RECORDS, n_records - done)
            writer.add_tables(block, wanted)
            for chunk in draw_chunks(block, wanted):
                writer.add_signals(block, chunk)
                done += chunk.rows.stop - chunk.rows.start
                if progress is not None:
                    progress(done, n_records)


def _check(folder: Path, n_records: int, seed: int, defect_rate: float) -> None:
    if n_records < 1:
        raise UsageError(f"n_records is {n_records}; a cohort needs at least 1 record")
    if seed < 0:
        raise UsageError(f"seed is {seed}; give a number from 0 up")
    if not 0 <= defect_rate <= 1:
        raise UsageError(f"defect_rate is {defect_rate}; give a share between 0 and 1")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not an empty folder; name a new one, or remove what it holds")
