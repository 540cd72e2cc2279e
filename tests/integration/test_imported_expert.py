"""Embeddings that another tool has made are an expert like any other, but for new ECGs."""

import json

import numpy as np
import pytest
import yaml

from cache import open_records


@pytest.fixture
def ensemble(ensemble, toy_study, monkeypatch):
    monkeypatch.chdir(toy_study)
    params = yaml.safe_load((toy_study / "params.yaml").read_text())
    params["experts"]["mine"] = {"weights": "weights/default"}
    params["evaluate"] = {"bootstrap": 100}
    (toy_study / "params.yaml").write_text(yaml.safe_dump(params))
    records = open_records("records.parquet")
    np.save("vectors.npy", records[["sex", "age"]].to_numpy(float) + np.random.default_rng(0).normal(0, 0.1, (40, 2)))
    records[["record_id"]].to_csv("ids.csv", index=False)
    return ensemble


def test_imported_vectors_train_heads_and_are_reported(ensemble, toy_study):
    done = ensemble("embed", "--expert", "mine")
    assert done[0] == 2, "there is no such expert, and no store yet"
    assert ensemble("cache", "import", "vectors.npy", "--expert", "mine", "--ids", "ids.csv")[0] == 0
    done = ensemble("embed", "--expert", "mine")
    assert done[:2] == (0, "mine: imported, nothing to run -> embeddings/mine.zarr\n"), done[2]
    assert ensemble("embed", "--expert", "ecgfm", "--workers", "1")[0] == 0
    for command in ("fit-heads", "evaluate", "report"):
        code, _, err = ensemble(command)
        assert code == 0, err
    methods = json.loads((toy_study / "metrics.json").read_text())["tasks"]["age"]["methods"]
    assert methods["expert:mine"]["mae"]["value"] < methods["trivial"]["mae"]["value"] / 2
    assert "imported embeddings" in (toy_study / "report.html").read_text()


def test_a_new_ecg_is_predicted_without_the_imported_expert(ensemble, toy_study, tmp_path):
    import wfdb

    assert ensemble("cache", "import", "vectors.npy", "--expert", "mine", "--ids", "ids.csv")[0] == 0
    assert ensemble("embed", "--expert", "ecgfm", "--workers", "1")[0] == 0
    assert ensemble("fit-heads")[0] == 0
    signals = np.random.default_rng(0).normal(0, 0.1, (5000, 12))
    leads = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
    wfdb.wrsamp("new", 500, ["mV"] * 12, leads, p_signal=signals, fmt=["16"] * 12, write_dir=str(tmp_path))
    code, out, err = ensemble("predict", str(tmp_path / "new"), "--json")
    assert code == 0, err
    told = json.loads(out)
    assert "expert mine is absent" in told["warnings"]
    assert told["gate"]["age"] == {"ecgfm": 1.0, "mine": 0.0}
