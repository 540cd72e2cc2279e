"""Stage `download`: a published collection into a folder, every file checked against its published digest.

PhysioNet publishes SHA-256, figshare MD5. A file gets its name only once it is whole and its digest is the published
one; until then it is NAME.partial, from which a later run goes on. Credentials are used for the requests and written
nowhere. HTTP by requests. Not here: asking for a password (pipeline), reading the records (ingest).
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO
from urllib.parse import quote, urlsplit

import requests
from urllib3.exceptions import HTTPError

from cache.errors import DownloadError, EnsembleError, InputError, UsageError
from cache.files import write_text
from stages.download.figshare import files_of
from stages.download.settings import (
    COLLECTIONS,
    MD5_SUMS,
    SUMS,
    Collection,
    Credentials,
    DownloadPaths,
    DownloadSettings,
    DownloadSummary,
)
from stages.readers.paths import inside

ATTEMPTS = 6
PAUSE_S = 1.0
"""Before the second attempt; doubled each time."""
TIMEOUT_S = (20, 60)
BLOCK_BYTES = 1 << 20
USER_AGENT = "ecg-ensemble"
AGENT_VARIABLE = "ENSEMBLE_USER_AGENT"
"""Our own name, or what a person puts in its place: PhysioNet takes passwords from programs it knows by name only."""
_LINE = re.compile(r"\\?(?P<digest>[0-9a-fA-F]{64}|[0-9a-f]{32})[ \t]+\*?(?P<path>\S[^\r\n]*)")
_KINDS = {64: ("sha256", "SHA-256"), 32: ("md5", "MD5")}
"""Digits of a digest -> what made it; figshare publishes MD5 only."""
Progress = Callable[[int, int], None]


def run(settings: DownloadSettings, paths: DownloadPaths, progress: Progress | None = None) -> DownloadSummary:
    """Bring a collection into a folder; files that are there stay, and a run that was stopped goes on.

    Parameters
    ----------
    progress
        Called with (files done, files in all).

    Raises
    ------
    UsageError
        No such collection, a URL that is none, or a password that would go over an open line.
    DownloadError
        The server cannot be reached, refuses, or sends something else than was published.
    """
    collection, folder = _checked(settings), paths.folder
    chosen = settings.only or collection.only
    on_figshare = collection.figshare is not None
    url = settings.figshare_url.rstrip("/") if on_figshare else f"{settings.base_url.rstrip('/')}/{collection.folder}"
    getter = _Getter(url, folder, None if on_figshare else settings.credentials)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{folder} is not a folder, or lies below a file; name the folder to download into") from error
    except OSError as error:
        raise DownloadError(f"{folder}: cannot be made ({error.strerror})") from error
    sums = folder / collection.list_file
    if collection.figshare is None:
        getter.fetch_list(sums)
    else:
        _list_figshare(getter, collection.figshare, sums, secure=url.startswith("https:"))
    total = sum(1 for _ in _listed(sums, chosen))
    if not total:
        raise UsageError(
            f"{settings.collection}: no file begins with {', '.join(chosen)}; {sums} lists those there are"
        )
    fetched = _fetch_all(getter, _listed(sums, chosen), settings, progress, total)
    taken = [size for size in fetched if size >= 0]
    return DownloadSummary(len(taken), total - len(taken), sum(taken))


def _list_figshare(getter: _Getter, collection: int, sums: Path, *, secure: bool) -> None:
    """Write the list of digests of a collection on figshare, and tell the getter where each file lies."""
    files = files_of(collection, getter.fetch_json, secure=secure)
    getter.urls = {file.name: file.url for file in files}
    write_text(sums, "".join(f"{file.md5}  {file.name}\n" for file in files))


def _checked(settings: DownloadSettings) -> Collection:
    name = settings.collection
    if name not in COLLECTIONS:
        raise UsageError(f"no collection '{name}'; there are: {', '.join(COLLECTIONS)}")
    if COLLECTIONS[name].figshare is not None:
        option, base_url = "--figshare-url", settings.figshare_url
    else:
        option, base_url = "--base-url", settings.base_url
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise UsageError(f"{option} must be http(s)://HOST/PATH, without a user name in it")
    open_line = parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "localhost", "::1")
    if settings.credentials is not None and open_line and option == "--base-url":
        raise UsageError(f"--base-url {base_url}: a password is sent by https only")
    return COLLECTIONS[name]


def _listed(sums: Path, only: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Give (path, digest) of the files in a list of digests, one by one: a collection may have millions."""
    with sums.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            found = _LINE.fullmatch(line.rstrip("\r\n"))
            if found is None:
                if line.strip():
                    raise InputError(f"{sums}: not a list of SHA-256 digests ({line.strip()[:60]!r}); remove it")
                continue
            path = found["path"].removeprefix("./")
            if path not in (SUMS, MD5_SUMS) and path.startswith(only or ""):
                yield path, found["digest"].lower()


