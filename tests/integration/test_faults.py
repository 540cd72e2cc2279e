"""What kills, full disks, damage and rivals do to a run: nothing is lost, mixed or read wrongly.

`ENSEMBLE_FAULTS=full` runs 200 kills and 1,000 damages (some minutes); docs/reliability.md has the figures.
"""

import contextlib
import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import yaml

from cache.checks import embedding_faults, repair_embeddings, repair_signals, signal_faults
from cache.claims import Claims
from cache.embeddings import open_embeddings
from cache.errors import EnsembleError
from cache.signals import open_signals
from pipeline import cli

FULL = os.environ.get("ENSEMBLE_FAULTS") == "full"
N_KILLS, N_DAMAGES = (200, 1000) if FULL else (8, 40)
N_RECORDS, SHARD = 208, 4
PATIENCE_S = 120
MEAN_PAUSE_S = 0.1
STORE = "embeddings/ecgfm.zarr"


@pytest.fixture(scope="module")
def program():
    """The process that all `embed` processes of this file are forked from."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, Path(__file__).with_name("embed_forks.py")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as running:
        yield running
        running.stdin.close()


@pytest.fixture
def forks(program, study):
    """`embed` processes of the test's study."""
    with Forks(program, study) as running:
        yield running


@pytest.fixture(scope="module")
def cohort(tmp_path_factory, tiny_ecgfm, make_cohort, program):
    """A study of 208 records in shards of 4, and what one uninterrupted run makes of it."""
    folder = tmp_path_factory.mktemp("cohort")
    make_cohort(folder, N_RECORDS)
    shutil.copy(tiny_ecgfm.weights, folder / "ecgfm.safetensors")
    params = {
        "cohort": {"source": "wfdb", "path": "."},
        "experts": {"ecgfm": {"weights": "ecgfm.safetensors", "config": tiny_ecgfm.config}},
        "embed": {"shard_records": SHARD, "batch_size": 2, "device": "cpu", "workers": 1},
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    with Forks(program, folder) as forks:
        forks.start()
        forks.wait_all()
    return folder


@pytest.fixture(scope="module")
def whole(cohort):
    """The uninterrupted store's bytes."""
    return bytes_of(cohort / STORE)


@pytest.fixture
def study(cohort, tmp_path):
    """A copy of the cohort, without its store."""
    shutil.copytree(cohort, tmp_path / "study", ignore=shutil.ignore_patterns("embeddings", ".ensemble", "log-*"))
    return tmp_path / "study"


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


# ---- kills -----------------------------------------------------------------------------------------------------------


def run_with_kills(forks: Forks, rng: random.Random, most: int) -> list[int]:
    """Keep 2 to 4 workers at work until the store is complete, killing one of them, or all, at random moments.

    Returns for each kill the records that the victim had computed and that did not count yet.
    """
    lost: list[int] = []
    n_workers = rng.randint(2, 4)
    while not finished(forks.folder):
        while len(forks.living()) < n_workers:
            forks.start()
        time.sleep(rng.expovariate(1 / MEAN_PAUSE_S))
        victims = [pid for pid in forks.living() if forks.count(pid, "computed")]
        victims = rng.sample(victims, min(1, len(victims))) if rng.random() < 0.9 else victims
        for pid in victims[: most - len(lost)] if not finished(forks.folder) else []:
            forks.kill(pid)
            lost.append(forks.count(pid, "computed") - forks.count(pid, "written"))
    wait_until(lambda: not forks.living())
    return lost


def finished(folder: Path) -> bool:
    try:
        return not open_embeddings(folder / STORE).pending()
    except EnsembleError:
        return False


def test_random_kills_lose_and_repeat_nothing(study, whole, forks):
    rng = random.Random(6)
    lost, n_runs = [], 0
    while len(lost) < N_KILLS:
        shutil.rmtree(study / "embeddings", ignore_errors=True)
        lost += run_with_kills(forks, rng, N_KILLS - len(lost))
        n_runs += 1
        assert bytes_of(study / STORE) == whole
        assert list(embedding_faults(study / STORE)) == []
        with closing(Claims(study / STORE, study / ".ensemble")) as claims:
            assert claims.try_own(), "a lock was left"
    computed = sum(forks.count(pid, "computed") for pid in forks.logs)
    repeated = computed - n_runs * N_RECORDS
    print(
        f"{len(lost)} kills in {n_runs} runs of {N_RECORDS // SHARD} shards: {repeated} of {computed} records computed "
        f"twice, {repeated / SHARD / len(lost):.2f} shards a kill, most at one kill {max(lost) / SHARD:.2f} shards"
    )
    # One shard computed and not yet written, and what of the next one was computed meanwhile.
    assert max(lost) <= 2 * SHARD
    assert repeated <= sum(lost)


def test_a_paused_worker_is_waited_for(study, whole, forks):
    paused = forks.start()
    wait_until(lambda: forks.count(paused, "written") >= SHARD)
    os.kill(paused, signal.SIGSTOP)
    other = forks.start()
    wait_until(lambda: shards_left(study) <= 3 and "finished" not in forks.said(other))
    time.sleep(1.5)
    assert is_alive(other)
    assert 0 < shards_left(study) <= 3
    os.kill(paused, signal.SIGCONT)
    forks.wait_all()
    total = forks.count(paused, "computed") + forks.count(other, "computed")
    assert total == N_RECORDS
    assert bytes_of(study / STORE) == whole


def test_the_shards_of_a_paused_worker_that_dies_are_taken_over(study, whole, forks):
    paused = forks.start()
    wait_until(lambda: forks.count(paused, "written") >= SHARD)
    os.kill(paused, signal.SIGSTOP)
    forks.start()
    wait_until(lambda: shards_left(study) <= 3)
    forks.kill(paused)
    wait_until(lambda: not forks.living())
    assert bytes_of(study / STORE) == whole


def shards_left(study: Path) -> int:
    try:
        return len(open_embeddings(study / STORE).pending())
    except EnsembleError:
        return N_RECORDS // SHARD


def test_two_runs_at_once_share_the_work(study, whole, forks):
    pids = [forks.start(), forks.start()]
    forks.wait_all()
    computed = [forks.count(pid, "computed") for pid in pids]
    assert sum(computed) == N_RECORDS
    assert min(computed) > 0
    assert bytes_of(study / STORE) == whole


def test_two_runs_of_different_settings_never_mix(study, whole, forks):
    pids = [forks.start(), forks.start(preprocessing="enecg"), forks.start(), forks.start(preprocessing="enecg")]
    forks.wait_all()
    assert all(forks.said(pid)[-1] == "finished" for pid in pids)
    found = bytes_of(study / STORE)
    assert list(embedding_faults(study / STORE)) == []
    if found == whole:
        return
    shutil.rmtree(study / "embeddings")
    forks.start(preprocessing="enecg")
    forks.wait_all()
    assert found == bytes_of(study / STORE)


def test_a_worker_that_dies_is_survived(study, whole):
    command = [sys.executable, "-m", "pipeline.cli", "embed", "--expert", "ecgfm", "--workers", "2"]
    run = subprocess.Popen(command, cwd=study, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: shards_left(study) < N_RECORDS // SHARD or run.poll() is not None)
    workers = [pid for pid in children(run.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(max(workers), signal.SIGKILL)
    _, stderr = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 0, stderr
    assert "a worker ended with -9; its shard goes to another one" in stderr
    assert bytes_of(study / STORE) == whole


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# ---- disks that refuse -----------------------------------------------------------------------------------------------


@pytest.fixture
def embed(study, monkeypatch, capsys):
    """Run `ensemble embed` in this process; returns exit code and stderr without progress lines."""

    monkeypatch.chdir(study)

    def run() -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["ensemble", "embed", "--expert", "ecgfm"])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, "".join(line for line in capsys.readouterr().err.splitlines(True) if line[:6] != "embed ")

    return run


def assert_one_line(stderr: str, text: str) -> None:
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert text in stderr


def test_a_full_disk_is_one_line_and_the_run_resumes(study, whole, embed):
    (study / "embeddings").mkdir()
    disk = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(study / "embeddings")]
    if subprocess.run(disk, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root; see the test of the size limit")
    try:
        code, stderr = embed()
        assert code == 1
        assert_one_line(stderr, "No space left on device); make room and run again")
        store = open_embeddings(study / STORE)
        done = [shard for shard in range(store.n_shards) if store.complete(shard)]
        assert 0 < len(done) < store.n_shards
        assert all(fault.missing for fault in embedding_faults(study / STORE) if fault.shard in done)
        for shard in done:
            store.read_layers(store.rows_of(shard))
        subprocess.run(["mount", "-o", "remount,size=50m", str(study / "embeddings")], check=True)
        assert embed() == (0, "")
        assert bytes_of(study / STORE) == whole
    finally:
        subprocess.run(["umount", "-l", str(study / "embeddings")], check=True)


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


# ---- damage ----------------------------------------------------------------------------------------------------------


def damage(file: Path, rng: random.Random) -> str:
    """Do one random thing to a file; says what, or nothing where it left the bytes as they were."""
    content = file.read_bytes()
    kind = rng.choice(["flip", "flip", "flip", "cut", "zeros", "lost"])
    if kind == "lost":
        file.unlink()
        return kind
    if kind == "cut":
        file.write_bytes(content[: rng.randrange(len(content))])
        return kind
    changed = bytearray(content)
    at = rng.randrange(len(content))
    if kind == "flip":
        changed[at] ^= 1 << rng.randrange(8)
    else:
        changed[at : at + 512] = bytes(len(changed[at : at + 512]))
    file.write_bytes(changed)
    return kind if changed != content else ""


def reads_wrongly(folder: Path, right: dict[str, np.ndarray]) -> bool:
    """Whether any way of reading gives other numbers than the right ones without an error."""
    for name, values in right.items():
        try:
            if name == "signals":
                found = open_signals(folder / "signals.zarr").read_uv(slice(None))
            else:
                store = open_embeddings(folder / STORE)
                store.require_complete()
                found = store.read(name, slice(None))
        except EnsembleError:
            continue
        if found.tobytes() != values.tobytes():
            return True
    return False


def test_random_damage_is_found_and_repaired(cohort, tmp_path, make_cohort):
    rng, study = random.Random(1), tmp_path
    make_cohort(study, 32)  # signals of its own: reading those of 208 records a thousand times takes too long
    shutil.copytree(cohort / "embeddings", study / "embeddings")
    files = {p: p.read_bytes() for s in (study / STORE, study / "signals.zarr") for p in s.rglob("*") if p.is_file()}
    store = open_embeddings(study / STORE)
    right = {name: store.read(name, slice(None)) for name in ("layers", "embedding")}
    right["signals"] = open_signals(study / "signals.zarr").read_uv(slice(None))
    kinds: dict[str, int] = {}
    for _ in range(N_DAMAGES):
        file = rng.choice([f for f in files if f.name == "zarr.json"] if rng.random() < 0.3 else list(files))
        kind = damage(file, rng)
        of_signals = "signals.zarr" in str(file)
        path = study / "signals.zarr" if of_signals else study / STORE
        find, repair = (signal_faults, repair_signals) if of_signals else (embedding_faults, repair_embeddings)
        found = list(find(path))
        assert bool(found) == bool(kind), (file, kind, found)
        at_hand = bool(found) and not all(fault.missing for fault in found)
        mine = {name: values for name, values in right.items() if (name == "signals") == of_signals}
        assert not reads_wrongly(study, mine), (file, kind)
        assert bool(list(repair(path))) == at_hand, (file, kind)
        assert all(fault.missing for fault in find(path)), (file, kind)
        changed = [f for f, content in files.items() if not f.exists() or f.read_bytes() != content]
        assert len(changed) <= (0 if file.name == "zarr.json" else 4), (file, kind, changed)
        for f in changed:
            f.write_bytes(files[f])
        kinds[kind or "as it was"] = kinds.get(kind or "as it was", 0) + 1
    print(f"{N_DAMAGES} damages found and repaired: {dict(sorted(kinds.items()))}")
