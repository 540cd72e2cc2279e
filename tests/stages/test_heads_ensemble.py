"""EnsembleHeads as a user meets it: gate, absent experts, missing labels, errors, files."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.metrics import roc_auc_score

from cache.errors import InputError, MissingFileError, StoreError, UsageError
from stages.heads import EnsembleHeads, TaskSpec
from stages.heads.baselines.methods import Concatenated
from stages.heads.inputs.lazy_rows import LazyRows
from tests.stages.heads_study import TASKS, Split, arguments, fitted_study, split, study, take


@pytest.fixture(scope="module")
def fitted() -> tuple[EnsembleHeads, dict[str, Any], dict[str, np.ndarray], list[Split]]:
    return fitted_study()


def _half_and_half(n: int, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y, marker = rng.integers(0, 2, n).astype(float), rng.integers(0, 2, n)
    a, b = rng.normal(size=(2, n, 24)).astype(np.float32)
    truth, nonsense = 3 * (2 * y - 1), 3 * rng.choice([-1, 1], size=(2, n))
    a[:, 3] += np.where(marker == 1, truth, nonsense[0])
    b[:, 3] += np.where(marker == 0, truth, nonsense[1])
    return {"a": a, "b": b}, y, marker


@pytest.mark.parametrize(("source", "n"), [("signal", 600), ("embedding", 600), ("embedding", 1600)])
def test_the_gate_finds_which_expert_is_right_for_which_record(source: str, n: int) -> None:
    x, y, marker = _half_and_half(n, 0)
    signal = np.random.default_rng(2).normal(size=(n, 8)).astype(np.float32)
    if source == "signal":
        signal[:, 2] = 2 * marker - 1
    else:
        x["a"][:, 0] = 2 * marker - 1
    train, val, test = split(n)
    heads = EnsembleHeads(gate_input=source)
    heads.fit(x, {"flag": y}, splits=[(train, val, test)], gate_signal=signal)
    held = {k: v[test] for k, v in x.items()}
    experts = heads.expert_predictions(held, gate_signal=signal[test])

    def auroc(p: np.ndarray) -> float:
        return float(roc_auc_score(y[test], p))

    gate = auroc(heads.predict_proba(held, gate_signal=signal[test])["flag"])
    singles = [auroc(e["flag"]) for e in experts.values()]
    mean = auroc(heads.uniform_mean(held, gate_signal=signal[test])["flag"])
    oracle = auroc(np.where(marker[test] == 1, experts["a"]["flag"], experts["b"]["flag"]))
    assert gate > max(*singles, mean) + 0.08
    assert gate > oracle - 0.02
    weights = heads.gate_weights(held, gate_signal=signal[test])["flag"]
    assert weights[marker[test] == 1, 0].mean() > 0.8
    assert weights[marker[test] == 0, 1].mean() > 0.8


def test_where_one_expert_is_best_the_gate_does_not_fall_below_it() -> None:
    differences = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        y = rng.integers(0, 2, 500).astype(float)
        good, noise = rng.normal(size=(2, 500, 20)).astype(np.float32)
        good[:, 0] += 2 * y
        train, val, test = split(500, seed)
        heads = EnsembleHeads().fit({"good": good, "noise": noise}, {"y": y}, splits=[(train, val, test)])
        held = {"good": good[test], "noise": noise[test]}
        gate, alone = heads.predict_proba(held)["y"], heads.expert_predictions(held)["good"]["y"]
        differences.append(roc_auc_score(y[test], gate) - roc_auc_score(y[test], alone))
    assert np.mean(differences) > -0.01


def test_every_kind_of_task_is_learnt(
    fitted: tuple[EnsembleHeads, dict[str, Any], dict[str, np.ndarray], list[Split]],
) -> None:
    heads, features, targets, splits = fitted
    for fold, (_, _, test) in enumerate(splits):
        x, signal = arguments(features, test)
        p = heads.predict_proba(x, gate_signal=signal, fold=fold)
        error = np.abs(p["rr"] - targets["rr"][test]).mean()
        assert error < 0.5 * np.abs(np.median(targets["rr"]) - targets["rr"][test]).mean()
        assert roc_auc_score(targets["sex"][test], p["sex"]) > 0.85
        assert (p["report"].argmax(1) == targets["report"][test]).mean() > 0.55
        assert roc_auc_score(targets["super"][test], p["super"]) > 0.85
        np.testing.assert_allclose(p["report"].sum(1), 1, atol=1e-5)
    x, signal = arguments(features, np.arange(240))
    assert heads.score(x, targets, gate_signal=signal) > 0.6
    interval = heads.predict_interval(x, gate_signal=signal)["rr"]
    assert np.mean((targets["rr"] > interval[:, 0]) & (targets["rr"] < interval[:, 1])) > 0.8


def test_labels_permuted_in_training_give_chance() -> None:
    features, targets = study(400)
    x = {"wide": features["wide"]}
    train, val, test = split(400)
    y = targets["sex"].copy()
    rest = np.concatenate([train, val])
    y[rest] = np.random.default_rng(3).permutation(y[rest])
    heads = EnsembleHeads().fit(x, {"sex": y}, splits=[(train, val, test)])
    assert abs(roc_auc_score(targets["sex"][test], heads.predict_proba(take(x, test))["sex"]) - 0.5) < 0.15


def test_an_absent_expert_has_no_weight_and_no_opinion(
    fitted: tuple[EnsembleHeads, dict[str, Any], dict[str, np.ndarray], list[Split]],
) -> None:
    heads, features, _, splits = fitted
    x, signal = arguments(features, splits[0][2])
    x["wide"] = x["wide"].copy()
    x["wide"][:5] = np.nan
    weights = heads.gate_weights(x, gate_signal=signal)
    for w in weights.values():
        np.testing.assert_array_equal(w[:5, 0], 0)
        np.testing.assert_allclose(w.sum(1), 1, atol=1e-5)
        assert np.all(w[5:, 0] > 0)
    experts = heads.expert_predictions(x, gate_signal=signal)
    assert np.isnan(experts["wide"]["rr"][:5]).all()
    p = heads.predict_proba(x, gate_signal=signal, fold=0)
    only = heads.expert_predictions(x, gate_signal=signal, fold=0)["layered"]
    # the mixture is that expert's; what is read across tasks and classes moves it by little
    np.testing.assert_allclose(p["rr"][:5], only["rr"][:5], rtol=2e-2)
    left_out = heads.predict_proba({"layered": x["layered"]}, gate_signal=signal)
    np.testing.assert_allclose(left_out["rr"][:5], heads.predict_proba(x, gate_signal=signal)["rr"][:5], rtol=1e-6)


def test_a_record_that_no_expert_saw_gets_nan(
    fitted: tuple[EnsembleHeads, dict[str, Any], dict[str, np.ndarray], list[Split]],
) -> None:
    heads, features, _, splits = fitted
    x, signal = arguments(features, splits[0][2])
    x = {k: {p: a.copy() for p, a in v.items()} if isinstance(v, dict) else v.copy() for k, v in x.items()}
    x["wide"][0] = np.nan
    x["layered"]["embedding"][0] = np.nan
    assert np.isnan(heads.predict_proba(x, gate_signal=signal)["rr"][0])
    assert heads.predict(x, gate_signal=signal)["report"][0] == -1
    assert np.isfinite(heads.predict_proba(x, gate_signal=signal)["rr"][1:]).all()


def test_missing_labels_change_nothing_for_the_labelled() -> None:
    features, targets = study(200)
    x = {"wide": features["wide"]}
    train, val, test = split(200)
    holes = targets["sex"].copy()
    holes[train[:40]] = np.nan
    with_holes = EnsembleHeads(lora=False).fit(x, {"sex": holes}, splits=[(train, val, test)], tasks=[TASKS[1]])
    assert roc_auc_score(targets["sex"][test], with_holes.predict_proba(take(x, test))["sex"]) > 0.8
    wrong = np.where(np.isnan(holes), 1.0, holes)  # what the values of missing labels are must not matter
    wrong[train[:40]] = -1
    again = EnsembleHeads(lora=False).fit(x, {"sex": wrong}, splits=[(train, val, test)], tasks=[TASKS[1]])
    np.testing.assert_array_equal(again.predict_proba(x)["sex"], with_holes.predict_proba(x)["sex"])


@pytest.mark.parametrize(("value", "reason"), [(np.nan, "no training record has a label"), (1.0, "one class only")])
def test_a_task_without_usable_labels_is_named_or_skipped(value: float, reason: str) -> None:
    features, targets = study(120)
    bad = np.full(120, value)
    y = {"sex": targets["sex"], "flag": bad}
    tasks = [TASKS[1], TaskSpec("flag", "binary")]
    with pytest.raises(InputError, match=f"task 'flag' cannot be learnt, fold 0: .*{reason}"):
        EnsembleHeads().fit(features, y, tasks)
    heads = EnsembleHeads(on_unusable="skip", lora=False, gate_epochs=0).fit(features, y, tasks)
    assert list(heads.predict(features)) == ["sex"]
    assert reason in heads.skipped_["flag"]


def test_test_rows_never_influence_a_fit() -> None:
    features, targets = study(160)
    train, val, test = split(160)
    changed = {"wide": features["wide"].copy()}
    changed["wide"][test] = 99
    labels = targets["sex"].copy()
    labels[test] = 1 - labels[test]
    a = EnsembleHeads(lora_epochs=3, gate_epochs=3)
    b = clone(a)
    a.fit({"wide": features["wide"]}, {"sex": targets["sex"]}, splits=[(train, val, test)])
    b.fit(changed, {"sex": labels}, splits=[(train, val, test)])
    x = {"wide": features["wide"][train]}
    np.testing.assert_array_equal(a.predict_proba(x)["sex"], b.predict_proba(x)["sex"])


def test_the_same_seed_gives_the_same_fit() -> None:
    features, targets = study(120)
    one, two = (EnsembleHeads(lora_epochs=3, gate_epochs=3).fit(features, targets, TASKS) for _ in range(2))
    for name, p in one.predict_proba(features).items():
        np.testing.assert_array_equal(p, two.predict_proba(features)[name])


def test_folds_at_once_give_what_each_gives_alone() -> None:
    features, targets = study(480)
    splits = [split(480, seed) for seed in range(2)]
    options = {"lora": False, "gate_epochs": 0, "inner_folds": 0}
    both = EnsembleHeads(**options).fit(features, targets, TASKS, splits=splits)
    for fold, one in enumerate(splits):
        alone = EnsembleHeads(**options).fit(features, targets, TASKS, splits=[one])
        together = both.expert_predictions(features, fold=fold)
        for expert, of_tasks in alone.expert_predictions(features).items():
            for name, p in of_tasks.items():
                scale = 100 if name == "rr" else 1
                assert np.abs(p - together[expert][name]).max() < 0.003 * scale
        for name, p in alone.predict_proba(features).items():
            # 40 records cannot tell small penalties of what is read of RR apart: rounding decides which one it is
            limit = 0.1 * targets["rr"].std() if name == "rr" else 0.003
            assert np.abs(p - both.predict_proba(features, fold=fold)[name]).max() < limit


def test_top_k_keeps_that_many_experts() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=150)
    x = {name: (y[:, None] + rng.normal(size=(150, 4))).astype(np.float32) for name in "abc"}
    heads = EnsembleHeads(top_k=2, lora=False).fit(x, {"y": y})
    assert np.all((heads.gate_weights(x)["y"] > 0).sum(1) == 2)


def test_mistakes_are_named_in_one_line(
    fitted: tuple[EnsembleHeads, dict[str, Any], dict[str, np.ndarray], list[Split]], tmp_path: Path
) -> None:
    heads, features, targets, _ = fitted
    x, signal = arguments(features, np.arange(10))
    with pytest.raises(UsageError, match="not fitted"):
        EnsembleHeads().predict(x)
    with pytest.raises(UsageError, match="fold 5 does not exist; there are folds 0 to 1"):
        heads.predict(x, gate_signal=signal, fold=5)
    with pytest.raises(InputError, match="expert 'new' is not in this fit"):
        heads.predict({"new": x["wide"]}, gate_signal=signal)
    with pytest.raises(InputError, match="'wide': 7 features, but this fit was made on 400"):
        heads.predict({"wide": x["wide"][:, :7]}, gate_signal=signal)
    with pytest.raises(InputError, match="give gate_signal with 10 rows"):
        heads.predict(x)
    with pytest.raises(UsageError, match="no parameter 'ranks'"):
        heads.set_params(ranks=3)
    with pytest.raises(UsageError, match="gate_input 'leads'"):
        EnsembleHeads(gate_input="leads").fit(x, targets)
    with pytest.raises(MissingFileError, match="no saved fit"):
        EnsembleHeads.load(tmp_path)
    heads.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"schema": 99}))
    with pytest.raises(StoreError, match="format ensemble-heads 99"):
        EnsembleHeads.load(tmp_path)


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, stages.heads; assert 'torch' not in sys.modules and 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("lora", [True, False])
def test_an_expert_that_says_the_same_of_every_record_does_no_harm(lora):
    rng = np.random.default_rng(0)
    x, constant, once = rng.normal(size=(80, 5)), np.ones((80, 4)), np.full((80, 4), np.nan)
    once[:3] = 1
    y = {"task": (x[:, 0] > 0).astype(float)}
    for other in (constant, once):
        features = {"a": x, "other": other}
        heads = EnsembleHeads(lora=lora).fit(features, y)
        assert roc_auc_score(y["task"], heads.predict_proba(features)["task"]) > 0.95


class _Watched(LazyRows):
    """Rows of which it is written down how many were held at once."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape, self.dtype, self.largest = values, values.shape, values.dtype, 0

    def read(self, rows: slice) -> np.ndarray:
        self.largest = max(self.largest, rows.stop - rows.start)
        return self.values[rows]


