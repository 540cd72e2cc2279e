"""The model hub: download, cache, offline, pins, digests and failures, against a server on the loopback interface."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save

from cache.errors import UsageError, WeightsError
from stages.experts import WeightsSource, expert_class, list_experts, load_expert
from stages.experts.checkpoints import origin_of, weights_digest
from stages.experts.hub import commit_of, is_commit, pin_of
from stages.experts.hub import fetch as fetch_spec
from tests.stages.hub_server import COMMIT, running_hub

CONTENT = os.urandom(3_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
REPOSITORY, FILE = "PKUDigitalHealth/ECGFounder", "12_lead_ECGFounder.pth"
UNPINNED = WeightsSource(REPOSITORY, FILE, "main")
LATER = "89abcdef" * 5


def spec_with(source=UNPINNED, **changes):
    spec = expert_class("ecgfounder")[0].published_spec()
    return dataclasses.replace(spec, weights=dataclasses.replace(source, **changes))


@pytest.fixture
def hub():
    with running_hub() as server:
        server.publish(REPOSITORY, {FILE: CONTENT})
        yield server


@pytest.fixture
def fetch(hub, tmp_path, monkeypatch):
    """Fetch as a process does whose HF_ENDPOINT and HF_HOME are these (read at import, hence set where they end up)."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf/hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 5)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    huggingface_hub.close_session()

    def call(offline=False, repin=False, **changes):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        return fetch_spec(spec_with(**changes), repin)

    yield call
    huggingface_hub.close_session()


def ledger(tmp_path):
    return json.loads((tmp_path / "cache/ensemble/weights.json").read_text())


def downloads(hub):
    return [path for method, path, _ in hub.asked if method == "GET"]


def refused(call, *parts):
    with pytest.raises(WeightsError) as caught:
        call()
    message = str(caught.value)
    assert message.startswith("expert 'ecgfounder'")
    assert "\n" not in message
    assert all(part in message for part in parts), message
    return message


def test_a_file_is_downloaded_once_and_then_found_without_the_network(hub, fetch):
    path = fetch()
    assert path.read_bytes() == CONTENT
    n_asked = len(hub.asked)
    assert fetch() == path
    assert fetch(offline=True) == path
    assert len(hub.asked) == n_asked


def test_offline_and_not_in_the_cache_is_refused_with_the_fix(hub, fetch):
    refused(lambda: fetch(offline=True), "HF_HUB_OFFLINE is set", "--weights")
    assert not hub.asked


def test_a_published_digest_is_checked_at_every_use(fetch):
    path = fetch(sha256=DIGEST)
    refused(lambda: fetch(sha256="0" * 64), "0000000000000000", DIGEST[:16], "delete")
    with path.open("r+b") as file:
        file.write(b"altered")
    assert "--repin" not in refused(lambda: fetch(sha256=DIGEST), "the published one")


def test_the_first_use_is_recorded_and_deleting_as_told_mends_a_damage(fetch, tmp_path):
    path = fetch()
    [(key, pin)] = ledger(tmp_path).items()
    assert key == f"{REPOSITORY}@main/{FILE}"
    assert pin == {"sha256": DIGEST, "commit": COMMIT}
    with path.open("r+b") as file:
        file.write(b"altered")
    message = refused(fetch, "at its first use")
    os.unlink(message.partition("delete ")[2].partition(" and run")[0])
    assert fetch() == path


def test_a_download_that_is_not_what_the_hub_announced_is_refused_at_its_first_use(fetch, tmp_path):
    path = fetch()
    with path.open("r+b") as file:
        file.write(b"altered")
    (tmp_path / "cache/ensemble/weights.json").unlink()
    refused(fetch, "the hub announced")
    assert not (tmp_path / "cache/ensemble/weights.json").exists()


def test_the_first_use_pins_the_commit_and_later_downloads_ask_for_exactly_it(hub, fetch, tmp_path):
    fetch()
    hub.publish(REPOSITORY, {FILE: CONTENT[::-1]}, LATER)
    shutil.rmtree(tmp_path / "hf")
    again = fetch()
    assert again.read_bytes() == CONTENT
    assert downloads(hub)[-1] == f"/{REPOSITORY}/resolve/{COMMIT}/{FILE}"
    assert origin_of(spec_with(), None, again, DIGEST) == {"weights_source": REPOSITORY, "weights_revision": COMMIT}


