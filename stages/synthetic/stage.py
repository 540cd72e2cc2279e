"""Stage `generate`: a whole synthetic cohort, block by block, into a folder.

Not here: one block (cohort.py), the files (write_mimic.py).
"""

from __future__ import annotations

from collections.abc import Callable

from cache.errors import UsageError
from stages.synthetic.cohort import draw_block, draw_chunks
from stages.synthetic.labels import BLOCK_RECORDS
from stages.synthetic.settings import GeneratePaths, GenerateSettings, GenerateSummary
from stages.synthetic.write_mimic import MimicWriter


def run(
    settings: GenerateSettings, paths: GeneratePaths, progress: Callable[[int, int], None] | None = None
) -> GenerateSummary:
    """Write a synthetic cohort in MIMIC-IV-ECG's layout.

    Parameters
    ----------
    progress
        Called with (records done, records in all) as the work goes on.

    Raises
    ------
    UsageError
        The folder is not empty.
    """
    folder = paths.folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not an empty folder; name a new one, or remove what it holds")
    done = 0
    with MimicWriter(folder) as writer:
        for number in range(-(-settings.records // BLOCK_RECORDS)):
            block = draw_block(settings.seed, number, settings.defect_rate, settings.variety)
            wanted = min(BLOCK_RECORDS, settings.records - done)
            writer.add_tables(block, wanted)
            for chunk in draw_chunks(block, wanted):
                writer.add_signals(block, chunk)
                done += chunk.rows.stop - chunk.rows.start
                if progress is not None:
                    progress(done, settings.records)
    return GenerateSummary(done)
