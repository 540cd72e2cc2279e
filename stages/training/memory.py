"""What is done about device memory: smaller batches where it is full, blocks that forget their activations."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from cache.errors import InputError

_LOG = logging.getLogger(__name__)
T = TypeVar("T")


def smaller_batch(size: int, error: Exception, *, may: bool = True) -> int:
    """Return half as many records a forward pass, after memory was full with `size` of them.

    Raises
    ------
    InputError
        A single record, or not `may`: the message says what to change.
    """
    if not may or size == 1:
        raise InputError(
            f"out of device memory with {size} record(s) a forward pass; set a smaller micro_batch, or "
            "gradient_checkpointing: true, precision: bf16, or a smaller size"
        ) from error
    torch.cuda.empty_cache()
    _LOG.warning("device memory is full: going on with %d records a forward pass, the same batch", size // 2)
    return size // 2


def in_batches(n: int, size: int, run: Callable[[slice], T]) -> list[T]:
    """Return what `run` gives for `n` rows, `size` at once; fewer where memory is full.

    Raises
    ------
    InputError
        Memory that is too small for one row.
    """
    found: list[T] = []
    start = 0
    while start < n:
        try:
            found.append(run(slice(start, min(start + size, n))))
        except torch.OutOfMemoryError as error:
            size = smaller_batch(min(size, n), error)
        else:
            start += size
    return found


def checkpoint_blocks(blocks: Iterable[nn.Module]) -> None:
    """Make each block keep its inputs alone; numbers and keys stay what they are."""
    for block in blocks:
        block.forward = functools.partial(_recomputed, block.forward)


def _recomputed(forward, *args, **kwargs):  # type: ignore[no-untyped-def]
    return checkpoint(forward, *args, use_reentrant=False, context_fn=_same_attention, **kwargs)


def _same_attention() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Let the second pass, which runs later, use the attention that is chosen now: each keeps other tensors."""
    chosen = {
        SDPBackend.FLASH_ATTENTION: torch.backends.cuda.flash_sdp_enabled(),
        SDPBackend.EFFICIENT_ATTENTION: torch.backends.cuda.mem_efficient_sdp_enabled(),
        SDPBackend.CUDNN_ATTENTION: torch.backends.cuda.cudnn_sdp_enabled(),
        SDPBackend.MATH: torch.backends.cuda.math_sdp_enabled(),
    }
    return nullcontext(), sdpa_kernel([backend for backend, allowed in chosen.items() if allowed])
