"""The one expert whose real weights a package brings, end to end on real ECGs, from ingest to a prediction."""

import importlib.util
import json

import numpy as np
import pytest

from cache.embeddings import open_embeddings

pytestmark = pytest.mark.skipif(importlib.util.find_spec("openecg") is None, reason="openecg is not installed")
PARAMS = """
cohort: {{source: ptbxl, path: {path}}}
experts: {{openecg: {{}}}}
tasks: [sex, age]
fit_heads: {{folds: 3}}
evaluate: {{bootstrap: 100}}
"""


def test_openecg_runs_from_ptbxl_records_to_predictions(test_data, tmp_path, ensemble, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(PARAMS.format(path=test_data / "ptbxl"))
    for command in (["ingest", "--limit", "120"], ["embed", "--expert", "openecg"], ["fit-heads"], ["evaluate"]):
        done = ensemble(*command)
        assert done.returncode == 0, done.stderr
    store = open_embeddings(tmp_path / "embeddings/openecg.zarr")
    assert store.attributes["weights_source"] == "openecg"
    shares = store.read_output()
    assert np.allclose(shares[:, :4].sum(1), 1, atol=2e-3)
    # The published codec finds waves on records that it was not trained on: QRS on 4 to 30 % of the samples.
    assert 0.04 < np.median(shares[:, 2]) < 0.3
    metrics = json.loads((tmp_path / "metrics.json").read_text())["tasks"]
    age = metrics["age"]["methods"]
    assert age["gate"]["mae"]["value"] < age["trivial"]["mae"]["value"]
    record = next(iter(sorted((test_data / "ptbxl/records500/00000").glob("*.hea"))))
    done = ensemble("predict", str(record), "--json")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["tasks"]) == {"sex", "age"}
