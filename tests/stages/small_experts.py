"""Every registered expert in its small configuration, with numbers that no library's version changes, and records."""

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from stages.experts import Expert, expert_class, list_experts, load_expert
from stages.experts.signals.reference_ecgs import reference_signals, uniform

RATE_HZ = 500.0
NAMES = list_experts()
PATHS = [(name, path) for name in NAMES for path in expert_class(name)[0].preprocessing_variants]
"""Every expert with each of its named input paths."""


def new_expert(name: str, preprocessing: str | None = None) -> Expert:
    """Build an expert in its small configuration and draw its parameters."""
    cls, variant = expert_class(name)
    config = cls.small_config(variant)
    expert = load_expert(name, config=config, preprocessing=preprocessing, random_weights=True)
    if expert.module is not None:
        draw_parameters(expert.module)
    return expert


small_expert = cache(new_expert)


def draw_parameters(module: nn.Module) -> None:
    """Fill a network out of PCG64's raw stream, in the order of names: matrices of variance 1/fan-in, gains near 1."""
    for seed, (key, parameter) in enumerate(sorted(module.named_parameters())):
        values = 2 * uniform(seed, *parameter.shape) - 1
        if parameter.ndim > 1:
            values *= np.sqrt(3 * len(values) / values.size)
        else:
            values = values / 10 + (1.0 if key.endswith("weight") else 0.0)
        parameter.data.copy_(torch.from_numpy(values))


def records(n: int, seconds: float = 10.0, rate_hz: float = RATE_HZ) -> np.ndarray:
    """Draw ECG-like records [n, 12, time] in mV, in whole microvolts as every cohort stores them."""
    return reference_signals(n, round(seconds * rate_hz), rate_hz, seed=7).round(3)


@cache
def prepared(name: str, preprocessing: str | None = None) -> Tensor:
    """Prepare three records once; [3, windows, ...], not to be written to."""
    return small_expert(name, preprocessing).prepare(records(3), RATE_HZ)
