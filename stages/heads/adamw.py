"""AdamW (Loshchilov and Hutter 2019) over a few large tensors.

Lives here: the step that LoRA and the gate are trained by. Not here: losses, epochs, what is kept.

`torch.optim` takes 2.5 processor seconds to import (it loads the compiler), which is more than most fits take.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BETAS, EPSILON = (0.9, 0.999), 1e-8


class AdamW:
    """Optimiser of leaf tensors that require gradients; the settings are those of `torch.optim.AdamW`.

    Examples
    --------
    >>> x = torch.ones(2, requires_grad=True)
    >>> optimiser = AdamW([x], learning_rate=0.1, weight_decay=0.0)
    >>> (x**2).sum().backward()
    >>> optimiser.step()
    >>> x.detach()
    tensor([0.9000, 0.9000])
    """

    def __init__(self, parameters: Sequence[Tensor], learning_rate: float, weight_decay: float) -> None:
        self.parameters = list(parameters)
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.means = [torch.zeros_like(p) for p in self.parameters]
        self.squares = [torch.zeros_like(p) for p in self.parameters]
        self.steps = 0

    @torch.no_grad()
    def step(self) -> None:
        """Take one step along the gradients, and clear them. A tensor without a gradient stays where it is."""
        self.steps += 1
        of_mean, of_square = (1 - beta**self.steps for beta in BETAS)
        for p, mean, square in zip(self.parameters, self.means, self.squares, strict=True):
            if p.grad is None:
                continue
            mean.lerp_(p.grad, 1 - BETAS[0])
            square.mul_(BETAS[1]).addcmul_(p.grad, p.grad, value=1 - BETAS[1])
            p.mul_(1 - self.learning_rate * self.weight_decay)
            p.addcdiv_(mean, (square.sqrt() / of_square**0.5).add_(EPSILON), value=-self.learning_rate / of_mean)
            p.grad = None
