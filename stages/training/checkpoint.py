"""Checkpoints of a training run: one file, replaced as a whole, read without running any code in it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from cache.errors import StoreError
from cache.files import replacing

_LOG = logging.getLogger(__name__)


def write_checkpoint(path: Path, identity: str, state: dict[str, Any]) -> None:
    """Replace the checkpoint; `identity` is the digest of everything that the run is made from."""
    with replacing(path) as temporary:
        torch.save({"identity": identity, "state": state}, temporary)


def read_checkpoint(path: Path, identity: str) -> dict[str, Any] | None:
    """Return the state of a run of the same identity, or None where there is none (another run's is told and left).

    Raises
    ------
    StoreError
        A file that is no checkpoint.
    """
    if not path.is_file():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        found, state = content["identity"], content["state"]
    except Exception as error:  # whatever a damaged file provokes
        raise StoreError(f"{path}: not a readable checkpoint ({type(error).__name__}); delete it") from error
    if found != identity:
        _LOG.warning("%s: was made with other records or parameters; starting afresh", path)
        return None
    return dict(state)
