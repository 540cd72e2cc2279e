"""The public face: vectors of ECGs in memory, and stores in the forms of other tools."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import ensemble
from cache.errors import FingerprintError, InputError, MissingFileError, StoreError, UsageError
from stages.embed import Embedder, EmbedPaths, EmbedSettings
from stages.experts.contract import STANDARD_LEADS
from stages.experts.signals.reference_ecgs import reference_signals
from tests.stages.wfdb_files import write_record


def ecgs(n=3):
    return reference_signals(n, 5000, 500.0, seed=1).round(3).astype(np.float32)


@pytest.fixture(scope="module")
def study(tmp_path_factory, make_cohort):
    """A study of 40 records embedded by `rocket`, in shards of 16."""
    folder = tmp_path_factory.mktemp("study")
    make_cohort(folder, 40)
    paths = [folder / name for name in ("records.parquet", "signals.zarr", "embeddings/rocket.zarr", ".ensemble")]
    Embedder(EmbedSettings("rocket", shard_records=16), EmbedPaths(*paths)).run()
    return folder


def test_every_public_name_is_there():
    assert all(getattr(ensemble, name) is not None for name in ensemble.__all__)
    with pytest.raises(AttributeError, match="no attribute 'embeddd'"):
        ensemble.embeddd  # noqa: B018


def test_names_of_old_are_the_same_objects():
    import stages.experts
    import stages.heads

    assert ensemble.load_expert is stages.experts.load_expert
    assert ensemble.list_experts is stages.experts.list_experts
    assert ensemble.EnsembleHeads is stages.heads.EnsembleHeads
    assert ensemble.LayerMix is stages.heads.LayerMix


def test_leads_go_by_name_in_any_order_and_spelling():
    signals = ecgs()
    shuffled = list(reversed(range(12)))
    names = [STANDARD_LEADS[k].lower() for k in shuffled]
    straight = ensemble.embed(signals, 500, expert="rocket")
    renamed = ensemble.embed(signals[:, shuffled], 500, leads=names, expert="rocket")
    np.testing.assert_array_equal(straight.numpy(), renamed.numpy())
    missing = signals.copy()
    missing[:, 2:] = np.nan
    two = ensemble.embed(signals[:, :2], 500, leads=["I", "II"], expert="rocket")
    np.testing.assert_array_equal(two.numpy(), ensemble.embed(missing, 500, expert="rocket").numpy())
    assert not np.array_equal(two.numpy(), straight.numpy())


def test_one_record_and_many_and_their_names():
    signals = ecgs(20)
    many = ensemble.embed(signals, 500, expert="rocket", record_ids=[f"r{k}" for k in range(20)])
    one = ensemble.embed(signals[17], 500, expert="rocket")
    assert (len(many), len(one)) == (20, 1)
    np.testing.assert_array_equal(many.pandas().loc["r17"], one.numpy()[0])
    assert list(one.record_ids) == ["0"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"signals_mv": np.zeros((2, 8, 5000))}, "expected \\[record, 12, time\\]; or name the leads"),
        ({"leads": ["I", "II"]}, "expected \\[record, 2, time\\]"),
        ({"signals_mv": np.zeros((2, 2, 5000)), "leads": ["I", "I"]}, "two leads are named I"),
        ({"signals_mv": np.zeros((2, 2, 5000)), "leads": ["X", "Y"]}, "one of the standard twelve"),
        ({"signals_mv": np.full((1, 12, 5000), 850.0)}, "give millivolts"),
        ({"rate_hz": 0}, "rate_hz is 0"),
        ({"expert": "nobody"}, "unknown expert 'nobody'"),
        ({"device": "gpu"}, "device 'gpu'"),
        ({"device": "cuda:99"}, "CUDA devices; give cpu"),
        ({"record_ids": ["a"]}, "record_ids names 1 records, signals_mv has 3"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(changed, message):
    asked = {"signals_mv": ecgs(), "rate_hz": 500, "expert": "rocket"} | changed
    with pytest.raises((InputError, UsageError), match=message) as raised:
        ensemble.embed(**asked)
    assert "\n" not in str(raised.value)


def test_an_array_that_is_not_there_is_named_with_those_that_are():
    vectors = ensemble.embed(ecgs(), 500, expert="rocket")
    with pytest.raises(UsageError, match="no array 'block_1'; it has: layers, embedding, features"):
        vectors.numpy("block_1")
    with pytest.raises(UsageError, match="'layers' has 3 axes"):
        vectors.pandas("layers")


def test_links_out_of_a_folder_are_left_out_with_a_warning(tmp_path, caplog):
    write_record(tmp_path / "big", "a")
    write_record(tmp_path / "subset", "b")
    (tmp_path / "subset" / "more").symlink_to(tmp_path / "big")
    vectors = ensemble.embed(tmp_path / "subset", expert="rocket")
    assert [Path(name).name for name in vectors.record_ids] == ["b"]
    assert any("links to folders are not followed: 'more'" in record.getMessage() for record in caplog.records)


def test_a_store_gives_the_vectors_that_lie_in_it(study):
    stored = ensemble.open_embeddings(study / "embeddings/rocket.zarr")
    made = ensemble.embed(ensemble.open_signals(study / "signals.zarr").read_mv(slice(0, 3)), 500, expert="rocket")
    np.testing.assert_array_equal(stored.numpy()[:3], made.numpy().astype(np.float16))
    np.testing.assert_array_equal(stored.numpy("features"), stored.numpy("layers")[:, 0])
    assert list(stored.record_ids[:2]) == ["r0000", "r0001"]
    assert stored.expert == "rocket"


def test_a_store_as_a_table_joins_the_records(study):
    stored = ensemble.open_embeddings(study / "embeddings/rocket.zarr")
    table = stored.pandas()
    assert table.index.name == "record_id"
    assert table.dtypes.unique().tolist() == [np.dtype(np.float32)]
    assert table.loc["r0003"].isna().all()  # the record that could not be read
    np.testing.assert_array_equal(table.loc["r0007"], stored.numpy()[7])
    assert stored.records.loc["r0007", "patient_id"] == "p0003"


def test_a_store_as_xarray_stays_on_the_disk_until_it_is_asked_for(study):
    stored = ensemble.open_embeddings(study / "embeddings/rocket.zarr")
    dataset = stored.xarray()
    assert dataset["layers"].dims == ("record", "layer", "layer_dim")
    assert dataset["embedding"].chunks[0] == (16, 16, 8)
    np.testing.assert_array_equal(dataset["embedding"].sel(record="r0007").compute(), stored.numpy()[7])
    assert dataset.attrs["fingerprint"] == stored.attributes["fingerprint"]


def test_a_store_as_anndata_can_be_written_and_read(study, tmp_path):
    import anndata

    stored = ensemble.open_embeddings(study / "embeddings/rocket.zarr")
    stored.anndata().write_h5ad(tmp_path / "rocket.h5ad")
    read = anndata.read_h5ad(tmp_path / "rocket.h5ad")
    assert list(read.obs_names) == list(stored.record_ids)
    np.testing.assert_array_equal(read.X, stored.numpy())
    np.testing.assert_array_equal(read.obsm["features"], stored.numpy("features"))
    pd.testing.assert_series_equal(read.obs["age"], stored.records["age"], check_names=False, check_index_type=False)
    assert read.uns["fingerprint"] == stored.attributes["fingerprint"]


@pytest.mark.parametrize("name", ["xarray", "anndata"])
def test_a_library_that_is_not_installed_is_named_with_its_extra(name, monkeypatch):
    vectors = ensemble.embed(ecgs(1), 500, expert="rocket")
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=f"pip install 'ecg-ensemble\\[{name}\\]'"):
        getattr(vectors, name)()


def test_other_records_than_the_store_was_made_for_are_refused(study, tmp_path):
    store = study / "embeddings/rocket.zarr"
    ids = ensemble.open_records(study / "records.parquet")["record_id"].tolist()
    assert len(ensemble.open_embeddings(store, ids)) == 40
    with pytest.raises(FingerprintError, match="other records"):
        ensemble.open_embeddings(store, ids[::-1])
    with pytest.raises(MissingFileError):
        ensemble.open_embeddings(store, tmp_path / "records.parquet")


def test_a_store_alone_asks_for_its_records_and_one_with_holes_for_embed(study, tmp_path):
    import shutil

    alone = tmp_path / "rocket.zarr"
    shutil.copytree(study / "embeddings/rocket.zarr", alone)
    with pytest.raises(MissingFileError, match="name it in `records`"):
        ensemble.open_embeddings(alone)
    records = study / "records.parquet"
    assert len(ensemble.open_embeddings(alone, records)) == 40
    (alone / "done/c/1").unlink()
    with pytest.raises(StoreError, match="1 of 3 shards missing"):
        ensemble.open_embeddings(alone, records)
