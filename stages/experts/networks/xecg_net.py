"""xECG: sLSTM and mLSTM blocks over patches of all leads, run in turn forwards and backwards, official key names.

Lives here: the network, and turning a state dict of either cell layout into the published one. Not here: signals,
published facts (`models.ecg.xecg`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GATES = 4
"""Input, forget, cell input and output gate, in this order."""
KERNEL_KEY, BIAS_KEY = "._recurrent_kernel_", "._bias_"
EPS = 1e-5
ROUNDED_TO = 64
FFN_FACTOR = 1.3
CONV_SAMPLES = 4


@dataclass(frozen=True)
class XecgOptions:
    """Architecture under the official names (bench-xecg, xECG.py), with the published values."""

    embedding_size: int = 1024
    patch_size: int = 25
    num_heads: int = 4
    proj_factor: float = 2.0
    activation_fn: str = "gelu"
    xlstm_config: tuple[str, ...] = ("s", "s", "m", "m", "s", "s", "m", "m", "s")
    cls_type: str = "avg"
    use_final_layer_norm: bool = False
    n_leads: int = 12


class XecgStates(NamedTuple):
    """What the network gives for [batch, time, lead].

    Attributes
    ----------
    valid
        Bool [batch, token]: whether a token is no padding.
    entering
        [batch, token, width], before the first block.
    blocks
        The same after each block, in time order.
    """

    valid: Tensor
    entering: Tensor
    blocks: list[Tensor]


class Xecg(nn.Module):
    """xECG (Lunelli et al. 2025, BenchECG and xECG, arXiv 2509.10151; xlstm 2.0.6 for the cells)."""

    def __init__(self, options: XecgOptions) -> None:
        super().__init__()
        self.options = options
        self.patch_embedding = XecgPatches(options)
        # Of masked pretraining: it is in every file, and no embedding passes through it.
        self.mask_token = nn.Parameter(torch.zeros(options.embedding_size))
        kinds = {"s": SlstmBlock, "m": MlstmBlock}
        self.core = nn.Module()
        self.core.model = nn.Module()
        self.core.model.blocks = nn.ModuleList(kinds[kind](options) for kind in options.xlstm_config)

    def forward(self, x: Tensor) -> XecgStates:
        """Encode [batch, time, lead] in mV; time is a multiple of the patch size."""
        valid = x[:, :: self.options.patch_size].ne(0).any(-1)
        tokens = self.patch_embedding(x)
        hidden, blocks = tokens, []
        for k, block in enumerate(self.core.model.blocks):  # type: ignore[union-attr, arg-type]
            hidden = block(hidden.flip(1) if k else hidden)
            blocks.append(hidden.flip(1) if k % 2 else hidden)
        return XecgStates(valid, tokens, blocks)


class XecgPatches(nn.Module):
    """One token a patch of all leads."""

    def __init__(self, options: XecgOptions) -> None:
        super().__init__()
        patch = options.patch_size
        self.conv = nn.Conv1d(options.n_leads, options.embedding_size, patch, stride=patch, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, lead] -> [batch, token, width]."""
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


class SlstmBlock(nn.Module):
    """An sLSTM and a gated feed-forward part, each behind its norm."""

    def __init__(self, options: XecgOptions) -> None:
        super().__init__()
        self.xlstm_norm = UnitNorm(options.embedding_size)
        self.xlstm = Slstm(options.embedding_size, options.num_heads)
        self.ffn_norm = UnitNorm(options.embedding_size)
        self.ffn = GatedFeedForward(options.embedding_size)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, token, width] -> the same shape."""
        x = x + self.xlstm(self.xlstm_norm(x))
        return x + self.ffn(self.ffn_norm(x))


class MlstmBlock(nn.Module):
    """An mLSTM behind its norm."""

    def __init__(self, options: XecgOptions) -> None:
        super().__init__()
        self.xlstm_norm = UnitNorm(options.embedding_size)
        self.xlstm = Mlstm(options.embedding_size, options.num_heads, options.proj_factor)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, token, width] -> the same shape."""
        return x + self.xlstm(self.xlstm_norm(x))


