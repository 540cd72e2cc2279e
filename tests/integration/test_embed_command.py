"""`ensemble embed` as a person runs it: real processes, real kills, real workers."""

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from cache import open_embeddings, open_signals
from stages.experts import expert_class

EMBED = [sys.executable, "-m", "pipeline.cli", "embed", "--expert", "ecgfm"]


@pytest.fixture
def embed(ensemble, monkeypatch):
    """Run `ensemble embed --expert ecgfm` in a study's folder, by default in one process."""

    def run(study: Path, *options: str):
        monkeypatch.chdir(study)
        workers = [] if "--workers" in options else ["--workers", "1"]
        return ensemble("embed", "--expert", "ecgfm", *workers, *options)

    return run


def shards_done(store: Path) -> int:
    return sum(file.name.isdigit() for file in store.glob("done/c/*"))


def bytes_of(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


@pytest.fixture
def finished(toy_study, embed):
    """The uninterrupted store's bytes; the store itself is removed again."""
    done = embed(toy_study)
    assert done.returncode == 0, done.stderr
    store = toy_study / "embeddings/ecgfm.zarr"
    content = bytes_of(store)
    store.rename(toy_study / "uninterrupted.zarr")
    return content


def test_embeds_every_readable_record_and_says_which_not(toy_study, embed):
    done = embed(toy_study)
    assert done.returncode == 0, done.stderr
    assert "40 records embedded" in done.stdout
    assert "1 without a vector" in done.stdout
    assert "no vector for r0003: truncated" in done.stdout
    vectors = open_embeddings(toy_study / "embeddings/ecgfm.zarr").read_embedding()
    assert np.isnan(vectors).all(axis=1).nonzero()[0].tolist() == [3]
    run = json.loads((toy_study / ".ensemble/runs/embed-ecgfm.json").read_text())
    assert run["bad"] == {"r0003": "truncated"}
    assert run["versions"]["torch"]
    assert set(run["seconds"]) == {"read", "compute", "write", "total"}


def test_short_records_are_counted_and_the_policy_is_named(toy_study, embed):
    signals = open_signals(toy_study / "signals.zarr", mode="r+")
    rows = signals.rows_of(0)
    valid = np.array([3000, 2400, *([5000] * (rows.stop - 2))])
    signals.write_shard(0, signals.read_uv(rows), valid)
    done = embed(toy_study)
    assert done.returncode == 0, done.stderr
    assert "2 records are shorter than 10 s: what ecgfm makes of them, `ensemble experts ecgfm` says" in done.stdout
    assert "no vector for r0001: expert 'ecgfm': 4.8 s are shorter than 5 s" in done.stdout


def test_a_second_run_does_nothing(toy_study, embed):
    embed(toy_study)
    before = bytes_of(toy_study / "embeddings/ecgfm.zarr")
    done = embed(toy_study)
    assert "0 records embedded" in done.stdout
    assert "40 done already" in done.stdout
    assert bytes_of(toy_study / "embeddings/ecgfm.zarr") == before


@pytest.mark.parametrize("workers", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_after_a_kill_it_resumes_to_the_same_bytes(toy_study, finished, embed, workers):
    store = toy_study / "embeddings/ecgfm.zarr"
    command = [*EMBED, "--workers", workers]
    victim = subprocess.Popen(command, cwd=toy_study, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 180
    while shards_done(store) < 3 and victim.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(victim.pid, signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL, "the run was over before it could be killed"
    time.sleep(1.0)  # workers end with their parent
    n_done = shards_done(store)
    assert 3 <= n_done < 10
    done = embed(toy_study)
    assert done.returncode == 0, done.stderr
    assert f"{4 * n_done} done already" in done.stdout
    assert bytes_of(store) == finished


@pytest.mark.parametrize("options", [["--workers", "2"], ["--batch-size", "2"]])
def test_workers_give_the_bytes_of_one_process(toy_study, finished, embed, options):
    done = embed(toy_study, *options)
    assert done.returncode == 0, done.stderr
    assert "40 records embedded" in done.stdout
    assert bytes_of(toy_study / "embeddings/ecgfm.zarr") == finished


def test_a_dask_cluster_gives_the_bytes_of_one_process(toy_study, finished, embed):
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", processes=True) as cluster:
        done = embed(toy_study, "--scheduler", cluster.scheduler_address)
    assert done.returncode == 0, done.stderr
    assert "40 records embedded" in done.stdout
    assert bytes_of(toy_study / "embeddings/ecgfm.zarr") == finished


def test_a_dry_run_touches_nothing(toy_study, embed):
    done = embed(toy_study, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "40 of 40 records to embed" in done.stdout
    assert not (toy_study / "embeddings").exists()


def test_a_cohort_that_grew_embeds_only_the_new_records(toy_study, finished, embed):
    from cache.records import open_records, write_records
    from cache.signals import create_signals, open_signals

    names = ("records.parquet", "signals.zarr")
    for name in names:
        (toy_study / name).rename(toy_study / f"later-{name}")
    frame = open_records(toy_study / "later-records.parquet")
    targets, frame.attrs = list(frame.attrs["targets"].values()), {}
    write_records(toy_study / "records.parquet", frame.iloc[:22], targets)
    later, first = open_signals(toy_study / "later-signals.zarr"), create_signals(toy_study / "signals.zarr", 22, 16)
    for shard in range(first.n_shards):
        rows = first.rows_of(shard)
        first.write_shard(shard, later.read_uv(rows), later.valid[rows])
    assert "22 records embedded" in embed(toy_study).stdout
    for name in names:
        (toy_study / name).rename(toy_study / f"earlier-{name}")
        (toy_study / f"later-{name}").rename(toy_study / name)
    assert "20 of 40 records to embed, 20 done already" in embed(toy_study, "--dry-run").stdout
    assert "20 records embedded" in embed(toy_study).stdout  # 18 new ones and the 2 of the last, partly filled shard
    assert bytes_of(toy_study / "embeddings/ecgfm.zarr") == finished


def test_a_damaged_store_is_never_replaced_or_read(toy_study, embed):
    embed(toy_study)
    store = toy_study / "embeddings/ecgfm.zarr"
    (store / "zarr.json").write_bytes((store / "zarr.json").read_bytes()[:-1])
    done = embed(toy_study, "--precision", "bf16")
    assert done.returncode == 1
    assert "the metadata are damaged (zarr.json); run `ensemble cache repair`" in done.stderr
    assert shards_done(store) == 10


def test_other_settings_start_the_store_afresh(toy_study, embed):
    embed(toy_study)
    assert "40 done already" in embed(toy_study, "--dry-run").stdout
    changed = embed(toy_study, "--precision", "bf16", "--dry-run")
    assert "40 of 40 records to embed" in changed.stdout
    params = yaml.safe_load((toy_study / "params.yaml").read_text())
    params["experts"]["ecgfm"]["preprocessing"] = "enecg"
    (toy_study / "params.yaml").write_text(yaml.safe_dump(params))
    before = bytes_of(toy_study / "embeddings/ecgfm.zarr")
    refused = embed(toy_study)
    assert refused.returncode == 2
    assert (
        "holds vectors of 40 records that were made otherwise (changed: preprocessing); say --replace" in refused.stderr
    )
    assert bytes_of(toy_study / "embeddings/ecgfm.zarr") == before
    done = embed(toy_study, "--replace")
    assert "40 records embedded" in done.stdout
    [kept] = (toy_study / "embeddings").glob(".ecgfm.*.kept.zarr")
    assert f"replaced; they are kept as {kept.name} until `ensemble cache gc --delete`" in done.stderr
    assert bytes_of(kept) == before
    params["experts"]["ecgfm"].pop("preprocessing")
    (toy_study / "params.yaml").write_text(yaml.safe_dump(params))
    back = embed(toy_study, "--replace")
    assert "come back" in back.stderr
    assert "0 records embedded" in back.stdout
    assert bytes_of(toy_study / "embeddings/ecgfm.zarr") == before


@pytest.mark.parametrize(
    ("answer", "code", "embedded"), [pytest.param("y", 0, True, marks=pytest.mark.slow), ("n", 2, False)]
)
def test_on_a_terminal_it_asks_before_it_replaces_vectors(toy_study, embed, answer, code, embedded):
    embed(toy_study)
    before = bytes_of(toy_study / "embeddings/ecgfm.zarr")
    leader, terminal = pty.openpty()
    command = [*EMBED, "--workers", "1", "--precision", "bf16"]
    process = subprocess.Popen(command, cwd=toy_study, stdin=terminal, stdout=subprocess.PIPE, stderr=terminal)
    os.close(terminal)
    said = ""
    while "Embed again?" not in said:
        said += os.read(leader, 1024).decode()
    os.write(leader, f"{answer}\n".encode())
    drain = threading.Thread(target=lambda: [None for _ in iter(lambda: read_or_nothing(leader), b"")], daemon=True)
    drain.start()
    process.communicate(timeout=120)
    drain.join()
    os.close(leader)
    assert process.returncode == code
    assert (bytes_of(toy_study / "embeddings/ecgfm.zarr") != before) == embedded


def read_or_nothing(file):
    try:
        return os.read(file, 1024)
    except OSError:  # a terminal whose other end is closed
        return b""


def test_garbage_collection_frees_what_was_replaced(toy_study, embed, ensemble):
    embed(toy_study)
    embed(toy_study, "--precision", "bf16", "--replace")
    [kept] = (toy_study / "embeddings").glob(".ecgfm.*.kept.zarr")
    listed = ensemble("cache", "gc").stdout
    assert f"embeddings/{kept.name} (" in listed
    assert "kept when ecgfm.zarr was made anew" in listed
    assert kept.exists()
    ensemble("cache", "gc", "--delete")
    assert not kept.exists()
    assert (toy_study / "embeddings/ecgfm.zarr").exists()


def test_shards_of_another_size_replace_unfinished_vectors_only_when_told(toy_study, embed):
    embed(toy_study)
    (toy_study / "embeddings/ecgfm.zarr/done/c/3").unlink()
    params = yaml.safe_load((toy_study / "params.yaml").read_text())
    params["embed"]["shard_records"] = 8
    (toy_study / "params.yaml").write_text(yaml.safe_dump(params))
    refused = embed(toy_study)
    assert refused.returncode == 2
    assert "vectors of 36 records that were made otherwise (changed: shard size)" in refused.stderr
    assert "40 records embedded" in embed(toy_study, "--replace").stdout


def test_another_version_of_the_code_starts_the_store_afresh(toy_study, embed, monkeypatch):
    embed(toy_study)
    cls, _ = expert_class("ecgfm")
    published = cls.published_spec
    monkeypatch.setattr(cls, "published_spec", lambda *variant: replace(published(*variant), version="next"))
    assert "40 of 40 records to embed, 0 done already" in (told := embed(toy_study, "--dry-run").stdout)
    assert "(changed: version)" in told
    assert "40 records embedded" in embed(toy_study, "--replace").stdout
    assert open_embeddings(toy_study / "embeddings/ecgfm.zarr").attributes["version"] == "next"


def test_more_bad_records_than_allowed_exits_with_3(toy_study, embed):
    done = embed(toy_study, "--max-bad", "0")
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == "error: expert 'ecgfm' finished, but 1 records have no vector (--max-bad 0)"
    assert not open_embeddings(toy_study / "embeddings/ecgfm.zarr").pending()


@pytest.mark.parametrize(
    ("options", "message", "code"),
    [
        (["--weights", "nowhere.pt"], "no weights at nowhere.pt", 1),
        (["--device", "cuda:7"], "this machine has", 2),
        (["--device", "tpu"], "expected auto, cpu, cuda", 2),
        (["--precision", "fp8"], "expected fp32, bf16 or fp16", 2),
        (["--batch-size", "none"], "expected a positive number or auto", 2),
        (["--scheduler", "tcp://127.0.0.1:9"], "cannot be reached", 2),
    ],
)
def test_a_wrong_option_is_one_line(toy_study, embed, options, message, code):
    done = embed(toy_study, *options)
    assert done.returncode == code
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_unknown_expert_is_answered_with_those_that_exist(toy_study, ensemble, monkeypatch):
    monkeypatch.chdir(toy_study)
    done = ensemble("embed", "--expert", "ecgfmm")
    assert done.returncode == 2
    assert "unknown expert 'ecgfmm'; there are:" in done.stderr
    assert "ecgfounder" in done.stderr
