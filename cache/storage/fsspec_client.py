"""S3 through s3fs, and any other URL that fsspec knows for reading. fsspec is imported when a client is made.

Credentials and endpoint come from where s3fs looks for them: AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL, ~/.aws
and so on.
"""

from __future__ import annotations

import email.utils
from collections.abc import Sequence
from typing import Any

from cache.errors import StorageError, UsageError
from cache.storage.clients import Entry, Tagged

S3 = ("s3", "s3a")
CONNECT_TIMEOUT_S = 10
DELETED_AT_ONCE = 1000
"""Objects a delete request names at most."""
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


class FsspecClient:
    """Reads what fsspec reads."""

    def __init__(self, protocol: str) -> None:
        self.files = _file_system(protocol)

    def key(self, url: str) -> str:
        """Return a URL as fsspec names it, such as `bucket/study/x`."""
        return str(self.files._strip_protocol(url))  # noqa: SLF001

    def read(self, url: str, start: int, stop: int | None) -> bytes:
        """Return a part of the object."""
        try:
            return bytes(self.files.cat_file(self.key(url), start=start, end=stop))
        except OSError as error:
            if _code(error) in ("InvalidRange", "416"):
                return b""
            raise

    def head(self, url: str) -> Entry | None:
        """Return size and tag; None where there is no object of this very name."""
        try:
            info = self.files.info(self.key(url))
        except FileNotFoundError as error:
            if _code(error) == "NoSuchBucket":
                raise
            return None
        return Entry(int(info["size"]), str(info.get("ETag") or "")) if info["type"] == "file" else None

    def below(self, url: str) -> dict[str, Entry]:
        """Return all objects below a name."""
        start = f"{self.key(url)}/"
        return {
            name.removeprefix(start): Entry(int(info["size"]), str(info.get("ETag") or ""))
            for name, info in self.files.find(self.key(url), detail=True).items()
            if name.startswith(start)
        }

    def children(self, url: str) -> list[str]:
        """Return the last parts of the names right below one."""
        key = self.key(url)
        try:
            names = self.files.ls(key, detail=False)
        except FileNotFoundError as error:
            if _code(error) == "NoSuchBucket":
                raise
            return []
        return [name.rstrip("/").rpartition("/")[2] for name in names if name.rstrip("/") != key]

    def advice(self, error: Exception) -> str | None:
        """Return the line for what fsspec or the package behind it raises."""
        code = _code(error)
        missing = isinstance(error, FileNotFoundError) and code != "NoSuchBucket"
        foreign = isinstance(error, OSError) or type(error).__module__.split(".")[0] in _CLIENTS
        if missing or not foreign:
            return None
        name = type(error).__name__
        first = (str(error).splitlines() or [name])[0]
        return _ADVICE.get(code) or _ADVICE.get(name) or f"{code or name}: {first}; try again"


class S3Client(FsspecClient):
    """Writes too, by requests whose conditions s3fs passes on as they are."""

    unused_tag, rewrite_pause_s = '"0"', 0.0

    def head(self, url: str) -> Entry | None:
        """Return size and tag in one request."""
        try:
            answer = self._call("head_object", url)
        except FileNotFoundError:
            return None
        return Entry(int(answer["ContentLength"]), str(answer["ETag"]))

    def create(self, url: str, content: bytes) -> str:
        """Put the object if there is none."""
        return self._put(url, content, IfNoneMatch="*")

    def replace(self, url: str, content: bytes, tag: str) -> str:
        """Put the object if it still has this tag."""
        return self._put(url, content, IfMatch=tag)

    def _put(self, url: str, content: bytes, **condition: str) -> str:
        try:
            return str(self._call("put_object", url, Body=content, **condition)["ETag"])
        except OSError as error:
            code = _code(error)
            if code in _CONFLICTS or (code in ("NoSuchKey", "404") and "IfMatch" in condition):
                return ""
            raise

    def read_tagged(self, url: str) -> Tagged:
        """Return the object with its tag and times; every answer of S3 has the header Date."""
        from fsspec.asyn import sync

        files, (bucket, key) = self.files, self._bucket_and_key(url)

        async def get() -> tuple[bytes, dict[str, Any]]:
            answer = await files._call_s3("get_object", Bucket=bucket, Key=key)  # noqa: SLF001
            async with answer["Body"] as body:
                return await body.read(), answer

        content, answer = sync(files.loop, get)
        answered = email.utils.parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        return Tagged(content, str(answer["ETag"]), answer["LastModified"], answered)

    def delete(self, url: str) -> None:
        """Delete the object."""
        self.files.rm_file(self.key(url))

    def delete_all(self, urls: Sequence[str]) -> None:
        """Delete objects by the thousand."""
        keys = [self.key(url) for url in urls]
        for first in range(0, len(keys), DELETED_AT_ONCE):
            self.files.rm(keys[first : first + DELETED_AT_ONCE])

    def copy(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Let the server copy."""
        self.files.copy([self.key(source) for source, _ in pairs], [self.key(target) for _, target in pairs])

    def _call(self, method: str, url: str, **arguments: Any) -> dict[str, Any]:
        bucket, key = self._bucket_and_key(url)
        answer: dict[str, Any] = self.files.call_s3(method, Bucket=bucket, Key=key, **arguments)
        return answer

    def _bucket_and_key(self, url: str) -> tuple[str, str]:
        bucket, _, key = self.key(url).partition("/")
        return bucket, key


def _file_system(protocol: str) -> Any:
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if protocol in S3:
        options["config_kwargs"] = {"connect_timeout": CONNECT_TIMEOUT_S}
    try:
        import fsspec

        return fsspec.filesystem(protocol, **options)
    except ImportError as error:
        fix = "pip install 'ecg-ensemble[s3]'" if protocol in S3 else f"install fsspec's package for {protocol}"
        raise StorageError(f"{protocol}://...: the package for it is missing ({error.name or error}); {fix}") from error
    except ValueError as error:
        raise UsageError(
            f"{protocol}://...: unknown kind of storage ({error}); stores lie in folders or under s3://, gs:// or az://"
        ) from error


def _code(error: BaseException) -> str:
    """Return S3's own code of an error, or "" where it has none."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
