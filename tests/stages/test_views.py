"""Views of the tokens: computed, stored, resumed, extended, exported and offered to heads like any other array."""

import dataclasses

import numpy as np
import pytest
import torch
import yaml

import ensemble as face
from cache import open_signals
from cache.embeddings import open_embeddings
from cache.errors import StoreError, UsageError
from cache.upkeep.checks import embedding_faults, repair_embeddings
from cache.upkeep.exchange import export_vectors, import_vectors, read_vectors
from pipeline.compute.embedding import embed_settings
from pipeline.study.folder import Study
from stages.embed import Embedder, EmbedPaths, EmbedSettings, describe, load_for
from stages.experts.run import RunSettings, Signal, embed_records
from stages.experts.views import view_shapes
from stages.heads import EnsembleHeads
from stages.heads.inputs.expert_features import mix_layers, read_features
from stages.learning.data import expert_identity, read_data
from stages.predict import predict
from stages.readers.files import Recorded
from tests.stages.small_experts import NAMES, RATE_HZ, published, records, small_expert

ALL = ("segments", "std", "max")


def embedded(expert, signals, views=ALL, rate_hz=RATE_HZ):
    wanted = RunSettings(dtype="float32", views=views)
    return embed_records(expert, [Signal(record, rate_hz) for record in signals], wanted)


def tokens_of(expert, signals, rate_hz=RATE_HZ):
    x = expert.prepare(signals, rate_hz)
    with torch.inference_mode():
        found = expert.encode(x.flatten(0, 1)).tokens.float()
    return found.unflatten(0, x.shape[:2]).numpy().astype(np.float64)


def second_means(expert, tokens, record_s=10.0):
    """Mean over each second, by looking at a thousand moments of it."""
    spec, (_, windows, n, dim) = expert.spec, tokens.shape
    assert spec.placement != "whole"
    first = np.arange(windows) * spec.seconds
    if spec.placement == "even":
        first = np.linspace(0, record_s - spec.seconds, windows) if windows > 1 else [0.0]
    starts, ends = spec.tokens.spans_s(n)
    means = np.full((len(tokens), 10, dim), np.nan)
    for second in range(10):
        moments = second + (np.arange(1000) + 0.5) / 1000
        weight = np.zeros((windows, n))
        for window, at in enumerate(first):
            for k in range(n):
                inside = (moments >= at + starts[k]) & (moments < min(at + ends[k], record_s))
                weight[window, k] = inside.sum()
        if weight.sum() >= 10:
            means[:, second] = np.einsum("wt,bwtd->bd", weight, tokens) / weight.sum()
    return means


@pytest.mark.parametrize("name", ["ecgfm", "seed", "stmem", "hubert", "jepa", "tempo", "ttm"])
def test_views_are_those_of_the_tokens(name):
    expert, signals = small_expert(name), records(2)
    tokens, found = tokens_of(expert, signals), embedded(expert, signals).views
    np.testing.assert_allclose(found["segments"], second_means(expert, tokens), atol=0.02 * np.abs(tokens).max())
    flat = tokens.reshape(2, -1, tokens.shape[-1])
    np.testing.assert_allclose(found["std"], flat.std(1), atol=1e-5 * max(1, np.abs(flat).max()))
    np.testing.assert_allclose(found["max"], flat.max(1), atol=1e-5)


def test_the_last_token_is_offered_by_causal_experts_alone():
    expert, signals = small_expert("tempo"), records(2)
    last = embedded(expert, signals, ("last",)).views["last"]
    np.testing.assert_allclose(last, tokens_of(expert, signals)[:, :, -1].mean(1), atol=1e-6)
    assert "last" not in small_expert("ecgfm").spec.views
    with pytest.raises(UsageError, match="expert 'ecgfm' has no view 'last'; it offers segments, std, max"):
        embedded(small_expert("ecgfm"), signals, ("last",))


def test_an_expert_without_tokens_says_so():
    with pytest.raises(UsageError, match="expert 'rocket' has no view 'std'; it offers none: it has no tokens"):
        describe(EmbedSettings("rocket", views=("std",)))


