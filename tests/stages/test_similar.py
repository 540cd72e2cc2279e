"""The neighbours are the nearest ones, whatever the block; the record itself is none."""

import json

import numpy as np
import pandas as pd
import pytest

from cache import open_embeddings, open_records
from cache.errors import InputError
from cache.records import records_digest
from stages.embed import Embedder, EmbedPaths, EmbedSettings
from stages.similar import SimilarPaths, SimilarSettings, run
from stages.similar import index as index_module
from stages.spaces import SpacePaths, open_space, sample
from tests.stages.fitted_study import write_fitted


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_cohort):
    path = tmp_path_factory.mktemp("similar")
    make_cohort(path, 24)
    paths = [path / name for name in ("records.parquet", "signals.zarr", "embeddings/seed.zarr", ".ensemble")]
    Embedder(EmbedSettings("seed"), EmbedPaths(*paths)).run()
    return path


def paths(folder, indexes=None):
    store = folder / "embeddings" / "seed.zarr"
    return SimilarPaths(folder / "records.parquet", SpacePaths({"seed": store}), indexes)


def by_hand(folder, row):
    vectors = open_embeddings(folder / "embeddings" / "seed.zarr").read_embedding().astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1)
    distance = 1 - vectors @ vectors[row] / (lengths * lengths[row])
    distance[row] = np.nan
    return [f"r{k:04d}" for k in np.argsort(distance) if np.isfinite(distance[k])], distance


@pytest.mark.parametrize("block", [5, 8192])
def test_they_are_those_of_all_pairs(folder, monkeypatch, block):
    monkeypatch.setattr(sample, "BLOCK_ROWS", block)
    store = open_embeddings(folder / "embeddings" / "seed.zarr").read_embedding()
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
    with pytest.raises(InputError, match="r0003: has no whole vector"):
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


# ---- an index --------------------------------------------------------------------------------------------------------


def same_neighbours(found, wanted):
    """One row's product and many rows' differ in the last bits."""
    assert [n.record_id for n in found.neighbours] == [n.record_id for n in wanted.neighbours]
    assert [n.distance for n in found.neighbours] == pytest.approx([n.distance for n in wanted.neighbours], abs=1e-5)


def test_an_index_gives_the_same_neighbours_is_kept_and_made_anew(folder, tmp_path, monkeypatch):
    exact = run(SimilarSettings("r0008", count=5, same_patient=False), paths(folder))
    built = []
    build = index_module.build
    monkeypatch.setattr(index_module, "build", lambda *given: built.append(1) or build(*given))
    asked = SimilarSettings("r0008", count=5, same_patient=False, index_from=10)
    found = run(asked, paths(folder, tmp_path))
    assert found.indexed
    assert not exact.indexed
    same_neighbours(found, exact)
    assert found.n_compared == exact.n_compared
    same_neighbours(run(asked, paths(folder, tmp_path)), exact)
    assert len(built) == 1
    monkeypatch.setattr(index_module, "CONNECTIVITY", 8)
    run(asked, paths(folder, tmp_path))
    assert len(built) == 2
    assert not run(SimilarSettings("r0008", index_from=10, exact=True), paths(folder, tmp_path)).indexed


def test_without_usearch_every_record_is_compared_and_said(folder, monkeypatch):
    monkeypatch.setattr(index_module, "find_spec", lambda name: None)
    found = run(SimilarSettings("r0008", index_from=10), paths(folder))
    assert not found.indexed
    assert "pip install 'ecg-ensemble[index]'" in found.notes[0]
    assert found.neighbours == run(SimilarSettings("r0008"), paths(folder)).neighbours


def test_many_records_have_a_recall_of_95_percent():
    from benchmarks.similar import MadeUp, all_compared, made_up, near

    space = MadeUp(made_up(3000, 96, 32))
    index = index_module.build(space, 1)
    pairs = [(set(near(index, space, row)), set(all_compared(space, row))) for row in range(0, 3000, 100)]
    assert np.mean([len(a & b) / 10 for a, b in pairs]) >= 0.95


# ---- the gate's space, gaps, files -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, make_cohort):
    return write_fitted(tmp_path_factory.mktemp("fitted"), make_cohort)


def test_gaps_of_morphology_become_medians(fitted):
    store = fitted / "embeddings" / "morphology.zarr"
    vectors = open_embeddings(store).read_embedding().astype(np.float32)
    assert np.isnan(np.delete(vectors, 3, axis=0)).any()
    found = run(SimilarSettings("r0008", count=3), SimilarPaths(fitted / "records.parquet", SpacePaths({"m": store})))
    records = open_records(fitted / "records.parquet")
    space = open_space(SpacePaths({"m": store}), records_digest(records["record_id"].tolist()))
    gap = np.argwhere(np.isnan(vectors) & np.isfinite(vectors).any(axis=1)[:, None])[0]
    known = vectors[np.isfinite(vectors).any(axis=1)]
    median = np.nanmedian(known[:, gap[1]])
    standard = (median - space.scaler.mean[gap[1]]) / space.scaler.scale[gap[1]]
    assert space.read(slice(gap[0], gap[0] + 1))[0, gap[1]] == pytest.approx(standard, abs=1e-4)
    assert len(found.neighbours) == 3
    assert found.n_compared == 58
    with pytest.raises(InputError, match="r0003: has no whole vector"):
        run(SimilarSettings("r0003"), SimilarPaths(fitted / "records.parquet", SpacePaths({"m": store})))


def write_wave(folder, row):
    """Write one record of the study as a file of its own."""
    from cache.signals import open_signals
    from tests.stages.wfdb_files import write_record

    ((_, signals_mv, rate_hz),) = open_signals(folder / "signals.zarr").read_groups(slice(row, row + 1))
    write_record(folder, "again", signals_mv[0].T, rate_hz=rate_hz)
    return folder / "again"


def test_a_file_is_nearest_to_the_record_it_is(fitted, ensemble, monkeypatch):
    monkeypatch.chdir(fitted)
    file = write_wave(fitted, 8)
    for space in (["--gate"], ["--gate", "--task", "sex"], ["--expert", "seed"], ["--expert", "morphology"]):
        done = ensemble("similar", str(file), *space, "-k", "3", "--json")
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert (rows[0]["record_id"], len(rows)) == ("r0008", 3), space
        assert rows[0]["distance"] < 1e-4 < rows[1]["distance"]
    by_id = ensemble("similar", "r0008", "--gate", "-k", "2", "--json").stdout.splitlines()
    assert "r0008" not in [json.loads(line)["record_id"] for line in by_id]
    missing = ensemble("similar", "nobody.xml", "--gate")
    assert missing.returncode == 1
    assert "records.parquet has no record of this id" in missing.stderr
    assert "give one of them" in ensemble("similar", "r0008", "--expert", "seed", "--gate").stderr
