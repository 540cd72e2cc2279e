"""A class's logit raised by a share of its parent's."""

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
    y = torch.from_numpy(np.stack([top & (rng.random(500) < 0.3), top & (rng.random(500) < 0.5), top], 1)).float()[None]
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