@pytest.mark.parametrize("name", [name for name in NAMES if published(name).tokens])
def test_a_records_views_are_the_same_bits_alone_and_in_a_batch_and_change_no_vector(name):
    expert, signals = small_expert(name), records(3)
    views = expert.spec.views
    together, plain = embedded(expert, signals, views), embedded(expert, signals, ())
    np.testing.assert_array_equal(together.embedding, plain.embedding)
    np.testing.assert_array_equal(together.layers, plain.layers)
    for k, record in enumerate(signals):
        alone = embedded(expert, record[None], views)
        for view, shape in view_shapes(expert.spec, views).items():
            assert alone.views[view].shape == (1, *shape)
            np.testing.assert_array_equal(alone.views[view][0], together.views[view][k])


def test_seconds_that_a_short_record_does_not_have_are_missing():
    expert = small_expert("seed")
    found = embedded(expert, records(2, seconds=6.0)).views["segments"]
    assert np.isfinite(found[:, :6]).all()
    assert np.isnan(found[:, 6:]).all()


def test_segments_of_the_first_ten_seconds_of_a_long_record():
    expert, signals = small_expert("seed"), records(2, seconds=15.0)
    tokens = tokens_of(expert, signals)
    assert tokens.shape[1] == 2
    np.testing.assert_allclose(
        embedded(expert, signals).views["segments"], second_means(expert, tokens, 15.0), atol=0.02
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory, make_cohort):
    """A cohort of 40 records, its first 25 as another one, and `seed` with and without views."""
    folder = tmp_path_factory.mktemp("study")
    make_cohort(folder, 40)
    run(folder, "plain")
    run(folder, "full", views=ALL)
    return folder


def run(folder, name, progress=None, **settings):
    paths = EmbedPaths(
        folder / "records.parquet", folder / "signals.zarr", folder / f"embeddings/{name}.zarr", folder / ".ensemble"
    )
    embedder = Embedder(EmbedSettings("seed", shard_records=16, **settings), paths)
    return embedder.run(progress=progress)


