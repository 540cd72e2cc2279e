"""What comes after parents raised the logits: held-out answers, conformal sets, prediction, comparison, explanation."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, logit

from stages.experts import load_expert
from stages.experts.run import Signal, embed_records
from stages.experts.signals.reference_ecgs import reference_signals
from stages.explain import ExplainSettings, explain
from stages.heads import EnsembleHeads, TaskSpec
from stages.heads.baselines.methods import METHODS
from stages.heads.decisions.answers import Decisions
from stages.heads.decisions.conformal import Conformal
from stages.heads.decisions.settings import ConformalSection
from stages.predict import answers, predict
from stages.readers.files import Recorded

PARENTS = tuple((f"{parent}{k}", "above", parent) for parent in "ab" for k in range(2))
TASKS = (
    TaskSpec("below", "multilabel", tuple(child for child, *_ in PARENTS), parents=PARENTS),
    TaskSpec("above", "multilabel", ("a", "b")),
)
RATE_HZ = 500
N = 200
SPLITS = [(np.arange(40, N), np.arange(40), np.empty(0, np.int64))]


def labels(n: int, seed: int) -> dict[str, np.ndarray]:
    """Two superclasses with two kinds each."""
    rng = np.random.default_rng(seed)
    above = rng.random((n, 2)) < 0.4
    below = above[:, :, None] & (rng.integers(0, 2, (n, 2))[:, :, None] == np.arange(2))
    return {"below": below.reshape(n, -1).astype(float), "above": above.astype(float)}


def features(y: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Two experts that see the superclasses alone."""
    rng = np.random.default_rng(seed)
    return {
        name: (y["above"] @ np.eye(2, 8) * 1.5 + rng.normal(size=(len(y["above"]), 8))).astype(np.float32)
        for name in ("one", "other")
    }


def fitted(x: dict[str, np.ndarray], y: dict[str, np.ndarray], splits: Any = None) -> EnsembleHeads:
    heads = EnsembleHeads(lora=False, gate_epochs=0).fit(x, y, TASKS, splits=splits)
    assert heads.models_[0].hierarchy is not None
    assert not np.allclose(heads.models_[0].hierarchy.weight, np.eye(6))
    return heads


def flat(heads: EnsembleHeads) -> EnsembleHeads:
    """The same fit without what classes got of their parents."""
    plain = heads.__class__()
    plain.__dict__ |= heads.__dict__
    plain.models_ = [replace(model, hierarchy=None) for model in heads.models_]
    return plain


def raised_by_hand(heads: EnsembleHeads, before: dict[str, np.ndarray], fold: int = 0) -> dict[str, np.ndarray]:
    """Raise probabilities of a fold without parents by the fold's own step."""
    step = heads.models_[fold].hierarchy
    assert step is not None
    p = expit(step(logit(np.concatenate([before[task.name] for task in TASKS], 1))))
    return {"below": p[:, :4], "above": p[:, 4:]}


@pytest.fixture(scope="module")
def heads() -> EnsembleHeads:
    y = labels(N, 1)
    return fitted(features(y, 2), y, SPLITS)


def test_held_out_answers_are_raised_as_new_records_are(heads, monkeypatch):
    y = labels(N, 1)
    monkeypatch.setattr("stages.heads.fit.fit_hierarchy", lambda *_: None)
    before = EnsembleHeads(lora=False, gate_epochs=0).fit(features(y, 2), y, TASKS, splits=SPLITS).held_out_
    raised = raised_by_hand(heads, before.y_pred[0])
    for task in ("below", "above"):
        np.testing.assert_allclose(heads.held_out_.y_pred[0][task], raised[task], atol=1e-5)
    assert np.abs(heads.held_out_.y_pred[0]["below"] - before.y_pred[0]["below"]).max() > 0.02


def test_conformal_sets_of_children_hold_new_records_as_often_as_promised(heads):
    conformal = Conformal.choose(heads.held_out_, TASKS, ConformalSection(coverage=0.8))
    y = labels(4000, 3)
    p = heads.predict_proba(features(y, 4))["below"]
    sets = conformal.sets("below", p)
    truth = y["below"].astype(int)
    for k in range(4):
        for answer in (0, 1):
            rows = truth[:, k] == answer
            n = int((heads.held_out_.y_true["below"][:, k] == answer).sum())
            # of exchangeable scores the coverage is beta distributed around the promise
            error = np.sqrt(0.8 * 0.2 * (1 / n + 1 / rows.sum()))
            assert 0.8 - 3 * error < sets[rows, k, answer].mean() < 0.8 + 1 / (n + 1) + 3 * error, (k, answer)


def test_every_answer_of_a_fit_is_the_raised_one(heads):
    y = labels(50, 5)
    x = features(y, 6)
    wanted = raised_by_hand(heads, flat(heads).predict_proba(x))
    for said in (heads.predict_proba(x), heads.predict_proba(x, fold=0), heads.answers(x).means):
        for task in ("below", "above"):
            np.testing.assert_allclose(said[task], wanted[task], atol=1e-5)
    np.testing.assert_array_equal(heads.predict(x)["below"], wanted["below"] > 0.5)


def test_methods_that_the_gate_is_compared_with_know_no_parents(heads):
    y = labels(N, 1)
    x, new = features(y, 2), features(labels(50, 5), 6)
    for name in ("mean", "stacking"):
        methods = [METHODS[name](heads=fit) for fit in (heads, flat(heads))]
        for method in methods:
            method.fit(x, y, TASKS, splits=SPLITS)
        np.testing.assert_array_equal(*(method.predict_proba(new)["below"] for method in methods))


def test_prediction_and_explanation_of_an_ecg_are_the_raised_answers():
    """From the signal: `predict`, and `explain`, which subtracts what `answers` says of the ECG without a part."""
    expert, y = load_expert("morphology"), labels(40, 7)
    ecgs = reference_signals(40, 3 * RATE_HZ, float(RATE_HZ), seed=1) * (1 + y["above"][:, :1, None])
    ecgs[:, 3:] = np.nan  # three leads have fewer parts to take away
    vectors = embed_records(expert, [Signal(ecg, float(RATE_HZ)) for ecg in ecgs]).embedding
    heads = fitted({"morphology": vectors}, y)
    heads.provenance_, heads.decisions_ = {"identities": {}, "dtypes": {}}, Decisions()
    wanted = raised_by_hand(heads, flat(heads).predict_proba({"morphology": vectors[:1]}))["below"][0]
    record = Recorded("new", ecgs[0], float(RATE_HZ))
    [found] = predict([record], heads, {"morphology": expert}, {})
    assert [*found.tasks["below"]["probabilities"].values()] == pytest.approx(wanted, abs=1e-5)

    def ask(signals):
        said = answers([record._replace(signals_mv=one) for one in signals], heads, {"morphology": expert}, {})
        return {"gate": logit(said["gate"]["below"][:, 0])}

    assert explain(ExplainSettings(ecgs[0], float(RATE_HZ), ask)).sources["gate"].answer == pytest.approx(
        logit(wanted[0]), abs=1e-4
    )
