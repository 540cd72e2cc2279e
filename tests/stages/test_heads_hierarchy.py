"""A class's logit raised by a share of its parent's."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from sklearn.metrics import roc_auc_score

from cache.errors import InputError, UsageError
from stages.heads import EnsembleHeads, TaskSpec
from stages.heads.gate.hierarchy import fit_hierarchy, parent_columns
from stages.heads.targets.losses import column_losses
from stages.heads.targets.parents import with_parents as declared
from stages.heads.targets.tasks import layout

N_ABOVE, N_BELOW = 3, 4
CLASSES = tuple(f"{parent}{k}" for parent in "abc" for k in range(N_BELOW))
PARENTS = tuple((name, "above", name[0]) for name in CLASSES)
TURNED = tuple((name, "above", "bca"["abc".index(name[0])]) for name in CLASSES)
TASKS = (TaskSpec("below", "multilabel", CLASSES, parents=PARENTS), TaskSpec("above", "multilabel", tuple("abc")))


def cohort(n: int, seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Rare children: every fourth of their parent's records at random, which tell nothing but the parent."""
    rng = np.random.default_rng(seed)
    above = rng.random((n, N_ABOVE)) < 0.2
    which = rng.integers(0, N_BELOW, (n, N_ABOVE))
    below = (above[:, :, None] & (which[:, :, None] == np.arange(N_BELOW))).reshape(n, -1)
    seen = above @ np.eye(N_ABOVE, 12) * 1.5 + rng.normal(size=(n, 12))
    return {"expert": seen.astype(np.float32)}, {"below": below.astype(float), "above": above.astype(float)}


def fitted(tasks: tuple[TaskSpec, ...], **options: bool) -> EnsembleHeads:
    x, y = cohort(160, 1)
    return EnsembleHeads(lora=False, gate_epochs=0, **options).fit(x, y, tasks)


def ranking(heads: EnsembleHeads, task: str = "below") -> float:
    x, y = cohort(3000, 2)
    return float(roc_auc_score(y[task], heads.predict_proba(x)[task], average="macro"))


@pytest.fixture(scope="module")
def with_parents() -> EnsembleHeads:
    return fitted(TASKS)


@pytest.fixture(scope="module")
def without() -> EnsembleHeads:
    return fitted(TASKS, hierarchy=False)


def test_rare_children_are_ranked_better_on_other_patients_and_calibrated_as_well(with_parents, without) -> None:
    assert ranking(with_parents) > ranking(without) + 0.02
    x, y = cohort(3000, 2)
    p, before = (heads.predict_proba(x)["below"] for heads in (with_parents, without))
    loss = [-np.mean(y["below"] * np.log(q) + (1 - y["below"]) * np.log(1 - q)) for q in (p, before)]
    assert loss[0] < loss[1]
    assert p.mean() == pytest.approx(before.mean(), rel=0.1)
    np.testing.assert_array_equal(with_parents.predict_proba(x)["above"], without.predict_proba(x)["above"])


def test_wrong_parents_do_little_harm(without) -> None:
    turned = fitted((replace(TASKS[0], parents=TURNED), TASKS[1]))
    assert ranking(turned) > ranking(without) - 0.01
    assert turned.history_["gate"]["hierarchy"]["below"][0] < 0.1


def test_a_saved_fit_predicts_the_same_bits(with_parents, tmp_path: Path) -> None:
    x, _ = cohort(40, 3)
    x["expert"][5] = np.nan
    loaded = EnsembleHeads.load(with_parents.save(tmp_path / "fit"))
    assert loaded.tasks_ == TASKS
    for name, p in with_parents.predict_proba(x).items():
        np.testing.assert_array_equal(loaded.predict_proba(x)[name], p)
        assert np.isnan(p[5]).all()
        assert np.isfinite(np.delete(p, 5, 0)).all()
    alone = with_parents.predict_proba({"expert": x["expert"][7:8]})["below"]
    np.testing.assert_array_equal(alone[0], with_parents.predict_proba(x)["below"][7])


