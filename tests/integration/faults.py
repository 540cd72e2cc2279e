"""What the fault tests share: `embed` processes that can be killed, and how far a store is.

`ENSEMBLE_FAULTS=full` runs 200 kills and 1,000 damages (some minutes); docs/reliability.md has the figures.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

from cache.embeddings import open_embeddings
from cache.errors import EnsembleError

FULL = os.environ.get("ENSEMBLE_FAULTS") == "full"
N_RECORDS, SHARD = 208, 4
PATIENCE_S = 120
STORE = "embeddings/ecgfm.zarr"


def bytes_of(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


class Forks:
    """`embed` processes of one study; see embed_forks.py."""

    def __init__(self, program: subprocess.Popen, folder: Path) -> None:
        self.program, self.folder, self.logs, self.alive = program, folder, {}, []

    def __enter__(self) -> "Forks":
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.living():
            self.kill(pid)

    def start(self, **settings: object) -> int:
        log = self.folder / f"log-{len(self.logs)}"
        task = {"folder": str(self.folder), "log": str(log), "settings": settings}
        self.program.stdin.write(json.dumps(task) + "\n")
        self.program.stdin.flush()
        pid = int(self.program.stdout.readline())
        self.logs[pid] = log
        self.alive.append(pid)
        return pid

    def said(self, pid: int) -> list[str]:
        return self.logs[pid].read_text().splitlines() if self.logs[pid].exists() else []

    def count(self, pid: int, what: str) -> int:
        return sum(int(line.split()[1]) for line in self.said(pid) if line.startswith(what))

    def living(self) -> list[int]:
        self.alive = [pid for pid in self.alive if is_alive(pid)]
        return list(self.alive)

    def kill(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(pid))

    def wait_all(self) -> None:
        wait_until(lambda: not self.living())
        ends = [self.said(pid)[-1:] for pid in self.logs if self.said(pid)]
        assert not [end for end in ends if end and end[0].startswith("error")], ends


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def wait_until(happened) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


def finished(folder: Path) -> bool:
    try:
        return not open_embeddings(folder / STORE).pending()
    except EnsembleError:
        return False


def shards_left(study: Path) -> int:
    try:
        return len(open_embeddings(study / STORE).pending())
    except EnsembleError:
        return N_RECORDS // SHARD
