"""Run records: what each run did and how long it took, in the study's state folder (never among DVC's outputs)."""

from __future__ import annotations

import json
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("ecg-ensemble", "torch", "transformers", "peft", "numpy", "scipy", "zarr", "scikit-learn")


def versions() -> dict[str, str]:
    """Return the versions that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write_run(state: Path, name: str, content: dict[str, Any]) -> Path:
    """Write the record of one run as .ensemble/runs/NAME.json, replacing that of the run before."""
    from cache.files import write_text

    path = state / "runs" / f"{name}.json"
    stamped = {**content, "versions": versions(), "finished_at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    write_text(path, json.dumps(stamped, indent=1) + "\n")
    return path
