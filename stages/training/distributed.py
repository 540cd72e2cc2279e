"""Several GPUs through torch's own launcher: `torchrun --nproc-per-node N -m pipeline.cli pretrain|posttrain ...`.

Lives here: joining the group that torchrun's environment describes, and what one rank does for all. Without it
everything is a group of one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")
PATIENCE = timedelta(days=1)
"""How long a process waits for the others: preparing inputs takes long, and torchrun ends all if one dies."""


@dataclass(frozen=True)
class Group:
    """The processes that train together."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and speaks."""
        return self.rank == 0

    def wrap(self, model: nn.Module, device: torch.device, *, some_unused: bool = False) -> nn.Module:
        """Make `model` average its gradients over the group; `some_unused`: not every parameter may have one."""
        if self.size == 1:
            return model
        devices = [device] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=devices, find_unused_parameters=some_unused)

    def share_of(self, rows: np.ndarray) -> np.ndarray:
        """Return this process's share of rows."""
        return rows[self.rank :: self.size]

    def join(self, part: Tensor, n: int) -> Tensor:
        """Put together what every process made of its share of `n` rows, [its share, ...] -> [n, ...]."""
        if self.size == 1:
            return part
        padded = part.new_zeros(-(-n // self.size), *part.shape[1:])
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.stack(parts, dim=1).flatten(0, 1)[:n]

    def mean(self, value: Tensor) -> Tensor:
        """Average a scalar over the group."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.size
        return value

    def agree(self, value: T) -> T:
        """Return the leader's value to all."""
        if self.size == 1:
            return value
        shared = [value]
        dist.broadcast_object_list(shared)
        return shared[0]

    def share(self, model: nn.Module) -> None:
        """Give all the leader's parameters and buffers."""
        if self.size > 1:
            for value in model.state_dict().values():
                dist.broadcast(value, 0)

    def wait(self) -> None:
        """Wait for all."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """Let the others come in when the leader is through, and find the files it has made."""
        if not self.leads:
            self.wait()
        yield
        if self.leads:
            self.wait()


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
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Group(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def without_exchange(model: nn.Module, *, last: bool) -> Any:
    """Do not exchange gradients before the last part of a step."""
    if last or not isinstance(model, nn.parallel.DistributedDataParallel):
        return nullcontext()
    hold: Callable[[], Any] = model.no_sync
    return hold()
