"""Fit heads and gate for all tasks and folds at once, against a loop of plain torch training, in one run.

    python -P benchmarks/heads.py --records 100000 --reference-epochs 1

The reference is what one would write: for every task and fold a model (frozen base, LoRA of rank 8 on each expert's
features, a gate over the experts), trained over a shuffling DataLoader. With fewer `--reference-epochs` than the 20
that it is to be trained for, its seconds are scaled, and the output says so. Ours may stop before 20 epochs, which is
printed too; it also fits what the loop does not: seven penalties of the probe, temperatures, constant weights.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from stages.heads import EnsembleHeads, TaskSpec
from stages.memory import PeakMemory

EXPERTS, TASKS, FOLDS, EPOCHS, BATCH, RANK = 5, 5, 3, 20, 256, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--reference-epochs", type=int, default=1, help=f"measured of {EPOCHS}; the rest is scaled")
    options = parser.parse_args()
    features, targets, folds = make_data(options.records, options.width)
    with PeakMemory() as memory:
        heads = fit_ours(features, targets, folds)
    ours = heads.seconds_
    epochs = [len(h["lora_loss"]) - 1 for h in heads.history_["experts"].values()]
    gate_epochs = len(heads.history_["gate"]["loss"]) - 1
    measured = fit_reference(features, targets, folds, options.reference_epochs)
    reference = measured * EPOCHS / options.reference_epochs
    print(f"{options.records} records x {EXPERTS} experts x {options.width}, {TASKS} tasks, {FOLDS} folds")
    print(f"all at once   {ours:9.1f} s, peak {memory.mb or 0:.0f} MB (LoRA epochs {epochs}, gate {gate_epochs})")
    print(f"loop          {reference:9.1f} s for {EPOCHS} epochs ({options.reference_epochs} measured)")
    print(f"ratio         {reference / ours:9.1f}")


def make_data(n: int, width: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], list[tuple[np.ndarray, ...]]]:
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(n, 16)).astype(np.float32)
    mixing = (rng.normal(size=(16, width)).astype(np.float32) for _ in range(EXPERTS))
    noise = (rng.standard_normal((n, width), dtype=np.float32) for _ in range(EXPERTS))
    features = {
        f"expert{e}": (hidden @ m + 2 * x).astype(np.float16)
        for e, (m, x) in enumerate(zip(mixing, noise, strict=True))
    }
    targets = {f"task{t}": (hidden[:, t] + rng.normal(size=n) > 0).astype(float) for t in range(TASKS)}
    fold = rng.integers(0, FOLDS, n)
    rows = np.arange(n)
    return (
        features,
        targets,
        [
            (rows[(fold != f) & (rows % 10 > 0)], rows[(fold != f) & (rows % 10 == 0)], rows[fold == f])
            for f in range(FOLDS)
        ],
    )


def fit_ours(
    features: dict[str, np.ndarray], targets: dict[str, np.ndarray], folds: list[tuple[np.ndarray, ...]]
) -> EnsembleHeads:
    tasks = [TaskSpec(name, "binary") for name in targets]
    return EnsembleHeads(lora_epochs=EPOCHS, gate_epochs=EPOCHS).fit(features, targets, tasks, splits=folds)


class Plain(nn.Module):
    """One task's heads and gate, as one would write them for one fold."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.base = nn.ModuleList(nn.Linear(width, 1).requires_grad_(False) for _ in range(EXPERTS))
        self.down = nn.ModuleList(nn.Linear(width, RANK, bias=False) for _ in range(EXPERTS))
        self.up = nn.ModuleList(nn.Linear(RANK, 1, bias=False) for _ in range(EXPERTS))
        self.gate = nn.Sequential(nn.Linear(EXPERTS * width, 16), nn.ReLU(), nn.Linear(16, EXPERTS))

    def forward(self, *experts: Tensor) -> Tensor:
        """Mixed logit [batch]."""
        parts = zip(self.base, self.down, self.up, experts, strict=True)
        outputs = torch.cat([base(x) + 4 * up(down(x)) for base, down, up, x in parts], 1)
        return (self.gate(torch.cat(experts, 1)).softmax(1) * outputs).sum(1)


def fit_reference(
    features: dict[str, np.ndarray], targets: dict[str, np.ndarray], folds: list[tuple[np.ndarray, ...]], epochs: int
) -> float:
    arrays = [torch.from_numpy(x).float() for x in features.values()]
    started = time.perf_counter()
    for y in targets.values():
        labels = torch.from_numpy(y).float()
        for train, *_ in folds:
            rows = torch.from_numpy(train)
            loader = DataLoader(TensorDataset(*(x[rows] for x in arrays), labels[rows]), BATCH, shuffle=True)
            train_plain(Plain(arrays[0].shape[1]), loader, epochs)
    return time.perf_counter() - started


def train_plain(model: Plain, loader: DataLoader, epochs: int) -> None:
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(epochs):
        for *experts, label in loader:
            loss = nn.functional.binary_cross_entropy_with_logits(model(*experts), label)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


if __name__ == "__main__":
    main()
