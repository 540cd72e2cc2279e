"""The expert whose weights come with the package: its size, its file, its input, and what pretraining is worth."""

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import wfdb
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.linear_model import RidgeCV
from sklearn.metrics import roc_auc_score

import stages.experts.models.ecg.seed as seed_module
from cache.errors import InputError, UsageError, WeightsError
from cache.patients import patient_digests
from stages.experts import expert_class, load_expert
from stages.experts.checkpoints import PACKAGE_FOLDER, find_weights, sha256_of
from stages.experts.run import run_expert
from stages.pretrain import PretrainPaths, PretrainSettings
from stages.pretrain import run as pretrain
from stages.pretrain.inpaint import InpaintBatches, Inpainter
from stages.pretrain.objectives import make_objective
from stages.synthetic.cohort import draw_block, draw_chunks
from stages.synthetic.labels import Report
from stages.training.settings import LoopSettings
from stages.training.versions import packaged_patients_seen
from weights.signal_targets import COMPONENTS

NAMES = ("seed", "seed-ssl")
real_data = pytest.mark.skipif("ENSEMBLE_TEST_DATA" not in os.environ, reason="ENSEMBLE_TEST_DATA is not set")
SMALL = {"members": 2, "stem": 8, "widths": (8, 16), "blocks": (1, 1)}
RHYTHMS = (
    [Report.FIBRILLATION, Report.RAPID_FIBRILLATION],
    [Report.BRADYCARDIA],
    [Report.TACHYCARDIA],
    [Report.PACING],
    [Report.PVC],
    [Report.BORDERLINE_AV_BLOCK, Report.AV_BLOCK],
)
MIMIC_TO_STANDARD = [0, 1, 2, 3, 5, 4, 6, 7, 8, 9, 10, 11]


