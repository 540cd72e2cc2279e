"""Writing a named expert version, and telling whose records it has seen.

Lives here: the folder's content. Not here: finding and loading versions (`stages.experts.versions`).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.torch import save_file
from torch import Tensor

from cache.fingerprint import canonical_json, file_digest
from cache.patients import People, patient_digests
from cache.record_members import RecordMembers
from stages.experts.checkpoint_files import PACKAGE_FOLDER
from stages.experts.contract import ExpertSpec, patients_key
from stages.experts.versions import (
    FACTS_FILE,
    SCHEMA_VERSION,
    SEEN_FILE,
    SPEC_FACTS,
    WEIGHTS_FILE,
    is_trained_version,
    read_version,
    version_folder,
)


def cohort_facts(records: RecordMembers, rows: np.ndarray, signals_digest: str) -> dict[str, Any]:
    """Say which records made a version: cohorts, counts, and digests of the signals and of the split."""
    facts = records.facts(rows)
    split = {"split_digest": facts.pop("split_digest")}
    return {**facts, "signals_digest": signals_digest, **split}


def patients_seen(name: str, records: pd.DataFrame | People) -> int:
    """Count the patients of `records` that version `name`, or a version it came from, was trained or selected on."""
    return int(np.isin(patient_digests(records), _seen_by(name)).sum())


def packaged_patients_seen(spec: ExpertSpec, records: pd.DataFrame | People) -> int | None:
    """Count the patients of `records` that packaged weights were trained on; None where no list came with them.

    The list knows patients by source and number: those of a study whose numbers are hashed are not found.
    """
    source = spec.weights
    if source is None or not source.patients:
        return None
    digests = np.load(PACKAGE_FOLDER / source.patients, allow_pickle=False)
    return int(np.isin(patient_digests(records, patients_key(spec)), digests).sum())


def _seen_by(name: str | None) -> np.ndarray:
    """Return the digests of the patients that a version has seen; none where it was not made here."""
    if name is None or not is_trained_version(name):
        return np.zeros(0, np.uint64)
    return np.load(read_version(name).folder / SEEN_FILE, allow_pickle=False)


def write_version(
    name: str,
    *,
    base: str,
    spec: ExpertSpec,
    config: Mapping[str, Any],
    preprocessing: str | None,
    state: Mapping[str, Tensor],
    seen: People,
    facts: Mapping[str, Any],
    fill: Callable[[Path], None] | None = None,
) -> Path:
    """Write the folder of a version, replacing one of that name, all or nothing.

    Parameters
    ----------
    spec
        Of the built expert.
    state
        Under the official keys.
    seen
        Whose records it was trained or selected on.
    facts
        What else version.json tells: made_by, cohort, parameters, losses, licence, pretrained_on ...
    fill
        Writes further files into the folder.
    """
    folder = version_folder(name)
    content = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "base": base,
        "config": dict(config),
        "preprocessing": preprocessing,
        "spec": {key: value for key, value in asdict(spec).items() if key in SPEC_FACTS},
        **facts,
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", suffix=".partial", dir=folder.parent) as temporary:
        fresh = Path(temporary) / name
        fresh.mkdir()
        tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
        # One key alone: safetensors keeps several in no fixed order.
        save_file(tensors, fresh / WEIGHTS_FILE, metadata={"ensemble": canonical_json(content)})
        (fresh / WEIGHTS_FILE).chmod(0o644)
        digest = {"weights_sha256": file_digest(fresh / WEIGHTS_FILE)}
        (fresh / FACTS_FILE).write_text(json.dumps({**content, **digest}, indent=1) + "\n", encoding="utf-8")
        np.save(fresh / SEEN_FILE, np.union1d(patient_digests(seen), _seen_by(facts["parent"])), allow_pickle=False)
        if fill is not None:
            fill(fresh)
        if folder.exists():
            shutil.rmtree(folder)
        fresh.rename(folder)
    return folder
