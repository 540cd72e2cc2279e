"""Random changes of a record that leave its labels what they are: what training sees instead of the record.

Everything is drawn from the generator that the training loop hands over, a function of seed and step, so that a run
that was killed goes on with the same records. Amplitudes are shares of the record's own spread: it does not matter
which unit a model's input has. Lives here: changes of the input alone. Not here: mixing records with their labels
(`stages.posttrain.tuned`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stages.training.settings import Augmentation


def augmented(x: Tensor, how: Augmentation, generator: np.random.Generator) -> Tensor:
    """Change records; the input stays what it is.

    Parameters
    ----------
    x
        float32 [record, window, lead, time] on the CPU.

    Returns
    -------
    The same shape, but for a shorter time where `crop` is below 1.
    """
    x = _cropped(x, how.crop, generator)
    n, n_leads, n_samples = len(x), x.shape[2], x.shape[3]
    spread = x.std((1, 2, 3), keepdim=True, correction=0)
    common = generator.normal(0, how.gain, (n, 1, 1, 1))
    x = x * _tensor(np.exp(common + generator.normal(0, how.lead_gain, (n, 1, n_leads, 1))))
    if how.noise:
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(int(generator.integers(2**62))))
        x = x + spread * _tensor(_of_half(generator, how.noise, (n, 1, 1, 1))) * noise
    if how.wander:
        cycles = generator.uniform(0.001, 0.01, (n, 1, 1, 1)) * np.arange(n_samples)
        phase = generator.uniform(0, 1, (n, 1, n_leads, 1))
        amplitude = _tensor(_of_half(generator, how.wander, (n, 1, n_leads, 1)))
        x = x + spread * amplitude * torch.sin(2 * torch.pi * _tensor(cycles + phase))
    dropped = _some(generator, 0.4, (n, 1, 1)) * generator.uniform(0, how.lead_dropout, (n, 1, 1))
    x = x * _tensor(generator.random((n, 1, n_leads)) >= dropped)[..., None]
    return _with_gaps(x, how.gap, generator)


def _cropped(x: Tensor, share: float, generator: np.random.Generator) -> Tensor:
    length = max(1, round(share * x.shape[3]))
    starts = generator.integers(0, x.shape[3] - length + 1, len(x)).tolist()
    return torch.stack([record[..., start : start + length] for record, start in zip(x, starts, strict=True)])


def _with_gaps(x: Tensor, largest: float, generator: np.random.Generator) -> Tensor:
    n, n_samples = len(x), x.shape[3]
    lengths = _some(generator, 0.3, (n,)) * generator.uniform(0, largest, n) * n_samples
    starts = generator.integers(0, n_samples, n)
    time = np.arange(n_samples)
    outside = (time < starts[:, None]) | (time >= (starts + lengths)[:, None])
    return x * _tensor(outside)[:, None, None]


def _some(generator: np.random.Generator, share: float, shape: tuple[int, ...]) -> np.ndarray:
    return generator.random(shape) < share


def _of_half(generator: np.random.Generator, mean: float, shape: tuple[int, ...]) -> np.ndarray:
    """Draw exponential amplitudes; all of them are 0 in half of the records."""
    return generator.exponential(mean, shape) * _some(generator, 0.5, (shape[0], *[1] * (len(shape) - 1)))


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))
