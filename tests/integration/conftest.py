"""Fixtures of the fault tests: a study whose uninterrupted store is known, and processes that embed it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.integration.faults import N_RECORDS, SHARD, STORE, Forks, bytes_of


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def cohort(tmp_path_factory, tiny_ecgfm, make_cohort, program):
    """A study of 208 records in shards of 4, and what one uninterrupted run makes of it."""
    folder = tmp_path_factory.mktemp("cohort")
    make_cohort(folder, N_RECORDS)
    shutil.copy(tiny_ecgfm.weights, folder / "ecgfm.safetensors")
    params = {
        "cohort": {"source": "wfdb", "path": "."},
        "experts": {"ecgfm": {"weights": "ecgfm.safetensors", "config": tiny_ecgfm.config}},
        "embed": {"shard_records": SHARD},
        "machine": {"batch_size": 2, "device": "cpu", "workers": 1},
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    with Forks(program, folder) as forks:
        forks.start()
        forks.wait_all()
    return folder


@pytest.fixture(scope="session")
def whole(cohort):
    """The uninterrupted store's bytes."""
    return bytes_of(cohort / STORE)


@pytest.fixture
def study(cohort, tmp_path):
    """A copy of the cohort, without its store."""
    shutil.copytree(cohort, tmp_path / "study", ignore=shutil.ignore_patterns("embeddings", ".ensemble", "log-*"))
    return tmp_path / "study"
