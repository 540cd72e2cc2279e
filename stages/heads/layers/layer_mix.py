"""ECG-Soup's layer mixing (arXiv 2509.00102) on cached layer vectors, and its probe head.

Lives here: `LayerMix` (last, PPA, PMA) and `ProbeHead`, with the official module order so that official weights load.
Not here: training them (`layers.pma`), the encoder that gives the layers.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from cache.errors import UsageError

MixKind = Literal["last", "ppa", "pma"]


class LayerMix(nn.Module):
    """Mix the block outputs u_1 .. u_L of a frozen encoder into one vector.

    last: z = LN(u_L). ppa: z = LN(mean_l u_l). pma: z = LN(sum_l w_l u_l) with w = softmax(gate(g)), g the mean of the
    tokens before block 1. All three average or weigh the RAW block outputs, and normalise once.

    Parameters
    ----------
    kind
        "last", "ppa" or "pma".
    n_layers, dim
        L and D.

    Notes
    -----
    `gate` is LN - Linear(D, 256) - GELU - Dropout 0.1 - Linear(256, 128) - GELU - Dropout 0.1 - Linear(128, L), as in
    the official `gating.net`: 232,844 parameters at D 768, L 12. `norm` is the encoder's final LayerNorm (eps 1e-5).
    """

    def __init__(self, kind: MixKind, n_layers: int, dim: int) -> None:
        super().__init__()
        if kind not in get_args(MixKind):
            raise UsageError(f"LayerMix kind '{kind}' is none of {', '.join(get_args(MixKind))}")
        if n_layers < 1 or dim < 1:
            raise UsageError(f"LayerMix needs n_layers and dim of at least 1, got {n_layers} and {dim}")
        self.kind, self.n_layers, self.dim = kind, n_layers, dim
        self.norm = nn.LayerNorm(dim)
        self.gate: nn.Sequential | None = None
        if kind == "pma":
            self.gate = nn.Sequential(
                nn.LayerNorm(dim),
                nn.Linear(dim, 256),
                nn.GELU(),
                nn.Dropout(0.1),
                nn.Linear(256, 128),
                nn.GELU(),
                nn.Dropout(0.1),
                nn.Linear(128, n_layers),
            )

    def weights(self, embed: Tensor) -> Tensor:
        """Weights over the layers, [batch, L], that sum to 1: per record for pma, fixed for last and ppa.

        Parameters
        ----------
        embed
            g, [batch, D]; last and ppa read its batch size alone.
        """
        if self.gate is not None:
            return self.gate(embed).softmax(-1)
        fixed = torch.full((self.n_layers,), 1.0 / self.n_layers)
        if self.kind == "last":
            fixed = torch.zeros(self.n_layers)
            fixed[-1] = 1.0
        return fixed.to(embed).expand(len(embed), -1)

    def pool(self, layers: Tensor, embed: Tensor | None = None) -> Tensor:
        """Weighted sum of the layers before the norm, [batch, D]."""
        if layers.ndim != 3 or layers.shape[1:] != (self.n_layers, self.dim):
            wanted = f"[batch, {self.n_layers}, {self.dim}]"
            raise UsageError(f"LayerMix got layers of shape {list(layers.shape)}, expected {wanted}")
        if self.kind == "last":
            return layers[:, -1]
        if self.kind == "ppa":
            return layers.mean(1)
        if embed is None:
            raise UsageError("LayerMix pma needs embed: the mean of the tokens before block 1, [batch, dim]")
        return torch.einsum("bl,bld->bd", self.weights(embed), layers)

    def forward(self, layers: Tensor, embed: Tensor | None = None) -> Tensor:
        """Mix [batch, L, D] (and g [batch, D]) into z [batch, D]."""
        return self.norm(self.pool(layers, embed))


class ProbeHead(nn.Sequential):
    """ECG-Soup's probe head: BN - Dropout 0.25 - Linear(D, 256) - ReLU - BN - Dropout 0.5 - Linear(256, K).

    Parameters
    ----------
    dim, n_out
        D and K. The official keys `head.0` ... `head.6` load as `0` ... `6`.
    """

    def __init__(self, dim: int, n_out: int) -> None:
        super().__init__(
            nn.BatchNorm1d(dim),
            nn.Dropout(0.25),
            nn.Linear(dim, 256),
            nn.ReLU(),
            nn.BatchNorm1d(256),
            nn.Dropout(0.5),
            nn.Linear(256, n_out),
        )
