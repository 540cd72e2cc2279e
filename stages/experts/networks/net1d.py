"""Net1D, the residual grouped-convolution network of ECGFounder and CLEF, under its official key names.

Lives here: options, what a state dict says about them, the network. Not here: signals and the published facts
(`models.ecg.ecgfounder`, `models.ecg.clef`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Net1DOptions:
    """Architecture options under the official names; the defaults are the published ones."""

    in_channels: int = 12
    base_filters: int = 64
    ratio: float = 1
    """Width inside a block over its output width."""
    filter_list: tuple[int, ...] = (64, 160, 160, 400, 400, 1024, 1024)
    m_blocks_list: tuple[int, ...] = (2, 2, 2, 3, 3, 4, 4)
    kernel_size: int = 16
    stride: int = 2
    groups_width: int = 16
    use_bn: bool = False
    """Batch norms are in the state dict either way; the released weights do not use them."""
    n_classes: int = 150
    """0: no classifier."""


OPTION_NAMES = tuple(field.name for field in fields(Net1DOptions))


def options_from_state(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read every option that the shapes determine (all but `stride` and `use_bn`)."""
    shape = {k: tuple(v.shape) for k, v in state.items()}
    found: dict[str, Any] = {}
    if first := shape.get("first_conv.conv.weight"):
        found |= {"base_filters": first[0], "in_channels": first[1], "kernel_size": first[2]}
    if dense := shape.get("dense.weight"):
        found["n_classes"] = dense[0]
    blocks = {tuple(k.split(".")[1:4:2]) for k in shape if k.startswith("stage_list.")}
    stages = [str(i) for i in range(len({stage for stage, _ in blocks}))]
    outer = [shape.get(f"stage_list.{stage}.block_list.0.conv3.conv.weight") for stage in stages]
    inner = shape.get("stage_list.0.block_list.0.conv2.conv.weight")
    if stages and all(outer) and inner:
        widths = tuple(weight[0] for weight in outer if weight)
        found |= {"filter_list": widths, "m_blocks_list": tuple(sum(s == i for s, _ in blocks) for i in stages)}
        found |= {"ratio": inner[0] / widths[0], "groups_width": widths[0] // (inner[0] // inner[1])}
    return found


NARROW = 16
"""oneDNN's grouped convolutions in bfloat16 are wrong on CPUs with AMX where a group has 4, 8 or 12 channels (seen with
PyTorch 2.13: half of the norm and more); from 16 on they are right, and so are those in float32."""


class SameConv1d(nn.Module):
    """Convolution padded so that the output has ceil(time / stride) samples; the surplus zero stands at the end."""

    def __init__(self, width_in: int, width_out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width_in, width_out, kernel, stride, groups=groups)
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channel, time] -> [batch, channel, ceil(time / stride)]."""
        n = x.shape[-1]
        surplus = max(0, (-(-n // self.stride) - 1) * self.stride + self.kernel - n)
        x = F.pad(x, (surplus // 2, surplus - surplus // 2)) if surplus else x
        narrow = self.conv.groups > 1 and self.conv.weight.shape[1] < NARROW
        return self._in_float32(x) if narrow and x.device.type == "cpu" else self.conv(x)

    def _in_float32(self, x: Tensor) -> Tensor:
        weight, bias = (each.float() for each in self.conv.parameters())
        with torch.autocast("cpu", enabled=False):
            return F.conv1d(x.float(), weight, bias, self.stride, groups=self.conv.groups).to(x.dtype)


def same_max_pool(x: Tensor, kernel: int) -> Tensor:
    """Max pooling over `kernel` samples with kernel - 1 zeros around the signal, as the official shortcut has it."""
    left = (kernel - 1) // 2
    return F.max_pool1d(F.pad(x, (left, kernel - 1 - left)), kernel)


def pad_channels(x: Tensor, width: int) -> Tensor:
    """Put zero channels on both sides until there are `width`."""
    missing = width - x.shape[1]
    return F.pad(x, (0, 0, missing // 2, missing - missing // 2))


def mean_time(x: Tensor) -> Tensor:
    """Mean over time in (at least) float32: [batch, channel, time] -> [batch, channel]."""
    return x.mean(-1, dtype=torch.promote_types(x.dtype, torch.float32))


class ResidualBlock(nn.Module):
    """1x1, grouped, 1x1 convolution, each after (batch norm and) swish; squeeze-excitation; parameter-free shortcut."""

    def __init__(self, width_in: int, width_out: int, options: Net1DOptions, *, stride: int, first: bool) -> None:
        super().__init__()
        inner = int(width_out * options.ratio)
        self.stride, self.first, self.use_bn = stride, first, options.use_bn
        self.bn1 = nn.BatchNorm1d(width_in)
        self.conv1 = SameConv1d(width_in, inner, 1)
        self.bn2 = nn.BatchNorm1d(inner)
        groups = width_out // options.groups_width
        self.conv2 = SameConv1d(inner, inner, options.kernel_size, stride, groups)
        self.bn3 = nn.BatchNorm1d(inner)
        self.conv3 = SameConv1d(inner, width_out, 1)
        self.se_fc1 = nn.Linear(width_out, width_out // 2)
        self.se_fc2 = nn.Linear(width_out // 2, width_out)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """[batch, width_in, time] -> [batch, width_out, ceil(time / stride)]."""
        y = x if self.first else self._activate(self.bn1, x)
        y = self.conv1(y)
        y = self.conv2(self._activate(self.bn2, y))
        y = self.conv3(self._activate(self.bn3, y))
        gate = self.gate(self.se_fc2(F.silu(self.se_fc1(mean_time(y).to(y.dtype)))))
        shortcut = same_max_pool(x, self.stride) if self.stride > 1 else x
        return torch.addcmul(pad_channels(shortcut, y.shape[1]), y, gate.unsqueeze(-1))

    def _activate(self, norm: nn.Module, x: Tensor) -> Tensor:
        return F.silu(norm(x) if self.use_bn else x)


class Stage(nn.Module):
    """Blocks of one width, the first of which downsamples."""

    def __init__(self, width_in: int, width_out: int, blocks: int, options: Net1DOptions, *, first: bool) -> None:
        super().__init__()
        self.block_list = nn.ModuleList(
            ResidualBlock(
                width_out if i else width_in,
                width_out,
                options,
                stride=1 if i else options.stride,
                first=first and i == 0,
            )
            for i in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply every block."""
        for block in self.block_list:
            x = block(x)
        return x


