"""Training attention over an expert's cached seconds: per expert, fold and task, from the mean-pooled probe on.

Lives here: `train_attention` and the trained `AttentionMixer`. Not here: the module (`layers.attention_pool`), the
probe that is fitted on what it pools.

Each starts as the plain mean over the seconds with the convex probe of that mean, and the epoch of the lowest
validation loss is kept, the start included: on validation it can only win. Tasks look at different moments: each has
its own, and what they pool lies side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor, nn

from cache.errors import InputError
from stages.heads.inputs.expert_features import ExpertFeatures
from stages.heads.layers.attention_pool import HEADS, AttentionPool
from stages.heads.layers.pma import BATCH, EPOCHS, PATIENCE, fit_convex_head
from stages.heads.targets.losses import task_losses
from stages.heads.targets.tasks import Block, layout

if TYPE_CHECKING:
    from stages.heads.crossfit import Split
    from stages.heads.targets.standardised import Targets

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-3
"""Of the benchmark, AdamW."""
LEAST_SCALE = 1e-6


class ScaledAttention(nn.Module):
    """Attention over seconds that are standardised per dimension over the training records."""

    centre: Tensor
    scale: Tensor

    def __init__(self, centre: Tensor, scale: Tensor, heads: int) -> None:
        super().__init__()
        self.register_buffer("centre", centre)
        self.register_buffer("scale", scale)
        self.pool = AttentionPool(len(centre), heads)

    @classmethod
    def of(cls, segments: Tensor) -> Self:
        """Return one that is the mean of standardised seconds; as many heads, up to 16, as divide the width."""
        flat = segments.flatten(0, 1)
        flat = flat[flat.isfinite().all(1)]
        dim = flat.shape[1]
        heads = next(n for n in range(min(HEADS, dim), 0, -1) if dim % n == 0)
        made = cls(flat.mean(0), flat.std(0, correction=0).clamp_min(LEAST_SCALE), heads)
        made.pool.start_from_mean()
        return made

    def standardised(self, segments: Tensor) -> Tensor:
        """[batch, second, dim] -> the same, of mean 0 and deviation 1 over the training records."""
        return (segments - self.centre) / self.scale

    def forward(self, segments: Tensor) -> Tensor:
        """[batch, second, dim] -> [batch, dim]."""
        return self.pool(self.standardised(segments))


class AttentionMixer:
    """Trained attention, one a task: cached segments -> what each pools, side by side [n, T * D]."""

    def __init__(self, pools: Sequence[ScaledAttention]) -> None:
        self.pools = [pool.eval().requires_grad_(False) for pool in pools]

    def __call__(self, features: ExpertFeatures) -> np.ndarray:
        """Pool; an absent record stays NaN."""
        segments = segments_of(features)
        return torch.cat([pool(segments) for pool in self.pools], 1).numpy()

    def weights(self, features: ExpertFeatures) -> np.ndarray:
        """Return how much each task takes of each second, mean over heads, [task, n, second]."""
        segments = segments_of(features)
        return torch.stack([p.pool.weights(p.standardised(segments)).mean(1) for p in self.pools]).numpy()

    @property
    def n_parameters(self) -> int:
        """Trained parameters."""
        return sum(p.numel() for pool in self.pools for p in pool.parameters())

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that `from_arrays` reads."""
        heads = {f"task{t}/heads": torch.tensor(pool.pool.heads) for t, pool in enumerate(self.pools)}
        return heads | {f"task{t}/{k}": v for t, pool in enumerate(self.pools) for k, v in pool.state_dict().items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Rebuild from saved arrays."""
        pools = []
        for t in range(len({key.split("/")[0] for key in arrays})):
            state = {k.split("/", 1)[1]: torch.from_numpy(v) for k, v in arrays.items() if k.startswith(f"task{t}/")}
            pool = ScaledAttention(state["centre"], state["scale"], int(state.pop("heads")))
            pool.load_state_dict(state)
            pools.append(pool)
        return cls(pools)


def segments_of(features: ExpertFeatures) -> Tensor:
    """Return the seconds as a float32 tensor [n, second, D].

    Raises
    ------
    InputError
        Features without them.
    """
    if "segments" not in features.views:
        raise InputError("this fit pools segments, which the features lack; set experts.NAME.views: [segments]")
    return torch.from_numpy(np.asarray(features.views["segments"]).astype(np.float32))


def train_attention(
    features: Mapping[str, ExpertFeatures], targets: Targets, splits: list[Split], seed: int
) -> dict[str, list[AttentionMixer]]:
    """Train one attention per fold and task for every expert with cached segments.

    Raises
    ------
    InputError
        No expert with segments, or one with segments of too few records.
    """
    with_segments = {name: f for name, f in features.items() if "segments" in f.views}
    if not with_segments:
        raise InputError(
            "layer_mix 'attention' needs cached segments, and no expert has any; set experts.NAME.views: [segments] in "
            "params.yaml and embed again"
        )
    mixers = {}
    for name, found in with_segments.items():
        segments = segments_of(found)
        seen = torch.from_numpy(found.present) & segments.isfinite().all(-1).any(-1)
        mixers[name] = [
            AttentionMixer(
                [_train(segments, _rows(name, seen, split, k), targets, k, block, seed) for block in targets.blocks]
            )
            for k, split in enumerate(splits)
        ]
    return mixers


def _rows(name: str, seen: Tensor, split: Split, fold: int) -> tuple[Tensor, Tensor]:
    train, val = (torch.from_numpy(rows)[seen[rows]] for rows in split[:2])
    if len(train) < 2 or not len(val):
        raise InputError(
            f"expert '{name}': fold {fold} has {len(train)} training and {len(val)} validation records with segments; "
            "layer_mix 'attention' needs both"
        )
    return train, val


def _train(
    segments: Tensor,
    rows: tuple[Tensor, Tensor],
    targets: Targets,
    fold: int,
    block: Block,
    seed: int,
) -> ScaledAttention:
    """Train one task's attention; the head that reads it starts as the convex probe of the mean."""
    train, val = rows
    y, weight = targets.y[fold][:, block.columns], targets.weight[fold][:, block.columns]
    blocks = layout([block.task])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mix = ScaledAttention.of(segments[train])
        with torch.no_grad():
            head = fit_convex_head(mix(segments[train]), y[train], weight[train], blocks)

        def loss_of(some: Tensor) -> Tensor:
            loss, w = task_losses(head(mix(segments[some])), y[some], weight[some], blocks, huber=True)
            return ((loss * w).sum(0) / w.sum(0).clamp_min(1e-9)).sum()

        optimiser = torch.optim.AdamW([*mix.parameters(), *head.parameters()], LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        mix.load_state_dict(_best_state(mix, loss_of, train, val, optimiser))
    return mix


def _best_state(
    mix: nn.Module,
    loss_of: Callable[[Tensor], Tensor],
    train: Tensor,
    val: Tensor,
    optimiser: torch.optim.Optimizer,
) -> dict[str, Tensor]:
    """Train until validation no longer improves; return the parameters of the best epoch, the start included."""
    best, kept, since = _loss(loss_of, val), _copied(mix), 0
    for _ in range(EPOCHS):
        for rows in train[torch.randperm(len(train))].split(BATCH):
            optimiser.zero_grad()
            loss_of(rows).backward()
            optimiser.step()
        loss, since = _loss(loss_of, val), since + 1
        if loss < best:
            best, kept, since = loss, _copied(mix), 0
        if since >= PATIENCE:
            break
    return kept


@torch.no_grad()
def _loss(loss_of: Callable[[Tensor], Tensor], rows: Tensor) -> float:
    return float(loss_of(rows))


def _copied(mix: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in mix.state_dict().items()}