def _is_list(path: Path) -> bool:
    try:
        return all(len(digest) == 64 for _, digest in _listed(path, ()))
    except InputError:
        return False


def _fetch_all(
    getter: _Getter,
    listed: Iterator[tuple[str, str]],
    settings: DownloadSettings,
    progress: Progress | None,
    total: int,
) -> Iterator[int]:
    """Give the bytes taken for each file, -1 where it was there; failures are raised after the others are done."""
    running: set[Future[int]] = set()
    failures: list[EnsembleError] = []
    done = 0
    with ThreadPoolExecutor(settings.workers) as pool:
        try:
            while True:
                for path, digest in itertools.islice(listed, 4 * settings.workers - len(running)):
                    running.add(pool.submit(getter.bring, path, digest, settings.verify))
                if not running:
                    break
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    done += 1
                    try:
                        yield future.result()
                    except _RefusedError:
                        raise
                    except EnsembleError as error:
                        failures.append(error)
                if progress is not None:
                    progress(done, total)
        finally:
            getter.stop()
            pool.shutdown(cancel_futures=True)
    if failures:
        more = f" (and {len(failures) - 1} more files)" if len(failures) > 1 else ""
        raise type(failures[0])(f"{failures[0]}{more}")


class _RefusedError(DownloadError):
    """The server does not let us in: no further file is asked for."""


class _TryAgainError(Exception):
    """What came was not whole; the message says why."""


