"""Which device a run uses, and each of its workers."""

from __future__ import annotations

from cache.errors import UsageError


def choose_device(wanted: str) -> str:
    """Turn auto, cpu, cuda or cuda:i into a device that is there.

    Raises
    ------
    UsageError
        A CUDA device that this machine does not have.
    """
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise UsageError(f"--device {wanted}: expected auto, cpu, cuda or cuda:0") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {wanted}: expected auto, cpu, cuda or cuda:0")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {wanted}: this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    return wanted


def n_gpus(device: str) -> int:
    """Return over how many GPUs workers are spread: all for plain `cuda`, one for `cuda:i`, none for the CPU."""
    import torch

    if device == "cuda":
        return torch.cuda.device_count()
    return int(device.startswith("cuda"))


def device_of(device: str, worker: int) -> str:
    """Return the device of one of several workers: with plain `cuda` they take turns at the GPUs."""
    return f"cuda:{worker % n_gpus(device)}" if device == "cuda" else device
