"""`ensemble download` against a server on the loopback interface that does what servers do to a person."""

import base64
import hashlib
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cache.errors import DownloadError, EnsembleError, InputError, UsageError
from pipeline.cli import app
from stages.download import Credentials, DownloadPaths, DownloadSettings, run, stage

WHO = Credentials("an-owner", "a-secret-word")


class Server(ThreadingHTTPServer):
    """Serves `files` of `folder`, or by whole paths; `faults` says what happens to the next answers about a path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = "ludb/1.0.1"
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = {}
        self.password: str | None = None
        self.asked: list[tuple[str, str | None]] = []
        self.agents: set[str] = set()
        self.changed = "Sat, 02 May 2020 10:00:00 GMT"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/files"

    def publish(self, **files: bytes) -> None:
        self.files = {name.replace("__", "/"): content for name, content in files.items()}
        self.sums = "".join(f"{hashlib.sha256(c).hexdigest()} {n}\n" for n, c in self.files.items())

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that hang up."""


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        path = self.path.partition(f"/files/{self.server.folder}/")[2] or self.path
        wanted = self.headers.get("Range")
        self.server.asked.append((path, wanted))
        self.server.agents.add(self.headers.get("User-Agent", ""))
        fault = (self.server.faults.get(path) or [""]).pop(0)
        content = self.server.sums.encode() if path == "SHA256SUMS.txt" else self.server.files.get(path)
        token = base64.b64encode(f"an-owner:{self.server.password}".encode()).decode()
        if self.server.password and self.headers.get("Authorization") != f"Basic {token}":
            self._send(401, b"")
        elif content is None:
            self._send(404, b"")
        elif path == "SHA256SUMS.txt" and self.headers.get("If-Modified-Since") == self.server.changed:
            self._send(304, b"")
        elif fault == "page":
            self._send(200, b"<html>We are down for maintenance</html>")
        elif fault in ("500", "403"):
            self._send(int(fault), b"")
        elif fault == "wrong":
            self._send(200, b"?" * len(content))
        else:
            self._part(content, "" if fault == "no-range" else wanted or "", drop=fault == "drop")

    def _part(self, content: bytes, wanted: str, drop: bool) -> None:
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if start >= len(content) > 0:
            self._send(416, b"")
            return
        place = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if wanted else {}
        self._send(206 if wanted else 200, content[start:], place, drop)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, drop: bool = False) -> None:
        self.send_response(status)
        stamp = {"Last-Modified": self.server.changed}
        for name, value in {**(headers or {}), **stamp, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if drop else body)


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setattr(stage, "PAUSE_S", 0.001)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        running.publish(RECORDS=b"data/1\n", ludb__csv=b"ID\n1\n", data__1=np.random.default_rng(0).bytes(300_000))
        yield running
        running.shutdown()
        thread.join()


def take(server: Server, folder: Path, progress=None, **more):
    return run(DownloadSettings("ludb", base_url=server.url, **more), DownloadPaths(folder), progress)


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_every_file_comes_with_its_published_content(server, tmp_path):
    told = []
    summary = take(server, tmp_path, progress=lambda done, total: told.append((done, total)))
    assert (summary.n_files, summary.n_present) == (3, 0)
    assert summary.n_bytes == sum(map(len, server.files.values()))
    assert names(tmp_path) == ["RECORDS", "SHA256SUMS.txt", "data/1", "ludb/csv"]
    assert (tmp_path / "data/1").read_bytes() == server.files["data/1"]
    assert told[-1] == (3, 3)
    assert take(server, tmp_path).n_present == 3
    assert Counter(path for path, _ in server.asked)["data/1"] == 1


def test_a_dropped_connection_is_gone_on_with(server, tmp_path):
    server.faults["data/1"] = ["drop", "drop", "500"]
    take(server, tmp_path)
    assert (tmp_path / "data/1").read_bytes() == server.files["data/1"]
    ranges = [wanted for path, wanted in server.asked if path == "data/1"]
    assert ranges == [None, "bytes=150000-", "bytes=225000-", "bytes=225000-"]


def test_a_later_run_goes_on_where_one_gave_up(server, tmp_path):
    server.faults["data/1"] = ["drop", *["500"] * 5]
    with pytest.raises(DownloadError, match=r"data/1: the server answers HTTP 500; run again to go on"):
        take(server, tmp_path)
    assert names(tmp_path) == ["RECORDS", "SHA256SUMS.txt", "data/1.partial", "ludb/csv"]
    assert take(server, tmp_path).n_files == 1
    assert (tmp_path / "data/1").read_bytes() == server.files["data/1"]
    assert server.asked[-1] == ("data/1", "bytes=150000-")


