"""Which device each of several workers uses. Not here: the choice itself (`stages.devices`)."""

from __future__ import annotations


def n_gpus(device: str) -> int:
    """Return over how many GPUs workers are spread: all for plain `cuda`, one for `cuda:i`, none for the CPU."""
    import torch

    if device == "cuda":
        return torch.cuda.device_count()
    return int(device.startswith("cuda"))


def device_of(device: str, worker: int) -> str:
    """Return the device of one of several workers: with plain `cuda` they take turns at the GPUs."""
    return f"cuda:{worker % n_gpus(device)}" if device == "cuda" else device
