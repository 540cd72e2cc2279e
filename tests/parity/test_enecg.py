"""EnECG's heads and gate against the official code; the preset's training against the published recipe."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from cache.errors import InputError
from stages.heads import EnECG, TaskSpec
from stages.heads.published.enecg_model import PUBLISHED_WIDTHS
from stages.heads.published.enecg_training import load_enecg, run_enecg, save_enecg

TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}


@pytest.fixture
def official(parity_dir: Path) -> dict[str, torch.Tensor]:
    with safe_open(parity_dir / "enecg-moe-a.safetensors", "pt") as file:
        scales = json.loads(file.metadata()["int8_scale"])
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (no mapping)
    for key, scale in scales.items():
        tensors[f"state/{key}"] = tensors[f"state/{key}"].float() * scale
    return tensors


def _cohort(n: int = 48) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)
    experts = {k: rng.normal(size=(n, w)).astype(np.float32) for k, w in PUBLISHED_WIDTHS.items()}
    return experts, rng.normal(size=(n, 5000)).astype(np.float32)


def test_official_state_gives_official_outputs(official: dict[str, torch.Tensor]) -> None:
    model = EnECG("regression").eval()
    model.load_state_dict({k.removeprefix("state/"): v for k, v in official.items() if k.startswith("state/")})
    experts = {k.removeprefix("in/expert_"): v for k, v in official.items() if k.startswith("in/expert_")}
    lead_ii = official["in/lead_ii"]
    for name, value in model.core.ffn_inputs(experts).items():
        torch.testing.assert_close(value, official[f"out/ffn_in_{name}"], **TOLERANCE)
    torch.testing.assert_close(model.core.expert_outputs(experts), official["out/experts_out"], **TOLERANCE)
    torch.testing.assert_close(model.core.gating_net(lead_ii), official["out/gate_logits"], **TOLERANCE)
    torch.testing.assert_close(model.core.gate(lead_ii), official["out/gate_probs"], **TOLERANCE)
    torch.testing.assert_close(model(experts, lead_ii), official["out/output"], **TOLERANCE)


@pytest.mark.parametrize(
    ("task", "classes", "expected"),
    [("regression", 2, 74_896), ("classification", 2, 74_912), ("classification", 15, 75_120)],
)
def test_trainable_parameters_are_the_published_ones(task: str, classes: int, expected: int) -> None:
    model = EnECG(task, classes)  # type: ignore[arg-type]
    assert model.n_trainable == expected
    assert sum("lora_" in k for k in model.state_dict()) == 24


def test_base_weights_follow_the_seed_and_leave_the_global_state_alone() -> None:
    torch.manual_seed(1)
    first = torch.rand(1)
    torch.manual_seed(1)
    a, b = EnECG(seed=3).state_dict(), EnECG(seed=3).state_dict()
    assert torch.equal(torch.rand(1), first)
    assert all(torch.equal(a[k], b[k]) for k in a)
    key = "base_model.model.gating_net.0.base_layer.weight"
    assert not torch.equal(a[key], EnECG(seed=4).state_dict()[key])


def test_missing_experts_and_wrong_widths_are_named() -> None:
    model = EnECG()
    experts = {k: torch.zeros(2, w) for k, w in PUBLISHED_WIDTHS.items()}
    with pytest.raises(InputError, match=r"'tempo' gives \[2, 95\], expected \[batch, 96\]"):
        model(experts | {"tempo": torch.zeros(2, 95)}, torch.zeros(2, 5000))
    with pytest.raises(InputError, match="no output of expert 'ecgfm'"):
        model({k: v for k, v in experts.items() if k != "ecgfm"}, torch.zeros(2, 5000))
    with pytest.raises(InputError, match=r"lead II has shape \[2, 2500\]"):
        model(experts, torch.zeros(2, 2500))


def test_only_lora_is_trained_and_every_fold_starts_afresh() -> None:
    experts, lead_ii = _cohort()
    y = experts["dlinear"][:, 0] * 3 + 1
    rows = np.arange(48)
    folds = [(rows[rows % 3 != f], [], rows[rows % 3 == f]) for f in range(3)]
    run = run_enecg(experts, lead_ii, y, TaskSpec("rr", "regression"), folds, epochs=2)
    start = EnECG("regression").state_dict()
    for model in run.models:
        state = model.state_dict()
        changed = {k for k in start if not torch.equal(start[k], state[k])}
        assert changed
        assert all("lora_" in k for k in changed)
    alone = run_enecg(experts, lead_ii, y, TaskSpec("rr", "regression"), folds[2:], epochs=2)
    test_rows = folds[2][2]
    np.testing.assert_array_equal(alone.predictions[test_rows], run.predictions[test_rows])
    assert set(run.summary()) == {"mae", "mse"}


def test_the_preset_learns_what_an_expert_says() -> None:
    experts, lead_ii = _cohort(240)
    y = (experts["moment"][:, 0] > 0).astype(float)
    rows = np.arange(240)
    split = [(rows[:180], [], rows[180:])]
    run = run_enecg(experts, lead_ii * 0.01, y, TaskSpec("flag", "binary"), split, epochs=25)
    assert run.losses[0][-1] < 0.8 * run.losses[0][0]
    assert run.metrics[0]["accuracy"] > 0.8


def test_a_saved_model_reloads_on_another_random_base(tmp_path: Path) -> None:
    experts, lead_ii = _cohort()
    rows = np.arange(48)
    task = TaskSpec("report", "multiclass", tuple("abc"))
    run = run_enecg(experts, lead_ii, rows % 3, task, [(rows[:40], [], rows[40:])], epochs=1)
    save_enecg(run.models[0], tmp_path)
    again = load_enecg(tmp_path, EnECG("classification", 3, seed=7))
    tensors = {k: torch.from_numpy(v) for k, v in experts.items()}
    lead = torch.from_numpy(lead_ii)
    assert torch.equal(again(tensors, lead), run.models[0](tensors, lead))
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()


def test_absent_outputs_and_multilabel_tasks_are_refused() -> None:
    experts, lead_ii = _cohort()
    split = [(np.arange(40), [], np.arange(40, 48))]
    experts["tempo"][3, 0] = np.nan
    with pytest.raises(InputError, match="'tempo' has missing outputs"):
        run_enecg(experts, lead_ii, np.zeros(48), TaskSpec("rr", "regression"), split)
    with pytest.raises(InputError, match="no multilabel"):
        run_enecg(experts, lead_ii, np.zeros((48, 2)), TaskSpec("super", "multilabel", ("a", "b")), split)