def test_another_commit_is_taken_only_when_asked_for(hub, fetch, tmp_path):
    fetch()
    hub.publish(REPOSITORY, {FILE: CONTENT[::-1]}, LATER)
    assert fetch().read_bytes() == CONTENT
    taken = fetch(repin=True)
    assert taken.read_bytes() == CONTENT[::-1]
    assert ledger(tmp_path)[f"{REPOSITORY}@main/{FILE}"]["commit"] == LATER
    assert fetch(offline=True) == taken


def test_a_pinned_commit_that_the_hub_dropped_is_told_with_the_way_out(hub, fetch, tmp_path):
    fetch()
    del hub.commits[REPOSITORY]
    hub.publish(REPOSITORY, {FILE: CONTENT[::-1]}, LATER)
    shutil.rmtree(tmp_path / "hf")
    refused(fetch, COMMIT, "ensemble weights fetch ecgfounder --repin")
    assert fetch(repin=True).read_bytes() == CONTENT[::-1]


def test_a_hub_that_gives_another_commit_than_asked_for_is_refused(hub, fetch, monkeypatch):
    monkeypatch.setattr(hub, "find", lambda *_: (LATER, CONTENT))
    refused(lambda: fetch(revision=COMMIT), f"gave commit {LATER}", COMMIT)


def test_weights_that_this_release_pins_cannot_be_pinned_again(fetch):
    for pinned in ({"revision": COMMIT}, {"sha256": DIGEST}):
        with pytest.raises(UsageError, match=r"pinned by this release.*--weights"):
            fetch(repin=True, **pinned)


def test_a_ledger_of_digests_alone_is_read_and_gets_its_commit(fetch, tmp_path):
    path = tmp_path / "cache/ensemble/weights.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({f"{REPOSITORY}@main/{FILE}": DIGEST}))
    fetch()
    assert pin_of(UNPINNED).commit == COMMIT
    path.write_text(json.dumps({f"{REPOSITORY}@main/{FILE}": "0" * 64}))
    refused(fetch, "at its first use", "--repin")


def test_a_file_that_changed_under_the_same_commit_is_refused(hub, fetch, tmp_path):
    fetch()
    hub.publish(REPOSITORY, {FILE: CONTENT[::-1]})
    shutil.rmtree(tmp_path / "hf")
    refused(fetch, "at its first use", hashlib.sha256(CONTENT[::-1]).hexdigest()[:16])


def test_a_renamed_repository_is_found_under_its_other_name(hub, fetch):
    assert fetch(repo_id="old/name", also_at=(REPOSITORY,)).read_bytes() == CONTENT
    assert fetch(repo_id="old/name", also_at=(REPOSITORY,), offline=True).read_bytes() == CONTENT
    refused(lambda: fetch(repo_id="old/other", also_at=("nor/this",)), "old/other", "--weights")


def test_a_file_or_a_repository_that_is_not_there_is_one_line(fetch):
    refused(lambda: fetch(filename="none.pth"), "cannot get none.pth", "404")
    refused(lambda: fetch(repo_id="nobody/nothing"), "nobody/nothing", "--weights")


def test_a_hub_that_cannot_be_reached_is_named(fetch, monkeypatch):
    with running_hub() as closed:
        url = closed.url
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    started = time.perf_counter()
    refused(fetch, f"{url} cannot be reached", "give the file with --weights")
    assert time.perf_counter() - started < 3  # the client's own attempts take 27 s


def test_a_name_server_that_does_not_answer_is_told_within_three_seconds(fetch, monkeypatch):
    ended = threading.Event()

    def look_up(*_, **__):
        ended.wait(10)
        raise OSError("no name server")

    monkeypatch.setattr("socket.getaddrinfo", look_up)
    started = time.perf_counter()
    refused(fetch, "cannot be reached: no answer within 2 s", "HF_ENDPOINT")
    assert time.perf_counter() - started < 3
    ended.set()


