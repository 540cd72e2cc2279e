"""Processes that work in an embedding store and are killed in the middle: forked from one that has everything imported.

Each line on stdin is a JSON task, answered by one line: `write` and `grow` are killed (SIGKILL) at the step `kill_at`,
and answered by "killed" or "finished"; `hold` claims a shard and is answered by its process id, to be ended by `end`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cache.claims import Claims
from cache.embeddings import Identity, Layout, Shard, open_embeddings
from cache.storage import writing
from cache.upkeep import resume
from cache.zarr_io import groups

SHARD_RECORDS = 4


def layout(n_records: int) -> Layout:
    """Return the layout of the tests' store."""
    return Layout(
        n_records=n_records,
        layer_names=("embed", "block_1"),
        layer_dims=(3, 5),
        embedding_dim=4,
        output_dim=2,
        shard_records=SHARD_RECORDS,
        views={"segments": (3, 4), "std": (4,)},
    )


def identity(version: int, n_records: int) -> Identity:
    """Return what the store's vectors are made from, of a cohort of so many records."""
    return Identity({"expert": "toy", "version": str(version)}, *prefix(n_records))


def prefix(n_records: int) -> tuple[str, str]:
    """Return the digests of a cohort's first records."""
    return f"signals of {n_records}", f"records of {n_records}"


def content(shard: int, n_rows: int, seed: int) -> Shard:
    """Return a shard's rows; the first ones are the same however many there are."""
    rng = np.random.default_rng([shard, seed])
    layers = rng.normal(size=(SHARD_RECORDS, 2, 5)).astype(np.float16)
    layers[:, 0, 3:] = np.nan
    embedding, output = (rng.normal(size=(SHARD_RECORDS, width)).astype(np.float16) for width in (4, 2))
    segments, std = (rng.normal(size=(SHARD_RECORDS, *shape)).astype(np.float16) for shape in ((3, 4), (4,)))
    segments[:, 2] = np.nan  # a second without tokens
    views = {"segments": segments[:n_rows], "std": std[:n_rows]}
    return Shard(layers[:n_rows], embedding[:n_rows], output[:n_rows], views)


def write(path: Path, shard: int, seed: int) -> None:
    """Write one shard of the store."""
    store = open_embeddings(path, mode="r+")
    rows = store.rows_of(shard)
    store.write(shard, content(shard, rows.stop - rows.start, seed))


def grow(path: Path, version: int, n_records: int) -> None:
    """Make the store, go on with it or give it more rows."""
    resume.resume_or_create(path, layout(n_records), identity(version, n_records), prefix)


class Workers:
    """The process that forks, as the test sees it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **task: Any) -> str:
        """Give a task and return the answer."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(task, default=str) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def _killed_at(step: int, call: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap what a step of the work goes through, so that the process is killed right before the one of this number."""
    left = [step]

    def wrapped(*arguments: Any, **named: Any) -> Any:
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return call(*arguments, **named)

    return wrapped


def _work(task: dict[str, Any]) -> None:
    path = Path(task["path"])
    if task["do"] == "write":
        if task["halfway"]:  # the bytes are there, their name is not
            Path.replace = _killed_at(task["kill_at"], Path.replace)
        else:
            writing._write_and_rename = _killed_at(task["kill_at"], writing._write_and_rename)
        write(path, task["shard"], task["seed"])
    elif task["do"] == "grow":
        step = _killed_at(task["kill_at"], lambda: None)
        rename, link, add = Path.rename, resume.link_or_copy, groups.add_array
        Path.rename = lambda *a: (step(), rename(*a))[1]
        resume.link_or_copy = lambda *a: (step(), link(*a))[1]
        resume.add_array = lambda *a, **k: (step(), add(*a, **k))[1]
        grow(path, task["version"], task["n_records"])
    elif task["do"] == "hold":
        with Claims(path, Path(task["state"])).claim(task["shard"]) as held:
            print(os.getpid() if held else "taken", flush=True)
            signal.pause()


def main() -> None:
    """Answer tasks until stdin ends."""
    for line in sys.stdin:
        task = json.loads(line)
        if task["do"] == "end":
            os.kill(int(task["pid"]), signal.SIGKILL)
            os.waitpid(int(task["pid"]), 0)
            print("ended", flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            _work(task)
            os._exit(0)
        if task["do"] != "hold":
            _, status = os.waitpid(pid, 0)
            print("finished" if status == 0 else "killed" if os.WIFSIGNALED(status) else "failed", flush=True)


if __name__ == "__main__":
    main()
