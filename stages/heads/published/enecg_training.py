"""The `enecg` preset: the published recipe on cached expert outputs, started afresh for every fold.

Lives here: optimiser, epochs, loss, folds, metrics, saving. Not here: the model (`published.enecg_model`), which
cohort it is run on.

What is as published: AdamW 1e-4, batch 16, 5 epochs, MSE or cross-entropy, seed 42, no validation set, the last
epoch kept. What is put right: one loader for all experts (they see the same records in a step), a new model and
optimiser per fold (no test subject is trained on), only LoRA layers in train mode, base weights saved beside the
adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from cache.errors import InputError, MissingFileError
from stages.heads.crossfit import check_splits
from stages.heads.persist import tidy_adapter
from stages.heads.published.enecg_model import LEAD_II_SAMPLES, EnECG, EnecgTask
from stages.heads.targets.tasks import TaskSpec, encode

LEARNING_RATE, BATCH_SIZE, EPOCHS, SEED = 1e-4, 16, 5, 42


@dataclass
class EnecgRun:
    """The preset's result for one task.

    Attributes
    ----------
    models
        One per fold.
    predictions
        [n] values or [n, classes] probabilities of each record's test fold; NaN for records in no test fold.
    metrics
        Per fold: mae, mse (regression); accuracy, precision, recall, f1 (macro), on its test rows.
    """

    task: TaskSpec
    models: list[EnECG]
    predictions: np.ndarray
    metrics: list[dict[str, float]]
    losses: list[list[float]] = field(default_factory=list)
    seconds: float = 0.0

    def summary(self) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation (over folds, divisor n) of every metric, as the paper reports them."""
        return {
            k: (float(np.mean([m[k] for m in self.metrics])), float(np.std([m[k] for m in self.metrics])))
            for k in self.metrics[0]
        }


def run_enecg(
    experts: Mapping[str, np.ndarray],
    lead_ii: np.ndarray,
    target: Any,
    task: TaskSpec,
    splits: Sequence[Sequence[Any]],
    *,
    groups: np.ndarray | None = None,
    epochs: int = EPOCHS,
    seed: int = SEED,
) -> EnecgRun:
    """Train and test the published ensemble on every fold.

    Parameters
    ----------
    experts
        Name -> frozen output [n, width], in the gate's order.
    lead_ii
        [n, 5000] standardised lead II (EnECG's global z-score, NaN -> 0).
    target
        As `tasks.encode` takes it; regression, binary (two logits, as published) or multiclass.
    splits
        (train, validation, test) rows; the recipe has no validation set, so its rows are trained on.
    groups
        Patient ids, to refuse a split that shares one.

    Raises
    ------
    InputError
        A multilabel task, absent expert outputs, shapes that do not fit.
    """
    if task.kind == "multilabel":
        raise InputError(f"task '{task.name}': EnECG as published has no multilabel task")
    started = perf_counter()
    n = len(lead_ii)
    tensors = _expert_tensors(experts, n)
    gate = torch.from_numpy(np.asarray(lead_ii, np.float32))
    if gate.shape[1:] != (LEAD_II_SAMPLES,) or bool(gate.isnan().any()):
        raise InputError(f"lead_ii has shape {tuple(gate.shape)}, expected ({n}, {LEAD_II_SAMPLES}) without NaN")
    y, known = _labels(task, target, n)
    n_classes = max(2, task.n_outputs)
    shape = (n,) if task.kind == "regression" else (n, n_classes)
    run = EnecgRun(task, [], np.full(shape, np.nan), [])
    for train, val, test in check_splits(splits, n, groups):
        rows = np.concatenate([train, val])
        rows = rows[known[rows]]
        kind: EnecgTask = "regression" if task.kind == "regression" else "classification"
        model = EnECG(kind, n_classes, widths={k: v.shape[1] for k, v in tensors.items()}, seed=seed)
        run.losses.append(_train(model, tensors, gate, y, torch.from_numpy(rows), epochs, seed))
        out = predict_enecg(model, tensors, gate, torch.from_numpy(test))
        run.predictions[test] = out
        labelled = known[test]
        run.metrics.append(_metrics(task, out[labelled], y[torch.from_numpy(test[labelled])].numpy()))
        run.models.append(model)
    run.seconds = perf_counter() - started
    return run