def test_a_server_that_ignores_ranges_starts_the_file_anew(server, tmp_path):
    server.faults["data/1"] = ["drop", "no-range"]
    take(server, tmp_path)
    assert (tmp_path / "data/1").read_bytes() == server.files["data/1"]


def test_a_partial_file_that_is_whole_or_too_long_is_put_right(server, tmp_path):
    (tmp_path / "data").mkdir()
    for left in (server.files["data/1"], server.files["data/1"] + b"more"):
        (tmp_path / "data/1").unlink(missing_ok=True)
        (tmp_path / "data/1.partial").write_bytes(left)
        take(server, tmp_path)
        assert (tmp_path / "data/1").read_bytes() == server.files["data/1"]


def test_a_wrong_file_is_taken_again_and_never_stands_under_its_name(server, tmp_path):
    server.faults["data/1"] = ["wrong"]
    take(server, tmp_path)
    assert (tmp_path / "data/1").read_bytes() == server.files["data/1"]
    server.faults["ludb/csv"] = ["wrong"] * 6
    (tmp_path / "ludb/csv").unlink()
    with pytest.raises(DownloadError, match=r"ludb/csv: what came does not have the published SHA-256"):
        take(server, tmp_path)
    assert not (tmp_path / "ludb/csv").exists()


def test_files_that_are_there_are_checked_on_request(server, tmp_path):
    take(server, tmp_path)
    (tmp_path / "RECORDS").write_bytes(b"data/2\n")
    assert take(server, tmp_path).n_files == 0
    assert take(server, tmp_path, verify=True).n_files == 1
    assert (tmp_path / "RECORDS").read_bytes() == server.files["RECORDS"]


def test_the_list_is_sent_again_only_when_it_has_changed(server, tmp_path):
    take(server, tmp_path)
    before = (tmp_path / "SHA256SUMS.txt").stat()
    take(server, tmp_path)
    assert (tmp_path / "SHA256SUMS.txt").stat().st_ino == before.st_ino
    server.publish(RECORDS=b"data/1\n", more=b"new")
    server.changed = "Sun, 03 May 2020 10:00:00 GMT"
    assert take(server, tmp_path).n_files == 1
    assert (tmp_path / "SHA256SUMS.txt").read_text() == server.sums
    assert not list(tmp_path.rglob("*.partial"))


def test_a_page_of_excuses_does_not_take_the_place_of_the_list(server, tmp_path):
    take(server, tmp_path)
    server.changed = "Sun, 03 May 2020 10:00:00 GMT"
    server.faults["SHA256SUMS.txt"] = ["page"]
    with pytest.raises(DownloadError, match="no list of SHA-256 digests"):
        take(server, tmp_path)
    assert (tmp_path / "SHA256SUMS.txt").read_text() == server.sums
    assert take(server, tmp_path).n_present == 3


def test_two_collections_in_one_folder_keep_their_own_lists():
    ecg, hosp = stage.COLLECTIONS["mimic-iv-ecg"], stage.COLLECTIONS["mimic-iv-hosp"]
    assert ecg.list_file != hosp.list_file


def test_a_server_that_knows_some_programs_only_can_be_given_such_a_name(server, tmp_path, monkeypatch):
    monkeypatch.setenv("ENSEMBLE_USER_AGENT", "a-known-program/1.0")
    take(server, tmp_path, credentials=WHO)
    assert server.agents == {"a-known-program/1.0"}


def test_only_what_is_asked_for_comes(server, tmp_path):
    take(server, tmp_path, only=("data/", "RECO"))
    assert names(tmp_path) == ["RECORDS", "SHA256SUMS.txt", "data/1"]
    with pytest.raises(UsageError, match="no file begins with dta/"):
        take(server, tmp_path, only=("dta/",))


def test_one_missing_file_does_not_keep_the_others_away(server, tmp_path):
    server.sums += "".join(f"{'0' * 64} gone{k}\n" for k in range(2))
    with pytest.raises(DownloadError, match=r"gone\d: there is no such file \(HTTP 404\).*and 1 more files"):
        take(server, tmp_path)
    assert names(tmp_path)[:3] == ["RECORDS", "SHA256SUMS.txt", "data/1"]


