"""An expert's records as blocks in shared coordinates: kept in memory as far as allowed, else made anew every time.

Lives here: `Blocks`, and the order in which stochastic training meets the records. Not here: what is computed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from stages.heads.blockwise.coordinates import RecordBlock, SharedScale, join

BLOCK_ROWS = 2048
BUFFER_BLOCKS = 16
"""Blocks that are shuffled together: all that is near in the order of the records gets apart."""


class Blocks:
    """Records 0 .. n-1 of one expert, `BLOCK_ROWS` at a time.

    Blocks are kept, in float32, until `room` bytes are used; the others are read and standardised again whenever they
    are asked for. Which are kept changes no result.

    Parameters
    ----------
    read
        Rows -> raw features [b, d].
    """

    def __init__(self, read: Callable[[slice], np.ndarray], n_records: int, scale: SharedScale, room: float) -> None:
        self.read, self.n_records, self.scale, self.room = read, n_records, scale, room
        self._kept: dict[int, RecordBlock] = {}

    def __len__(self) -> int:
        return (self.n_records + BLOCK_ROWS - 1) // BLOCK_ROWS

    def rows(self, k: int) -> slice:
        """Return the records of block k."""
        return slice(k * BLOCK_ROWS, min((k + 1) * BLOCK_ROWS, self.n_records))

    def __getitem__(self, k: int) -> RecordBlock:
        if k in self._kept:
            return self._kept[k]
        block = self.scale.block(self.read(self.rows(k)))
        if block.n_bytes <= self.room:
            self._kept[k] = block
            self.room -= block.n_bytes
        return block

    def __iter__(self) -> Iterator[tuple[slice, RecordBlock]]:
        for k in range(len(self)):
            yield self.rows(k), self[k]

    def take(self, rows: Tensor) -> RecordBlock:
        """Collect records, given in ascending order."""
        # Nothing may stay behind a block that comes and goes, however small: it would cut the hole that the block
        # leaves in the process's memory, the next one would not fit, and memory would grow with the number of blocks.
        taken = RecordBlock.empty(0, self.scale.width, self.scale.device)
        u = torch.empty(len(rows), self.scale.width, device=self.scale.device)
        edges = torch.searchsorted(rows, torch.arange(len(self) + 1) * BLOCK_ROWS).tolist()
        for k, (low, high) in enumerate(pairwise(edges)):
            if high > low:
                part = self[k].take((rows[low:high] - k * BLOCK_ROWS).to(self.scale.device), u[low:high])
                if len(part.row):
                    taken = join([taken, replace(part, u=taken.u, row=part.row + low)])
        return replace(taken, u=u)

    def shuffled(self, batch: int, wanted: Tensor, generator: torch.Generator) -> Iterator[tuple[Tensor, RecordBlock]]:
        """Yield every wanted record once: row numbers and block of each mini-batch, valid until the next one.

        Blocks come in random order; as many as the buffer holds are shuffled together, record by record, so that memory
        stays bounded and the order is the same whether blocks are kept or read.

        Parameters
        ----------
        wanted
            bool [n].
        """
        order = torch.randperm(len(self), generator=generator).tolist()
        size = min(BUFFER_BLOCKS * BLOCK_ROWS, self.n_records)
        # fresh pages for every batch would cost as much as filling them
        memory, batch_room = (torch.empty(n, self.scale.width, device=self.scale.device) for n in (size, batch))
        for start in range(0, len(order), BUFFER_BLOCKS):
            chosen = order[start : start + BUFFER_BLOCKS]
            rows = torch.cat([torch.arange(self.rows(k).start, self.rows(k).stop) for k in chosen])
            places = torch.nonzero(wanted[rows]).ravel()
            places = places[torch.randperm(len(places), generator=generator)]
            buffer = join([self[k] for k in chosen], memory)
            for part in places.split(batch):
                yield rows[part], buffer.take(part.to(self.scale.device), batch_room)


def free_bytes() -> float:
    """Memory that this machine could give now; without Linux's own estimate, that of half of all memory."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            found = {line.split(":")[0]: float(line.split()[1]) * 1024 for line in lines}
        return found["MemAvailable"]
    except (OSError, KeyError, ValueError):
        return 0.5 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_bytes(memory_gb: float | str, device: torch.device) -> float:
    """Resolve `memory_gb`: a number, or "auto", half of what is free where the work is done."""
    if memory_gb != "auto":
        return float(memory_gb) * 1e9
    return 0.5 * (torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_bytes())
