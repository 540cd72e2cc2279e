"""The programs that make and judge the packaged encoders: whom they learn from, what is compared with what."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stages.heads import TaskSpec
from stages.heads.targets.tasks import layout
from stages.posttrain.joint import JointHead
from weights import judge_seed, signal_targets
from weights.seed_expert import ALL, N_FOLDS, Study, home_of, judged_rotation, split_rows, vectors


def test_components_tell_what_the_vectors_tell_and_use_the_learnt_rows_alone():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(200, 3))
    rocket = hidden @ rng.normal(size=(3, 40)) + 0.01 * rng.normal(size=(200, 40))
    morphology = np.where(rng.random((200, 6)) < 0.1, np.nan, hidden[:, :1] * np.arange(1, 7))
    learnt = np.arange(120)
    found = signal_targets.signal_targets({"rocket": rocket, "morphology": morphology}, learnt)
    assert [sum(key.startswith(name) for key in found) for name in ("rocket", "morphology")] == [40, 6]
    first = np.stack([found[f"rocket_{k}"] for k in range(3)], 1)
    fitted = np.linalg.lstsq(np.c_[first, np.ones(200)], hidden, rcond=None)[0]
    assert np.abs(np.c_[first, np.ones(200)] @ fitted - hidden)[learnt].mean() < 0.1
    assert all(np.isfinite(values).all() for values in found.values())
    assert np.std(found["rocket_0"][learnt]) == pytest.approx(1, abs=0.05)
    changed = rocket.copy()
    changed[150:] *= 3
    again = signal_targets.signal_targets({"rocket": changed, "morphology": morphology}, learnt)
    assert np.array_equal(found["rocket_0"][learnt], again["rocket_0"][learnt])
    assert not np.array_equal(found["rocket_0"][150:], again["rocket_0"][150:])


def test_a_patient_is_in_one_part_and_a_fifth_of_them_validates():
    patients = np.repeat([f"p{k}" for k in range(50)], 3)
    known, test = np.arange(120), np.arange(120, 150)
    train, val, judged = split_rows(known, test, patients)
    assert np.array_equal(judged, test)
    assert sorted([*train, *val]) == known.tolist()
    assert not set(patients[train]) & set(patients[val])
    assert len(np.unique(patients[val])) == 8


@pytest.mark.parametrize("k", [*range(N_FOLDS), ALL])
def test_a_teacher_has_seen_neither_the_encoder_s_rotation_nor_the_one_that_it_speaks_of(k):
    fits = [pair for count in (2, 1) for pair in itertools.combinations(range(N_FOLDS), count)]
    spoken = {left_out: judged_rotation(left_out, k) for left_out in fits}
    assert sorted(j for j in spoken.values() if j is not None) == [j for j in range(N_FOLDS) if j != k]
    for left_out, j in spoken.items():
        assert j is None or set(left_out) == {j} | ({k} - {ALL})


def test_an_encoder_learns_from_folds_1_to_8_but_for_the_patients_of_its_rotation(tmp_path, make_cohort):
    make_cohort(tmp_path, 60)
    study = Study(tmp_path)
    everybody = study.learnt(ALL)
    assert set(everybody // 2 % 10) == set(range(8))  # two records a patient, ten folds of patients in turn
    parts = [np.setdiff1d(everybody, study.learnt(k)) for k in range(N_FOLDS)]
    assert sorted(np.concatenate(parts)) == everybody.tolist()
    assert all((study.fold[part] == k).all() for k, part in enumerate(parts))
    assert [home_of(tmp_path, "seed", ALL, m).name for m in range(2)] == ["all", "all-1"]


def test_what_networks_say_follows_what_they_see_as_their_trained_heads_have_it(tmp_path):
    torch.manual_seed(0)
    blocks = layout((TaskSpec("sex", "binary"), TaskSpec("finding", "multilabel", ("a", "b"))))
    embedding, seen, both = torch.randn(20, 6), [], []
    for member in range(2):
        head = JointHead(6, blocks)
        torch.nn.init.normal_(head.norm.weight)
        torch.nn.init.normal_(head.norm.bias)
        for _ in range(3):
            head(5 * torch.randn(8, 6) + 1)  # what the network's features are like: a mean and a spread to remember
        home = home_of(tmp_path, "seed", 0, member)
        (version := home / "weights" / "versions" / "seed+ptbxl").mkdir(parents=True)
        save_file(dict(head.state_dict()), version / "head.safetensors")
        np.savez(home / "seed.npz", embedding=embedding.numpy() + member)
        with torch.no_grad():
            said = head.eval()(embedding + member)
        seen.append(embedding.numpy() + member)
        both += [seen[-1], said.numpy()]
    assert np.array_equal(vectors(tmp_path, "seed", 0, 2, logits=False), np.concatenate(seen, 1))
    np.testing.assert_allclose(vectors(tmp_path, "seed", 0, 2), np.concatenate(both, 1), rtol=1e-5, atol=1e-5)


def test_groups_part_the_records_by_sex_and_age():
    targets = {"sex": np.array([0, 1, 1, 0]), "age": np.array([30.0, 50.0, 70.0, np.nan])}
    groups = judge_seed._groups(targets, subgroups=True)
    assert {name: None if rows is None else rows.tolist() for name, rows in groups.items()} == {
        "": None,
        "men": [True, False, False, True],
        "women": [False, True, True, False],
        "under 50": [True, False, False, False],
        "50 to 70": [False, True, False, False],
        "70 or older": [False, False, True, False],
    }
    assert list(judge_seed._groups(targets, subgroups=False)) == [""]


@pytest.mark.parametrize(("unlabelled", "expected"), [(False, [0.0, 1.0]), (True, [7.0, 7.0])])
def test_rotations_are_judged_by_encoders_of_their_own_or_by_the_packaged_one(tmp_path, unlabelled, expected):
    study = judge_seed.Study(tmp_path / "ptbxl")
    (study.folder / "vectors").mkdir(parents=True)
    np.savez(study.folder / "vectors" / "seed-ssl.npz", embedding=np.full((3, 2), 7.0))
    for k in (0, 1):
        (tmp_path / "signals" / str(k)).mkdir(parents=True)
        np.savez(tmp_path / "signals" / str(k) / "seed-ssl.npz", embedding=np.full((3, 2), float(k)))
    options = SimpleNamespace(folder=tmp_path, expert="seed-ssl", members=1, unlabelled=unlabelled, logits=0)
    found = judge_seed._encoders(study, [0, 1], options)
    assert [float(found[k].mean()) for k in (0, 1)] == expected


def test_labelled_weights_judge_no_rotation_that_has_taught_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["judge_seed", str(tmp_path), "across", "--unlabelled"])
    with pytest.raises(SystemExit):
        judge_seed.main()
    assert "labels of the judged patients" in capsys.readouterr().err


def test_arms_differ_by_the_encoder_and_are_kept(tmp_path, capsys):
    """An encoder that knows the label is worth much; the second run reads what the first has kept."""
    rng = np.random.default_rng(1)
    n = 240
    patients = np.array([f"p{k}" for k in range(n)])
    sex = rng.integers(0, 2, n).astype(float)
    features = {name: rng.normal(size=(n, 4)).astype(np.float32) for name in judge_seed.DEFAULT}
    encoder = (sex[:, None] * 2 + rng.normal(size=(n, 3))).astype(np.float32)
    task = TaskSpec("sex", "binary")
    arms = judge_seed.Arms(patients, {"sex": sex}, (task,), features, encoder)
    splits = [(np.arange(0, 120), np.arange(120, 160), np.arange(160, n))]
    said = judge_seed.kept(tmp_path / "judged" / "x.npz", [(arms, splits)])
    assert set(said) == {"sex/without", "sex/with", "sex/alone", "sex/rocket", "sex/morphology"}
    assert np.isnan(said["sex/with"][:160]).all()
    assert np.isfinite(said["sex/with"][160:]).all()
    again = judge_seed.kept(tmp_path / "judged" / "x.npz", [])
    assert all(np.array_equal(said[key], again[key], equal_nan=True) for key in said)
    judge_seed.compare(task, sex, patients, said, SimpleNamespace(resamples=100))
    printed = capsys.readouterr().out
    assert "sex (auroc, 80 records)" in printed
    gain = float(printed.split("with minus without: ")[1].split()[0])
    assert gain > 0.2
