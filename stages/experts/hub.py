"""The model hub: an expert's published file at its pinned commit, from the local cache or downloaded, digest checked.

Where the publisher's commit is not known here, the first download pins it: its commit and sha256 are kept in
`~/.cache/ensemble/weights.json`, and from then on exactly that is asked for and accepted. `HF_HOME`, `HF_ENDPOINT`,
`HF_HUB_OFFLINE` and `HF_TOKEN` mean what huggingface_hub says they mean.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from cache.errors import UsageError, WeightsError
from cache.files import write_text
from cache.fingerprint import file_digest
from stages.experts.contract import ExpertSpec, WeightsSource

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Pin:
    """What a file of the hub was at its first use here."""

    sha256: str
    commit: str = ""


def is_commit(revision: str) -> bool:
    """Whether a revision names one commit, rather than a branch that may move."""
    return _COMMIT.fullmatch(revision) is not None


def pin_of(source: WeightsSource) -> Pin | None:
    """Return what this file was at its first use here, None before that."""
    entry = _entries().get(_key(source))
    return None if entry is None else Pin(**entry)


def asked_revision(source: WeightsSource) -> str:
    """Return the published commit, else the one of the first use here, else the branch as it is now."""
    pin = None if is_commit(source.revision) else pin_of(source)
    return pin.commit if pin and pin.commit else source.revision


def cached(spec: ExpertSpec) -> Path | None:
    """Return the hub's file if it is on this machine already, without asking the network."""
    from huggingface_hub import try_to_load_from_cache

    source = spec.weights
    if source is None or not source.repo_id:
        return None
    for repo_id in (source.repo_id, *source.also_at):
        found = try_to_load_from_cache(repo_id, source.filename, revision=asked_revision(source))
        if isinstance(found, str):
            return Path(found)
    return None


def commit_of(path: Path) -> str:
    """Return the commit that a file of the hub's cache belongs to (`.../snapshots/COMMIT/...`), "" elsewhere."""
    commits = [after for before, after in pairwise(path.parts) if before == "snapshots" and is_commit(after)]
    return commits[-1] if commits else ""


def fetch(spec: ExpertSpec, repin: bool = False) -> Path:
    """Return the hub's file, downloading it if needed (with resume and progress), after checking commit and digest.

    Parameters
    ----------
    repin
        Forget what the first use here was, and pin what the hub's branch has now.

    Raises
    ------
    WeightsError
        No public file, no connection, or a file that is not the pinned one.
    UsageError
        `repin` of what the publisher's commit pins.
    """
    source = _hub_source(spec)
    if repin:
        return _pin_again(spec, source)
    path = cached(spec) or _download(spec, source, asked_revision(source))
    _check(spec, source, path)
    return path


def _hub_source(spec: ExpertSpec) -> WeightsSource:
    source = spec.weights
    if source is None or not source.repo_id:
        note = f" ({source.note})" if source and source.note else ""
        raise WeightsError(
            f"expert '{spec.name}' has no weights on the model hub{note}; give a file with --weights, "
            f"or experts.{spec.name}.weights in params.yaml"
        )
    return source


def _pin_again(spec: ExpertSpec, source: WeightsSource) -> Path:
    if is_commit(source.revision) or source.sha256:
        raise UsageError(
            f"expert '{spec.name}': --repin is for weights that the first use pins; these are pinned by this release. "
            "Give other weights with --weights"
        )
    path = _download(spec, source, source.revision, force=True)
    _record(source, Pin(file_digest(path), commit_of(path)))
    return path


def _download(spec: ExpertSpec, source: WeightsSource, revision: str, force: bool = False) -> Path:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    errors: list[Exception] = []
    for repo_id in (source.repo_id, *source.also_at):
        try:
            return Path(hf_hub_download(repo_id, source.filename, revision=revision, force_download=force))
        except Exception as error:  # the hub client's errors share no base class; all mean "not to be had now"
            errors.append(error)
            if not isinstance(error, RepositoryNotFoundError):
                break
    failure = next((e for e in errors if not isinstance(e, RepositoryNotFoundError)), errors[0])
    fix = "try again, or download it elsewhere and give the file with --weights"
    if constants.HF_HUB_OFFLINE:
        fix = "unset HF_HUB_OFFLINE, or download it elsewhere and give the file with --weights"
    if isinstance(failure, RevisionNotFoundError) and revision != source.revision:
        fix = f"that commit of the first use is gone: `ensemble weights fetch {spec.name} --repin` pins the present one"
    raise WeightsError(
        f"expert '{spec.name}': cannot get {source.filename} of {source.repo_id} at {revision} "
        f"({_reason(failure)}); {fix}"
    ) from failure


def _reason(error: Exception) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set and the file is not in the local hub cache"
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        return f"{constants.ENDPOINT} cannot be reached: {error.__cause__}"[:200]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}"[:200] if lines else type(error).__name__


def _check(spec: ExpertSpec, source: WeightsSource, path: Path) -> None:
    """Compare commit and digest with what is pinned; the first use of what is not pins it."""
    digest, commit, pin = file_digest(path), commit_of(path), pin_of(source)
    asked = asked_revision(source)
    if is_commit(asked) and commit not in ("", asked):
        raise WeightsError(
            f"expert '{spec.name}': {source.repo_id} gave commit {commit} where {asked} was asked for; "
            "look at HF_ENDPOINT, or give the file with --weights"
        )
    known, told = _known_digest(source, pin, path)
    if known and digest != known:
        repin = "" if source.sha256 else " (with --repin to take what the hub has now)"
        # The resolved path is the cache's own copy: the name in the snapshot folder is only a link to it.
        raise WeightsError(
            f"expert '{spec.name}': {source.filename} of {source.repo_id} has sha256 {digest[:16]}..., {told} "
            f"{known[:16]}...; delete {path.resolve()} and run `ensemble weights fetch {spec.name}`{repin}"
        )
    if pin is None or (commit and not pin.commit):
        _record(source, Pin(digest, commit))


def _known_digest(source: WeightsSource, pin: Pin | None, path: Path) -> tuple[str, str]:
    """Return the digest that a file must have, and whose word that is: the publisher's, the first use's, the hub's."""
    if source.sha256:
        return source.sha256, "the published one is"
    if pin:
        return pin.sha256, "at its first use here it was"
    announced = path.resolve().name  # the cache names a large file by the sha256 that the hub announced
    return (announced, "the hub announced") if _SHA256.fullmatch(announced) else ("", "")


def _ledger() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ensemble" / "weights.json"


def _entries() -> dict[str, dict[str, str]]:
    path = _ledger()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        told = {key: {"sha256": entry} if isinstance(entry, str) else entry for key, entry in content.items()}
        return {key: dataclasses.asdict(Pin(**entry)) for key, entry in told.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: the record of the weights' digests is not readable; delete it") from error


def _key(source: WeightsSource) -> str:
    return f"{source.repo_id}@{source.revision}/{source.filename}"


def _record(source: WeightsSource, pin: Pin) -> None:
    entries = {**_entries(), _key(source): dataclasses.asdict(pin)}
    try:
        write_text(_ledger(), json.dumps(entries, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        raise WeightsError(
            f"{_ledger()}: cannot record the weights' digest ({error.strerror}); set XDG_CACHE_HOME to a folder that "
            "can be written"
        ) from error
