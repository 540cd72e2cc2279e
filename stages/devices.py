"""Which device and floating-point numbers a stage uses. Not here: sharing out GPUs (`pipeline.compute.devices`)."""

from __future__ import annotations

from typing import Literal

from cache.errors import UsageError

Precision = Literal["fp32", "bf16", "fp16"]
"""Of a network's forward pass."""


def choose_device(wanted: str) -> str:
    """Turn auto, cpu, cuda or cuda:i into a device that is there.

    Raises
    ------
    UsageError
        Another name, or a GPU that this machine does not have.

    Examples
    --------
    >>> choose_device("cpu")
    'cpu'
    """
    import torch

    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto":
        return "cuda" if n_gpus else "cpu"
    kind, _, index = wanted.partition(":")
    if kind not in ("cpu", "cuda") or wanted.endswith(":") or (index and (kind == "cpu" or not index.isdecimal())):
        raise UsageError(f"device '{wanted}': expected auto, cpu, cuda or cuda:0")
    if kind == "cuda" and int(index or 0) >= n_gpus:
        raise UsageError(f"device '{wanted}': this machine has {n_gpus} CUDA devices; use cpu or auto")
    return wanted
