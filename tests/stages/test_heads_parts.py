"""Tasks, scaler, probe, cross-fitting and calibration, each against an independent computation."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from cache.errors import InputError, UsageError
from stages.heads.adamw import AdamW
from stages.heads.crossfit import check_splits, inner_folds, make_masks
from stages.heads.in_memory.probe import Problem, Rotation, fit_path, probe_logits
from stages.heads.inputs.expert_features import parse_mix, read_features
from stages.heads.inputs.scaler import RobustScaler
from stages.heads.targets.calibration import brier, ece, fit_temperatures, rate_shift, reliability
from stages.heads.targets.losses import balance_weights, task_losses
from stages.heads.targets.tasks import TaskSpec, encode, infer_tasks, layout


def _problem(task: TaskSpec, y: np.ndarray, x: np.ndarray) -> tuple[Problem, np.ndarray]:
    z = Rotation.fit(x).transform(x)
    blocks = layout([task])
    train = torch.ones(1, 1, len(x))
    values = torch.from_numpy(y.astype(np.float32)).reshape(1, len(x), -1)
    return Problem(torch.from_numpy(z)[None], values, torch.ones_like(values), train, blocks), z


@pytest.mark.parametrize("shape", [(60, 20), (40, 300)])
def test_ridge_is_the_closed_form(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(np.float32)
    y = x[:, 0] - 2 * x[:, 3] + rng.normal(size=len(x)) + 5
    problem, z = _problem(TaskSpec("age", "regression"), y, x)
    w = fit_path(problem, torch.tensor([0.1, 3.0]), tolerance=1e-6)
    for s, strength in enumerate((0.1, 3.0)):
        expected = Ridge(alpha=strength).fit(z, y).predict(z)
        np.testing.assert_allclose(probe_logits(problem.z, w)[0, 0, :, s, 0], expected, atol=2e-3)


def test_logistic_is_the_convex_optimum() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(80, 200)).astype(np.float32)
    y = (x[:, :3].sum(1) + rng.normal(size=80) > 0.5).astype(float)
    problem, z = _problem(TaskSpec("sex", "binary"), y, x)
    w = fit_path(problem, torch.tensor([0.3]), tolerance=1e-6, max_steps=2000)
    expected = LogisticRegression(C=1 / 0.3, tol=1e-8, max_iter=5000).fit(z, y).decision_function(z)
    np.testing.assert_allclose(probe_logits(problem.z, w)[0, 0, :, 0, 0], expected, atol=5e-3)


def test_multinomial_is_the_convex_optimum() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(120, 30)).astype(np.float32)
    index = np.argmax(x[:, :4] + rng.gumbel(size=(120, 4)), axis=1)
    problem, z = _problem(TaskSpec("report", "multiclass", tuple("abcd")), np.eye(4)[index], x)
    w = fit_path(problem, torch.tensor([1.0]), tolerance=1e-6, max_steps=2000)
    expected = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000).fit(z, index).predict_proba(z)
    got = probe_logits(problem.z, w)[0, 0, :, 0].softmax(-1)
    np.testing.assert_allclose(got, expected, atol=2e-3)


def test_a_column_of_one_class_keeps_its_base_rate() -> None:
    x = np.random.default_rng(3).normal(size=(50, 8)).astype(np.float32)
    y = np.stack([x[:, 0] > 0, np.zeros(50)], 1)
    problem, _ = _problem(TaskSpec("scp", "multilabel", ("a", "b")), y, x)
    w = fit_path(problem, torch.tensor([0.1]))
    assert torch.all(w[0, 0, 0, :-1, 1] == 0)
    assert torch.sigmoid(w[0, 0, 0, -1, 1]) == pytest.approx(0.5 / 51, rel=1e-4)
    assert torch.any(w[0, 0, 0, :-1, 0] != 0)


def test_the_rotation_keeps_every_inner_product_of_training_rows() -> None:
    x = np.random.default_rng(4).normal(size=(30, 100)).astype(np.float32)
    z = Rotation.fit(x).transform(x)
    centred = x - x.mean(0)
    gram = centred @ centred.T
    np.testing.assert_allclose(z @ z.T * np.trace(gram) / 30, gram, atol=1e-2)
    assert (z**2).sum(1).mean() == pytest.approx(1, rel=1e-4)


def test_the_scaler_ignores_an_artefact_and_marks_missing_values() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(3, 2, size=(500, 3)).astype(np.float32)
    x[0, 0] = 1e6
    x[rng.random(500) < 0.2, 1] = np.nan
    x[:, 2] = 7
    z = RobustScaler.fit(x).transform(x)
    assert z.shape == (500, 4)
    assert np.isfinite(z).all()
    assert np.std(z[1:, 0]) == pytest.approx(1, abs=0.1)
    assert z[0, 0] == 8
    np.testing.assert_array_equal(z[:, 3], np.isnan(x[:, 1]))
    np.testing.assert_array_equal(z[:, 2], 0)


def test_features_missing_in_the_same_records_share_one_indicator() -> None:
    x = np.random.default_rng(6).normal(size=(100, 50)).astype(np.float32)
    x[:20] = np.nan
    x[30:40, 0] = np.nan
    assert len(RobustScaler.fit(x).indicators) == 2


def test_a_feature_without_any_training_value_says_nothing() -> None:
    x = np.random.default_rng(7).normal(size=(40, 2)).astype(np.float32)
    x[:, 1] = np.nan
    scaler = RobustScaler.fit(x)
    np.testing.assert_array_equal(scaler.transform(np.ones((3, 2), np.float32))[:, 1], 0)


def test_inner_folds_keep_groups_together_and_even() -> None:
    groups = np.repeat(np.arange(37), np.random.default_rng(8).integers(1, 5, 37))
    rows = np.arange(len(groups))
    folds = inner_folds(rows, groups, 5, 0)
    assert all(len(set(folds[groups == g])) == 1 for g in np.unique(groups))
    sizes = np.bincount(folds)
    assert sizes.max() - sizes.min() <= 2


def test_every_training_record_is_judged_by_a_model_that_has_not_seen_it() -> None:
    rows = np.arange(60)
    masks = make_masks([(rows[:40], rows[40:50], rows[50:])], 60, None, 5, 0)
    for i in rows:
        judge = int(masks.judge[0, i])
        assert judge == -1 if i >= 50 else masks.train[0, judge, i] == 0
    values = torch.arange(6.0)[None, :, None].expand(1, 6, 60)
    np.testing.assert_array_equal(masks.out_of_sample(values)[0, :50], masks.judge[0, :50])


def test_a_patient_in_two_parts_of_a_split_is_refused() -> None:
    groups = np.arange(30) // 2
    with pytest.raises(InputError, match=r"fold 0: group \(patient\) 9 is in both train and test rows \(1 shared\)"):
        check_splits([(np.arange(19), [], np.arange(19, 30))], 30, groups)
    with pytest.raises(InputError, match="row 4 is in both train and validation"):
        check_splits([(np.arange(5), [4, 5], [])], 30, None)
    with pytest.raises(InputError, match=r"row 30 is outside 0\.\.29"):
        check_splits([(np.arange(31), [], [])], 30, None)


def test_targets_are_read_with_their_missing_labels() -> None:
    y, known = encode(TaskSpec("r", "multiclass", ("a", "b", "c")), np.array(["b", None, "c"], object), 3)
    np.testing.assert_array_equal(y, [[0, 1, 0], [0, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(known[:, 0], [1, 0, 1])
    y, known = encode(TaskSpec("r", "multiclass", ("a", "b")), [1.0, np.nan, -1], 3)
    np.testing.assert_array_equal(known[:, 0], [1, 0, 0])
    with pytest.raises(InputError, match="'d' is none of its classes"):
        encode(TaskSpec("r", "multiclass", ("a", "b")), ["a", "d"], 2)
    with pytest.raises(InputError, match=r"class index 5 is outside 0\.\.1"):
        encode(TaskSpec("r", "multiclass", ("a", "b")), [1, 5], 2)
    with pytest.raises(InputError, match="label 2 is neither"):
        encode(TaskSpec("sex", "binary"), [0, 2.0], 2)


def test_kinds_are_guessed_from_the_arrays() -> None:
    guessed = infer_tasks(
        {
            "age": [50.5, 60.0, np.nan],
            "sex": [0, 1, np.nan],
            "report": [0, 1, 2],
            "rhythm": ["SR", "AF", None],
            "super": [[0, 1], [1, 0], [0, 0]],
        }
    )
    assert [t.kind for t in guessed] == ["regression", "binary", "multiclass", "multiclass", "multilabel"]
    assert guessed[3].classes == ("AF", "SR")


def test_missing_labels_add_nothing_to_a_loss() -> None:
    blocks = layout([TaskSpec("a", "multilabel", ("x", "y")), TaskSpec("b", "regression")])
    logits, y = torch.randn(6, 3), torch.zeros(6, 3)
    weight = torch.ones(6, 3)
    weight[2, 0], weight[3] = 0, 0
    loss, w = task_losses(logits, y, weight, blocks)
    assert loss[2, 0] == pytest.approx(float(torch.nn.functional.softplus(logits[2, 1])))
    assert torch.all(w[3] == 0)
    assert torch.all(loss[3] == 0)


def test_balanced_classes_weigh_alike() -> None:
    blocks = layout([TaskSpec("sex", "binary"), TaskSpec("r", "multiclass", tuple("abc"))])
    index = np.r_[np.zeros(70), np.ones(20), np.full(10, 2)].astype(int)
    y = torch.from_numpy(np.c_[index == 2, np.eye(3)[index]].astype(np.float32))
    weight = balance_weights(y, torch.ones_like(y), torch.ones(100), blocks)
    assert weight[index == 2, 0].sum() == pytest.approx(weight[index != 2, 0].sum())
    sums = [float(weight[index == k, 1].sum()) for k in range(3)]
    assert sums == pytest.approx([100 / 3] * 3, rel=1e-4)


def test_temperature_undoes_overconfidence() -> None:
    rng = np.random.default_rng(9)
    true = rng.normal(size=4000)
    y = (rng.random(4000) < 1 / (1 + np.exp(-true))).astype(np.float32)
    logits = torch.from_numpy((3 * true).astype(np.float32))[None, :, None]
    blocks = layout([TaskSpec("sex", "binary")])
    target = torch.from_numpy(y)[None, :, None]
    t = fit_temperatures(logits, target, torch.ones_like(target), blocks)
    assert float(t) == pytest.approx(3, rel=0.15)
    before, after = torch.sigmoid(logits[0, :, 0]).numpy(), torch.sigmoid(logits[0, :, 0] / float(t)).numpy()
    assert ece(after, y) < 0.5 * ece(before, y)
    assert brier(after, y) < brier(before, y)


def test_reliability_counts_every_record_once() -> None:
    p = np.linspace(0, 1, 103)
    points = reliability(p, (p > 0.5).astype(float))
    assert sum(points["count"]) == 103
    assert ece(np.array([0.2, 0.2, 0.8]), np.array([0.0, 0, 1])) == pytest.approx(0.2)


def test_wrong_options_and_features_are_named() -> None:
    with pytest.raises(UsageError, match="'mean' is none of embedding, last, ppa, pma"):
        parse_mix("embedding+mean")
    with pytest.raises(InputError, match="disagree on the number of records: a 3, b 4"):
        read_features({"a": np.zeros((3, 2)), "b": np.zeros((4, 2))})
    with pytest.raises(InputError, match="'a': embedding holds infinite values"):
        read_features({"a": np.full((3, 2), np.inf)})


def test_adamw_steps_as_torch_does() -> None:
    generator = torch.Generator().manual_seed(0)
    start, target = torch.randn(5, 3, generator=generator), torch.randn(5, 3, generator=generator)
    own, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    still = torch.ones(2, requires_grad=True)
    ours = AdamW([own, still], learning_rate=0.05, weight_decay=0.1)
    reference = torch.optim.AdamW([theirs], lr=0.05, weight_decay=0.1)
    for _ in range(20):
        ((own - target) ** 4).sum().backward()
        ours.step()
        reference.zero_grad()
        ((theirs - target) ** 4).sum().backward()
        reference.step()
    torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-6)
    assert still.tolist() == [1, 1]


@pytest.mark.parametrize(("records", "kept"), [(300, 299), (1700, 850)])
def test_half_as_many_axes_as_records_hold_what_wide_features_vary_in(records: int, kept: int) -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(records, 1900)) * np.arange(1, 1901) ** -0.6
    x = (x @ rng.normal(size=(1900, 2000))).astype(np.float32)
    z = Rotation.fit(x).transform(x)
    assert z.shape[1] == kept
    assert (z**2).sum(1).mean() == pytest.approx(1, abs=0.1)


def test_folds_with_other_counts_of_a_rare_class_differ_less() -> None:
    blocks = layout([TaskSpec("super", "multilabel", ("rare", "common")), TaskSpec("age", "regression")])
    y = torch.zeros(2, 200, 3)
    y[0, :1, 0], y[1, :4, 0], y[:, :80, 1], y[..., 2] = 1, 1, 1, 5.0
    shift = rate_shift(y, torch.ones_like(y), blocks)
    base = torch.tensor([1.5 / 199.5, 4.5 / 196.5]).log()
    assert (base[1] - base[0]).item() == pytest.approx(1.11, abs=0.01)
    raised = base + shift[:, 0]
    more = 200 / 150
    expected = np.log((4 + more) / (196 + more)) - np.log((1 + more) / (199 + more))
    assert (raised[1] - raised[0]).item() == pytest.approx(expected, abs=0.01)
    assert expected < 0.85
    assert rate_shift(y[:, :60], torch.ones(2, 60, 3), blocks)[0, 0] == pytest.approx(
        np.log(2 / 60 * 59.5 / 1.5), abs=0.01
    )
    assert shift[0, 1].abs() < 0.01
    np.testing.assert_allclose(shift[:, 2], 0)
