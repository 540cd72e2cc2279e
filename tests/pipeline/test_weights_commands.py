"""What `embed --dry-run`, `doctor` and `cache import` find out before anything is computed or replaced."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file, save_file

from cache import open_embeddings


@pytest.fixture
def study(toy_study, monkeypatch):
    monkeypatch.chdir(toy_study)
    return toy_study


def change_params(**experts):
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["experts"].update(experts)
    Path("params.yaml").write_text(yaml.safe_dump(params))


@pytest.fixture
def wrong_weights(study, tiny_ecgfm):
    state = load_file(tiny_ecgfm.weights)
    save_file({f"net.{key}": value for key, value in state.items()}, "wrong.safetensors")
    change_params(ecgfm={"weights": "wrong.safetensors", "config": tiny_ecgfm.config})


def test_a_dry_run_with_weights_that_do_not_load_fails(wrong_weights, ensemble):
    ended = ensemble("embed", "--expert", "ecgfm", "--dry-run")
    assert ended.returncode == 1
    assert "wrong.safetensors does not fit as it is" in ended.stderr
    assert "the prefix 'net.' would" in ended.stderr
    assert not ended.stdout
    assert not Path("embeddings").exists()


def test_doctor_says_whether_weights_that_are_here_load(wrong_weights, ensemble, tiny_ecgfm):
    ended = ensemble("doctor", "--offline")
    assert ended.returncode == 1
    assert "FAIL  expert 'ecgfm': wrong.safetensors does not fit" in ended.stdout
    change_params(
        ecgfm={"weights": str(tiny_ecgfm.weights), "config": tiny_ecgfm.config}, rocket={"config": {"sed": 1}}
    )
    found = ensemble("doctor", "--offline").stdout
    assert "PASS  expert ecgfm: weights here (params.yaml), and load" in found
    assert "FAIL  expert 'rocket'" in found


def test_doctor_accepts_an_imported_expert_and_refuses_a_store_of_other_records(study, ensemble):
    rows = 40
    np.save("vectors.npy", np.ones((rows, 3), np.float32))
    Path("ids.csv").write_text("\n".join(["record_id", *(f"r{i:04d}" for i in range(rows))]))
    assert ensemble("cache", "import", "vectors.npy", "--expert", "theirs", "--ids", "ids.csv").returncode == 0
    change_params(theirs={})
    ended = ensemble("doctor", "--offline")
    assert ended.returncode == 0, ended.stdout
    assert "PASS  expert theirs: imported, its store is whole and of these records" in ended.stdout


def test_an_import_of_a_value_that_does_not_fit_leaves_what_was_there(study, ensemble):
    ids = "\n".join(["record_id", *(f"r{i:04d}" for i in range(40))])
    Path("ids.csv").write_text(ids)
    vectors = np.ones((40, 3), np.float32)
    vectors[7, 1] = 1e5
    np.save("vectors.npy", vectors)
    asked = ("cache", "import", "vectors.npy", "--expert", "theirs", "--ids", "ids.csv")
    ended = ensemble(*asked)
    assert ended.returncode == 1
    assert "embedding of record 'r0007' holds 100000, which does not fit float16; say --dtype float32" in ended.stderr
    assert not Path("embeddings/theirs.zarr").exists()
    assert ensemble(*asked, "--dtype", "float32").returncode == 0
    assert ensemble(*asked, "--replace").returncode == 1
    assert open_embeddings("embeddings/theirs.zarr").read_embedding()[7, 1] == 1e5
