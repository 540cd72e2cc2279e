"""What is read across classes and tasks beside the gate's mixture."""

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from stages.heads import EnsembleHeads, TaskSpec
from stages.heads.gate.reader import FoldReader, ReaderFit, impute, shifted


def test_an_absent_expert_is_read_as_the_mean_of_the_others() -> None:
    logits = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]])
    found = impute(logits, torch.tensor([[1.0, 1.0, 0.0]]))
    np.testing.assert_allclose(found, [[1, 2, 3, 4, 2, 3]])


def test_a_shift_of_all_logits_is_taken_off_the_reading() -> None:
    rng = np.random.default_rng(0)
    reader = FoldReader(rng.normal(size=(6, 3)), rng.normal(size=3), rng.random(3))
    logits, mixed, present = rng.normal(size=(4, 2, 3)), rng.normal(size=(4, 3)), np.ones((4, 2))
    shift = rng.normal(size=3)
    fit = ReaderFit([reader], torch.zeros(1, 4, 3), [[(1.0, 0.0, 0.0)]])
    plain = shifted(fit, torch.from_numpy(shift)[None], 2).folds[0]
    raised = reader(mixed + shift, logits + shift, present) - shift
    np.testing.assert_allclose(plain(mixed, logits, present), raised, atol=1e-5)


def test_a_fit_of_before_there_were_readers_loads_and_predicts_by_its_mixture(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    x = {name: rng.normal(size=(200, 5)).astype(np.float32) for name in "ab"}
    y = {"t": (x["a"][:, 0] + x["b"][:, 1] > 0).astype(float)}
    heads = EnsembleHeads(lora=False, gate_epochs=0).fit(x, y, [TaskSpec("t", "binary")])
    path = heads.save(tmp_path / "fit") / "heads.safetensors"
    arrays = {name: array for name, array in load_file(path).items() if "/reader/" not in name}
    assert len(arrays) == len(load_file(path)) - 3
    save_file(arrays, path)
    old = EnsembleHeads.load(tmp_path / "fit")
    mixed = old._outputs(x, None, 0)[0]
    expected = (mixed.experts[..., 0] * mixed.weights[:, 0]).sum(1) / old.models_[0].temperature[0]
    np.testing.assert_allclose(mixed.mixed[:, 0], expected, rtol=1e-4, atol=1e-5)
