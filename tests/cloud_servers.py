"""Google's and Azure's object storage on loopback, for tests: the requests that obstore sends, kept in memory.

Conditions are checked and the object is put under one lock, as the real ones do it; on demand they are ignored, or
every request is refused.
"""

import contextlib
import datetime
import email.utils
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 20
"""Names in one answer to a listing: few, so that listings have several pages."""


class Stored(NamedTuple):
    content: bytes
    generation: int
    written: float
    md5: str


def heeded(condition: str, there: bool) -> bool:
    """Say that no condition is ignored."""
    del condition, there
    return False


@dataclass
class Storage:
    """What a server holds, and how it misbehaves."""

    buckets: dict[str, dict[str, Stored]] = field(default_factory=dict)
    ignored: Callable[[str, bool], bool] = heeded
    """Of "IfMatch" or "IfNoneMatch", and whether there is an object: whether the condition is ignored."""
    refuses: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    requests: list[tuple[str, str]] = field(default_factory=list)
    generation: int = 1_700_000_000_000_000

    def put(self, bucket: str, key: str, content: bytes, condition: tuple[str, str] | None) -> Stored | None:
        """Put an object; None where the condition does not hold."""
        md5 = hashlib.md5(content).hexdigest()
        with self.lock:
            objects = self.buckets[bucket]
            old = objects.get(key)
            if condition is not None and not self.ignored(condition[0], old is not None):
                name, wanted = condition
                holds = old is None if name == "IfNoneMatch" else old is not None and str(old.generation) == wanted
                if not holds:
                    return None
            self.generation += 1
            objects[key] = Stored(content, self.generation, time.time(), md5)
            return objects[key]

    def names(self, bucket: str, prefix: str, delimiter: str, after: str) -> tuple[list[str], list[str], str]:
        """Return a page of objects and of common prefixes, and the name after which the next one begins."""
        with self.lock:
            found = sorted(key for key in self.buckets[bucket] if key.startswith(prefix))
        entries = sorted({prefix + _up_to(key.removeprefix(prefix), delimiter) for key in found})
        page = [entry for entry in entries if entry > after][:PAGE]
        more = page[-1] if page and page[-1] != entries[-1] else ""
        folders = [entry for entry in page if delimiter and entry.endswith(delimiter)]
        return [entry for entry in page if entry not in folders], folders, more


def _up_to(name: str, delimiter: str) -> str:
    before, found, _ = name.partition(delimiter) if delimiter else (name, "", "")
    return before + found


