"""The model hub: an expert's published file at its pinned revision, from the local cache or downloaded, digest checked.

`HF_HOME`, `HF_ENDPOINT`, `HF_HUB_OFFLINE` and `HF_TOKEN` mean what huggingface_hub says they mean.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from cache.errors import WeightsError
from cache.files import write_text
from cache.fingerprint import file_digest
from stages.experts._base import ExpertSpec, WeightsSource


def cached(spec: ExpertSpec) -> Path | None:
    """Return the hub's file if it is on this machine already, without asking the network."""
    from huggingface_hub import try_to_load_from_cache

    if spec.weights is None or not spec.weights.repo_id:
        return None
    found = try_to_load_from_cache(spec.weights.repo_id, spec.weights.filename, revision=spec.weights.revision)
    return Path(found) if isinstance(found, str) else None


def fetch(spec: ExpertSpec) -> Path:
    """Return the hub's file, downloading it if needed (with resume and progress), after checking its digest.

    Raises
    ------
    WeightsError
        No public file, no connection, or a file that is not the published one.
    """
    source = spec.weights
    if source is None or not source.repo_id:
        note = f" ({source.note})" if source and source.note else ""
        raise WeightsError(
            f"expert '{spec.name}' has no weights on the model hub{note}; give a file with --weights, "
            f"or experts.{spec.name}.weights in params.yaml"
        )
    path = cached(spec) or _download(spec, source)
    _check_digest(spec, source, path)
    return path


def _download(spec: ExpertSpec, source: WeightsSource) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source.repo_id, source.filename, revision=source.revision))
    except Exception as error:  # the hub client's errors share no base class; all of them mean "not to be had now"
        raise WeightsError(
            f"expert '{spec.name}': cannot get {source.filename} of {source.repo_id} at {source.revision} "
            f"({_reason(error)}); try again, or download it elsewhere and give the file with --weights"
        ) from error


def _reason(error: Exception) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set and the file is not in the local hub cache"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}"[:200] if lines else type(error).__name__


def _check_digest(spec: ExpertSpec, source: WeightsSource, path: Path) -> None:
    """Compare with the published digest, or with the one recorded when this revision was first used here."""
    digest = file_digest(path)
    known = source.sha256 or _entries().get(_key(source))
    if known is None:
        _record(source, digest)
    elif digest != known:
        told = "the published one is" if source.sha256 else "at its first use here it was"
        # The resolved path is the cache's own copy: the name in the snapshot folder is only a link to it.
        raise WeightsError(
            f"expert '{spec.name}': {source.filename} of {source.repo_id} has sha256 {digest[:16]}..., {told} "
            f"{known[:16]}...; delete {path.resolve()} and run `ensemble weights fetch {spec.name}`"
        )


def _ledger() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ensemble" / "weights.json"


def _entries() -> dict[str, str]:
    path = _ledger()
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path}: the record of the weights' digests is not readable; delete it") from error


def _key(source: WeightsSource) -> str:
    return f"{source.repo_id}@{source.revision}/{source.filename}"


def _record(source: WeightsSource, digest: str) -> None:
    write_text(_ledger(), json.dumps({**_entries(), _key(source): digest}, indent=1, sort_keys=True) + "\n")
