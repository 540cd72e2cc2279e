"""What a fit writes: it reloads bit for bit, and peft reads its adapter."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from cache.errors import InputError
from stages.heads import EnsembleHeads, predictor
from stages.heads.persist import HeadModule, module_name
from tests.stages.heads_study import Split, arguments, fitted_study, split, take


@pytest.fixture(scope="module")
def fitted() -> tuple[EnsembleHeads, dict[str, Any], dict[str, np.ndarray], list[Split]]:
    return fitted_study()


def test_a_fit_reloads_bit_for_bit_in_a_new_process(
    fitted: tuple[EnsembleHeads, dict[str, Any], dict[str, np.ndarray], list[Split]], tmp_path: Path
) -> None:
    heads, features, _, splits = fitted
    x, signal = arguments(features, splits[0][2])
    heads.save(tmp_path / "fit")
    arrays = {"wide": x["wide"], "signal": signal} | {f"layered_{k}": v for k, v in x["layered"].items()}
    np.savez(tmp_path / "x.npz", **arrays)
    code = (
        "import sys, numpy as np; from stages.heads import EnsembleHeads\n"
        "x = np.load(sys.argv[1] + '/x.npz'); h = EnsembleHeads.load(sys.argv[1] + '/fit')\n"
        "f = {'wide': x['wide'], 'layered': {k: x['layered_' + k] for k in ('embedding', 'layers', 'embed')}}\n"
        "np.savez(sys.argv[1] + '/p.npz', **h.predict_proba(f, gate_signal=x['signal']))\n"
        "assert 'peft' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    again = np.load(tmp_path / "p.npz")
    for name, p in heads.predict_proba(x, gate_signal=signal).items():
        np.testing.assert_array_equal(p, again[name])
    loaded = EnsembleHeads.load(tmp_path / "fit")
    assert loaded.provenance_ == {"wide": "sha256:1"}
    assert loaded.get_params() == heads.get_params()
    assert loaded.n_trainable_ == heads.n_trainable_
    assert loaded.tasks_ == heads.tasks_


def test_saving_twice_gives_the_same_bytes(
    fitted: tuple[EnsembleHeads, dict[str, Any], dict[str, np.ndarray], list[Split]], tmp_path: Path
) -> None:
    heads = fitted[0]
    heads.save(tmp_path / "a")
    EnsembleHeads.load(tmp_path / "a").save(tmp_path / "b")
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert [p.as_posix() for p in files] == [
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "config.json",
        "heads.safetensors",
        "out_of_sample.safetensors",
    ]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_peft_itself_loads_the_adapter(tmp_path: Path) -> None:
    import peft

    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 30)).astype(np.float32)
    y = np.tanh(x[:, :6].sum(1)) * 40 + 800 + rng.standard_t(2, size=300)  # no column tells it alone
    heads = EnsembleHeads(lora_epochs=15, calibrate=False, lora_learning_rate=3e-3, strengths=(10.0,))
    heads.fit({"net.v1": x}, {"rr": y})
    assert heads.history_["experts"]["net.v1"]["lora_epoch"][0][0] > 0
    heads.save(tmp_path)
    model = peft.PeftModel.from_pretrained(HeadModule.of(heads), str(tmp_path / "adapter")).eval()
    fold = heads.models_[0]
    z = torch.from_numpy(fold.heads["net.v1"].standardise(x))
    with torch.no_grad():
        adapted = model({"net.v1": z})["net.v1"][module_name("rr")][:, 0]
        plain = HeadModule.of(heads)({"net.v1": z})["net.v1"][module_name("rr")][:, 0]
    said = heads.expert_predictions({"net.v1": x})["net.v1"]["rr"]
    expected = (said - fold.target_centre[0]) / fold.target_scale[0]
    np.testing.assert_allclose(adapted.numpy(), expected, atol=1e-4)
    assert float((adapted - plain).abs().max()) > 1e-3


def test_pma_trains_its_gate_and_reloads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200).astype(float)
    layers = rng.normal(size=(200, 4, 16)).astype(np.float32)
    layers[:, 1, 0] += 3 * (2 * y - 1)
    features = {"net": {"layers": layers, "embed": rng.normal(size=(200, 16)).astype(np.float32)}}
    train, val, test = split(200)
    heads = EnsembleHeads(layer_mix="pma", gate_epochs=0, lora=False)
    heads.fit(features, {"y": y}, splits=[(train, val, test)])
    p = heads.predict_proba(take(features, test))["y"]
    assert roc_auc_score(y[test], p) > 0.9
    weights = heads.mixers_["net"][0].pma.mixes[0].weights(torch.from_numpy(features["net"]["embed"]))
    assert weights.mean(0).argmax() == 1
    heads.save(tmp_path)
    np.testing.assert_array_equal(EnsembleHeads.load(tmp_path).predict_proba(take(features, test))["y"], p)
    with pytest.raises(InputError, match="'net': layer_mix 'pma' needs embed"):
        heads.fit({"net": layers}, {"y": y}, splits=[(train, val, test)])
    layers[train] = np.nan
    with pytest.raises(InputError, match=r"'net': fold 0 has 0 training and .* records with its layers"):
        heads.fit({"net": {**features["net"], "embedding": np.ones((200, 3))}}, {"y": y}, splits=[(train, val, test)])


def test_a_fit_that_remembers_computes_each_fold_once_and_says_the_same(
    fitted: tuple[EnsembleHeads, dict[str, Any], dict[str, np.ndarray], list[Split]], monkeypatch: pytest.MonkeyPatch
) -> None:
    heads, features, _, splits = fitted
    new, signal = arguments(features, splits[0][2])
    ask = (heads.predict_proba, heads.expert_predictions, heads.uniform_mean, heads.gate_weights)
    plain = [f(new, gate_signal=signal, fold=1) for f in ask]
    calls, compute = [], predictor.run_fold
    monkeypatch.setattr(predictor, "run_fold", lambda *a: calls.append(1) or compute(*a))
    with heads.remembering():
        for f, expected in zip(ask, plain, strict=True):
            np.testing.assert_equal(f(new, gate_signal=signal, fold=1), expected)
        assert len(calls) == 1
        heads.predict_proba(dict(new), gate_signal=signal, fold=1)  # other objects may hold other values
        heads.predict_proba(new, gate_signal=signal, fold=0)
        assert len(calls) == 3
    heads.predict_proba(new, gate_signal=signal, fold=1)
    assert len(calls) == 4


def test_a_fit_that_is_asked_about_some_records_alone_says_the_same_of_them(
    fitted: tuple[EnsembleHeads, dict[str, Any], dict[str, np.ndarray], list[Split]], monkeypatch: pytest.MonkeyPatch
) -> None:
    heads, features, _, splits = fitted
    new, signal = arguments(features, splits[0][2])
    judged = np.arange(len(splits[0][2])) % 3 == 1
    whole, weights = (f(new, gate_signal=signal, fold=1) for f in (heads.predict_proba, heads.gate_weights))
    sizes, compute = [], predictor.run_fold
    monkeypatch.setattr(predictor, "run_fold", lambda *a: sizes.append(len(a[2])) or compute(*a))
    with heads.remembering([~judged, judged]):
        for found, expected in (
            (heads.predict_proba(new, gate_signal=signal, fold=1), whole),
            (heads.gate_weights(new, gate_signal=signal, fold=1), weights),
        ):
            for task, values in found.items():
                np.testing.assert_array_equal(values[judged], expected[task][judged])
                assert np.isnan(values[~judged]).all()
    assert sizes == [judged.sum()]
