"""Disks that refuse: one line says so, whole shards stay, and the run resumes to the same bytes."""

import contextlib
import errno
import os
import random
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cache.embeddings import open_embeddings
from cache.upkeep.checks import embedding_faults
from tests.integration.faults import STORE, bytes_of


@pytest.fixture
def embed(study, ensemble, monkeypatch):
    """Run `ensemble embed` in the study; returns exit code and stderr without progress lines."""
    monkeypatch.chdir(study)

    def run() -> tuple[int, str]:
        done = ensemble("embed", "--expert", "ecgfm")
        return done.returncode, "".join(line for line in done.stderr.splitlines(True) if line[:6] != "embed ")

    return run


def assert_one_line(stderr: str, text: str) -> None:
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert text in stderr


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[], None]]:
    """Mount a small disk on a folder; gives what makes it large."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root; see the test of the size limit")
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=50m", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_the_run_resumes(study, whole, embed):
    with small_disk(study / "embeddings", "400k") as grow:
        code, stderr = embed()
        assert code == 1
        assert_one_line(stderr, "No space left on device); make room and run again")
        store = open_embeddings(study / STORE)
        done = [shard for shard in range(store.n_shards) if store.complete(shard)]
        assert 0 < len(done) < store.n_shards
        assert all(fault.missing for fault in embedding_faults(study / STORE) if fault.shard in done)
        for shard in done:
            store.read_layers(store.rows_of(shard))
        grow()
        assert embed() == (0, "")
        assert bytes_of(study / STORE) == whole


def test_a_disk_too_full_for_the_store_itself_is_one_line(study, whole, embed):
    with small_disk(study / "embeddings", "12k") as grow:
        code, stderr = embed()
        assert code == 1
        assert_one_line(stderr, "cannot be made (No space left on device)")
        grow()
        assert embed() == (0, "")
        assert bytes_of(study / STORE) == whole


def test_a_size_limit_is_one_line_and_the_run_resumes(study, whole, embed):
    assert embed()[0] == 0
    store = open_embeddings(study / STORE, mode="r+")
    for shard in range(20, 30):
        store.drop(shard)
    size = max(len(content) for name, content in whole.items() if name.startswith("layers/c"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, before[1]))
    try:
        code, stderr = embed()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 1
    assert_one_line(stderr, "File too large); make room and run again")
    assert embed() == (0, "")
    assert bytes_of(study / STORE) == whole


@pytest.mark.slow
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_writes_that_fail_now_and_then_cost_nothing_but_runs(study, whole, embed, monkeypatch, call):
    rng, real = random.Random(0), {"fsync": os.fsync, "replace": Path.replace}[call]

    def failing(*arguments):
        if rng.random() < 0.02:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*arguments)

    monkeypatch.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace")}[call], failing)
    failures = 0
    while (done := embed())[0]:
        assert_one_line(done[1], "Input/output error")
        failures += 1
        assert failures < 50
    assert failures
    assert bytes_of(study / STORE) == whole


def test_revoked_permissions_are_one_line_and_the_run_resumes(study, whole, embed):
    assert embed()[0] == 0
    store = open_embeddings(study / STORE, mode="r+")
    for shard in range(20, 30):
        store.drop(shard)
    as_root = os.geteuid() == 0
    everything = [study, *study.rglob("*")]
    for path in everything if as_root else []:
        os.chown(path, 65534, 65534)
    folders = [p for p in (study / STORE).rglob("*") if p.is_dir()]
    for folder in folders:
        folder.chmod(0o555)
    try:
        os.seteuid(65534 if as_root else os.geteuid())
        code, stderr = embed()
    finally:
        os.seteuid(os.getuid())
        for folder in folders:
            folder.chmod(0o755)
    assert code == 1
    assert_one_line(stderr, "Permission denied")
    assert len(open_embeddings(study / STORE).pending()) == 10
    assert embed() == (0, "")
    assert bytes_of(study / STORE) == whole