@pytest.mark.parametrize("credentials", [None, Credentials("an-owner", "wrong-word")])
def test_a_refusal_ends_the_run_at_once_and_says_what_to_set(server, tmp_path, credentials):
    server.password = "a-secret-word"
    with pytest.raises(DownloadError, match=r"HTTP 401.*PHYSIONET_USERNAME and PHYSIONET_PASSWORD") as caught:
        take(server, tmp_path, credentials=credentials)
    assert "wrong-word" not in str(caught.value)
    assert len(server.asked) == 1


def test_credentials_open_the_door_and_are_written_nowhere(server, tmp_path, caplog, capsys, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login an-owner password from-netrc\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server.password = "a-secret-word"
    with caplog.at_level(logging.DEBUG):
        take(server, tmp_path / "out", credentials=WHO)
    said = caplog.text + "".join(capsys.readouterr()) + repr(WHO)
    token = base64.b64encode(b"an-owner:a-secret-word").decode()
    for path in (tmp_path / "out").rglob("*"):
        said += path.name + (path.read_bytes().decode("latin-1") if path.is_file() else "")
    assert not any(secret in said for secret in ("a-secret-word", token, "an-owner"))
    assert all(agent.startswith("ecg-ensemble") for agent in server.agents)


def test_a_password_in_netrc_is_not_sent(server, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login an-owner password a-secret-word\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server.password = "a-secret-word"
    with pytest.raises(DownloadError, match="HTTP 401"):
        take(server, tmp_path)


@pytest.mark.parametrize(
    "line", ["{0} ../out", "{0} /etc/out", "{0} a/../../out", "{0}  ", "not a digest", "{0} link/out"]
)
def test_a_list_that_leads_out_of_the_folder_is_refused(server, tmp_path, line):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link").symlink_to(tmp_path)
    server.sums = line.format("0" * 64) + "\n"
    with pytest.raises(EnsembleError) as caught:
        take(server, tmp_path / "in")
    assert isinstance(caught.value, DownloadError | InputError | UsageError)
    assert set(names(tmp_path)) <= {"in/SHA256SUMS.txt"}


@pytest.mark.parametrize(
    ("name", "url", "says"),
    [
        ("code", "http://127.0.0.1:1", "no collection 'code'; there are: ptbxl, mimic-iv-ecg"),
        ("ludb", "ftp://127.0.0.1", "must be http"),
        ("ludb", "http://me:secret@127.0.0.1:1", "without a user name"),
        ("ludb", "http://example.org/files", "a password is sent by https only"),
    ],
)
def test_wrong_usage_is_refused_before_anything_is_sent(tmp_path, name, url, says):
    with pytest.raises(UsageError, match=says) as caught:
        run(DownloadSettings(name, base_url=url, credentials=WHO), DownloadPaths(tmp_path / "out"))
    assert "secret" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_server_that_is_not_there_is_one_line(server, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "ATTEMPTS", 2)
    with pytest.raises(DownloadError, match=r"ludb/1.0.1/SHA256SUMS.txt: the server cannot be reached; run again"):
        run(DownloadSettings("ludb", base_url="http://127.0.0.1:9"), DownloadPaths(tmp_path))


def test_two_downloads_do_not_write_one_file(server, tmp_path):
    import fcntl

    with (tmp_path / "RECORDS.partial").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match="another download is writing it"):
            take(server, tmp_path)


def test_the_command_takes_url_and_account_from_the_environment(server, tmp_path):
    server.password = "a-secret-word"
    account = {"PHYSIONET_USERNAME": "an-owner", "PHYSIONET_PASSWORD": "a-secret-word"}
    done = CliRunner().invoke(
        app, ["download", "ludb", str(tmp_path / "ludb")], env={"ENSEMBLE_PHYSIONET_URL": server.url, **account}
    )
    assert done.exit_code == 0, done.output
    assert "3 files (0.3 MB) taken, 0 there already" in done.output
    assert "a-secret-word" not in done.output


def test_the_command_does_not_wait_for_a_password_nobody_can_type(tmp_path):
    done = CliRunner().invoke(app, ["download", "mimic-iv-hosp", str(tmp_path)], env={"PHYSIONET_USERNAME": ""})
    assert isinstance(done.exception, UsageError)
    assert "PHYSIONET_USERNAME and PHYSIONET_PASSWORD" in str(done.exception)