def test_of_many_records_only_those_that_train_or_judge_are_read_together(monkeypatch):
    monkeypatch.setattr("stages.heads.inputs.lazy_rows.READ_ROWS", 512)
    monkeypatch.setattr("stages.heads.inputs.expert_features.READ_ROWS", 512)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4000, 6)).astype(np.float32)
    y = (x[:, 0] + rng.normal(size=4000) > 0).astype(float)
    rows = rng.permutation(4000)
    train, val = np.sort(rows[:300]), np.sort(rows[300:400])
    watched = _Watched(x)
    heads = EnsembleHeads().fit({"a": watched}, {"task": y}, splits=[(train, val, [])])
    assert watched.largest <= 512
    both = np.sort(np.r_[train, val])
    place = [np.searchsorted(both, part) for part in (train, val)]
    alone = EnsembleHeads().fit({"a": x[both]}, {"task": y[both]}, splits=[(*place, [])])
    np.testing.assert_allclose(
        heads.predict_proba({"a": x})["task"], alone.predict_proba({"a": x})["task"], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("n", [1500, 24_000])
def test_experts_on_disk_are_put_side_by_side_as_they_are_read(n, monkeypatch):
    monkeypatch.setattr("stages.heads.predictor.READ_ROWS", 4096)
    rng = np.random.default_rng(2)
    x, layers = rng.normal(size=(n, 3)).astype(np.float16), rng.normal(size=(n, 2, 4)).astype(np.float32)
    layers[7] = np.nan
    y = (x[:, 0] + layers[:, :, 0].mean(1) + rng.normal(size=n) > 0).astype(float)
    splits = [(np.arange(n - 600), np.arange(n - 600, n - 300), np.arange(n - 300, n))]
    found = []
    for kept in (np.asarray, _Watched):
        one, other = kept(x), kept(layers)
        features = {"a": {"embedding": one}, "b": {"layers": other}}
        method = Concatenated(memory_gb=0.001).fit(features, {"task": y}, splits=splits)
        found.append(method.predict_proba(features)["task"])
    np.testing.assert_array_equal(*found)
    assert n < 20_000 or max(one.largest, other.largest) < n


def test_tasks_that_live_in_different_layers_are_mixed_apart(tmp_path):
    rng = np.random.default_rng(0)
    n, train, val, test = 1500, np.arange(900), np.arange(900, 1200), np.arange(1200, 1500)
    cause, layers = rng.normal(size=(n, 2)), rng.normal(size=(n, 6, 16)).astype(np.float32)
    # each task's cause lies in one layer, and in the other's the same direction holds noise: no mixture serves both
    directions, noise = np.eye(16)[:2], rng.normal(size=(n, 2))
    for layer, c in ((1, 0), (4, 1)):
        layers[:, layer] *= 0.3
        layers[:, layer] += np.outer(cause[:, c], directions[c]) + 4 * np.outer(noise[:, c], directions[1 - c])
    features = {"x": {"embedding": layers.mean(1), "layers": layers, "embed": rng.normal(size=(n, 16))}}
    layers[7] = np.nan  # a record with an embedding alone
    y = {name: (cause[:, c] > 0).astype(float) for c, name in enumerate("ab")}
    heads = EnsembleHeads(layer_mix="pma", gate_epochs=0).fit(features, y, splits=[(train, val, test)])
    predicted = heads.predict_proba(features)
    for task, labels in y.items():
        alone = EnsembleHeads(layer_mix="pma", gate_epochs=0)
        alone = alone.fit(features, {task: labels}, splits=[(train, val, test)]).predict_proba(features)
        found, expected = (roc_auc_score(labels[test], p[task][test]) for p in (predicted, alone))
        assert expected > 0.8
        assert found > expected - 0.03
    again = EnsembleHeads.load(heads.save(tmp_path / "fit")).predict_proba(features)
    assert all(np.array_equal(again[task], predicted[task]) for task in y)
