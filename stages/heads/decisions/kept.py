"""What a fit keeps of its decisions: one JSON file a kind, of a known schema, or none."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from cache.errors import StoreError
from cache.files import write_text

Kept = TypeVar("Kept")


def write_kept(path: Path, schema_version: int, content: Mapping[str, Any]) -> None:
    """Write the file; without tasks in `content` there is none."""
    if not content["tasks"]:
        path.unlink(missing_ok=True)
        return
    whole = {"schema_version": schema_version, **content}
    write_text(path, json.dumps(whole, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_kept(path: Path, schema_version: int, build: Callable[[dict[str, Any]], Kept]) -> Kept | None:
    """Read the file and build what it holds; None where there is none.

    Raises
    ------
    StoreError
        A damaged file, or one of another schema.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema_version"] != schema_version:
            raise StoreError(f"{path}: schema {content['schema_version']}, expected {schema_version}; fit again")
        return build(content)
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: damaged ({type(error).__name__}: {error}); fit the heads again") from error
