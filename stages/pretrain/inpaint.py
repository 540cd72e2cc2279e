"""Self-supervision of a convolutional network: it tells hidden parts of a record from what is left of it.

Whole leads, pieces of time in all leads, and pieces of single leads are set to zero; the last stage's output is mapped
back to samples, and the squared error of the hidden ones is the loss, in asinh(mV), where tall QRS are tamed.

Lives here: the objective. Not here: the network (`stages.experts.networks.parts.seed_net`), the loop.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from stages.experts.networks.parts.seed_net import SeedNet

CROP = 0.8
"""Share of a record that one step sees, from a random start."""
PIECES = 2
"""Output samples of the last stage that a hidden piece is as long as."""
LEADS_HIDDEN, TIMES_HIDDEN, PIECES_HIDDEN = 0.2, 0.25, 0.15


class InpaintBatches:
    """Records with fresh masks; of a record with several windows, one is drawn."""

    def __init__(self, inputs: np.ndarray, piece: int) -> None:
        self.inputs, self.piece = inputs, piece

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.inputs)

    def fetch(self, rows: np.ndarray, generator: np.random.Generator) -> tuple[Tensor, ...]:
        """Return x [row, lead, time] and what is hidden of it, 1 or 0, of the same shape."""
        window = generator.integers(self.inputs.shape[1], size=len(rows))
        n_pieces = max(1, int(CROP * self.inputs.shape[3]) // self.piece)
        length = min(n_pieces * self.piece, self.inputs.shape[3])
        start = generator.integers(self.inputs.shape[3] - length + 1)
        x = np.ascontiguousarray(self.inputs[rows, window, :, start : start + length])
        n, n_leads = x.shape[:2]
        hidden = generator.random((n, n_leads, 1)) < LEADS_HIDDEN
        hidden = hidden | (generator.random((n, 1, n_pieces)) < TIMES_HIDDEN)
        hidden = hidden | (generator.random((n, n_leads, n_pieces)) < PIECES_HIDDEN)
        samples = np.repeat(hidden, self.piece, axis=2)[..., :length]
        return torch.from_numpy(x), torch.from_numpy(samples.astype(np.float32))


class Inpainter(nn.Module):
    """The network, and for each member a map from its last stage's output back to samples."""

    def __init__(self, net: SeedNet) -> None:
        super().__init__()
        self.net = net
        options = net.options
        self.decoders = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(options.widths[-1], 2 * options.widths[-1], 3, padding=1),
                nn.ReLU(),
                nn.Conv1d(2 * options.widths[-1], options.n_leads * options.stride, 1),
            )
            for _ in range(options.members)
        )

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Loss: mean squared error of the hidden samples of x [batch, lead, time], mean over members."""
        target = torch.asinh(x / self.net.options.unit_mv)
        outputs = self.net(x * (1 - hidden))
        filled_in = [self._samples(decode(m[-1]), x) for decode, m in zip(self.decoders, outputs, strict=True)]
        errors = [((samples - target).square() * hidden).sum() for samples in filled_in]
        return torch.stack(errors).mean() / hidden.sum().clamp_min(1)

    def _samples(self, decoded: Tensor, x: Tensor) -> Tensor:
        """[batch, lead * stride, position] -> [batch, lead, time]."""
        parts = decoded.float().unflatten(1, (x.shape[1], -1)).transpose(2, 3).flatten(2)
        return parts[..., : x.shape[2]]