class UnitNorm(nn.Module):
    """A layer norm without bias whose weight is stored minus 1; over each of `groups` equal parts."""

    def __init__(self, width: int, groups: int = 1) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> the same shape."""
        parts = x.unflatten(-1, (self.groups, -1))
        normed = F.layer_norm(parts, parts.shape[-1:], eps=EPS).flatten(-2)
        return normed * (1 + self.weight)


class GatedFeedForward(nn.Module):
    """gelu(first half) times the second half of a wider projection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = rounded_up(FFN_FACTOR * width)
        self.proj_up = nn.Linear(width, 2 * hidden, bias=False)
        self.proj_down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> the same shape."""
        gate, value = self.proj_up(x).chunk(2, dim=-1)
        return self.proj_down(F.gelu(gate) * value)


class CausalConvolution(nn.Module):
    """Every feature filtered alone, over its last four values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, CONV_SAMPLES, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, token, width] -> the same shape."""
        return self.conv(F.pad(x.transpose(1, 2), (CONV_SAMPLES - 1, 0))).transpose(1, 2)


class HeadwiseLinear(nn.Module):
    """A square linear map without bias for each of several equal parts of the features."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(parts, width // parts, width // parts) * (parts / width) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> the same shape."""
        return torch.einsum("...pi,poi->...po", x.unflatten(-1, (len(self.weight), -1)), self.weight).flatten(-2)


class SlstmCell(nn.Module):
    """The recurrence, in the layout of the package's CUDA cell, which the published file has."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.dim = heads, width // heads
        self._recurrent_kernel_ = nn.Parameter(torch.randn(heads, self.dim, GATES * self.dim) * self.dim**-0.5)
        self._bias_ = nn.Parameter(torch.zeros(GATES * width))

    def forward(self, drive: Tensor) -> Tensor:
        """Run over time, in float32: [batch, token, head, gate, dim] -> [batch, token, width]."""
        exact = torch.promote_types(drive.dtype, torch.float32)
        kernel = self._recurrent_kernel_.to(exact)
        drive = drive.to(exact) + self._bias_.to(exact).view(self.heads, GATES, self.dim)
        y = c = n = m = drive.new_zeros(len(drive), self.heads, self.dim)
        outputs = []
        for step, given in enumerate(drive.unbind(1)):
            recurrent = torch.bmm(y.transpose(0, 1), kernel).transpose(0, 1)
            i, f, z, o = (given + recurrent.unflatten(-1, (GATES, self.dim))).unbind(-2)
            kept = m + F.logsigmoid(f)
            m = torch.maximum(i, kept) if step else i
            take, keep = (i - m).exp().clamp(max=1), (kept - m).exp().clamp(max=1)
            c = keep * c + take * z.tanh()
            n = keep * n + take
            y = o.sigmoid() * c / n
            outputs.append(y)
        return torch.stack(outputs, dim=1).flatten(2)


class Slstm(nn.Module):
    """The sLSTM layer: gates of each head, the recurrence, a norm of each head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.conv1d = CausalConvolution(width)
        # The published names are crossed: `fgate` feeds the input gate, `igate` the forget gate.
        self.fgate, self.igate = HeadwiseLinear(width, heads), HeadwiseLinear(width, heads)
        self.zgate, self.ogate = HeadwiseLinear(width, heads), HeadwiseLinear(width, heads)
        self.slstm_cell = SlstmCell(width, heads)
        self.group_norm = UnitNorm(width, heads)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, token, width] -> the same shape."""
        smooth = F.silu(self.conv1d(x))
        drive = torch.stack([self.fgate(smooth), self.igate(smooth), self.zgate(x), self.ogate(x)], dim=-2)
        by_head = drive.unflatten(-1, (self.heads, -1)).transpose(-3, -2)
        return self.group_norm(self.slstm_cell(by_head).to(x.dtype))


class MlstmCell(nn.Module):
    """Matrix memory, as attention whose weights decay, in the stabilised form over all tokens at once."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.igate, self.fgate = nn.Linear(3 * width, heads), nn.Linear(3 * width, heads)
        self.outnorm = UnitNorm(width, heads)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[batch, token, width] each -> the same shape."""
        joined = torch.cat([q, k, v], dim=-1)
        exact = torch.promote_types(q.dtype, torch.float32)
        take = self.igate(joined).transpose(1, 2).to(exact)
        keep = F.logsigmoid(self.fgate(joined).transpose(1, 2).to(exact)).cumsum(-1)
        decay = keep[..., :, None] - keep[..., None, :] + take[..., None, :]
        decay = decay.masked_fill(~torch.ones_like(decay[0, 0], dtype=torch.bool).tril(), -torch.inf)
        top = decay.amax(-1, keepdim=True)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2).to(exact) for x in (q, k, v))
        weights = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 * (decay - top).exp()
        scale = torch.maximum(weights.sum(-1, keepdim=True).abs(), (-top).exp()) + 1e-6
        mixed = (weights / scale @ v).transpose(1, 2).flatten(2)
        return self.outnorm(mixed.to(joined.dtype))


class Mlstm(nn.Module):
    """The mLSTM layer between two projections."""

    def __init__(self, width: int, heads: int, factor: float) -> None:
        super().__init__()
        inner = rounded_up(factor * width)
        self.proj_up = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = CausalConvolution(inner)
        # Blocks as wide as there are heads, in the authors' configuration.
        self.q_proj, self.k_proj, self.v_proj = (HeadwiseLinear(inner, inner // heads) for _ in range(3))
        self.mlstm_cell = MlstmCell(inner, heads)
        self.learnable_skip = nn.Parameter(torch.ones(inner))
        self.proj_down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, token, width] -> the same shape."""
        value, gate = self.proj_up(x).chunk(2, dim=-1)
        smooth = F.silu(self.conv1d(value))
        mixed = self.mlstm_cell(self.q_proj(smooth), self.k_proj(smooth), self.v_proj(value))
        return self.proj_down((mixed + self.learnable_skip * smooth) * F.silu(gate))


