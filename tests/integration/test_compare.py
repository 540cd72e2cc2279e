"""fit-heads --preset enecg and evaluate --compare on a small study: everything of the table, resumed after a kill."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
import zarr
from pydantic import ValidationError

import stages.evaluate.stage
from cache import open_embeddings, open_records
from cache.embeddings import Identity, Layout, Shard
from cache.errors import FingerprintError, InputError
from cache.records import records_digest, write_records
from cache.upkeep.resume import create_embeddings
from pipeline.study.folder import Study
from pipeline.views.report_facts import commands, report_paths
from stages.evaluate import EvaluatePaths, EvaluateSettings, run
from stages.evaluate import methods as compared
from stages.fit_heads import FitHeadsPaths, FitHeadsSettings
from stages.fit_heads import run as run_fit
from stages.heads import EnsembleHeads
from stages.heads.inputs.lazy_rows import LazyRows
from stages.heads.published.enecg_preset import EnecgHeads
from stages.learning.data import read_data, read_outputs, task_specs
from stages.learning.folds import make_splits
from stages.learning.gate_signal import enecg_lead, read_enecg_lead
from stages.report.costs import method_costs
from stages.report.stage import read_facts
from stages.scoring.predictions import open_predictions

N = 90
OPTIONS = {"lora_epochs": 2, "gate_epochs": 2}


def _write_store(path: Path, records: list[str], vectors: np.ndarray, *, output: bool) -> None:
    layout = Layout(len(records), ("embed", "block_1", "block_2"), (6, 6, 6), 6, 1 if output else 0, "float32", 32)
    identity = Identity({"expert": path.stem, "version": "1"}, "signals", records_digest(records))
    store = create_embeddings(path, layout, identity)
    layers = np.stack([vectors[:, :6], vectors[:, 3:9], vectors[:, 6:]], 1).astype(np.float32)
    for shard in range(store.n_shards):
        rows = store.rows_of(shard)
        part = vectors[rows].astype(np.float32)
        store.write(shard, Shard(layers[rows], part[:, :6], part[:, :1] if output else None))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, make_cohort) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    make_cohort(folder, N)
    records = open_records(folder / "records.parquet")
    told = np.stack([records["sex"].to_numpy(float) * 2, records["age"].to_numpy(float) / 20], 1)
    rng = np.random.default_rng(0)
    for name, output in (("dlinear", True), ("mine", False)):
        vectors = told @ rng.normal(size=(2, 12)) + 0.5 * rng.normal(size=(N, 12))
        vectors[3] = np.nan
        _write_store(folder / f"embeddings/{name}.zarr", records["record_id"].tolist(), vectors, output=output)
    fit(folder, preset="enecg", folds=3, options=OPTIONS)
    return folder


def fit(folder: Path, stores: dict[str, Path] | None = None, **settings) -> None:
    names = ("records.parquet", "signals.zarr")
    paths = FitHeadsPaths(
        *(folder / name for name in names), stores or _stores(folder), folder / "heads", folder / "fit_costs.json"
    )
    run_fit(FitHeadsSettings(**settings), paths)


def _stores(folder: Path) -> dict[str, Path]:
    return {name: folder / f"embeddings/{name}.zarr" for name in ("mine", "dlinear")}


def _evaluate(folder: Path, stores=None, **settings):
    outputs = ("predictions.parquet", "gate_weights.parquet", "metrics.json", "headline.json", "evaluation.json")
    paths = EvaluatePaths(
        folder / "records.parquet",
        folder / "signals.zarr",
        stores or _stores(folder),
        *(folder / name for name in ("heads", *outputs, "remembered")),
    )
    fitted: list[str] = []
    found = run(EvaluateSettings(bootstrap=100, **settings), paths, fitted.append)
    return found, [name for name in fitted if name != "attention"]  # which no store here has segments for


@pytest.mark.slow
def test_a_killed_comparison_goes_on_where_it_stopped(study, monkeypatch):
    whole = compared._reference

    def killed(name, setting):
        if name == "full_rank":
            raise KeyboardInterrupt
        return whole(name, setting)

    monkeypatch.setattr(compared, "_reference", killed)
    with pytest.raises(KeyboardInterrupt):
        _evaluate(study, compare=True)
    monkeypatch.setattr(compared, "_reference", whole)
    found, fitted = _evaluate(study, compare=True, fractions=(0.5, 1.0))
    assert fitted == ["full_rank", "ppa", "pma", "probe_head", "enecg", "gate on 50% of the patients"]
    expected = {"gate", "expert:mine", "expert:dlinear", *compared.COMPARED} - {"attention"}
    assert set(found.metrics["tasks"]["sex"]["methods"]) == expected
    assert set(found.costs) == expected
    assert all(cost["parameters"] >= 0 for cost in found.costs.values())
    assert list(found.left_out) == ["attention"]  # no store here has segments, and it says how to get them
    assert "views: [segments]" in found.left_out["attention"]
    first = (study / "metrics.json").read_bytes()
    assert "seconds" not in first.decode()
    found, fitted = _evaluate(study, compare=True, fractions=(0.5, 1.0))
    assert fitted == []
    assert (study / "metrics.json").read_bytes() == first
    points = found.learning_curve["age"]
    assert {p["fraction"] for p in points if p["method"] == "gate"} == {0.5, 1.0}
    assert list(found.left_out) == ["attention"]  # no store here has segments, and it says how to get them
    assert "views: [segments]" in found.left_out["attention"]
    found, fitted = _evaluate(study, compare=True, fractions=(0.02,))
    assert fitted == ["gate on 2% of the patients"]
    assert "0.02" in found.missing_points["sex"]  # one patient a split has one sex
    assert [p["fraction"] for p in found.learning_curve.get("sex", [])] == []
    again, fitted = _evaluate(study, compare=True, fractions=(0.02,))
    assert (again.missing_points, again.learning_curve, fitted) == (found.missing_points, found.learning_curve, [])
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        _evaluate(study, fractions=(1.5,))


def test_another_seed_draws_other_patients_for_the_learning_curve(study):
    _, fitted = _evaluate(study, fractions=(0.4,), seed=1)
    _, again = _evaluate(study, fractions=(0.4,), seed=2)
    assert fitted[-1:] == again == ["gate on 40% of the patients"]


def test_without_the_state_folder_a_run_writes_the_same_bytes(study, tmp_path):
    shutil.copytree(study, tmp_path / "study")
    outputs = ("predictions.parquet", "gate_weights.parquet", "metrics.json", "headline.json", "evaluation.json")

    def written():
        _evaluate(tmp_path / "study", fractions=(0.5, 1.0))
        return {name: (tmp_path / "study" / name).read_bytes() for name in outputs}

    first = written()
    shutil.rmtree(tmp_path / "study/remembered")
    assert written() == first
    assert b"seconds" not in first["evaluation.json"]


def test_a_failed_evaluation_leaves_the_files_of_the_one_before(study, tmp_path, monkeypatch):
    shutil.copytree(study, tmp_path / "study", ignore=shutil.ignore_patterns("remembered"))
    _evaluate(tmp_path / "study")
    before = {path.name: path.read_bytes() for path in (tmp_path / "study").glob("*.*") if path.is_file()}

    def broken(*_, **__):
        raise InputError("no curve")

    monkeypatch.setattr(stages.evaluate.stage, "learning_curve", broken)
    with pytest.raises(InputError, match="no curve"):
        _evaluate(tmp_path / "study", fractions=(0.5,), seed=3)
    assert {path.name: path.read_bytes() for path in (tmp_path / "study").glob("*.*") if path.is_file()} == before


def test_a_study_without_test_records_is_one_line(tmp_path, study):
    shutil.copytree(study, tmp_path / "study", ignore=shutil.ignore_patterns("remembered"))
    fit(tmp_path / "study", options=OPTIONS)
    records = open_records(tmp_path / "study/records.parquet")
    targets = list(records.attrs["targets"].values())
    write_records(tmp_path / "study/records.parquet", records.assign(split="train"), targets)
    with pytest.raises(InputError, match=r"records\.parquet: no record with a vector is in the test split"):
        _evaluate(tmp_path / "study")


def test_the_preset_reloads_to_the_same_predictions_and_tests_no_trained_patient(study):
    data = read_data(study / "records.parquet", _stores(study))
    embeddings = {name: parts["embedding"] for name, parts in data.features.items()}
    outputs, lead = read_outputs(_stores(study)), read_enecg_lead(study / "signals.zarr")
    assert set(outputs) == {"dlinear"}
    splits = make_splits(data, 3)
    fresh = EnecgHeads().fit(
        outputs, embeddings, lead, data.targets, task_specs(data.tasks), splits, data.membership.patient.codes
    )
    saved = EnecgHeads.load(study / "heads" / "enecg")
    assert saved.experts_ == ("dlinear", "mine")
    assert saved.from_embedding_ == ("mine",)
    assert saved.metrics_.keys() == {"sex", "age"}
    assert set(saved.metrics_["sex"]["f1"]) == {"mean", "std"}
    for fold in range(3):
        a, b = (h.predict_proba(outputs, embeddings, lead, fold=fold) for h in (fresh, saved))
        np.testing.assert_array_equal(a["sex"], b["sex"])
        np.testing.assert_array_equal(a["age"], b["age"])
        assert np.isnan(a["age"][3])
    block = open_predictions(study / "predictions.parquet").read("sex", "enecg")
    assert set(block.splits.arrow().to_pylist()) == {"test"}


def test_lead_ii_is_standardised_as_the_official_loader_does(parity_dir):
    from safetensors.numpy import load_file

    official = load_file(parity_dir / "enecg-preprocess.safetensors")
    signals = official["in/raw_mv_T_by_lead"].transpose(0, 2, 1)
    np.testing.assert_allclose(enecg_lead(signals), official["out/fm5000"][:, :, 1], atol=1e-5, rtol=1e-4)


def test_what_params_yaml_says_of_a_comparison_is_what_evaluate_does(study, tmp_path, monkeypatch, ensemble):
    shutil.copytree(study, tmp_path / "study", ignore=shutil.ignore_patterns("remembered"))
    monkeypatch.chdir(tmp_path / "study")
    monkeypatch.setattr(stages.evaluate.stage, "COMPARED", ("trivial", "ppa"))  # others than those of every evaluation
    params = {"cohort": {"source": "wfdb", "path": "."}, "experts": {"mine": {}, "dlinear": {}}}
    params |= {"evaluate": {"bootstrap": 100, "compare": True, "fractions": [0.5]}}

    def told(*options):
        Path("params.yaml").write_text(yaml.safe_dump(params))
        done = ensemble("evaluate", *options)
        assert done.returncode == 0, done.stderr
        methods = json.loads(Path("metrics.json").read_text())["tasks"]["sex"]["methods"]
        curve = json.loads(Path("evaluation.json").read_text())["learning_curve"]
        return "ppa" in methods, bool(curve), commands(Study())[:-2], "to keep this" in done.stderr

    kept = "dvc repro                # params.yaml: evaluate: {compare: true, fractions: [0.5]}"
    assert told() == (True, True, [kept], False)
    plain = ["dvc repro", 'ensemble evaluate --no-compare --fractions ""', "ensemble report"]
    assert told("--no-compare", "--fractions", "") == (False, False, plain, True)
    paths = report_paths(Study())
    costs = method_costs(
        read_facts(paths.evaluation)["parameters"], read_facts(paths.evaluate_costs), read_facts(paths.fit_costs)
    )
    heads = sum(costs[f"expert:{name}"]["parameters"] for name in ("mine", "dlinear"))
    assert costs["mean"] == {
        "parameters": heads,
        "seconds": costs["mean"]["seconds"],
        "peak_memory_mb": costs["mean"]["peak_memory_mb"],
        "counts_heads": True,
    }
    assert costs["stacking"]["parameters"] > heads
    del params["evaluate"]["compare"], params["evaluate"]["fractions"]
    assert told() == (False, False, ["dvc repro"], False)
    asked = ["dvc repro", 'ensemble evaluate --compare --fractions "0.5"', "ensemble report"]
    assert told("--compare", "--fractions", "0.5") == (True, True, asked, True)


def test_an_evaluation_keeps_to_the_memory_and_device_of_params_yaml(study, tmp_path, monkeypatch, ensemble):
    shutil.copytree(study, tmp_path / "study", ignore=shutil.ignore_patterns("remembered", "enecg"))
    monkeypatch.chdir(tmp_path / "study")
    params = {"cohort": {"source": "wfdb", "path": "."}, "experts": {"mine": {}, "dlinear": {}}}
    params |= {"evaluate": {"bootstrap": 100}}
    seen = []

    def only(data, heads):
        seen.append((isinstance(data.features["mine"]["embedding"], LazyRows), heads.memory_gb, heads.device))
        return whole(data, heads)

    whole = stages.evaluate.stage._only
    monkeypatch.setattr(stages.evaluate.stage, "_only", only)
    for machine in ({}, {"memory_gb": 1e-6, "device": "cpu"}):
        Path("params.yaml").write_text(yaml.safe_dump(params | {"machine": machine}))
        assert ensemble("evaluate").returncode == 0
    assert seen == [(False, "auto", "auto"), (True, 1e-6, "cpu")]


@pytest.mark.parametrize("name", [name for name in compared.COMPARED if name != compared.ENECG])
def test_a_reference_method_gets_the_options_that_it_shares_with_the_fit(name):
    given = {"layer_mix": "last+pma", "balanced": True, "huber": False, "strengths": (0.1, 1.0), "inner_folds": 2}
    heads = EnsembleHeads(**given, on_unusable="skip", memory_gb=1.0, seed=5)
    method = compared.make_method(name, heads)
    expected = {option: value for option, value in heads.get_params().items() if option in method.get_params()}
    mixed = {"ppa": "ppa", "pma": "pma", "attention": "attention"}.get(
        name, "last+ppa"
    )  # concat and full_rank train no mixing
    assert {k: method.get_params()[k] for k in expected} == expected | (
        {"layer_mix": mixed} if "layer_mix" in expected else {}
    )
    if name in ("mean", "stacking"):
        assert method.heads is heads
    else:
        assert expected, "at least what to do with a task that cannot be learnt"


def test_changed_vectors_of_another_tool_are_refused_and_no_method_remembered(study, tmp_path, monkeypatch):
    vectors = np.array(open_embeddings(study / "embeddings/mine.zarr").read_embedding())
    digest = records_digest(open_records(study / "records.parquet")["record_id"])
    group = zarr.create_group(tmp_path / "mine.zarr", attributes={"records_digest": digest})
    for name, values in (("layers", vectors[:, None]), ("embedding", vectors), ("done", np.ones(N, dtype=bool))):
        group.create_array(name, data=values)
    for name in ("records.parquet", "signals.zarr"):
        (tmp_path / name).symlink_to(study / name)
    stores = {"mine": tmp_path / "mine.zarr"}
    monkeypatch.setattr(stages.evaluate.stage, "DEFAULT_METHODS", ("trivial",))

    def evaluated():
        return _evaluate(tmp_path, stores=stores)[1]

    fit(tmp_path, stores, options=OPTIONS, folds=3)
    assert (evaluated(), evaluated()) == (["trivial"], [])
    group["embedding"][:] = vectors[::-1]
    with pytest.raises(FingerprintError, match="was fitted on other embeddings of 'mine'"):
        evaluated()
    fit(tmp_path, stores, options=OPTIONS, folds=3)
    assert evaluated() == ["trivial"]
    fingerprints = {"mine": open_embeddings(tmp_path / "mine.zarr").fingerprint}
    keys = [
        compared.state_key(tmp_path / "heads", tmp_path / "records.parquet", told)
        for told in (fingerprints, {"mine": "other"})
    ]
    assert keys[0] != keys[1]


def test_a_store_whose_rows_are_in_another_order_is_refused(study, tmp_path):
    records = open_records(study / "records.parquet")["record_id"].tolist()
    order = np.random.default_rng(1).permutation(N)
    vectors = np.concatenate([open_embeddings(study / "embeddings/mine.zarr").read_embedding()] * 2, 1)
    _write_store(tmp_path / "mine.zarr", [records[i] for i in order], vectors[order], output=False)
    stores = _stores(study) | {"mine": tmp_path / "mine.zarr"}
    with pytest.raises(FingerprintError, match=r"mine\.zarr: was made for other records or another row order"):
        fit(study, stores)
