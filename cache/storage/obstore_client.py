"""Google Cloud Storage and Azure Blob Storage through obstore, which does their conditional writes and reads.

obstore is imported when a client is made. Credentials and endpoint come from where it looks for them: of Google,
GOOGLE_APPLICATION_CREDENTIALS, GOOGLE_SERVICE_ACCOUNT, `gcloud auth application-default login`, the machine's account;
of Azure, AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY, _SAS_TOKEN, _TOKEN, a service principal or the
machine's identity.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, ClassVar

from cache.errors import StorageError
from cache.storage.clients import Entry, Tagged

GOOGLE = ("gs", "gcs")
AZURE = ("az", "abfs", "abfss")
AZURE_HOST = ".dfs.core.windows.net"
"""Of `abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/...`."""
OPTIONS = {"connect_timeout": "5 seconds", "timeout": "300 seconds", "allow_http": "true"}
"""Of a connection, and of a whole request with its body; only an endpoint of the environment can be http://."""
MAX_RETRIES = 5
BACKOFF = {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=3), "base": 2}
RETRIED_FOR = timedelta(seconds=10)
"""A server out of reach is an error after some 3 s where it refuses, and after 10 s where it is silent."""
IN_FLIGHT = 16
"""Copies that are asked for at a time."""
READ_AND_PUT_AT_ONCE = 4
"""Copies that go through this machine at a time; each holds an object in memory."""
_MISSING_BUCKET = ("NoSuchBucket", "ContainerNotFound", "bucket does not exist")
_NO_BUCKET = "there is no such {bucket}; make it, or correct the URL"
_REFUSED = "access is denied; {keys}, and the rights there (list, get, put and delete are needed)"
_BEHIND_THE_END = ("416 ", "Wanted range starting at")
_NO_GENERATION = "no x-goog-generation"
_BAD_NAME = "Could not parse path"
_ADVICE = {
    _BAD_NAME: "the URL has an empty part, or one of dots alone; correct it",
    _NO_GENERATION: "the storage tells no generations, which keep runs apart; write into a folder and copy it",
    **dict.fromkeys(_MISSING_BUCKET, _NO_BUCKET),
    "Account must be specified": "the URL names no storage account; set AZURE_STORAGE_ACCOUNT_NAME",
    "Error performing token request": "there are no credentials that the server takes; {keys}",
    "Invalid Access Key": "the account key is damaged; {keys}",
    "credential error": "the credentials cannot be read; {keys}",
    "AuthenticationFailed": "the credentials are refused; {keys}",
    "403 Forbidden": _REFUSED,
    "401 Unauthorized": "the credentials are refused; {keys}",
    "error sending request": "the server cannot be reached; check {endpoint} and the network",
}


