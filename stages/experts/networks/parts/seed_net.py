"""Network of expert `seed`: residual convolutional networks with squeeze-and-excitation, side by side.

Of the family that leads the supervised comparison on PTB-XL (xresnet1d; Strodthoff et al. 2021, arXiv 2004.13701), made
small: 100 Hz, twelve leads, stages that halve the rate, each block scaled by gates of its channels (Hu et al. 2018,
arXiv 1709.01507). Several such members see the same record and differ in their weights alone; each may say what it
was trained to say beside what it sees. Lives here: the network. Not here: its input (`models.ecg.seed`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class SeedOptions:
    """Sizes.

    Attributes
    ----------
    members
        Networks side by side.
    stem
        Channels of the first convolution.
    widths, blocks
        Channels and residual blocks of each stage.
    kernel
        Samples a kernel of the stages spans, odd.
    unit_mv
        The network sees asinh(mV / unit_mv): nearly linear below, logarithmic above.
    logits
        How many numbers each member says of a record, by a linear map of what it has pooled: logits of the classes that
        it was trained on (of a regression the standardised value). 0: none.
    """

    members: int = 3
    stem: int = 32
    widths: tuple[int, ...] = (32, 64, 128, 160)
    blocks: tuple[int, ...] = (1, 1, 2, 1)
    kernel: int = 5
    n_leads: int = 12
    unit_mv: float = 0.2
    logits: int = 0

    @property
    def stride(self) -> int:
        """Input samples from one output sample of the last stage to the next."""
        return int(2 ** (1 + len(self.widths)))

    @property
    def pooled_dim(self) -> int:
        """Width of what one member sees: see `pooled`."""
        return 3 * self.widths[-1] + self.widths[-2]

    @property
    def member_dim(self) -> int:
        """Width of one member's embedding: what it sees, then what it says."""
        return self.pooled_dim + self.logits


class SqueezeExcitation(nn.Module):
    """Scales channels by gates that see all of time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, width // 4), nn.Linear(width // 4, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channel, time] -> the same shape."""
        gates = torch.sigmoid(self.up(torch.relu(self.down(x.mean(-1)))))
        return x * gates[..., None]


def branch(before: int, width: int, kernel: int, stride: int) -> nn.Sequential:
    """Make what a residual block adds: two convolutions, the first of which may halve the rate."""
    return nn.Sequential(
        nn.Conv1d(before, width, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm1d(width),
        nn.ReLU(inplace=True),
        nn.Conv1d(width, width, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm1d(width),
        SqueezeExcitation(width),
    )


class SeedBlock(nn.Module):
    """Residual block; where shapes differ, the way past the branch is averaged over time and mapped."""

    def __init__(self, before: int, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.branch = branch(before, width, kernel, stride)
        shortcut: list[nn.Module] = [nn.AvgPool1d(2, ceil_mode=True)] if stride == 2 else []
        if before != width:
            shortcut += [nn.Conv1d(before, width, 1, bias=False), nn.BatchNorm1d(width)]
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, before, time] -> [batch, width, time or half of it]."""
        return torch.relu(self.shortcut(x) + self.branch(x))


class Member(nn.Module):
    """One network: a stem that quarters the rate, then the stages."""

    def __init__(self, options: SeedOptions) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv1d(options.n_leads, options.stem, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm1d(options.stem),
            nn.ReLU(inplace=True),
            nn.MaxPool1d(2, ceil_mode=True),
        )
        self.stages = nn.ModuleList()
        before = options.stem
        for index, (width, count) in enumerate(zip(options.widths, options.blocks, strict=True)):
            stage = nn.Sequential()
            for k in range(count):
                stage.append(SeedBlock(before, width, options.kernel, 2 if k == 0 and index else 1))
                before = width
            self.stages.append(stage)

    def forward(self, x: Tensor) -> list[Tensor]:
        """[batch, lead, time] -> the stem's and each stage's output, [batch, channel, time]."""
        outputs = [self.stem(x)]
        for stage in self.stages:
            outputs.append(stage(outputs[-1]))
        return outputs


class SeedNet(nn.Module):
    """The members; input in millivolts."""

    def __init__(self, options: SeedOptions) -> None:
        super().__init__()
        self.options = options
        self.members = nn.ModuleList(Member(options) for _ in range(options.members))
        n_readouts = options.members if options.logits else 0
        self.readouts = nn.ModuleList(nn.Linear(options.pooled_dim, options.logits) for _ in range(n_readouts))

    def forward(self, x: Tensor) -> list[list[Tensor]]:
        """Compute each member's outputs.

        Parameters
        ----------
        x
            [batch, lead, time] in mV.

        Returns
        -------
        For each member the outputs of stem and stages, [batch, channel, time], at a quarter of the input's rate, again
        a quarter, an eighth, a sixteenth.
        """
        x = torch.asinh(x / self.options.unit_mv)
        return [member(x) for member in self.members]

    def embedding(self, outputs: list[list[Tensor]]) -> Tensor:
        """Put what each member sees, and says, side by side.

        Parameters
        ----------
        outputs
            As `forward` gives them.

        Returns
        -------
        float32 [batch, members * `SeedOptions.member_dim`].
        """
        parts = []
        for member, output in enumerate(outputs):
            parts.append(seen := pooled(output))
            if self.readouts:
                weight, bias = (each.float() for each in self.readouts[member].parameters())  # float32 as what is seen
                # record by record: the last bits of a product depend on its number of rows
                parts.append(torch.cat([F.linear(record, weight, bias) for record in seen.split(1)]))
        return torch.cat(parts, dim=1)


def pooled(outputs: list[Tensor]) -> Tensor:
    """Pool one member's outputs: mean, deviation and largest value of the last stage, mean of the one before it.

    Returns
    -------
    float32 [batch, `SeedOptions.pooled_dim`].
    """
    last = outputs[-1].float()
    parts = (last.mean(-1), last.std(-1, correction=0), last.amax(-1), outputs[-2].float().mean(-1))
    return torch.cat(parts, dim=1)
