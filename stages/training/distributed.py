"""Several GPUs through torch's own launcher: `torchrun --nproc-per-node N -m pipeline.cli pretrain ...`.

Lives here: joining the group that torchrun's environment describes, and what one rank does for all. Without it
everything is a group of one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Group:
    """The processes that train together."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and speaks."""
        return self.rank == 0

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Make `model` average its gradients over the group."""
        if self.size == 1:
            return model
        devices = [device] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=devices)

    def mean(self, value: Tensor) -> Tensor:
        """Average a scalar over the group."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.size
        return value

    def wait(self) -> None:
        """Wait for all."""
        if self.size > 1:
            dist.barrier()


def local_device(device: str) -> str:
    """Return this process's own GPU where torchrun started several."""
    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if local is not None and device == "cuda" else device


@contextmanager
def training_group(device: torch.device) -> Iterator[Group]:
    """Join the group that torchrun describes in the environment, and leave it at the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Group()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Group(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def without_exchange(model: nn.Module, *, last: bool) -> Any:
    """Keep gradients to oneself until the last part of a step."""
    if last or not isinstance(model, nn.parallel.DistributedDataParallel):
        return nullcontext()
    hold: Callable[[], Any] = model.no_sync
    return hold()
