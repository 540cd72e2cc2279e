"""Fixed sine and cosine positions, interleaved, as TimesNet and MOMENT store them under `position_embedding.pe`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class SinePositions(nn.Module):
    """The table [1, max_len, dim] of Vaswani et al. 2017: even columns sine, odd columns cosine."""

    pe: Tensor

    def __init__(self, dim: int, max_len: int = 5000) -> None:
        super().__init__()
        rates = torch.exp(torch.arange(0, dim, 2).float() * -(math.log(10000.0) / dim))
        angles = torch.arange(max_len).float()[:, None] * rates
        table = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :dim]
        self.register_buffer("pe", table[None].contiguous())

    def forward(self, n_tokens: int) -> Tensor:
        """Return the first `n_tokens` positions, [1, n_tokens, dim]."""
        return self.pe[:, :n_tokens]