@pytest.fixture(scope="module")
def seed():
    return load_expert("seed")


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_without_download_and_stays_small(name):
    expert, file = load_expert(name), PACKAGE_FOLDER / f"{name}.safetensors"
    assert sum((PACKAGE_FOLDER / f"{each}.safetensors").stat().st_size for each in NAMES) <= 6_000_000
    assert file.stat().st_size <= 5_000_000
    assert expert.spec.parameters <= 2_500_000
    assert expert.spec == expert_class(name)[0].published_spec()
    with safe_open(file, "pt") as opened:
        dtypes = {opened.get_tensor(key).dtype for key in opened.keys()}  # noqa: SIM118
    assert dtypes == {torch.float16, torch.int64}
    assert all(p.dtype == torch.float32 for p in expert.module.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_the_one_that_the_spec_names(name, monkeypatch, tmp_path):
    spec, file = expert_class(name)[0].published_spec(), PACKAGE_FOLDER / f"{name}.safetensors"
    assert find_weights(spec, None) == file
    assert sha256_of(file) == spec.weights.sha256
    (tmp_path / file.name).write_bytes(file.read_bytes()[:-1] + b"\0")
    monkeypatch.setattr("stages.experts.checkpoints.PACKAGE_FOLDER", tmp_path)
    with pytest.raises(WeightsError, match=r"has sha256 .*install the package again"):
        find_weights(spec, None)
    (tmp_path / file.name).unlink()
    with pytest.raises(WeightsError, match="is missing"):
        find_weights(spec, None)


@pytest.mark.parametrize("name", NAMES)
def test_the_file_says_what_made_it(name):
    with safe_open(PACKAGE_FOLDER / f"{name}.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["ensemble"])
    assert facts["base"] == "seed"
    assert facts["made_by"] == "posttrain"
    assert facts["cohort"]["sources"] == ["ptbxl"]
    assert len(facts["curves"]) == facts["members"] == load_expert(name).module.options.members
    for curve in facts["curves"]:
        assert curve[-1]["loss"] < 0.6 * curve[0]["loss"]
    assert len(facts.get("logits", [])) == load_expert(name).module.options.logits


def test_no_label_taught_seed_ssl():
    with safe_open(PACKAGE_FOLDER / "seed-ssl.safetensors", "pt") as file:
        tasks = json.loads(file.metadata()["ensemble"])["task"].split(",")
    assert tasks == [f"{name}_{k}" for name, count in COMPONENTS.items() for k in range(count)]


def test_patients_that_it_has_seen_are_told_apart_by_their_hashes(seed, tmp_path):
    listed = np.load(PACKAGE_FOLDER / seed.spec.weights.patients)
    assert listed.dtype == np.uint64
    assert 2_000 < len(listed) <= 2_272
    assert (np.diff(listed) > 0).all()
    strangers = pd.DataFrame({"source": "ptbxl", "patient_id": [f"nobody {k}" for k in range(1000)]})
    assert packaged_patients_seen(seed.spec, strangers) == 0
    assert packaged_patients_seen(load_expert("rocket").spec, strangers) is None
    key = f"seed {seed.spec.version}".encode()
    assert key == seed_module.Seed.release.patients_key
    assert not np.isin(patient_digests(strangers), patient_digests(strangers, key)).any()


@real_data
def test_patients_of_ptbxls_folds_1_to_8_were_seen_and_no_others(seed):
    table = pd.read_csv(Path(os.environ["ENSEMBLE_TEST_DATA"]) / "ptbxl" / "ptbxl_database.csv")
    table["patient_id"] = table["patient_id"].astype(int).astype(str)
    table["source"] = "ptbxl"
    learnt = table["strat_fold"] <= 8
    assert packaged_patients_seen(seed.spec, table[learnt]) == table[learnt]["patient_id"].nunique()
    assert packaged_patients_seen(seed.spec, table[~learnt]) == 0
    seen_by_ssl = packaged_patients_seen(expert_class("seed-ssl")[0].published_spec(), table[learnt])
    assert 0.7 < seen_by_ssl / table[learnt]["patient_id"].nunique() < 0.9
    assert packaged_patients_seen(expert_class("seed-ssl")[0].published_spec(), table[~learnt]) == 0


@real_data
def test_it_says_sex_age_and_superclass_of_strangers_in_the_order_that_the_file_names(seed):
    with safe_open(PACKAGE_FOLDER / "seed.safetensors", "pt") as file:
        names = json.loads(file.metadata()["ensemble"])["logits"]
    folder = Path(os.environ["ENSEMBLE_TEST_DATA"]) / "ptbxl"
    table = pd.read_csv(folder / "ptbxl_database.csv")
    table = table[table["strat_fold"] > 8]
    signals = [wfdb.rdrecord(str(folder / name)).p_signal.T for name in table["filename_hr"]]
    embedding = run_expert(seed, seed.prepare(np.stack(signals), 500.0)).embedding
    says = embedding.reshape(len(table), 3, -1)[..., -len(names) :].mean(1)
    normal = table["scp_codes"].map(lambda codes: ast.literal_eval(codes).get("NORM", 0) > 0)
    assert roc_auc_score(table["sex"], says[:, names.index("sex female")]) > 0.85
    assert roc_auc_score(normal, says[:, names.index("superclass NORM")]) > 0.85
    young = table["age"].to_numpy() < 90  # 300 stands for older
    assert np.corrcoef(table["age"][young], says[young, names.index("age")])[0, 1] > 0.6


@pytest.mark.slow
def test_a_wheel_holds_the_weights(tmp_path):
    pytest.importorskip("setuptools", reason="a wheel is built with setuptools, which is not installed here")
    root, copy = Path(__file__).parents[2], tmp_path / "source"
    for name in ("cache", "stages", "pipeline"):
        shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, copy]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in NAMES:
            for file in (f"{name}.safetensors", f"{name}.patients.npy"):
                assert archive.read(f"stages/experts/weights/{file}") == (PACKAGE_FOLDER / file).read_bytes()


def test_amplitude_and_lead_are_seen(seed):
    signals = _records(1)[0][:1]
    louder = run_expert(seed, seed.prepare(1.5 * signals, 500.0)).embedding
    swapped = run_expert(seed, seed.prepare(signals[:, [1, 0, *range(2, 12)]], 500.0)).embedding
    plain = run_expert(seed, seed.prepare(signals, 500.0)).embedding
    assert np.abs(louder - plain).max() > 0.05
    assert np.abs(swapped - plain).max() > 0.05


@pytest.mark.parametrize(("seconds", "shape"), [(2.5, (1, 250)), (6.2, (1, 620)), (10, (1, 1000)), (25, (3, 1000))])
def test_a_record_is_as_long_as_it_is(seed, seconds, shape):
    signals = np.tile(_records(1)[0][:1], (1, 1, 3))[..., : int(seconds * 500)]
    x = seed.prepare(signals, 500.0)
    assert (x.shape[1], x.shape[3]) == shape
    assert run_expert(seed, x).embedding.shape == (1, seed.spec.embedding_dim)


def test_less_than_2_5_s_are_refused(seed):
    with pytest.raises(InputError, match=r"1\.9 s are shorter than 2\.5 s"):
        seed.prepare(np.zeros((1, 12, 950)), 500.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_its_features_tell_rhythms_better_than_those_of_random_weights(name):
    signals, report = _records(600)
    torch.manual_seed(0)
    seed, random = load_expert(name), load_expert(name, random_weights=True)
    x = seed.prepare(signals, 500.0)
    classes = [np.isin(report, kinds) for kinds in RHYTHMS]
    labels = np.stack(classes, axis=1).astype(float)
    assert _auroc(run_expert(seed, x), labels) > _auroc(run_expert(random, x), labels) + 0.01


def test_one_record_gives_the_same_bits_in_any_batch(seed):
    x = seed.prepare(_records(7)[0], 500.0)
    whole = run_expert(seed, x).embedding
    for k in (0, 3, 6):
        assert np.array_equal(run_expert(seed, x[k : k + 1]).embedding[0], whole[k])


def test_a_version_of_ones_own_is_pretrained_and_loaded(toy_study, monkeypatch):
    monkeypatch.chdir(toy_study)
    torch.set_num_threads(1)
    loop = LoopSettings(epochs=8, batch_size=8, learning_rate=2e-3)
    paths = PretrainPaths(Path("records.parquet"), Path("signals.zarr"), Path(".ensemble"))
    history = pretrain(PretrainSettings("seed+own", "seed", loop, config=SMALL), paths).history
    assert history.epochs[-1]["loss"] < history.epochs[0]["loss"]
    own = load_expert("seed+own")
    assert own.spec.embedding_dim == 2 * (3 * 16 + 8)
    silent = load_expert("seed", config={**SMALL, "logits": 0}, random_weights=True)
    assert {*own.module.state_dict()} == {*silent.module.state_dict()}
    assert Path("weights/versions/seed+own/model.safetensors").stat().st_size < 2.5 * own.spec.parameters + 20_000


def test_hidden_samples_are_zero_and_alone_are_judged():
    inputs = np.random.default_rng(0).normal(size=(6, 2, 12, 1000)).astype(np.float32)
    batches = InpaintBatches(inputs, 64)
    x, hidden = batches.fetch(np.arange(4), np.random.default_rng(1))
    again = batches.fetch(np.arange(4), np.random.default_rng(1))
    assert torch.equal(again[0], x)
    assert torch.equal(again[1], hidden)
    assert x.shape == hidden.shape == (4, 12, 768)
    assert 0.3 < hidden.mean() < 0.7
    torch.manual_seed(0)
    model = Inpainter(load_expert("seed", config=SMALL, random_weights=True, trainable=True).module).eval()
    changed = torch.where(hidden > 0, x, x + 1)
    assert model(x, hidden) != model(changed, hidden)  # what is shown tells
    assert model(x, torch.zeros_like(hidden)) == 0


def test_what_each_network_says_stands_behind_what_it_sees():
    config = {**SMALL, "logits": 4}
    torch.manual_seed(0)
    expert = load_expert("seed", config=config, random_weights=True)
    x = expert.prepare(_records(5)[0], 500.0)
    embedding = run_expert(expert, x).embedding
    silent = load_expert("seed", config={**SMALL, "logits": 0}, random_weights=True)
    state = expert.module.state_dict()
    silent.module.load_state_dict({key: value for key, value in state.items() if not key.startswith("readouts")})
    width = 3 * 16 + 8
    seen = run_expert(silent, x).embedding.reshape(5, 2, width)
    assert expert.spec.embedding_dim == 2 * (width + 4) == embedding.shape[1]
    assert np.array_equal(embedding.reshape(5, 2, width + 4)[..., :width], seen)
    for member in range(2):
        weight, bias = (state[f"readouts.{member}.{name}"].numpy() for name in ("weight", "bias"))
        says = embedding.reshape(5, 2, width + 4)[:, member, width:]
        np.testing.assert_allclose(says, seen[:, member] @ weight.T + bias, atol=1e-5)


@pytest.mark.parametrize("logits", [0, 4])
def test_weights_know_how_many_logits_they_have(logits, tmp_path):
    made = load_expert("seed", config={**SMALL, "logits": logits}, random_weights=True)
    save_file(made.module.state_dict(), tmp_path / "own.safetensors")
    loaded = load_expert("seed", tmp_path / "own.safetensors", config=SMALL)
    assert loaded.module.options.logits == logits
    assert loaded.spec.embedding_dim == made.spec.embedding_dim


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("logits", -1, "a whole number from 0"),
        ("members", "two", "a whole number from 1"),
        ("stem", True, "a whole number from 1"),
        ("kernel", 4, "an odd number from 1"),
        ("widths", 32, "a list of whole numbers from 4"),
        ("blocks", [1, 0], "a list of whole numbers from 1"),
        ("widths", [], "a list of whole numbers from 4"),
    ],
)
def test_sizes_that_make_no_network_are_refused(option, value, words):
    with pytest.raises(UsageError) as refused:
        load_expert("seed", config={option: value}, random_weights=True)
    assert str(refused.value) == f"expert 'seed': {option} is {value!r}; give {words}"


