"""Gradient checkpointing: blocks forget their activations and compute them again on the way back."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(blocks: Iterable[nn.Module]) -> None:
    """Make each block keep its inputs alone; numbers and keys stay what they are."""
    for block in blocks:
        block.forward = functools.partial(_recomputed, block.forward)


def _recomputed(forward, *args, **kwargs):  # type: ignore[no-untyped-def]
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
