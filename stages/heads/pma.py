"""Training ECG-Soup's PMA gate on cached layers: per expert and fold, with one linear head over all tasks.

Lives here: `train_mixers` and the trained `Mixer`. Not here: the module itself (`layer_mix`), the probe that is fitted
on the mixture afterwards. In the published linear-probe command the gate is not in the optimiser; here it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor, nn

from cache.errors import InputError
from stages.heads.features import ExpertFeatures
from stages.heads.layer_mix import LayerMix
from stages.heads.losses import task_losses
from stages.heads.probe import Problem, Rotation, fit_path
from stages.heads.tasks import Block, n_columns

if TYPE_CHECKING:
    from stages.heads.crossfit import Split
    from stages.heads.fitting import Targets

LEARNING_RATE, WEIGHT_DECAY, BATCH = 1e-3, 0.05, 64
"""Of ECG-Soup's linear probe."""
EPOCHS, PATIENCE = 60, 8


class Mixer:
    """A trained PMA gate: cached features -> z [n, D]."""

    def __init__(self, mix: LayerMix) -> None:
        self.mix = mix.eval().requires_grad_(False)

    def __call__(self, features: ExpertFeatures) -> np.ndarray:
        """Mix; an absent record stays NaN."""
        layers, embed = tensors(features)
        return self.mix(layers, embed).numpy()

    @property
    def n_parameters(self) -> int:
        """Parameters of the gate (the norm is fixed)."""
        return sum(p.numel() for n, p in self.mix.named_parameters() if n.startswith("gate."))

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that `from_arrays` reads."""
        return self.mix.state_dict()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Rebuild from saved arrays."""
        mix = LayerMix("pma", len(arrays["gate.7.bias"]), len(arrays["norm.weight"]))
        mix.load_state_dict({k: torch.from_numpy(v) for k, v in arrays.items()})
        return cls(mix)


def tensors(features: ExpertFeatures) -> tuple[Tensor, Tensor]:
    """Layers and the gate's input as float32 tensors (call only where both are cached)."""
    assert features.layers is not None
    assert features.embed is not None
    return torch.from_numpy(np.asarray(features.layers)).float(), torch.from_numpy(np.asarray(features.embed)).float()


def train_mixers(
    features: Mapping[str, ExpertFeatures], targets: Targets, splits: list[Split], seed: int
) -> dict[str, list[Mixer]]:
    """Train one gate per fold for every expert with cached layers.

    Raises
    ------
    InputError
        An expert with layers but without `embed`, or no expert with layers at all.
    """
    layered = {name: f for name, f in features.items() if f.layers is not None}
    if not layered:
        raise InputError("layer_mix 'pma' needs cached layers, and no expert has any")
    for name, f in layered.items():
        if f.embed is None:
            raise InputError(f"expert '{name}': layer_mix 'pma' needs embed, the mean of the tokens before block 1")
    return {name: [_train(f, targets, split, k, seed) for k, split in enumerate(splits)] for name, f in layered.items()}


def _train(features: ExpertFeatures, targets: Targets, split: Split, fold: int, seed: int) -> Mixer:
    """Start from PPA (gate at zero) and its convex head; keep the epoch of the lowest validation loss, PPA included.

    From a random head the gate learns faster than the head turns, and closes the layers that the head reads wrongly.
    """
    layers, embed = tensors(features)
    seen = torch.from_numpy(features.present)
    train, val = (torch.from_numpy(rows)[seen[rows]] for rows in split[:2])
    y, weight = targets.y[fold], targets.weight[fold]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mix = LayerMix("pma", layers.shape[1], layers.shape[2])
        assert mix.gate is not None
        last = mix.gate[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        mix.norm.requires_grad_(False)
        with torch.no_grad():
            head = _convex_head(mix.eval()(layers[train], embed[train]), y[train], weight[train], targets.blocks)
        parameters = [*(p for p in mix.parameters() if p.requires_grad), *head.parameters()]
        optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

        def loss_of(rows: Tensor) -> Tensor:
            logits = head(mix(layers[rows], embed[rows]))
            loss, w = task_losses(logits, y[rows], weight[rows], targets.blocks, huber=True)
            return ((loss * w).sum(0) / w.sum(0).clamp_min(1e-9)).sum()

        best, kept, since = _score(mix, loss_of, val), _copy(mix), 0
        for _ in range(EPOCHS):
            mix.train()
            for rows in train[torch.randperm(len(train))].split(BATCH):
                optimiser.zero_grad()
                loss_of(rows).backward()
                optimiser.step()
            loss, since = _score(mix, loss_of, val), since + 1
            if loss < best:
                best, kept, since = loss, _copy(mix), 0
            if since >= PATIENCE:
                break
    mix.load_state_dict(kept)
    return Mixer(mix)


def _convex_head(z: Tensor, y: Tensor, weight: Tensor, blocks: tuple[Block, ...]) -> nn.Linear:
    """Fit ridge, logistic and multinomial regression on z [rows, D], as a torch layer."""
    x = z.numpy()
    rotation = Rotation.fit(x)
    coordinates = torch.from_numpy(rotation.transform(x))[None]
    w = fit_path(Problem(coordinates, y[None], weight[None], torch.ones(1, 1, len(x)), blocks), torch.ones(1))[0, 0, 0]
    head = nn.Linear(x.shape[1], n_columns(blocks))
    head.weight.data = (torch.from_numpy(rotation.axes) @ w[:-1]).T.contiguous()
    head.bias.data = w[-1] - head.weight.data @ torch.from_numpy(rotation.mean)
    return head


@torch.no_grad()
def _score(mix: LayerMix, loss_of: Callable[[Tensor], Tensor], rows: Tensor) -> float:
    mix.eval()
    return float(loss_of(rows))


def _copy(mix: LayerMix) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in mix.state_dict().items()}