def test_what_cannot_be_changed_is_refused():
    with pytest.raises(UsageError, match="unknown config option 'unit_mv'; it takes: members"):
        load_expert("seed", config={"unit_mv": 1.0}, random_weights=True)
    with pytest.raises(UsageError, match="config logits: 4: pretraining has no labels"):
        make_objective("seed", variant="", size="", preprocessing="", leads="", config={"logits": 4}, seed=0)
    with pytest.raises(UsageError, match=r"widths \[8, 16\] and blocks \[1\] describe two stages or more"):
        load_expert("seed", config={"widths": [8, 16], "blocks": [1]}, random_weights=True)


def _auroc(vectors, labels):
    """Ridge on the first 400 records, macro AUROC on the others."""
    features = vectors.embedding
    mean, scale = features[:400].mean(0), features[:400].std(0) + 1e-6
    features = (features - mean) / scale
    model = RidgeCV(alphas=np.logspace(1, 5, 9)).fit(features[:400], labels[:400])
    return roc_auc_score(labels[400:], model.predict(features[400:]))


def _records(n):
    """Draw records that pretraining has not seen, [n, 12, 5000] in mV, and their report classes."""
    blocks = [draw_block(20_000 + k, 0) for k in range(-(-n // 200))]
    counts = [chunk.counts for block in blocks for chunk in draw_chunks(block, min(n, 200))]
    report = np.concatenate([block.schedule.report for block in blocks])
    signals = np.concatenate(counts)[:n, MIMIC_TO_STANDARD].astype(float) / 200
    return np.where(signals < -100, np.nan, signals), report[:n]
