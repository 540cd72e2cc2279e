"""Run records: what each run did and how long it took, in the study's state folder (never among DVC's outputs)."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from stages.versions import package_versions


def write_run(state: Path, name: str, content: dict[str, Any]) -> Path:
    """Write the record of one run as .ensemble/runs/NAME.json, replacing that of the run before."""
    from cache.files import write_text

    path = state / "runs" / f"{name}.json"
    stamped = {**content, "versions": package_versions(), "finished_at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    write_text(path, json.dumps(stamped, indent=1) + "\n")
    return path