def test_a_proxy_that_is_not_there_is_named(fetch, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.example")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    refused(fetch, "http://hub.example cannot be reached through the proxy 127.0.0.1:9")


@pytest.mark.parametrize("token", ["", "hf_wrong"])
def test_a_gated_repository_asks_for_a_token(hub, fetch, monkeypatch, token):
    hub.gated[REPOSITORY] = "hf_right"
    monkeypatch.setenv("HF_TOKEN", token)
    refused(fetch, f"accept their terms at {hub.url}/{REPOSITORY}", "set HF_TOKEN", "hf auth login")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert fetch().read_bytes() == CONTENT


def test_companions_come_from_the_same_commit_and_are_part_of_the_digest(hub, fetch):
    hub.publish(REPOSITORY, {FILE: CONTENT, "config.json": b"{}"})
    path = fetch(companions=("config.json",))
    assert (path.parent / "config.json").read_bytes() == b"{}"
    assert downloads(hub)[-1] == f"/{REPOSITORY}/resolve/{COMMIT}/config.json"
    spec = spec_with(companions=("config.json",))
    assert fetch(offline=True, companions=("config.json",)) == path
    before = weights_digest(spec, path)
    assert before != weights_digest(spec_with(), path) == DIGEST
    (path.parent / "config.json").unlink()
    with pytest.raises(
        WeightsError, match=r"lacks config.json; the weights are 12_lead_ECGFounder.pth and config.json"
    ):
        weights_digest(spec, path)


def test_a_download_that_breaks_off_resumes_and_never_counts_as_done(hub, fetch):
    large = CONTENT * 8  # the client keeps what it has in pieces of 10 MB
    hub.publish(REPOSITORY, {FILE: large})
    hub.broken = 1
    assert fetch().read_bytes() == large
    assert [asked for method, _, asked in hub.asked if method == "GET"] == [None, "bytes=10485760-"]


def test_a_hub_that_always_breaks_off_leaves_nothing_that_looks_like_the_file(hub, fetch, tmp_path, monkeypatch):
    hub.broken = 1000
    monkeypatch.setattr("time.sleep", lambda _: None)
    refused(fetch, "cannot get 12_lead_ECGFounder.pth")
    assert not list((tmp_path / "hf").rglob("snapshots/*/*.pth"))
    assert not (tmp_path / "cache/ensemble/weights.json").exists()


@pytest.mark.parametrize("name", list_experts())
def test_published_pins_are_whole_commits_and_digests(name):
    cls, variant = expert_class(name)
    source = cls.published_spec(variant).weights
    if source is None:
        pytest.skip("no weights")
    assert source.revision == "" if not source.repo_id else source.revision == "main" or is_commit(source.revision)
    assert not source.sha256 or re.fullmatch("[0-9a-f]{64}", source.sha256)


def test_the_commit_is_read_off_the_cache_alone():
    assert commit_of(Path(f"/data/snapshots/hub/models--a--b/snapshots/{COMMIT}/folder/w.pth")) == COMMIT
    assert commit_of(Path("/data/snapshots/w.pth")) == ""


def test_the_environment_and_the_command_do_all_this(hub, tmp_path):
    small = expert_class("ttm")[0].small_config()
    torch.manual_seed(0)
    expert = load_expert("ttm", config=small, random_weights=True)
    state = {key: value.contiguous() for key, value in expert.module.state_dict().items()}
    source = expert_class("ttm")[0].published_spec().weights
    hub.publish(source.repo_id, {source.filename: save(state)}, source.revision)
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    fixed = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "5"}

    def run(*arguments, **more):
        environment = {**kept, **fixed, **own, **more}
        command = [sys.executable, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)

    none_needed = run("-m", "pipeline.cli", "weights", "fetch", "rocket")
    assert (none_needed.returncode, none_needed.stdout) == (0, "expert 'rocket' needs no weights: nothing to fetch\n")
    done = run("-m", "pipeline.cli", "weights", "fetch", "ttm")
    assert done.returncode == 0, done.stderr
    path = done.stdout.strip()
    assert path.startswith(str(tmp_path / "hf"))
    assert load_file(path).keys() == state.keys()
    code = "from stages.experts import load_expert; import sys, json; "
    code += "print(load_expert('ttm', config=json.loads(sys.argv[1])).spec.parameters)"
    loaded = run("-c", code, json.dumps(small), HF_HUB_OFFLINE="1")
    assert loaded.stdout.strip() == str(expert.spec.parameters), loaded.stderr