def test_a_fit_without_parents_is_what_it_is_without_the_option(without, tmp_path: Path) -> None:
    plain = (replace(TASKS[0], parents=()), TASKS[1])
    nobody, lonely = fitted(plain), fitted(TASKS[:1])
    arrays = load_file(nobody.save(tmp_path / "a") / "heads.safetensors")
    off = load_file(without.save(tmp_path / "b") / "heads.safetensors")
    assert arrays.keys() == off.keys()
    assert all(np.array_equal(arrays[name], off[name]) for name in arrays)
    assert "hierarchy" not in lonely.history_["gate"]
    assert lonely.models_[0].hierarchy is None


def test_held_out_answers_are_those_that_the_fit_predicts_by(with_parents, without) -> None:
    """Thresholds and limits are chosen from them."""
    raised, plain = (heads.held_out_.y_pred[0]["below"] for heads in (with_parents, without))
    step = with_parents.models_[0].hierarchy
    assert step is not None
    assert not np.allclose(raised, plain)


def test_a_grandparent_reaches_its_grandchild() -> None:
    rng = np.random.default_rng(4)
    tasks = (
        TaskSpec("low", "multilabel", ("l",), parents=(("l", "middle", "m"),)),
        TaskSpec("middle", "multilabel", ("m",), parents=(("m", "top", "t"),)),
        TaskSpec("top", "multilabel", ("t",)),
    )
    blocks = layout(tasks)
    top = rng.random(500) < 0.4
    below = (top & (rng.random(500) < 0.06) for _ in range(2))
    y = torch.from_numpy(np.stack([*below, top], 1)).float()[None]
    logits = torch.from_numpy(rng.normal(size=(500, 3)) + 3 * np.outer(top, [0, 0, 1]) - [2, 1, 1]).float()[None]
    fit = fit_hierarchy(logits, y, torch.ones_like(y), blocks)
    assert fit is not None
    assert fit.folds[0].weight[2, 0] > 0.02
    np.testing.assert_array_equal(fit.folds[0].weight[:, 2], [0, 0, 1])
    np.testing.assert_array_equal(fit.logits[0], fit.folds[0](logits[0].numpy()))
    before, after = (column_losses(z[..., :1], y, blocks[0]).mean() for z in (logits, fit.logits))
    assert after < before
    np.testing.assert_allclose(fit.logits.sigmoid().mean(1), logits.sigmoid().mean(1), atol=1e-4)


def test_parents_that_cannot_be_are_refused_and_absent_ones_left_out() -> None:
    with pytest.raises(UsageError, match="task 't': 'x' has a parent"):
        TaskSpec("t", "multilabel", ("a",), parents=(("x", "other", "o"),))
    assert parent_columns(layout([TaskSpec("t", "multilabel", ("a",), parents=(("a", "other", "o"),))])) == {}
    round_trip = (
        TaskSpec("t", "multilabel", ("a",), parents=(("a", "s", "b"),)),
        TaskSpec("s", "multilabel", ("b",), parents=(("b", "t", "a"),)),
    )
    one = torch.ones(1, 4, 2)
    with pytest.raises(InputError, match="each other's parents"):
        fit_hierarchy(one, one, one, layout(round_trip))
    assert TaskSpec(**round_trip[0].to_dict()) == round_trip[0]


def test_options_of_the_gate_and_absent_experts_go_through_parents(tmp_path: Path) -> None:
    """Two experts of which one is kept a record, rows that nobody saw, one expert absent at prediction."""
    x, y = cohort(160, 1)
    rng = np.random.default_rng(5)
    two = {"expert": x["expert"].copy(), "noisy": x["expert"] + rng.normal(size=(160, 12)).astype(np.float32)}
    two["expert"][:20] = np.nan
    two["noisy"][10:30] = np.nan
    heads = EnsembleHeads(lora=False, gate_epochs=1, top_k=1).fit(two, y, TASKS)
    assert heads.models_[0].hierarchy is not None
    assert np.isfinite(heads.models_[0].hierarchy.weight).all()
    assert np.isfinite(heads.models_[0].hierarchy.bias).all()
    p = heads.predict_proba(two)["below"]
    assert np.isnan(p[10:20]).all()
    assert np.isfinite(np.delete(p, np.arange(10, 20), 0)).all()
    assert np.isfinite(heads.predict_proba({"noisy": two["noisy"][:10]})["below"]).all()


