"""Stochastic depth for any expert that names its residual branches (Huang et al. 2016, arXiv 1603.09382).

A branch is dropped for a whole record, all its windows and channels, and what is kept is scaled by 1 / (1 - rate), so
that the mean stays what it is. In eval mode nothing happens.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from cache.errors import UsageError
from stages.experts import Expert

SCHEDULES = ("constant", "linear")


def residual_blocks(expert: Expert) -> list[tuple[str, list[nn.Module]]]:
    """Return each residual block's path and branches, in the order of depth.

    Raises
    ------
    UsageError
        An expert without residual branches.
    """
    if expert.module is None or not expert.residual_branches:
        raise UsageError(f"expert '{expert.spec.name}' names no residual branches: it cannot be post-trained")
    pattern, blocks = re.compile(expert.residual_branches), defaultdict(list)
    for name, module in expert.module.named_modules():
        if match := pattern.fullmatch(name):
            blocks[match["block"]].append(module)
    return list(blocks.items())


def depth_rates(rate: float, n_blocks: int, schedule: str) -> list[float]:
    """Return each block's rate: the same for all, or linear from 0 at the first to `rate` at the last.

    Raises
    ------
    UsageError
        A rate outside 0 <= rate < 1, or an unknown schedule.
    """
    if not 0 <= rate < 1:
        raise UsageError(f"drop_path {rate}: expected 0 <= rate < 1")
    if schedule not in SCHEDULES:
        raise UsageError(f"drop_path_schedule {schedule}: expected {' or '.join(SCHEDULES)}")
    if schedule == "constant" or n_blocks == 1:
        return [rate] * n_blocks
    return [rate * index / (n_blocks - 1) for index in range(n_blocks)]


class StochasticDepth:
    """Hooks on an expert's residual branches. Say `n_records` before each forward pass."""

    def __init__(self, expert: Expert, rate: float, schedule: str = "constant") -> None:
        self.n_records = 0
        blocks = residual_blocks(expert)
        self.rates = depth_rates(rate, len(blocks), schedule)
        self._hooks = [
            branch.register_forward_hook(self._hook(block_rate))
            for (_, branches), block_rate in zip(blocks, self.rates, strict=True)
            for branch in branches
            if block_rate > 0
        ]

    def remove(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()

    def _hook(self, rate: float) -> Any:
        def drop(module: nn.Module, _: Any, output: Any) -> Any:
            if not module.training:
                return None
            if isinstance(output, tuple):  # attention that returns its weights too
                return (drop_records(output[0], rate, self.n_records), *output[1:])
            return drop_records(output, rate, self.n_records)

        return drop


def drop_records(branch: Tensor, rate: float, n_records: int) -> Tensor:
    """Drop a branch [rows, ...] for whole records, whose rows (windows, channels) follow one another."""
    kept = torch.rand(n_records, device=branch.device) >= rate
    rows = kept.repeat_interleave(len(branch) // n_records)
    scale = rows.to(branch.dtype) / (1 - rate)
    return branch * scale.view(-1, *[1] * (branch.ndim - 1))