def files_of(folder):
    return {file.relative_to(folder): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_a_store_without_views_keeps_its_fingerprint_and_one_with_them_its_vectors(study):
    plain, full = (open_embeddings(study / f"embeddings/{name}.zarr") for name in ("plain", "full"))
    assert "views" not in describe(EmbedSettings("seed"))
    assert describe(EmbedSettings("seed", views=("max", "segments")))["views"] == ["segments", "max"]
    assert plain.fingerprint != full.fingerprint
    assert expert_identity(plain.attributes) == expert_identity(full.attributes)
    assert not plain.views
    assert list(full.views) == list(ALL)
    np.testing.assert_array_equal(plain.read_embedding(), full.read_embedding())
    np.testing.assert_array_equal(plain.read_layers(), full.read_layers())
    with pytest.raises(StoreError, match="has no view 'std' \\(it has: none\\)"):
        plain.read_view("std")


def test_a_stored_view_is_what_is_computed_rounded(study):
    signals = face.open_signals(study / "signals.zarr").read_mv(slice(4, 5))
    made = face.embed(signals, 500, expert="seed", views=ALL)
    full = open_embeddings(study / "embeddings/full.zarr")
    for name in ALL:
        np.testing.assert_allclose(full.read_view(name, slice(4, 5)), made.numpy(name), rtol=2e-3, atol=2e-3)
        assert np.isnan(full.read_view(name, slice(3, 4))).all()  # the record that could not be read
    dataset = face.open_embeddings(study / "embeddings/full.zarr").xarray()
    assert dataset["segments"].dims == ("record", "second", "segments_dim")


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(study):
    class StoppedError(Exception):
        pass

    done = []

    def stop(n):
        done.append(n)
        if sum(done) > 20:
            raise StoppedError

    with pytest.raises(StoppedError):
        run(study, "stopped", progress=stop, views=ALL)
    assert open_embeddings(study / "embeddings/stopped.zarr").pending() == [1, 2]
    run(study, "stopped", views=ALL)
    assert files_of(study / "embeddings/stopped.zarr") == files_of(study / "embeddings/full.zarr")


def test_damage_of_a_view_is_found_and_its_shard_embedded_again(study):
    run(study, "damaged", views=ALL)
    path = study / "embeddings/damaged.zarr"
    file = path / "segments/c/1/0/0"
    raw = bytearray(file.read_bytes())
    raw[1000] ^= 4
    file.write_bytes(raw)
    assert {fault.shard for fault in embedding_faults(path)} == {1}
    assert len(list(repair_embeddings(path))) == 1
    run(study, "damaged", views=ALL)
    assert files_of(path) == files_of(study / "embeddings/full.zarr")


def test_other_views_start_the_store_afresh_and_say_why(study):
    run(study, "other", views=("std",))
    summary = run(study, "other", views=("std", "max"))
    assert summary.fresh_because == "changed: views"
    assert summary.n_embedded == 40
    assert list(open_embeddings(study / "embeddings/other.zarr").views) == ["std", "max"]


def test_views_go_out_and_come_back(study, tmp_path):
    frame = face.open_records(study / "records.parquet")
    full = open_embeddings(study / "embeddings/full.zarr")
    export_vectors(full.path, frame, tmp_path / "segments.npy", "segments")
    export_vectors(full.path, frame, tmp_path / "std.parquet", "std")
    np.testing.assert_array_equal(np.load(tmp_path / "segments.npy"), full.read_view("segments"))
    arrays = {name: full.read(name, slice(None)) for name in ("embedding", "layers", *ALL)}
    np.savez(tmp_path / "all.npz", record_id=frame["record_id"].to_numpy(dtype=str), **arrays)
    read, ids = read_vectors(tmp_path / "all.npz")
    back = import_vectors(tmp_path / "mine.zarr", read, ids, frame, state=tmp_path, shard_records=16)
    assert list(back.views) == list(ALL)
    for name in ALL:
        np.testing.assert_array_equal(back.read_view(name), full.read_view(name))


def test_heads_are_offered_the_views_and_read_them_when_they_ask(study):
    data = read_data(study / "records.parquet", {"seed": study / "embeddings/full.zarr"})
    features = read_features(data.features)["seed"]
    assert list(features.views) == list(ALL)
    some = features.take(np.array([7, 2, 30]))
    full = open_embeddings(study / "embeddings/full.zarr")
    np.testing.assert_array_equal(np.asarray(some.views["segments"]), full.read_view("segments")[[7, 2, 30]])
    mixed = mix_layers("seed", some, ("embedding", "std"), None)
    width = some.embedding.shape[1]
    np.testing.assert_array_equal(mixed[:, width:], full.read_view("std")[[7, 2, 30]].astype(np.float32))


def test_the_settings_of_a_run_say_which_views(study):
    settings = EmbedSettings("seed", views=("std", "segments"))
    assert describe(dataclasses.replace(settings, views=("segments", "std"))) == describe(settings)


def test_through_the_commands_a_study_with_views_is_embedded_fitted_and_predicts_as_it_was_fitted(
    toy_study, ensemble, monkeypatch
):
    monkeypatch.chdir(toy_study)
    params = yaml.safe_load((toy_study / "params.yaml").read_text())
    params["experts"]["ecgfm"]["views"] = ["segments", "std"]
    options = {"layer_mix": "embedding+std+attention", "gate_input": "none", "gate_epochs": 0, "lora": False}
    params["fit_heads"] = {"options": options}
    (toy_study / "params.yaml").write_text(yaml.safe_dump(params))
    for command in (["embed", "--expert", "ecgfm"], ["fit-heads"]):
        done = ensemble(*command)
        assert done.returncode == 0, done.stderr
    heads = EnsembleHeads.load(toy_study / "heads")
    assert heads.provenance_["views"] == {"ecgfm": ["segments", "std"]}
    data = read_data(toy_study / "records.parquet", {"ecgfm": toy_study / "embeddings/ecgfm.zarr"})
    expected = heads.predict_proba(data.features)
    settings = embed_settings(Study(), "ecgfm")
    record = Recorded("new", open_signals("signals.zarr").read_mv(slice(7, 8))[0], 500.0)
    made = predict([record], heads, {"ecgfm": load_for(settings)}, {"ecgfm": expert_identity(describe(settings))})[0]
    assert made.warnings == []
    assert made.tasks["age"]["value"] == pytest.approx(float(expected["age"][7]), rel=1e-6)
    assert made.tasks["sex"]["probability"] == pytest.approx(float(expected["sex"][7]), rel=1e-6)


def test_a_view_that_the_expert_does_not_offer_is_one_line(toy_study, ensemble, monkeypatch):
    monkeypatch.chdir(toy_study)
    params = yaml.safe_load((toy_study / "params.yaml").read_text())
    params["experts"]["ecgfm"]["views"] = ["last"]
    (toy_study / "params.yaml").write_text(yaml.safe_dump(params))
    done = ensemble("embed", "--expert", "ecgfm")
    assert done.returncode == 2
    assert "expert 'ecgfm' has no view 'last'; it offers segments, std, max" in done.stderr
