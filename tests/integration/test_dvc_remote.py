"""A study's embeddings under real DVC: killed and resumed, pushed and pulled, never stale, never made twice."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cache import open_embeddings
from tests.integration.faults import bytes_of

STORE = Path("embeddings/ecgfm.zarr")
N_RECORDS, SHARD = 60, 2
PATIENCE_S = 120
DVC = [sys.executable, "-m", "dvc"]
EMBED = [*DVC, "repro", "embed@ecgfm"]


class Study:
    """A study's folder and the commands run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, folder / STORE
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # where `ensemble` is
            "OMP_NUM_THREADS": "1",
        }

    def start(self, *command: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command,
            cwd=self.folder,
            stdout=pipe,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
            start_new_session=True,
        )

    def run(self, *command: str) -> str:
        running = self.start(*command)
        said, _ = running.communicate(timeout=PATIENCE_S)
        assert running.returncode == 0, said
        return said

    def shards_done(self) -> int:
        return sum(file.name.isdigit() for file in self.store.glob("done/c/*"))

    def change(self, **expert: object) -> None:
        file = self.folder / "params.yaml"
        params = yaml.safe_load(file.read_text())
        params["experts"]["ecgfm"].update(expert)
        file.write_text(yaml.safe_dump(params))


@pytest.fixture(scope="module")
def study(tmp_path_factory, make_cohort, tiny_ecgfm) -> Study:
    """A study of 60 records in 30 shards, ingested, whose only stage is `embed@ecgfm`, with a local remote."""
    folder = tmp_path_factory.mktemp("study")
    study = Study(folder)
    study.run(*DVC, "init", "-q", "--no-scm")
    study.run(*DVC, "config", "core.analytics", "false")
    study.run(*DVC, "remote", "add", "-d", "shelf", str(tmp_path_factory.mktemp("remote")))
    make_cohort(folder, N_RECORDS)
    shutil.copy(tiny_ecgfm.weights, folder / "ecgfm.safetensors")
    params = {
        "cohort": {"source": "wfdb", "path": "."},
        "experts": {"ecgfm": {"weights": "ecgfm.safetensors", "config": tiny_ecgfm.config}},
        "embed": {"shard_records": SHARD},
        "machine": {"batch_size": 2, "device": "cpu", "workers": 1},
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    template = yaml.safe_load((Path(__file__).parents[2] / "dvc.yaml").read_text())["stages"]["embed"]
    template["do"]["deps"] = [dep for dep in template["do"]["deps"] if not dep.startswith(("stages/", "cache"))]
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"embed": template}}))
    return study


def test_repro_resumes_after_a_kill_and_then_has_nothing_to_do(study):
    victim = study.start(*EMBED)
    deadline = time.monotonic() + PATIENCE_S
    while study.shards_done() < 3 and victim.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    os.killpg(victim.pid, signal.SIGKILL)  # dvc and what it has started
    victim.communicate()
    n_done = study.shards_done()
    assert 3 <= n_done < N_RECORDS // SHARD, "the run was over before it could be killed"
    before = {file: file.stat().st_mtime_ns for file in study.store.glob("layers/c/*/0/0")}
    said = study.run(*EMBED)
    assert f"{SHARD * n_done} done already" in said
    assert {file: file.stat().st_mtime_ns for file in before} == before, "a shard that was there was made again"
    assert "up to date" in study.run(*EMBED)
    assert not open_embeddings(study.store).pending()


def test_what_is_pushed_and_pulled_verifies(study):
    made = bytes_of(study.store)
    study.run(*DVC, "push", "-q")
    shutil.rmtree(study.store)
    shutil.rmtree(study.folder / ".dvc/cache")
    study.run(*DVC, "pull", "-q", "embed@ecgfm")
    assert bytes_of(study.store) == made
    study.run("ensemble", "cache", "verify")
    assert "up to date" in study.run(*EMBED)
    file = study.store / "layers/c/4/0/0"
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    verify = study.start("ensemble", "cache", "verify")
    assert "shard 4" in verify.communicate(timeout=PATIENCE_S)[0]
    assert verify.returncode == 1
    study.run(*DVC, "checkout", "-q", "--force")
    assert bytes_of(study.store) == made


@pytest.mark.slow
def test_no_row_of_other_parameters_or_weights_stays(study, tmp_path):
    from safetensors.torch import load_file, save_file

    made = bytes_of(study.store)
    study.change(preprocessing="enecg")
    assert f"{N_RECORDS} records embedded" in study.run(*EMBED)
    changed = bytes_of(study.store)
    assert all(changed[name] != content for name, content in made.items() if name.startswith("embedding/c/"))
    study.change(preprocessing="authors")
    weights = study.folder / "ecgfm.safetensors"
    original = weights.read_bytes()
    state = load_file(weights)
    save_file({name: value * 1.5 if value.is_floating_point() else value for name, value in state.items()}, weights)
    assert f"{N_RECORDS} records embedded" in study.run(*EMBED)
    scaled = bytes_of(study.store)
    assert all(scaled[name] != content for name, content in made.items() if name.startswith("embedding/c/"))
    weights.write_bytes(original)
    study.run(*EMBED)  # dvc has kept the outcome of the first run
    assert bytes_of(study.store) == made