class _ObstoreClient(ABC):
    """What both storages have in common."""

    extra: str
    words: ClassVar[Mapping[str, str]]
    unused_tag: str
    rewrite_pause_s: float

    def __init__(self, protocol: str) -> None:
        try:
            import obstore
            import obstore.exceptions
            import obstore.store
        except ImportError as error:
            missing = f"{protocol}://...: the package for it is missing ({error.name or error})"
            raise StorageError(f"{missing}; pip install 'ecg-ensemble[{self.extra}]'") from error
        self._obstore: Any = obstore
        self._stores: dict[str, Any] = {}

    @abstractmethod
    def _open(self, root: str) -> Any:
        """Return obstore's store for a bucket or container."""

    def _place(self, url: str) -> tuple[Any, str]:
        """Return the bucket's store, and the name there."""
        root, _, key = url.partition("://")[2].partition("/")
        if root not in self._stores:
            self._stores[root] = self._open(root)
        return self._stores[root], key

    # ---- reading -----------------------------------------------------------------------------------------------------

    def read(self, url: str, start: int, stop: int | None) -> bytes:
        """Return a part of the object."""
        store, key = self._place(url)
        if start == 0 and stop is None:
            return bytes(self._obstore.get(store, key).bytes())
        try:
            if start < 0:
                return self._end(store, key, -start)
            return self._part(store, key, {"offset": start} if stop is None else (start, stop))
        except self._obstore.exceptions.BaseError as error:
            if any(sign in str(error) for sign in _BEHIND_THE_END):
                return b""
            raise

    def _part(self, store: Any, key: str, span: Any) -> bytes:
        return bytes(self._obstore.get(store, key, options={"range": span}).bytes())

    def _end(self, store: Any, key: str, size: int) -> bytes:
        return self._part(store, key, {"suffix": size})

    def head(self, url: str) -> Entry | None:
        """Return size and tag."""
        store, key = self._place(url)
        try:
            facts = self._obstore.head(store, key)
        except FileNotFoundError:
            return None
        return Entry(int(facts["size"]), self._tag(facts))

    def below(self, url: str) -> dict[str, Entry]:
        """Return all objects below a name; a listing gives other tags than `head` where there are generations."""
        store, key = self._place(url)
        start = f"{key}/" if key else ""
        return {
            facts["path"].removeprefix(start): Entry(int(facts["size"]), str(facts["e_tag"] or ""))
            for part in self._obstore.list(store, prefix=key or None, chunk_size=1000)
            for facts in part
        }

    def children(self, url: str) -> Sequence[str]:
        """Return the last parts of the names right below one."""
        store, key = self._place(url)
        found = self._obstore.list_with_delimiter(store, prefix=key or None)
        names = [*found["common_prefixes"], *(facts["path"] for facts in found["objects"])]
        return sorted({name.rstrip("/").rpartition("/")[2] for name in names})

    # ---- writing -----------------------------------------------------------------------------------------------------

    def create(self, url: str, content: bytes) -> str:
        """Put the object if there is none."""
        return self._put(url, content, "create")

    def replace(self, url: str, content: bytes, tag: str) -> str:
        """Put the object if it still has this tag."""
        try:
            return self._put(url, content, self._unchanged(tag))
        except FileNotFoundError as error:
            if any(sign in str(error) for sign in _MISSING_BUCKET):
                raise
            return ""

    def _put(self, url: str, content: bytes, mode: Any) -> str:
        store, key = self._place(url)
        try:
            done = self._obstore.put(store, key, content, mode=mode, use_multipart=False)
        except (self._obstore.exceptions.AlreadyExistsError, self._obstore.exceptions.PreconditionError):
            return ""
        return self._tag(done)

    def read_tagged(self, url: str) -> Tagged:
        """Return the object with its tag; obstore does not pass on when the storage answered."""
        store, key = self._place(url)
        answer = self._obstore.get(store, key)
        content, facts = bytes(answer.bytes()), answer.meta
        return Tagged(content, self._tag(facts), facts["last_modified"])

    def delete(self, url: str) -> None:
        """Delete the object."""
        store, key = self._place(url)
        self._obstore.delete(store, key)

    def delete_all(self, urls: Sequence[str]) -> None:
        """Delete objects, in as many requests at a time as obstore finds right."""
        store, keys = self._place(urls[0])[0], [self._place(url)[1] for url in urls]
        try:
            self._obstore.delete(store, keys)
        except FileNotFoundError:  # somebody else is deleting them: the rest one by one
            for key in keys:
                with contextlib.suppress(FileNotFoundError):
                    self._obstore.delete(store, key)

    def copy(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Let the server copy."""
        store = self._place(pairs[0][0])[0]
        self._each(lambda source, target: self._obstore.copy(store, source, target), pairs, IN_FLIGHT)

    def _each(self, work: Callable[[str, str], object], pairs: Sequence[tuple[str, str]], at_once: int) -> None:
        keys = [(self._place(source)[1], self._place(target)[1]) for source, target in pairs]
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(lambda pair: work(*pair), keys))

    # ---- what differs ------------------------------------------------------------------------------------------------

    @abstractmethod
    def _tag(self, facts: Any) -> str:
        """Return what an answer says of an object's content, in the form in which `_unchanged` takes it."""

    @abstractmethod
    def _unchanged(self, tag: str) -> dict[str, str]:
        """Return obstore's condition that an object has this tag."""

    def advice(self, error: Exception) -> str | None:
        """Return the line for what obstore raises, whose own text is many lines."""
        text = str(error)
        missing = isinstance(error, FileNotFoundError) and not any(sign in text for sign in _MISSING_BUCKET)
        foreign = isinstance(error, OSError | self._obstore.exceptions.BaseError) or _BAD_NAME in text
        if missing or not foreign:
            return None
        known = next((advice for sign, advice in _ADVICE.items() if sign in text), None)
        first = (text.splitlines() or [type(error).__name__])[0]
        return f"{first}; try again" if known is None else known.format(**self.words)


class GoogleClient(_ObstoreClient):
    """Google Cloud Storage: conditions name an object's generation, which every write raises."""

    extra = "gs"
    words: ClassVar = {
        "bucket": "bucket",
        "keys": "check GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`",
        "endpoint": "GOOGLE_BASE_URL, if it is set,",
    }
    unused_tag = "1"  # generations are microseconds since 1970
    rewrite_pause_s = 1.0
    """One write of an object a second is what Google promises: https://cloud.google.com/storage/quotas#objects."""

    def _open(self, root: str) -> Any:
        return self._obstore.store.GCSStore(root, config=OPTIONS, retry_config=_retries())

    def _tag(self, facts: Any) -> str:
        tag = facts.get("version")
        if not tag:
            raise OSError(_NO_GENERATION)
        return str(tag)

    def _unchanged(self, tag: str) -> dict[str, str]:
        return {"version": tag}


class AzureClient(_ObstoreClient):
    """Azure Blob Storage: conditions name an object's ETag."""

    extra = "az"
    words: ClassVar = {
        "bucket": "container",
        "keys": "check AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_SAS_TOKEN",
        "endpoint": "AZURE_STORAGE_ACCOUNT_NAME, or AZURE_STORAGE_ENDPOINT,",
    }
    unused_tag, rewrite_pause_s = '"0x0"', 0.0

    def _open(self, root: str) -> Any:
        container, _, host = root.partition("@")
        named = {"account_name": host.removesuffix(AZURE_HOST)} if host else {}
        return self._obstore.store.AzureStore(container, config={**OPTIONS, **named}, retry_config=_retries())

    def _tag(self, facts: Any) -> str:
        return str(facts["e_tag"])

    def _unchanged(self, tag: str) -> dict[str, str]:
        return {"e_tag": tag}

    def _end(self, store: Any, key: str, size: int) -> bytes:
        """Ask for the size first: Azure has no ranges that are counted from the end."""
        stop = int(self._obstore.head(store, key)["size"])
        return self._part(store, key, (max(0, stop - size), stop)) if stop and size else b""

    def copy(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Read and put: Azure may copy behind its answer, and the source is deleted once the copies are there."""
        store = self._place(pairs[0][0])[0]

        def one(source: str, target: str) -> None:
            content = bytes(self._obstore.get(store, source).bytes())
            self._obstore.put(store, target, content, use_multipart=False)

        self._each(one, pairs, READ_AND_PUT_AT_ONCE)


def _retries() -> dict[str, Any]:
    return {"max_retries": MAX_RETRIES, "backoff": BACKOFF, "retry_timeout": RETRIED_FOR}
