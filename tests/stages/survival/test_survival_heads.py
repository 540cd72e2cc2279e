"""Cox's model as a head: lifelines' coefficients and likelihood, in memory and by blocks, and all methods."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from cache.errors import InputError, UsageError
from cache.follow_up import follow_up, times_and_events
from stages.heads import EnsembleHeads, TaskSpec
from stages.heads import fit as fitting
from stages.heads.baselines.methods import METHODS
from stages.heads.in_memory.expert import _judging_models
from stages.heads.in_memory.probe import Problem, Rotation, fit_path
from stages.heads.survival.baseline import cumulative_hazard
from stages.heads.survival.concordance import harrells_c
from stages.heads.survival.partial_likelihood import EfronTerms
from stages.heads.targets.tasks import layout
from tests.stages.survival.follow_up_study import DEATH, HORIZONS, Study, make_study, thirds

PLAIN = {"lora": False, "gate_epochs": 0, "gate_input": "none"}


def lifelines_fit(x: np.ndarray, signed: np.ndarray, penalty: float = 0.0):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lifelines import CoxPHFitter

        times, events = times_and_events(signed)
        frame = pd.DataFrame(x).assign(time=times, event=events)
        return CoxPHFitter(penalizer=penalty).fit(frame, "time", "event")


@pytest.mark.parametrize("tied", [False, True])
def test_the_partial_likelihood_is_that_of_lifelines(tied):
    study = make_study(250, tied=tied)
    fitted = lifelines_fit(study.features["a"], study.signed)
    signed = torch.from_numpy(study.signed)
    assert tied == (len(np.unique(signed)) < 100)
    weights = torch.tensor(fitted.params_.to_numpy(), requires_grad=True)
    terms = EfronTerms(torch.from_numpy(study.features["a"]).double() @ weights, signed, torch.ones(250))
    total = terms.losses().sum()
    assert total.item() == pytest.approx(-fitted.log_likelihood_, rel=1e-9)
    total.backward()
    assert float(weights.grad.abs().max()) < 1e-2  # where lifelines stopped
    with torch.no_grad():
        gradient, curvature = terms.slopes()
    torch.testing.assert_close(torch.from_numpy(study.features["a"]).double().T @ gradient, weights.grad)
    assert bool((curvature >= 0).all())


def test_records_that_do_not_count_are_not_at_risk():
    study = make_study(80, tied=True)
    logits, counted = torch.randn(3, 80), (torch.rand(3, 80) > 0.4).float()
    many = EfronTerms(logits, torch.from_numpy(study.signed)[None], counted)
    for m in range(3):
        rows = counted[m] > 0
        alone = EfronTerms(logits[m, rows], torch.from_numpy(study.signed)[rows], torch.ones(int(rows.sum())))
        torch.testing.assert_close(many.losses()[m, rows], alone.losses())
        torch.testing.assert_close(many.slopes()[0][m, rows], alone.slopes()[0])


@pytest.mark.parametrize("tied", [False, True])
def test_an_unpenalised_probe_has_the_coefficients_of_lifelines(tied):
    study = make_study(400, tied=tied)
    x, signed = study.features["a"], study.signed
    rotation = Rotation.fit(x)
    z = torch.from_numpy(rotation.transform(x))[None]
    y = torch.from_numpy(signed.astype(np.float32))[None, :, None]
    problem = Problem(z, y, torch.ones_like(y), torch.ones(1, 1, len(x)), layout([DEATH]))
    found = fit_path(problem, torch.tensor([1e-6]), tolerance=1e-6)[0, 0, 0]
    weights = torch.from_numpy(rotation.axes) @ found[:-1, 0]
    np.testing.assert_allclose(weights, lifelines_fit(x, signed).params_, atol=2e-3)
    assert abs(float(found[-1, 0])) < 1e-4  # Cox's model has no intercept


def test_a_head_ranks_as_lifelines_does():
    study = make_study()
    split = thirds(600)
    heads = EnsembleHeads(**PLAIN, strengths=(1e-4,), calibrate=False)
    heads.fit({"a": study.features["a"]}, {"death": study.signed}, [DEATH], splits=split)
    train, _, test = split[0]
    theirs = lifelines_fit(study.features["a"][train], study.signed[train])
    expected = harrells_c(study.signed[test], theirs.predict_log_partial_hazard(study.features["a"][test]).to_numpy())
    found = heads.score({"a": study.features["a"][test]}, {"death": study.signed[test]})
    assert found == pytest.approx(expected, abs=0.002)
    assert found > 0.65


def test_fits_by_blocks_find_the_same_optimum(monkeypatch):
    monkeypatch.setattr("stages.heads.in_memory.expert.find_telling", lambda *_: None)  # blocks have none
    study = make_study(2500, tied=True)
    tasks = [TaskSpec("old", "binary", ("0", "1")), DEATH, TaskSpec("age", "regression")]
    y = {"death": study.signed, "old": (study.features["a"][:, 2] > 0).astype(float), "age": study.features["a"][:, 4]}
    options = {**PLAIN, "strengths": (1.0, 1e5), "inner_folds": 2}
    inside = EnsembleHeads(**options).fit(study.features, y, tasks, splits=thirds(2500))
    monkeypatch.setattr(fitting, "LARGE_RECORDS", 100)
    by_block = EnsembleHeads(**options).fit(study.features, y, tasks, splits=thirds(2500))
    assert by_block.history_["experts"]["a"]["passes"] < 40
    assert by_block.history_["experts"]["a"]["strength"] == inside.history_["experts"]["a"]["strength"]
    expected, found = (heads.predict_proba(study.features) for heads in (inside, by_block))
    np.testing.assert_allclose(found["death"], expected["death"], atol=0.03)
    np.testing.assert_allclose(found["old"], expected["old"], atol=0.03)
    # and with LoRA in mini-batches
    trained = EnsembleHeads(**{**options, "lora": True, "lora_epochs": 2}).fit(
        study.features, y, tasks, splits=thirds(2500)
    )
    assert np.isfinite(trained.predict_proba(study.features)["death"]).all()


@pytest.fixture(scope="module")
def fitted() -> tuple[Study, EnsembleHeads]:
    study = make_study()
    sex = (study.features["a"][:, 3] > 0).astype(float)
    tasks = [DEATH, TaskSpec("sex", "binary", ("0", "1"))]
    heads = EnsembleHeads(lora_epochs=4, gate_epochs=5)
    return study, heads.fit(study.features, {"death": study.signed, "sex": sex}, tasks, splits=thirds(600))


def test_a_fit_survives_its_files(fitted, tmp_path):
    study, heads = fitted
    heads.save(tmp_path / "heads")
    again = EnsembleHeads.load(tmp_path / "heads")
    assert again.tasks_ == heads.tasks_
    for name, found in again.predict_proba(study.features).items():
        np.testing.assert_array_equal(found, heads.predict_proba(study.features)[name])


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("ppa", "pma", "attention")])
def test_every_method_answers_with_log_hazard_and_probabilities(fitted, name):
    study, heads = fitted
    sex = (study.features["a"][:, 3] > 0).astype(float)
    shared = {"heads": heads} if name in ("mean", "stacking") else {}
    method = heads if name == "gate" else METHODS[name](**shared)
    if name != "gate":
        method.fit(study.features, {"death": study.signed, "sex": sex}, heads.tasks_, splits=thirds(600))
    found = method.predict_proba(study.features, fold=0)["death"]
    assert found.shape == (600, 1 + len(HORIZONS))
    assert (np.diff(found[:, 1:], axis=1) <= 0).all()
    assert ((found[:, 1:] >= 0) & (found[:, 1:] <= 1)).all()
    test = thirds(600)[0][2]
    observed = np.exp(-cumulative_hazard(study.signed[test], np.zeros(len(test)), HORIZONS[:2]))
    np.testing.assert_allclose(found[test, 1:3].mean(0), observed, atol=0.1)
    c = harrells_c(study.signed[test], found[test, 0])
    best = harrells_c(study.signed[test], study.log_hazard[test])
    assert c == 0.5 if name == "trivial" else c > best - (0.15 if name in ("full_rank", "probe_head", "knn") else 0.04)


def test_predictions_are_calibrated_on_records_that_nobody_saw(fitted):
    study, heads = fitted
    test = thirds(600)[0][2]
    died_by = 1 - heads.predict_proba(study.features, fold=0)["death"][test, 2]
    truth = 1 - np.exp(-180 / 400 * np.exp(study.log_hazard[test]))
    assert np.corrcoef(died_by, truth)[0, 1] > 0.9
    assert abs(died_by.mean() - truth.mean()) < 0.06


def test_a_temperature_is_the_slope_of_log_hazards():
    from stages.heads.targets.calibration import fit_temperatures

    study = make_study(3000)
    logits = torch.from_numpy(3 * study.log_hazard).float()[None, :, None]
    y = torch.from_numpy(study.signed).float()[None, :, None]
    assert float(fit_temperatures(logits, y, torch.ones_like(y), layout([DEATH]))) == pytest.approx(3, rel=0.15)


def test_few_events_are_refused_or_left_out_with_the_number():
    study = make_study(200)
    signed = -np.abs(study.signed)
    signed[:4] *= -1
    tasks = [DEATH, TaskSpec("age", "regression")]
    y = {"death": signed, "age": study.features["b"][:, 1]}
    with pytest.raises(InputError, match="'death' cannot be learnt, fold 0: 4 events in training; 10 are needed"):
        EnsembleHeads().fit(study.features, y, tasks)
    heads = EnsembleHeads(on_unusable="skip", lora=False, gate_epochs=0).fit(study.features, y, tasks)
    assert heads.skipped_ == {"death": "fold 0: 4 events in training; 10 are needed"}


def test_what_cannot_be_a_time_is_refused():
    study = make_study(60)
    with pytest.raises(InputError, match="task 'death': a time of 0"):
        EnsembleHeads().fit(study.features, {"death": np.where(np.arange(60) == 3, 0, study.signed)}, [DEATH])
    with pytest.raises(InputError, match="a follow-up time of -2"):
        follow_up([1, -2], [0, 1])
    with pytest.raises(InputError, match="an event of 2"):
        follow_up([1, 2], [0, 2])
    with pytest.raises(UsageError, match="needs horizons above 0, ascending"):
        TaskSpec("death", "survival", horizons=(30, 10))


def test_penalties_are_judged_by_as_many_models_as_see_enough_events():
    judge = torch.arange(5000) % 5 + 1
    events = torch.zeros(5000, 1, dtype=torch.bool)
    assert _judging_models(judge, events[:, :0]) == [1]  # 1,000 records are enough without a time to event
    events[:150] = True  # thirty in each inner fold
    assert _judging_models(judge, events) == [1, 2]
    events[20:] = False
    assert _judging_models(judge, events) == [1, 2, 3, 4, 5]
