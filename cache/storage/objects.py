"""Names of objects behind an fsspec URL, such as `s3://bucket/study/embeddings`, with the few operations stores need.

Not here: what a store is made of, and claims on it (`cache.claims`). fsspec is imported when one is first touched.
Credentials and endpoint come from where the client library looks for them: AWS_ACCESS_KEY_ID, AWS_PROFILE,
AWS_ENDPOINT_URL, ~/.aws and so on; nothing is taken as an argument, so that nothing can end up in a file of a study.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cache.errors import EnsembleError, StorageError, UsageError

CONNECT_TIMEOUT_S = 10
DELETED_AT_ONCE = 1000
"""Objects a delete request names at most."""
_EXTRAS = {"s3": "s3", "s3a": "s3"}
_CLIENTS = ("botocore", "aiobotocore", "aiohttp", "fsspec")
_CONFLICTS = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")
_KEYS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_ADVICE = {
    "NoSuchBucket": "there is no such bucket; make it, or correct the URL",
    "InvalidAccessKeyId": f"the access key is unknown; {_KEYS}",
    "SignatureDoesNotMatch": f"the secret key does not fit the access key; {_KEYS}",
    "ExpiredToken": "the session token has expired; get a new one",
    "AccessDenied": f"access is denied; {_KEYS}, and the bucket's policy (list, get, put and delete are needed)",
    "403": f"access is denied; {_KEYS}, and the bucket's policy (list, get, put and delete are needed)",
    "NoCredentialsError": f"there are no credentials; {_KEYS}",
    "PartialCredentialsError": f"the credentials are incomplete; {_KEYS}",
    "EndpointConnectionError": "the server cannot be reached; check AWS_ENDPOINT_URL and the network",
}


@dataclass(frozen=True)
class Entry:
    """One object as a listing tells it; `tag` changes with the content ("" where the storage has none)."""

    size: int
    tag: str


@dataclass(frozen=True, order=True)
class ObjectPath:
    """The name of an object, or of all objects below it; the counterpart of `pathlib.Path`, of which it has a part.

    A name alone is never looked at: making one costs nothing, and one can be sent to other processes.

    Raises
    ------
    StorageError
        On every access that fails for another reason than that there is no such object: a missing bucket or package,
        refused credentials, a server that does not answer.
    """

    url: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", self.url.rstrip("/"))

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str | Path) -> ObjectPath:
        return ObjectPath(f"{self.url}/{Path(name).as_posix()}")

    def joinpath(self, *names: str) -> ObjectPath:
        """Return the object below this one."""
        return ObjectPath("/".join((self.url, *names)))

    @property
    def name(self) -> str:
        """Last part of the name."""
        return self.url.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """Last part without its suffix."""
        return posixpath.splitext(self.name)[0]

    @property
    def parent(self) -> ObjectPath:
        """The name without its last part."""
        return ObjectPath(self.url.rpartition("/")[0])

    @property
    def protocol(self) -> str:
        """Such as `s3`."""
        return self.url.partition("://")[0]

    def absolute(self) -> ObjectPath:
        """Return itself: a URL is the same everywhere."""
        return self

    # ---- reading -----------------------------------------------------------------------------------------------------

    def read_bytes(self) -> bytes:
        """Read the whole object in one request; FileNotFoundError if there is none."""
        return self.read_range(0, None)

    def read_range(self, start: int, stop: int | None) -> bytes:
        """Read bytes from `start` (negative: from the end) to `stop`; fewer, or none, where the object is shorter."""
        with _named_errors(self):
            try:
                return bytes(self._fs.cat_file(self._key, start=start, end=stop))
            except OSError as error:
                if _code(error) in ("InvalidRange", "416"):
                    return b""
                raise

    def size(self) -> int:
        """Return the bytes of the object; FileNotFoundError if there is none."""
        with _named_errors(self):
            return int(self._fs.info(self._key)["size"])

    def exists(self) -> bool:
        """Whether there is an object of this very name."""
        if self.protocol in _EXTRAS:
            return bool(self.tag())
        with _named_errors(self):
            try:
                return self._fs.info(self._key)["type"] == "file"
            except FileNotFoundError as error:
                if _code(error) == "NoSuchBucket":
                    raise
                return False

    def files(self) -> dict[str, Entry]:
        """List all objects below this name, by their names from here on."""
        with _named_errors(self):
            found = self._fs.find(self._key, detail=True)
        start = f"{self._key}/"
        return {
            name.removeprefix(start): Entry(int(info["size"]), str(info.get("ETag") or ""))
            for name, info in found.items()
            if name.startswith(start)
        }

    def children(self) -> list[ObjectPath]:
        """Return the names right below this one, objects or not, in order."""
        with _named_errors(self):
            try:
                names = self._fs.ls(self._key, detail=False)
            except FileNotFoundError as error:
                if _code(error) == "NoSuchBucket":
                    raise
                return []
        return sorted(self / name.rstrip("/").rpartition("/")[2] for name in names if name.rstrip("/") != self._key)

    # ---- writing -----------------------------------------------------------------------------------------------------

    def require_writable(self) -> None:
        """Refuse a storage without conditional requests, which all writing rests on (`cache.claims.leases`).

        Raises
        ------
        UsageError
            Any protocol but S3's.
        """
        if self.protocol not in _EXTRAS:
            raise UsageError(f"{self}: can only be read; stores are written to s3://... or to a folder")

    def create(self, content: bytes) -> str:
        """Write the object, whole, if there is none of this name; gives its tag, or "" if there is one."""
        return self._put(content, IfNoneMatch="*")

    def replace(self, content: bytes, tag: str) -> str:
        """Write the object, whole, if it is still the one that has this tag; gives its new tag, or "" if it is not."""
        return self._put(content, IfMatch=tag)

    def _put(self, content: bytes, **condition: str) -> str:
        bucket, key = self._bucket_and_key()
        with _named_errors(self):
            try:
                done = self._fs.call_s3("put_object", Bucket=bucket, Key=key, Body=content, **condition)
            except OSError as error:
                code = _code(error)
                if code in _CONFLICTS or (code in ("NoSuchKey", "404") and "IfMatch" in condition):
                    return ""
                raise
        return str(done["ETag"])

    def tag(self) -> str:
        """Return what tells this content from another; "" if there is no such object."""
        bucket, key = self._bucket_and_key()
        with _named_errors(self):
            try:
                return str(self._fs.call_s3("head_object", Bucket=bucket, Key=key)["ETag"])
            except FileNotFoundError:
                return ""

    def read_with_headers(self) -> tuple[bytes, dict[str, Any]]:
        """Return the object and what the server says of it (`ETag`, `LastModified`, the response's own headers)."""
        from fsspec.asyn import sync

        bucket, key = self._bucket_and_key()
        files = self._fs

        async def get() -> tuple[bytes, dict[str, Any]]:
            answer = await files._call_s3("get_object", Bucket=bucket, Key=key)  # noqa: SLF001
            async with answer["Body"] as body:
                return await body.read(), answer

        with _named_errors(self):
            content, answer = sync(files.loop, get)
        return content, answer

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object."""
        with _named_errors(self):
            try:
                self._fs.rm_file(self._key)
            except FileNotFoundError:
                if not missing_ok:
                    raise

    def copy(self, names: list[str], target: ObjectPath) -> None:
        """Copy objects below this name to the same names below another of this storage; the last of them at the end."""
        for part in (names[:-1], names[-1:]):
            with _named_errors(self):
                if part:
                    self._fs.copy([f"{self._key}/{name}" for name in part], [f"{target._key}/{name}" for name in part])

    def delete(self, names: list[str]) -> None:
        """Delete objects below this name, by the thousand."""
        keys = [f"{self._key}/{name}" for name in names]
        for first in range(0, len(keys), DELETED_AT_ONCE):
            with _named_errors(self):
                self._fs.rm(keys[first : first + DELETED_AT_ONCE])

    # ---- the file system ---------------------------------------------------------------------------------------------

    @property
    def _fs(self) -> Any:
        return file_system(self.protocol, os.getpid())

    @property
    def _key(self) -> str:
        return str(self._fs._strip_protocol(self.url))  # noqa: SLF001

    def _bucket_and_key(self) -> tuple[str, str]:
        self.require_writable()
        bucket, _, key = self._key.partition("/")
        return bucket, key


def is_url(location: str | Path | ObjectPath) -> bool:
    """Whether a location is behind fsspec, and no path of this machine."""
    return isinstance(location, ObjectPath) or "://" in str(location)


@lru_cache
def file_system(protocol: str, process: int) -> Any:
    """Return the client for one protocol; one a process, because its connections do not survive a fork."""
    del process
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if protocol in _EXTRAS:
        options["config_kwargs"] = {"connect_timeout": CONNECT_TIMEOUT_S}
    try:
        import fsspec

        return fsspec.filesystem(protocol, **options)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        fix = f"pip install 'ecg-ensemble[{extra}]'" if extra else f"install fsspec's package for {protocol}"
        raise StorageError(f"{protocol}://...: the package for it is missing ({error.name or error}); {fix}") from error
    except ValueError as error:
        raise UsageError(
            f"{protocol}://...: unknown kind of storage ({error}); stores lie in folders or s3://"
        ) from error


def _code(error: BaseException) -> str:
    """Return S3's own code of an error, or "" where it has none."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


@contextlib.contextmanager
def _named_errors(path: ObjectPath) -> Iterator[None]:
    """Turn what a storage's client raises into one line; FileNotFoundError stays where only the object is missing."""
    try:
        yield
    except Exception as error:
        named = storage_error(path, error)
        if named is None:
            raise
        raise named from error


def storage_error(path: ObjectPath, error: Exception) -> StorageError | None:
    """Return the line for an error of a storage's client; None for a missing object, and for what is ours already."""
    code = _code(error)
    missing = isinstance(error, FileNotFoundError) and code != "NoSuchBucket"
    foreign = isinstance(error, OSError) or type(error).__module__.split(".")[0] in _CLIENTS
    if missing or not foreign or isinstance(error, EnsembleError):
        return None
    name = type(error).__name__
    first = (str(error).splitlines() or [name])[0]
    advice = _ADVICE.get(code) or _ADVICE.get(name) or f"{code or name}: {first}; try again"
    return StorageError(f"{path}: {advice}")