def _expert_tensors(experts: Mapping[str, np.ndarray], n: int) -> dict[str, Tensor]:
    out = {}
    for name, value in experts.items():
        array = np.asarray(value, np.float32).reshape(n, -1)
        if not np.isfinite(array).all():
            raise InputError(f"EnECG: expert '{name}' has missing outputs; the published model cannot leave one out")
        out[name] = torch.from_numpy(array)
    return out


def _labels(task: TaskSpec, target: Any, n: int) -> tuple[Tensor, np.ndarray]:
    """Targets as MSE or cross-entropy takes them, and which records have one."""
    y, known = encode(task, target, n)
    if task.kind == "regression":
        return torch.from_numpy(y[:, 0].astype(np.float32)), known[:, 0] > 0
    index = y[:, 0] if task.kind == "binary" else y.argmax(1)
    return torch.from_numpy(index.astype(np.int64)), known[:, 0] > 0


def _train(
    model: EnECG, experts: dict[str, Tensor], gate: Tensor, y: Tensor, rows: Tensor, epochs: int, seed: int
) -> list[float]:
    """Train LoRA in place; returns the mean training loss of every epoch."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    losses = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.train()  # only the LoRA layers' dropout differs: the frozen Linears and ReLUs have no train mode
        for _ in range(epochs):
            total = 0.0
            for batch in rows[torch.randperm(len(rows))].split(BATCH_SIZE):
                output = model({k: v[batch] for k, v in experts.items()}, gate[batch])
                loss = F.mse_loss(output[:, 0], y[batch]) if model.task == "regression" else None
                loss = F.cross_entropy(output, y[batch]) if loss is None else loss
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                total += float(loss.detach()) * len(batch)
            losses.append(total / max(1, len(rows)))
    model.eval()
    return losses


@torch.no_grad()
def predict_enecg(model: EnECG, experts: Mapping[str, Tensor], gate: Tensor, rows: Tensor) -> np.ndarray:
    """Values [rows] (regression) or probabilities [rows, classes]."""
    parts = []
    for batch in rows.split(1024):
        output = model({k: v[batch] for k, v in experts.items()}, gate[batch])
        parts.append(output[:, 0] if model.task == "regression" else output.softmax(-1))
    return torch.cat(parts).double().numpy() if parts else np.empty((0,))


def _metrics(task: TaskSpec, out: np.ndarray, y: np.ndarray) -> dict[str, float]:
    if task.kind == "regression":
        error = out - y
        return {"mae": float(np.abs(error).mean()), "mse": float((error**2).mean())}
    from sklearn.metrics import precision_recall_fscore_support

    chosen = out.argmax(1)
    precision, recall, f1, _ = precision_recall_fscore_support(y, chosen, average="macro", zero_division=0)
    return {
        "accuracy": float((chosen == y).mean()),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
    }


def save_enecg(model: EnECG, folder: str | Path) -> Path:
    """Write the whole state (base and LoRA, published keys) and peft's own adapter folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().contiguous() for k, v in model.state_dict().items()}
    metadata = {"task": model.task, "n_out": str(model.n_out)}
    save_file(state, folder / "enecg.safetensors", metadata=metadata)
    model.peft_model.save_pretrained(str(folder / "adapter"))
    tidy_adapter(folder / "adapter")
    return folder


def load_enecg(folder: str | Path, model: EnECG) -> EnECG:
    """Load what `save_enecg` wrote into a model of the same task and widths, and put it in eval mode."""
    path = Path(folder) / "enecg.safetensors"
    if not path.is_file():
        raise MissingFileError(f"{path}: no saved EnECG model; run the enecg preset first")
    model.load_state_dict(load_file(path))
    model.eval()
    return model
