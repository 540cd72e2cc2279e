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
import socket
import threading
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from cache.errors import UsageError, WeightsError
from cache.files import write_text
from cache.fingerprint import file_digest
from stages.experts.contract import ExpertSpec, WeightsSource

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
ANSWER_WITHIN_S = 2.0
"""How long the hub's server may take to accept a connection: the client itself would try for half a minute."""


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
    """Return the hub's file if it and its companions are on this machine already, without asking the network."""
    from huggingface_hub import try_to_load_from_cache

    source = spec.weights
    if source is None or not source.repo_id:
        return None
    for repo_id in (source.repo_id, *source.also_at):
        names = (source.filename, *source.companions)
        found = [try_to_load_from_cache(repo_id, name, revision=asked_revision(source)) for name in names]
        if all(isinstance(path, str) for path in found):
            return Path(str(found[0]))
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
    if not spec.needs_weights:
        raise UsageError(f"expert '{spec.name}' needs no weights: there is nothing to fetch")
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
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    _check_reachable(spec, source, revision)
    errors: list[Exception] = []
    for repo_id in (source.repo_id, *source.also_at):
        try:
            return _download_from(repo_id, source, revision, force)
        except Exception as error:  # noqa: BLE001 - the hub client's errors share no base class; all mean "not to be had now"
            errors.append(error)
            if not isinstance(error, RepositoryNotFoundError):
                break
    gated = (error for error in errors if isinstance(error, GatedRepoError))
    most_telling = next(gated, next((e for e in errors if not isinstance(e, RepositoryNotFoundError)), errors[0]))
    raise WeightsError(
        f"expert '{spec.name}': cannot get {source.filename} of {source.repo_id} at {revision} "
        f"({_reason(most_telling)}); {_fix(spec, source, revision, most_telling)}"
    ) from most_telling


def _download_from(repo_id: str, source: WeightsSource, revision: str, force: bool) -> Path:
    """Download a file and its companions, all of the same commit."""
    from huggingface_hub import hf_hub_download

    path = Path(hf_hub_download(repo_id, source.filename, revision=revision, force_download=force))
    for name in source.companions:
        hf_hub_download(repo_id, name, revision=commit_of(path) or revision, force_download=force)
    return path


def _fix(spec: ExpertSpec, source: WeightsSource, revision: str, error: Exception) -> str:
    """Say what can be done about a download that failed."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError

    if constants.HF_HUB_OFFLINE:
        return "unset HF_HUB_OFFLINE, or download it elsewhere and give the file with --weights"
    if isinstance(error, RevisionNotFoundError) and revision != source.revision:
        return (
            f"that commit of the first use is gone: `ensemble weights fetch {spec.name} --repin` pins the present one"
        )
    if isinstance(error, GatedRepoError) or _status(error) in (401, 403):
        return (
            f"its owners ask for a login: accept their terms at {constants.ENDPOINT}/{source.repo_id}, set HF_TOKEN to "
            "your access token (or run `hf auth login`), and try again"
        )
    return "try again, or download it elsewhere and give the file with --weights"


def _status(error: Exception) -> int:
    """Return the HTTP status that an error of the client stands for, 0 where there was no answer."""
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)


def _check_reachable(spec: ExpertSpec, source: WeightsSource, revision: str) -> None:
    """Find out quickly whether the hub's server, or the proxy on the way to it, takes connections at all.

    Raises
    ------
    WeightsError
        No connection within `ANSWER_WITHIN_S`.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return
    url = urlsplit(constants.ENDPOINT)
    proxies = {} if proxy_bypass(url.hostname or "") else getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    asked = urlsplit(proxy if proxy and "://" in proxy else f"http://{proxy}") if proxy else url
    port = asked.port or (443 if asked.scheme == "https" else 80)
    reason = _no_connection(asked.hostname or "", port)
    if reason:
        through = f" through the proxy {asked.hostname}:{port}" if proxy else ""
        raise WeightsError(
            f"expert '{spec.name}': cannot get {source.filename} of {source.repo_id} at {revision} "
            f"({constants.ENDPOINT} cannot be reached{through}: {reason}); set HF_ENDPOINT to a "
            "mirror, or download it elsewhere and give the file with --weights"
        )


def _no_connection(host: str, port: int) -> str:
    """Return why no connection can be made, "" if one can. Looking a name up knows no time limit: hence the thread."""
    reasons = [f"no answer within {ANSWER_WITHIN_S:g} s"]

    def connect() -> None:
        try:
            socket.create_connection((host, port), ANSWER_WITHIN_S).close()
            reasons.append("")
        except OSError as error:
            reasons.append(error.strerror or str(error))

    attempt = threading.Thread(target=connect, daemon=True)
    attempt.start()
    attempt.join(ANSWER_WITHIN_S)
    return reasons[-1]


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
    known, said_by = _known_digest(source, pin, path)
    if known and digest != known:
        repin = "" if source.sha256 else " (with --repin to take what the hub has now)"
        # The resolved path is the cache's own copy: the name in the snapshot folder is only a link to it.
        raise WeightsError(
            f"expert '{spec.name}': {source.filename} of {source.repo_id} has sha256 {digest[:16]}..., {said_by} "
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
        pins = {key: {"sha256": entry} if isinstance(entry, str) else entry for key, entry in content.items()}
        return {key: dataclasses.asdict(Pin(**entry)) for key, entry in pins.items()}
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