class Net1D(nn.Module):
    """Strided convolution, stages, mean over time, linear classifier."""

    def __init__(self, options: Net1DOptions) -> None:
        super().__init__()
        base = options.base_filters
        self.use_bn = options.use_bn
        self.first_conv = SameConv1d(options.in_channels, base, options.kernel_size, options.stride)
        self.first_bn = nn.BatchNorm1d(base)
        widths = (base, *options.filter_list)
        self.stage_list = nn.ModuleList(
            Stage(widths[i], widths[i + 1], blocks, options, first=i == 0)
            for i, blocks in enumerate(options.m_blocks_list)
        )
        self.dense = nn.Linear(widths[-1], options.n_classes) if options.n_classes else nn.Identity()

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """[batch, lead, time] -> each stage's mean over time [batch, width], logits [batch, class], the last stage.

        The last stage's output is [batch, width, ceil(time / stride^(1 + stages))].
        """
        means, x = self.states(x)
        classified = means[-1].to(next(self.parameters()).dtype)
        return means[1:], self.dense(classified), x

    def states(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """[batch, lead, time] -> means over time of the first convolution and of each stage, and the last stage."""
        x = self.first_conv(x)
        x = F.silu(self.first_bn(x) if self.use_bn else x)
        means = [mean_time(x)]
        for stage in self.stage_list:
            x = stage(x)
            means.append(mean_time(x))
        return means, x
