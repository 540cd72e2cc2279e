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
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"expert '{spec.name}': cannot get {source.filename} of {source.repo_id} ({reason}); "
            f"download it elsewhere and give the file with --weights"
        ) from error


def _check_digest(spec: ExpertSpec, source: WeightsSource, path: Path) -> None:
    """Compare with the published digest, or with the one recorded when this revision was first used here."""
    digest = file_digest(path)
    known = source.sha256 or _recorded(source)
    if known is None:
        _record(source, digest)
    elif digest != known:
        raise WeightsError(
            f"expert '{spec.name}': {path} has sha256 {digest[:16]}..., expected {known[:16]}...; "
            f"delete it and run `ensemble weights fetch {spec.name}`"
        )


def _ledger() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ensemble" / "weights.json"


def _entries() -> dict[str, str]:
    try:
        content = json.loads(_ledger().read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return dict(content)


def _key(source: WeightsSource) -> str:
    return f"{source.repo_id}@{source.revision}/{source.filename}"


def _recorded(source: WeightsSource) -> str | None:
    return _entries().get(_key(source))


def _record(source: WeightsSource, digest: str) -> None:
    write_text(_ledger(), json.dumps({**_entries(), _key(source): digest}, indent=1, sort_keys=True) + "\n")
