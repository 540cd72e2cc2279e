"""Two checkpoints of one expert in one study, `ecgfm` and `ecgfm+mine`, from params.yaml to a prediction."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import wfdb
import yaml
from safetensors.torch import save_file

from cache import open_embeddings
from stages.experts import load_expert
from stages.experts.contract import STANDARD_LEADS

MINE = "ecgfm+mine"


@pytest.fixture
def study(toy_study, tiny_ecgfm, monkeypatch):
    monkeypatch.chdir(toy_study)
    torch.manual_seed(5)
    state = load_expert("ecgfm", config=tiny_ecgfm.config, random_weights=True).module.state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, "mine.safetensors")
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["experts"][MINE] = {"weights": "mine.safetensors", "config": tiny_ecgfm.config}
    params["experts"]["rocket+seven"] = {"config": {"seed": 7}}
    params |= {"tasks": ["sex"], "evaluate": {"bootstrap": 100}}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    return toy_study


def test_both_are_embedded_fitted_judged_and_predict(study, ensemble, tiny_ecgfm):
    experts = ("ecgfm", MINE)
    for name in experts:
        ended = ensemble("embed", "--expert", name, "--workers", "1")
        assert ended.returncode == 0, ended.stderr
    stores = {name: open_embeddings(f"embeddings/{name}.zarr") for name in experts}
    published, mine = (stores[name].read_embedding(slice(0, 3)) for name in experts)
    assert not np.allclose(published, mine)
    assert stores[MINE].attributes["weights_source"] == "file mine.safetensors"
    expert = load_expert(MINE, "mine.safetensors", tiny_ecgfm.config)
    assert (expert.spec.name, expert.spec.licence) == (MINE, "MIT")
    for command in (("fit-heads", "--experts", "ecgfm,ecgfm+mine"), ("evaluate",), ("report",)):
        ended = ensemble(*command)
        assert ended.returncode == 0, ended.stderr
    methods = json.loads(Path("metrics.json").read_text())["tasks"]["sex"]["methods"]
    assert {"expert:ecgfm", f"expert:{MINE}", "gate"} <= methods.keys()
    assert MINE in Path("report.html").read_text()
    noise = np.random.default_rng(0).normal(0, 0.1, (5000, 12))
    wfdb.wrsamp("new", fs=500, units=["mV"] * 12, sig_name=list(STANDARD_LEADS), p_signal=noise, fmt=["16"] * 12)
    predicted = ensemble("predict", "new", "--json")
    assert predicted.returncode == 0, predicted.stderr
    assert set(json.loads(predicted.stdout)["gate"]["sex"]) == set(experts)


def test_the_table_and_doctor_know_both(study, ensemble):
    table = ensemble("experts").stdout
    assert [line.split()[1] for line in table.splitlines() if "+" in line][:2] == [MINE, "rocket+seven"]
    details = ensemble("experts", MINE).stdout
    assert "here (params.yaml)" in details
    assert "experts.ecgfm+mine.weights in params.yaml" in details
    doctor = ensemble("doctor", "--offline").stdout
    assert f"PASS  expert {MINE}: weights here (params.yaml), and load" in doctor
    assert "PASS  expert rocket+seven: weights none needed" in doctor


def test_a_name_without_weights_is_refused_with_what_there_is(study, ensemble):
    ended = ensemble("embed", "--expert", "ecgfm+yours")
    assert ended.returncode == 2
    assert "no expert version 'ecgfm+yours'" in ended.stderr
    assert "experts.ecgfm+yours.weights in params.yaml" in ended.stderr
    unknown = ensemble("embed", "--expert", "ecgfn+mine")
    assert unknown.returncode == 2
    assert "unknown expert 'ecgfn'" in unknown.stderr
