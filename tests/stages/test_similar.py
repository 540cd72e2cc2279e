"""The neighbours are the nearest ones, whatever the block; the record itself is none."""

import json

import numpy as np
import pandas as pd
import pytest

from cache import open_embeddings, open_records
from cache.errors import InputError
from stages.embed import Embedder, EmbedPaths, EmbedSettings
from stages.similar import SimilarPaths, SimilarSettings, run, stage


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_cohort):
    path = tmp_path_factory.mktemp("similar")
    make_cohort(path, 24)
    paths = [path / name for name in ("records.parquet", "signals.zarr", "embeddings/seed.zarr", ".ensemble")]
    Embedder(EmbedSettings("seed"), EmbedPaths(*paths)).run()
    return path


def paths(folder):
    return SimilarPaths(folder / "records.parquet", folder / "embeddings" / "seed.zarr")


def by_hand(folder, row):
    vectors = open_embeddings(paths(folder).embeddings).read_embedding().astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1)
    distance = 1 - vectors @ vectors[row] / (lengths * lengths[row])
    distance[row] = np.nan
    return [f"r{k:04d}" for k in np.argsort(distance) if np.isfinite(distance[k])], distance


@pytest.mark.parametrize("block", [5, 8192])
def test_they_are_those_of_all_pairs(folder, monkeypatch, block):
    monkeypatch.setattr(stage, "BLOCK_ROWS", block)
    store = open_embeddings(paths(folder).embeddings).read_embedding()
    row = next(k for k in range(24) if np.isfinite(store[k]).all())
    found = run(SimilarSettings(f"r{row:04d}", count=6), paths(folder))
    ids, distance = by_hand(folder, row)
    assert [n.record_id for n in found.neighbours] == ids[:6]
    np.testing.assert_allclose([n.distance for n in found.neighbours], np.sort(distance)[:6], atol=1e-5)
    assert found.n_compared == len(ids)
    labels = open_records(folder / "records.parquet").set_index("record_id")["sex"]
    assert all(n.labels["sex"] == ("male", "female")[int(labels[n.record_id])] for n in found.neighbours)


def test_the_same_patient_is_left_out_on_request(folder):
    near = run(SimilarSettings("r0008", count=30, same_patient=False), paths(folder)).neighbours
    assert near
    assert "p0004" not in {n.patient_id for n in near}


def test_a_record_without_a_vector_or_unknown_is_named(folder):
    with pytest.raises(InputError, match="record r0003 has no whole vector"):
        run(SimilarSettings("r0003"), paths(folder))
    with pytest.raises(InputError, match="nobody: records"):
        run(SimilarSettings("nobody"), paths(folder))


def test_the_command_prints_a_table_json_and_parquet(folder, ensemble, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "params.yaml").write_text("cohort: {source: wfdb, path: .}\nexperts: {seed: {}}\n")
    printed = ensemble("similar", "r0008", "--expert", "seed", "-k", "3", "--json")
    rows = [json.loads(line) for line in printed.stdout.splitlines()]
    assert len(rows) == 3
    assert ensemble("similar", "r0008", "--expert", "seed", "-k", "3", "--out", "near.parquet").returncode == 0
    assert pd.read_parquet("near.parquet")["record_id"].tolist() == [row["record_id"] for row in rows]
    assert rows[0]["record_id"] in ensemble("similar", "r0008", "--expert", "seed").stdout
