"""Training ECG-Soup's PMA gate on cached layers: per expert, fold and task, with a linear head.

Lives here: `train_mixers` and the trained `Mixer`. Not here: the module itself (`layers.layer_mix`), the probe that
is fitted on the mixtures afterwards. In the published linear-probe command the gate is not in the optimiser; here it
is.

Tasks live in different layers: one gate for all of them ends up near the plain mean. Each has a gate of its own, and
the mixtures lie side by side, so that heads read all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor, nn

from cache.errors import InputError
from stages.heads.in_memory.probe import Problem, Rotation, fit_path
from stages.heads.inputs.expert_features import ExpertFeatures
from stages.heads.layers.layer_mix import LayerMix
from stages.heads.targets.losses import task_losses
from stages.heads.targets.tasks import Block, layout, n_columns

if TYPE_CHECKING:
    from stages.heads.crossfit import Split
    from stages.heads.targets.standardised import Targets

LEARNING_RATE, WEIGHT_DECAY, BATCH = 1e-3, 0.05, 64
"""Of ECG-Soup's linear probe."""
EPOCHS, PATIENCE = 60, 8


class Mixer:
    """Trained PMA gates, one a task: cached features -> their mixtures side by side [n, T * D]."""

    def __init__(self, mixes: Sequence[LayerMix]) -> None:
        self.mixes = [mix.eval().requires_grad_(False) for mix in mixes]

    def __call__(self, features: ExpertFeatures) -> np.ndarray:
        """Mix; an absent record stays NaN."""
        layers, embed = tensors(features)
        return torch.cat([mix(layers, embed) for mix in self.mixes], 1).numpy()

    @property
    def n_parameters(self) -> int:
        """Parameters of the gates (the norms are fixed)."""
        return sum(p.numel() for mix in self.mixes for n, p in mix.named_parameters() if n.startswith("gate."))

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that `from_arrays` reads."""
        return {f"task{t}/{k}": v for t, mix in enumerate(self.mixes) for k, v in mix.state_dict().items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Rebuild from saved arrays; fits of older versions have one gate for all tasks."""
        if not any(k.startswith("task0/") for k in arrays):
            arrays = {f"task0/{k}": v for k, v in arrays.items()}
        n_tasks = len({k.split("/")[0] for k in arrays})
        return cls(
            [
                _mix_of({k.split("/", 1)[1]: v for k, v in arrays.items() if k.startswith(f"task{t}/")})
                for t in range(n_tasks)
            ]
        )


def _mix_of(arrays: Mapping[str, np.ndarray]) -> LayerMix:
    mix = LayerMix("pma", len(arrays["gate.7.bias"]), len(arrays["norm.weight"]))
    mix.load_state_dict({k: torch.from_numpy(v) for k, v in arrays.items()})
    return mix


def tensors(features: ExpertFeatures) -> tuple[Tensor, Tensor]:
    """Layers and the gate's input as float32 tensors (call only where both are cached)."""
    assert features.layers is not None
    assert features.embed is not None
    return torch.from_numpy(np.asarray(features.layers)).float(), torch.from_numpy(np.asarray(features.embed)).float()


def train_mixers(
    features: Mapping[str, ExpertFeatures], targets: Targets, splits: list[Split], seed: int
) -> dict[str, list[Mixer]]:
    """Train one gate per fold and task for every expert with cached layers.

    Raises
    ------
    InputError
        An expert with layers but without `embed`, or with layers of too few records; no expert with layers at all.
    """
    layered = {name: f for name, f in features.items() if f.layers is not None}
    if not layered:
        raise InputError("layer_mix 'pma' needs cached layers, and no expert has any")
    for name, f in layered.items():
        if f.embed is None:
            raise InputError(f"expert '{name}': layer_mix 'pma' needs embed, the mean of the tokens before block 1")
    return {
        name: [
            Mixer([_train(name, f, targets, split, k, block, seed) for block in targets.blocks])
            for k, split in enumerate(splits)
        ]
        for name, f in layered.items()
    }


def _train(
    name: str, features: ExpertFeatures, targets: Targets, split: Split, fold: int, block: Block, seed: int
) -> LayerMix:
    """Start from PPA (gate at zero) and its convex head; keep the epoch of the lowest validation loss, PPA included.

    From a random head the gate learns faster than the head turns, and closes the layers that the head reads wrongly.
    """
    layers, embed = tensors(features)
    # a record may have an embedding and no layers
    seen = torch.from_numpy(features.present) & ~(torch.isnan(layers).flatten(1).any(1) | torch.isnan(embed).any(1))
    train, val = (torch.from_numpy(rows)[seen[rows]] for rows in split[:2])
    if len(train) < 2 or not len(val):
        raise InputError(
            f"expert '{name}': fold {fold} has {len(train)} training and {len(val)} validation records with its "
            "layers; layer_mix 'pma' needs both"
        )
    y, weight = targets.y[fold][:, block.columns], targets.weight[fold][:, block.columns]
    blocks = layout([block.task])
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
            head = fit_convex_head(mix.eval()(layers[train], embed[train]), y[train], weight[train], blocks)
        parameters = [*(p for p in mix.parameters() if p.requires_grad), *head.parameters()]
        optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

        def loss_of(rows: Tensor) -> Tensor:
            logits = head(mix(layers[rows], embed[rows]))
            loss, w = task_losses(logits, y[rows], weight[rows], blocks, huber=True)
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
    return mix


def fit_convex_head(z: Tensor, y: Tensor, weight: Tensor, blocks: tuple[Block, ...]) -> nn.Linear:
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
