"""What `ensemble similar` is asked for, and where it looks."""

from __future__ import annotations

from typing import Any

from cache.errors import UsageError
from cache.record_rows import RecordRows
from pipeline.study.folder import Study
from pipeline.views.ecgs import find_ecg
from pipeline.views.maps import space_paths
from pipeline.views.new_ecgs import of_expert, of_fit
from stages.settings import usable_cores
from stages.similar import SimilarPaths, SimilarSettings


def similar_settings(
    study: Study, record: str, expert: str | None, gate: bool, task: str | None, device: str | None, **options: Any
) -> SimilarSettings:
    """Say whose neighbours are asked for; a name that is no record id is a file, which is embedded.

    Raises
    ------
    UsageError
        An expert and the gate at once, or a task without the gate.
    """
    if expert is not None and gate:
        raise UsageError("--expert and --gate: neighbours lie in one space; give one of them")
    if expert is not None and task is not None:
        raise UsageError(f"--task {task}: only the gate's space has a task; leave --expert out")
    ecg = None
    if RecordRows(study.records).find(record) is None:
        read = find_ecg(study, record)
        ecg = of_fit(study, read, device) if expert is None else of_expert(study, read, expert, device)
    return SimilarSettings(record, ecg=ecg, task=task, threads=usable_cores(), **options)


def similar_paths(study: Study, expert: str | None) -> SimilarPaths:
    """Return where neighbours are looked for; indexes lie in the study's state folder."""
    return SimilarPaths(study.records, space_paths(study, expert), study.state / "indexes")