def rounded_up(width: float) -> int:
    """Return the next multiple of 64, as the package rounds inner widths."""
    return int(-(-width // ROUNDED_TO)) * ROUNDED_TO


def published_layout(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn recurrent kernels and biases of the package's plain cell into the layout of its CUDA cell.

    The shape of the kernel tells which one a file has: [head, gate * dim, dim] (plain) or [head, dim, gate * dim]. Both
    tensors of a cell change together; turned alone, either loads and gives other numbers.
    """
    turned = dict(state)
    for key, kernel in state.items():
        if not key.endswith(KERNEL_KEY) or kernel.ndim != 3 or kernel.shape[1] != GATES * kernel.shape[2]:
            continue
        turned[key] = kernel.permute(0, 2, 1).contiguous()
        bias = key.removesuffix(KERNEL_KEY) + BIAS_KEY
        if bias in state:
            by_gate = state[bias].reshape(GATES, len(kernel), -1)
            turned[bias] = by_gate.transpose(0, 1).reshape(state[bias].shape).contiguous()
    return turned


def options_from_state(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what keys and shapes of a state dict in the published layout say of the options."""
    found: dict[str, Any] = {}
    if (patch := state.get("patch_embedding.conv.weight")) is not None:
        found |= dict(zip(("embedding_size", "n_leads", "patch_size"), patch.shape, strict=True))
    kinds: dict[int, str] = {}
    for key, value in state.items():
        if not key.startswith("core.model.blocks."):
            continue
        kinds[int(key.split(".")[3])] = "m" if ".mlstm_cell." in key else kinds.get(int(key.split(".")[3]), "s")
        if key.endswith(KERNEL_KEY) or key.endswith(".mlstm_cell.igate.bias"):
            found["num_heads"] = len(value)
    if kinds:
        found["xlstm_config"] = tuple(kinds[k] for k in sorted(kinds))
    return found