class _Getter:
    """Fetches files of one collection into one folder; used by several threads."""

    def __init__(self, url: str, folder: Path, credentials: Credentials | None) -> None:
        self._url, self._folder, self._credentials = url, folder, credentials
        self._local, self._stopped = threading.local(), threading.Event()
        self.urls: Mapping[str, str] = {}
        """Path -> where it lies, where that is not below the collection's own address."""

    def stop(self) -> None:
        """Let every thread end at its next block; what it has stays for the next run."""
        self._stopped.set()

    def bring(self, path: str, digest: str, verify: bool) -> int:
        """Return the bytes taken, -1 where the file was there."""
        target = Path(inside(self._folder.resolve(), path))
        if target.is_file() and not (verify and _digest(target, digest) != digest):
            return -1
        return self.fetch(path, digest)

    def fetch(self, path: str, digest: str) -> int:
        """Take one file, going on with what an earlier run left of it; returns its bytes."""
        target = Path(inside(self._folder.resolve(), path))

        def once(file: BinaryIO, partial: Path) -> None:
            self._append(path, file)
            file.flush()
            if _digest(partial, digest) != digest:
                file.truncate(0)
                raise _TryAgainError(f"what came does not have the published {_KINDS[len(digest)][1]}")
            partial.replace(target)

        self._insist(path, target, once)
        return target.stat().st_size

    def fetch_list(self, target: Path) -> None:
        """Bring the list of digests up to date: it is sent again only if the server has a later one."""
        known = {"If-Modified-Since": formatdate(target.stat().st_mtime, usegmt=True)} if target.is_file() else {}

        def once(file: BinaryIO, partial: Path) -> None:
            file.truncate(0)  # nothing says whether the rest would belong to this beginning
            changed = self._append(SUMS, file, known)
            file.flush()
            if changed is None:
                partial.unlink()
                return
            if not _is_list(partial):  # a page of excuses must not take the place of the list
                partial.unlink()
                raise DownloadError(f"{self._url}/{SUMS}: what the server sends is no list of SHA-256 digests")
            partial.replace(target)
            if changed:
                stamp = parsedate_to_datetime(changed).timestamp()
                os.utime(target, (stamp, stamp))

        self._insist(SUMS, target, once)

    def _insist(self, path: str, target: Path, once: Callable[[BinaryIO, Path], None]) -> None:
        """Try `once` on the partial file of `target` until it is done, or was tried often enough."""
        partial = target.with_name(f"{target.name}.partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        reason = ""
        for attempt in range(ATTEMPTS):
            if attempt and self._stopped.wait(PAUSE_S * 2 ** (attempt - 1)):
                break
            try:
                with partial.open("ab") as file:
                    _lock(file, partial)
                    return once(file, partial)
            except DownloadError:
                raise
            except (requests.RequestException, HTTPError, _TryAgainError) as error:
                reason = _line(error)
            except OSError as error:
                raise DownloadError(f"{partial}: cannot be written ({error.strerror})") from error
        raise DownloadError(f"{self._url}/{path}: {reason or 'stopped'}; run again to go on")

    def fetch_json(self, path: str) -> Any:
        """Fetch an answer of an API, and read its JSON."""
        reason = ""
        for attempt in range(ATTEMPTS):
            if attempt and self._stopped.wait(PAUSE_S * 2 ** (attempt - 1)):
                break
            try:
                with self._session().get(f"{self._url}/{path}", timeout=TIMEOUT_S) as answer:
                    self._check(answer, path)
                    return answer.json()
            except ValueError as error:
                raise DownloadError(f"{self._url}/{path}: what the server sends is no JSON") from error
            except (requests.RequestException, HTTPError, _TryAgainError) as error:
                reason = _line(error)
        raise DownloadError(f"{self._url}/{path}: {reason or 'stopped'}; run again to go on")

    def _address(self, path: str) -> str:
        return self.urls.get(path) or f"{self._url}/{quote(path)}"

    def _append(self, path: str, file: BinaryIO, headers: Mapping[str, str] = MappingProxyType({})) -> str | None:
        """Write what is missing of a file behind what is there; returns when it was last changed ("" = not said).

        None where the server has nothing later than `headers` ask for.
        """
        start = file.seek(0, 2)
        headers = {**headers, "Range": f"bytes={start}-"} if start else dict(headers)
        with self._session().get(self._address(path), headers=headers, stream=True, timeout=TIMEOUT_S) as answer:
            if answer.status_code == 416:
                return ""  # nothing is left to send; the digest says whether it is the file
            if answer.status_code == 304:
                return None
            self._check(answer, path)
            if answer.status_code != 206 or not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                file.truncate(0)
                if answer.status_code == 206:
                    raise _TryAgainError("the server sent another part than was asked for")
            for block in answer.raw.stream(BLOCK_BYTES, decode_content=False):
                if self._stopped.is_set():
                    raise _TryAgainError("stopped")
                file.write(block)
            return str(answer.headers.get("Last-Modified", ""))

    def _check(self, answer: requests.Response, path: str) -> None:
        status = answer.status_code
        if status in (401, 403):
            raise _RefusedError(f"{self._url}/{path}: {self._refusal(status)}")
        if status in (404, 410):
            raise DownloadError(f"{self._url}/{path}: there is no such file (HTTP {status}); check --base-url")
        if status not in (200, 206):
            raise _TryAgainError(f"the server answers HTTP {status}")

    def _refusal(self, status: int) -> str:
        if self._credentials is None:
            return (
                f"the server asks who we are (HTTP {status}); set PHYSIONET_USERNAME and PHYSIONET_PASSWORD of an "
                "account that has signed the collection's agreement"
            )
        return (
            f"the server refuses this user name and password (HTTP {status}); check PHYSIONET_USERNAME and "
            "PHYSIONET_PASSWORD, and that the account has signed the collection's agreement. PhysioNet takes them from "
            "programs it knows only, such as wget: fetch the files with the wget line of the collection's page and "
            f"run this again with --verify, or set {AGENT_VARIABLE} to a name it knows"
        )

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
            session.headers.update(
                {"User-Agent": os.environ.get(AGENT_VARIABLE) or USER_AGENT, "Accept-Encoding": "identity"}
            )
            who = self._credentials
            # Said even where there is nobody to name: else requests would look for a password in ~/.netrc.
            session.auth = (who.username, who.password) if who else _nobody
        return session


def _nobody(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _lock(file: BinaryIO, partial: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DownloadError(f"{partial}: another download is writing it; wait for it, or stop it") from None


def _digest(path: Path, like: str) -> str:
    """Digest a file by the function that gave `like`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, _KINDS[len(like)][0]).hexdigest()


def _line(error: Exception) -> str:
    """Say in a few words what went wrong on the way."""
    if isinstance(error, requests.Timeout):
        return "the server does not answer in time"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate cannot be trusted"
    if isinstance(error, requests.ConnectionError):
        return "the server cannot be reached"
    if isinstance(error, HTTPError | requests.RequestException):
        return "the connection broke off"
    return str(error)