class Handler(BaseHTTPRequestHandler):
    """What both have in common; `server.storage` is what they serve."""

    protocol_version, wbufsize, disable_nagle_algorithm = "HTTP/1.1", 1 << 16, True
    forbidden: str

    def log_message(self, *_: object) -> None:
        """Be silent."""

    def _served(self) -> None:
        url = urlsplit(self.path)
        bucket, _, key = unquote(url.path).strip("/").partition("/")
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.storage: Storage = self.server.storage
        self.storage.requests.append((self.command, key))
        if self.storage.refuses:
            self._fail(403, self.forbidden)
        elif bucket not in self.storage.buckets:
            self._fail(404, self.no_bucket)
        else:
            getattr(self, f"_{self.command.lower()}")(bucket, key, query, body)

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):
            return self._served
        raise AttributeError(name)

    def _head(self, bucket: str, key: str, query: dict[str, str], body: bytes) -> None:
        self._get(bucket, key, query, body)

    def _get(self, bucket: str, key: str, query: dict[str, str], body: bytes) -> None:
        del body
        if not key:
            self._list(bucket, query)
        elif (stored := self.storage.buckets[bucket].get(key)) is None:
            self._fail(404, self.no_object)
        else:
            self._give(stored)

    def _give(self, stored: Stored) -> None:
        asked, size = self.headers.get("Range"), len(stored.content)
        facts = {**self._facts(stored), "Last-Modified": email.utils.formatdate(stored.written, usegmt=True)}
        if not asked:
            self._answer(200, stored.content, facts)
            return
        first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", asked).groups()
        start = int(first) if first else max(0, size - int(last))
        stop = min(size, int(last) + 1) if first and last else size
        if start >= size:
            self._fail(416, "InvalidRange")
            return
        self._answer(206, stored.content[start:stop], {**facts, "Content-Range": f"bytes {start}-{stop - 1}/{size}"})

    def _removed(self, bucket: str, key: str) -> bool:
        with self.storage.lock:
            return self.storage.buckets[bucket].pop(key, None) is not None

    def _answer(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _fail(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())


class Google(Handler):
    """Google Cloud Storage by its XML API: conditions name generations."""

    no_bucket, no_object, forbidden = "NoSuchBucket", "NoSuchKey", "AccessDenied"

    def _facts(self, stored: Stored) -> dict[str, str]:
        return {"ETag": f'"{stored.md5}"', "x-goog-generation": str(stored.generation)}

    def _put(self, bucket: str, key: str, query: dict[str, str], body: bytes) -> None:
        del query
        source, wanted = self.headers.get("x-goog-copy-source"), self.headers.get("x-goog-if-generation-match")
        if source:
            body = self.storage.buckets[bucket][unquote(source).partition("/")[2]].content
        condition = None if wanted is None else ("IfNoneMatch" if wanted == "0" else "IfMatch", wanted)
        stored = self.storage.put(bucket, key, body, condition)
        if stored is None:
            self._fail(412, "PreconditionFailed")
        else:
            self._answer(200, b"", self._facts(stored))

    def _delete(self, bucket: str, key: str, *_: object) -> None:
        if self._removed(bucket, key):
            self._answer(204)
        else:
            self._fail(404, self.no_object)

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        names, folders, more = self.storage.names(
            bucket, query.get("prefix", ""), query.get("delimiter", ""), query.get("continuation-token", "")
        )
        objects = self.storage.buckets[bucket]
        listed = "".join(
            f"<Contents><Key>{escape(name)}</Key><Size>{len(objects[name].content)}</Size>"
            f"<LastModified>{datetime.datetime.fromtimestamp(objects[name].written, datetime.UTC).isoformat()}"
            f"</LastModified><ETag>{self._facts(objects[name])['ETag']}</ETag></Contents>"
            for name in names
            if name in objects
        )
        listed += "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in folders)
        listed += f"<NextContinuationToken>{escape(more)}</NextContinuationToken>" if more else ""
        self._answer(200, f"<ListBucketResult>{listed}</ListBucketResult>".encode())


class Azure(Handler):
    """Azure Blob Storage: conditions name ETags, and several blobs are deleted by one request."""

    no_bucket, no_object, forbidden = "ContainerNotFound", "BlobNotFound", "AuthenticationFailed"

    def _facts(self, stored: Stored) -> dict[str, str]:
        return {"ETag": f'"0x{stored.generation}"'}

    def _put(self, bucket: str, key: str, query: dict[str, str], body: bytes) -> None:
        del query
        condition = ("IfNoneMatch", "*") if self.headers.get("If-None-Match") == "*" else None
        if wanted := self.headers.get("If-Match"):
            condition = ("IfMatch", wanted.strip('"').removeprefix("0x"))
        stored = self.storage.put(bucket, key, body, condition)
        if stored is not None:
            written = email.utils.formatdate(stored.written, usegmt=True)
            self._answer(201, b"", {**self._facts(stored), "Last-Modified": written})
        elif condition[0] == "IfNoneMatch":
            self._fail(409, "BlobAlreadyExists")
        else:
            self._fail(412, "ConditionNotMet")

    def _give(self, stored: Stored) -> None:
        if str(self.headers.get("Range")).startswith("bytes=-"):
            self._fail(400, "InvalidHeaderValue")  # Azure has no ranges from the end
        else:
            super()._give(stored)

    def _delete(self, bucket: str, key: str, *_: object) -> None:
        if self._removed(bucket, key):
            self._answer(202)
        else:
            self._fail(404, self.no_object)

    def _post(self, bucket: str, key: str, query: dict[str, str], body: bytes) -> None:
        del key
        assert query["comp"] == "batch"
        parts = []
        for number, path in re.findall(rb"Content-ID: (\d+).*?DELETE (\S+) HTTP/1.1", body, flags=re.DOTALL):
            name = unquote(path.decode()).strip("/").partition("/")[2]
            status = "202 Accepted" if self._removed(bucket, name) else "404 The specified blob does not exist."
            code = "" if status.startswith("202") else "x-ms-error-code: BlobNotFound\r\n"
            parts.append(
                f"--answer\r\nContent-Type: application/http\r\nContent-ID: {int(number)}\r\n\r\n"
                f"HTTP/1.1 {status}\r\n{code}x-ms-request-id: 1\r\n\r\n"
            )
        self._answer(
            202, "".join([*parts, "--answer--"]).encode(), {"Content-Type": "multipart/mixed; boundary=answer"}
        )

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        names, folders, more = self.storage.names(
            bucket, query.get("prefix", ""), query.get("delimiter", ""), query.get("marker", "")
        )
        objects = self.storage.buckets[bucket]
        listed = "".join(
            f"<Blob><Name>{escape(name)}</Name><Properties><Etag>0x{objects[name].generation}</Etag>"
            f"<Last-Modified>{email.utils.formatdate(objects[name].written, usegmt=True)}</Last-Modified>"
            f"<Content-Length>{len(objects[name].content)}</Content-Length>"
            "<Content-Type>application/octet-stream</Content-Type></Properties></Blob>"
            for name in names
            if name in objects
        )
        listed += "".join(f"<BlobPrefix><Name>{escape(name)}</Name></BlobPrefix>" for name in folders)
        answer = f"<EnumerationResults><Blobs>{listed}</Blobs><NextMarker>{escape(more)}</NextMarker>"
        self._answer(200, f"{answer}</EnumerationResults>".encode())


class CloudServer(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 64

    def __init__(self, handler: type[Handler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.storage = Storage()

    def begin(self, bucket: str) -> None:
        """Hold an empty bucket, and behave well."""
        self.storage = Storage({**self.storage.buckets, bucket: {}})

    @property
    def address(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that were killed."""


@contextlib.contextmanager
def serving(handler: type[Handler]) -> Iterator[CloudServer]:
    """Run a server."""
    server = CloudServer(handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def google_environment(address: str) -> dict[str, str]:
    """Return what a process has to have in its environment to get there."""
    empty = dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
    account = {"gcs_base_url": address, "disable_oauth": True, **empty}
    return {"GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(account)}


def azure_environment(address: str) -> dict[str, str]:
    """Return what a process has to have in its environment to get there."""
    return {
        "AZURE_STORAGE_ENDPOINT": address,
        "AZURE_STORAGE_ACCOUNT_NAME": "tester",
        "AZURE_STORAGE_ACCOUNT_KEY": "dGVzdGVy",
    }
