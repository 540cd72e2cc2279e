"""One command from an official checkpoint file to vectors: `embed --expert NAME --weights FILE` on real records."""

import argparse

import numpy as np
import pytest
import torch
import wfdb

from cache.embeddings import open_embeddings
from cache.records import open_records
from stages.experts import expert_class, load_expert
from stages.experts.contract import STANDARD_LEADS
from stages.experts.run import run_expert


def as_published_ecgfounder(state):
    return {"state_dict": state, "epoch": np.int64(3), "best_auc": np.float64(0.9), "optimizer": {"state": {}}}


def as_published_ecgfm(state):
    older = {"weight.original0": "weight_g", "weight.original1": "weight_v"}
    model = {}
    for key, value in state.items():
        new = next((n for n in older if key.endswith(f".parametrizations.{n}")), None)
        model[key.replace(f".parametrizations.{new}", f".{older[new]}") if new else key] = value
    assert model.keys() != state.keys()
    history = [{"num_updates": 5, "best": np.float64(0.5)}]
    return {"args": argparse.Namespace(arch="wav2vec2"), "model": model, "cfg": {}, "optimizer_history": history}


@pytest.mark.parametrize(
    ("name", "publish", "config"),
    [("ecgfounder", as_published_ecgfounder, {}), ("ecgfm", as_published_ecgfm, {"encoder_attention_heads": 4})],
)
def test_one_command_embeds_ptbxl_with_an_official_checkpoint(
    name, publish, config, test_data, tmp_path, ensemble, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    small = load_expert(name, config=expert_class(name)[0].small_config(), random_weights=True)
    torch.save(publish(small.module.state_dict()), tmp_path / "official.pth")
    params = f"cohort: {{source: ptbxl, path: {test_data / 'ptbxl'}}}\nexperts: {{{name}: {{config: {config}}}}}\n"
    (tmp_path / "params.yaml").write_text(params)
    assert ensemble("ingest", "--limit", "4").returncode == 0
    done = ensemble("embed", "--expert", name, "--weights", "official.pth")
    assert done.returncode == 0, done.stderr
    store, records = open_embeddings(tmp_path / f"embeddings/{name}.zarr"), open_records(tmp_path / "records.parquet")
    assert store.attributes["weights_source"] == "file official.pth"
    record = wfdb.rdrecord(str(test_data / "ptbxl" / records["path"].iloc[2]))
    by_name = {lead.upper(): signal for lead, signal in zip(record.sig_name, record.p_signal.T, strict=True)}
    signals = np.stack([by_name[lead.upper()] for lead in STANDARD_LEADS])[None]
    expected = run_expert(small, small.prepare(signals, record.fs)).embedding[0]
    np.testing.assert_allclose(store.embedding[2], expected, rtol=2e-3, atol=2e-3)  # stored in 16 bits