def test_an_expert_that_has_seen_the_records_is_held_beside_parents() -> None:
    x, y = cohort(160, 1)
    remembers = {"expert": x["expert"], "seen": np.concatenate([x["expert"], y["below"]], 1).astype(np.float32)}
    seen = {"seen": np.arange(160)}
    with_it, flat = (
        EnsembleHeads(lora=False, gate_epochs=0, hierarchy=on).fit(remembers, y, TASKS, seen=seen)
        for on in (True, False)
    )
    assert "seen" in with_it.history_["gate"]["held"]
    x, y = cohort(3000, 2)
    strangers = {"expert": x["expert"], "seen": np.concatenate([x["expert"], np.zeros((3000, 12))], 1)}
    scores = [roc_auc_score(y["below"], h.predict_proba(strangers)["below"], average="macro") for h in (with_it, flat)]
    assert scores[0] > scores[1] + 0.02


def test_parents_and_children_without_a_positive_change_nothing_for_the_others() -> None:
    """A parent that nobody has says one thing of all; a child that nobody has is ranked by its parent alone."""
    rng = np.random.default_rng(6)
    tasks = (
        TaskSpec("low", "multilabel", ("l", "nobody"), parents=(("l", "top", "empty"), ("nobody", "top", "t"))),
        TaskSpec("top", "multilabel", ("t", "empty")),
    )
    top = rng.random(400) < 0.4
    y = np.stack([top & (rng.random(400) < 0.5), np.zeros(400), top, np.zeros(400)], 1)
    logits = rng.normal(size=(400, 4)) * [1, 0, 1, 0] + np.outer(top, [1, 0, 2, 0]) - [1, 6, 1, 6]
    one = torch.from_numpy(logits).float()[None]
    fit = fit_hierarchy(one, torch.from_numpy(y).float()[None], torch.ones(1, 400, 4), layout(tasks))
    assert fit is not None
    raised = fit.logits[0].numpy()
    np.testing.assert_allclose(raised[:, [0, 2, 3]], logits[:, [0, 2, 3]], atol=1e-4)
    assert roc_auc_score(top, raised[:, 1]) == pytest.approx(roc_auc_score(top, logits[:, 2]), abs=1e-6)
    assert 1 / (1 + np.exp(-raised[:, 1])).mean() > 0
    np.testing.assert_allclose((1 / (1 + np.exp(-raised[:, 1]))).mean(), 1 / (1 + np.exp(6)), rtol=1e-3)


def test_a_binary_task_has_a_parent_in_its_positive_class() -> None:
    tasks = (
        TaskSpec("flutter", "binary", ("no", "yes"), parents=(("yes", "rhythm", "odd"),)),
        TaskSpec("rhythm", "multilabel", ("odd",), parents=()),
    )
    np.testing.assert_array_equal(parent_columns(layout(tasks))["flutter"], [[0], [1]])
    with pytest.raises(UsageError, match="'no' has a parent"):
        replace(tasks[0], parents=(("no", "rhythm", "odd"),))
    with pytest.raises(UsageError, match="must be of another task"):
        replace(tasks[1], parents=(("odd", "rhythm", "odd"),))


def test_circles_are_refused_before_anything_is_fitted(monkeypatch) -> None:
    monkeypatch.setattr("stages.heads.fit.fit_expert", None)
    around = (TASKS[0], replace(TASKS[1], parents=(("a", "below", "a0"),)))
    with pytest.raises(InputError, match=r"each other's parents \(.*below.*\): leave one"):
        fitted(around)


def test_a_study_names_parents_beside_its_cohort() -> None:
    targets = ["below", "above", "age"]
    plain = (replace(TASKS[0], parents=(("a0", "above", "a"), ("b0", "above", "c"))), TASKS[1])
    found = declared(plain, {"below": {"b0": {"above": "b"}}, "age": {"x": {"above": "a"}}}, targets)
    assert found[0].parents == (("a0", "above", "a"), ("b0", "above", "b"))
    for wrong, message in (
        ({"beneath": {}}, "'beneath' is no target of records.parquet; it has: below, above, age"),
        ({"below": {"z9": {"above": "a"}}}, "'z9' is no class of 'below'"),
        ({"below": {"a0": {"abve": "a"}}}, "'abve' is no target"),
        ({"below": {"a0": {"above": "z"}}}, "'z' is no class of 'above' that can be or have a parent; such are: a, b"),
    ):
        with pytest.raises(UsageError, match=f"^fit_heads.parents: {re.escape(message)}"):
            declared(plain, wrong, targets)
