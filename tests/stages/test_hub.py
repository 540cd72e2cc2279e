"""The model hub: download, cache, offline, digests and failures, against a server on the loopback interface."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save

from stages.experts import expert_class, load_expert
from tests.stages.hub_server import running_hub

CONTENT = os.urandom(3_000_000)
FETCH = """
import dataclasses, json, sys
from cache.errors import EnsembleError
from stages.experts import expert_class
from stages.experts._hub import cached, fetch
name, changes = sys.argv[1], json.loads(sys.argv[2])
cls, variant = expert_class(name)
spec = cls.published_spec(variant)
spec = dataclasses.replace(spec, weights=dataclasses.replace(spec.weights, **changes))
try:
    print(fetch(spec))
except EnsembleError as error:
    print("refused:", type(error).__name__, error)
"""


@pytest.fixture
def hub():
    with running_hub() as server:
        source = expert_class("ecgfounder")[0].published_spec().weights
        server.files[source.repo_id] = {source.filename: CONTENT}
        yield server


@pytest.fixture
def run(hub, tmp_path):
    def python(*arguments, **more):
        own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        fixed = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "5"}
        environment = {**kept, **fixed, **own, **more}
        return subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False, timeout=120
        )

    return python


@pytest.fixture
def fetch(run):
    def call(name="ecgfounder", changes=None, **more):
        done = run("-c", FETCH, name, json.dumps(changes or {}), **more)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    return call


def refused(line, *parts):
    assert line.startswith("refused: WeightsError expert 'ecgfounder'"), line
    assert all(part in line for part in parts), line


def test_a_file_is_downloaded_once_and_then_found_without_the_network(hub, fetch):
    path = fetch()
    with open(path, "rb") as file:
        assert file.read() == CONTENT
    n_asked = len(hub.asked)
    assert fetch() == path
    assert fetch(HF_HUB_OFFLINE="1") == path
    assert len(hub.asked) == n_asked


def test_offline_and_not_in_the_cache_is_refused_with_the_fix(hub, fetch):
    refused(fetch(HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE is set", "--weights")
    assert not hub.asked


def test_a_published_digest_is_checked_at_every_use(fetch):
    right = hashlib.sha256(CONTENT).hexdigest()
    path = fetch(changes={"sha256": right})
    refused(fetch(changes={"sha256": "0" * 64}), "0000000000000000", right[:16], "delete")
    with open(path, "r+b") as file:
        file.write(b"altered")
    refused(fetch(changes={"sha256": right}), "the published one")


def test_the_digest_of_the_first_use_is_recorded_and_deleting_as_told_mends_a_damage(fetch, tmp_path):
    path = fetch()
    [(key, digest)] = json.loads((tmp_path / "cache/ensemble/weights.json").read_text()).items()
    assert key.startswith("PKUDigitalHealth/ECGFounder@")
    assert digest == hashlib.sha256(CONTENT).hexdigest()
    with open(path, "r+b") as file:
        file.write(b"altered")
    line = fetch()
    refused(line, "at its first use")
    os.unlink(line.partition("delete ")[2].partition(" and run")[0])
    assert fetch() == path


def test_a_file_that_changed_on_the_hub_is_refused(hub, fetch):
    path = fetch()
    hub.files["PKUDigitalHealth/ECGFounder"] = {"12_lead_ECGFounder.pth": CONTENT[::-1]}
    os.unlink(os.path.realpath(path))
    os.unlink(path)
    refused(fetch(), "at its first use", hashlib.sha256(CONTENT[::-1]).hexdigest()[:16])


def test_a_file_or_a_repository_that_is_not_there_is_one_line(fetch):
    refused(fetch(changes={"filename": "none.pth"}), "cannot get none.pth", "404")
    refused(fetch(changes={"repo_id": "nobody/nothing"}), "nobody/nothing", "--weights")


def test_a_download_that_breaks_off_resumes_and_never_counts_as_done(hub, fetch):
    large = CONTENT * 8  # the client keeps what it has in pieces of 10 MB
    hub.files["PKUDigitalHealth/ECGFounder"] = {"12_lead_ECGFounder.pth": large}
    hub.broken = 1
    with open(fetch(), "rb") as file:
        assert file.read() == large
    assert [asked for method, _, asked in hub.asked if method == "GET"] == [None, "bytes=10485760-"]


def test_a_hub_that_always_breaks_off_leaves_nothing_that_looks_like_the_file(hub, fetch, tmp_path):
    hub.broken = 1000
    refused(fetch(), "cannot get 12_lead_ECGFounder.pth")
    assert not list((tmp_path / "hf").rglob("snapshots/*/*.pth"))
    assert not (tmp_path / "cache/ensemble/weights.json").exists()


def test_load_expert_takes_the_hubs_weights_and_the_command_fetches_them(hub, run):
    small = expert_class("ttm")[0].small_config()
    torch.manual_seed(0)
    expert = load_expert("ttm", config=small, random_weights=True)
    state = {key: value.contiguous() for key, value in expert.module.state_dict().items()}
    source = expert_class("ttm")[0].published_spec().weights
    hub.files[source.repo_id] = {source.filename: save(state)}
    done = run("-m", "pipeline.cli", "weights", "fetch", "ttm")
    assert done.returncode == 0, done.stderr
    assert load_file(done.stdout.strip()).keys() == state.keys()
    code = "from stages.experts import load_expert; import sys, json; "
    code += "print(load_expert('ttm', config=json.loads(sys.argv[1])).spec.parameters)"
    loaded = run("-c", code, json.dumps(small), HF_HUB_OFFLINE="1")
    assert loaded.stdout.strip() == str(expert.spec.parameters), loaded.stderr
