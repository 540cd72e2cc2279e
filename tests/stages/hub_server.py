"""A model hub on the loopback interface: files of repositories at their commits, as huggingface_hub asks for them."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves what is published on it; keeps what it was asked; cuts `broken` answers short."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        """{"owner/name": {commit: {"file": bytes}}}; the last commit is that of `main`."""
        self.asked: list[tuple[str, str, str | None]] = []
        self.broken = 0
        """How many of the next downloads break off half-way."""
        self.gated: dict[str, str] = {}
        """Repository -> token that the hub asks for; without it the answer is 401, with another one 403."""

    def publish(self, repository: str, files: dict[str, bytes], commit: str = COMMIT) -> None:
        """Put files at a commit, which becomes the present one."""
        self.commits.setdefault(repository, {}).pop(commit, None)
        self.commits[repository][commit] = files

    def find(self, repository: str, revision: str, file: str) -> tuple[str, bytes | None]:
        """Return commit and content, or the hub's name for what is not there and None."""
        if repository not in self.commits:
            return "RepoNotFound", None
        commits = self.commits[repository]
        commit = list(commits)[-1] if revision == "main" else revision
        if commit not in commits:
            return "RevisionNotFound", None
        return (commit, commits[commit][file]) if file in commits[commit] else ("EntryNotFound", None)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that hang up."""


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""

    def _answer(self, with_body: bool) -> None:
        asked_range = self.headers.get("Range")
        self.server.asked.append((self.command, self.path, asked_range))
        repository, _, rest = unquote(self.path).lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        commit, content = self.server.find(repository, revision, file)
        token = self.server.gated.get(repository)
        given = self.headers.get("Authorization")
        if token is not None and given != f"Bearer {token}":
            self._send(403 if given else 401, {"X-Error-Code": "GatedRepo"}, b"", with_body)
            return
        if content is None:
            self._send(404, {"X-Error-Code": commit}, b"", with_body)
            return
        digest = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
        start = int(asked_range.removeprefix("bytes=").partition("-")[0]) if asked_range else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206 if start else 200, headers, content[start:], with_body)

    def _send(self, status: int, headers: dict[str, str], body: bytes, with_body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if not with_body:
            return
        if self.server.broken > 0:
            self.server.broken -= 1
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
        else:
            self.wfile.write(body)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Run a hub in a thread."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
