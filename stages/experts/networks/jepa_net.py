"""ECG-JEPA's encoder: a vision transformer whose tokens see their own lead and their own moment, official key names.

Lives here: the network alone. Not here: signals, published facts (`models.ecg.jepa`), the predictor of pretraining.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROPE_BASE = 10000.0


@dataclass(frozen=True)
class JepaOptions:
    """Architecture under the official names (sehunfromdaegu/ECG_JEPA, MaskTransformer), with the published values."""

    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 16
    mlp_ratio: float = 4.0
    qkv_bias: bool = False
    qk_scale: float | None = None
    pos_type: str = "sincos"
    c: int = 8
    """Leads."""
    p: int = 50
    """Patches of a lead."""
    t: int = 50
    """Samples of a patch."""
    leads: tuple[int, ...] = ()
    """Which of the `c` leads are there; empty: all."""

    @property
    def lead_index(self) -> tuple[int, ...]:
        """Which of the `c` leads the input has, in its order."""
        return self.leads or tuple(range(self.c))


class JepaEncoder(nn.Module):
    """The encoder of ECG-JEPA (Kim 2024, arXiv 2410.08559; ecg_jepa.py, `MaskTransformer.representation`)."""

    attention_mask: Tensor

    def __init__(self, options: JepaOptions) -> None:
        super().__init__()
        self.options = options
        self.W_P = nn.Linear(options.t, options.embed_dim)
        if options.pos_type == "rope":
            head_dim = options.embed_dim // options.num_heads
            self.rope_2d = RotaryPeriods(head_dim // 4)
            self.rope_1d = RotaryPeriods(head_dim // 2)
        else:
            learnt = options.pos_type == "learnable"
            self.pos_embed = nn.Parameter(sincos_positions(options.embed_dim, options.c, options.p), learnt)
        self.encoder_blocks = nn.Module()
        self.encoder_blocks.blocks = nn.ModuleList([JepaBlock(options) for _ in range(options.depth)])
        self.norm = nn.LayerNorm(options.embed_dim)
        self.register_buffer("attention_mask", _cross_mask(len(options.lead_index), options.p), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Iterator[Tensor]]:
        """[batch, lead, time] -> the tokens entering the first block, and the raw output of each block.

        All are [batch, lead * patch, embed_dim], lead by lead. The positions are added again before every block.
        """
        tokens = self.W_P(x.unflatten(-1, (self.options.p, self.options.t)).flatten(1, 2))
        positions, rotation = self._positions(), self._rotation()
        return tokens + positions, self._block_outputs(tokens, positions, rotation)

    def _block_outputs(
        self, hidden: Tensor, positions: Tensor | float, rotation: tuple[Tensor, Tensor] | None
    ) -> Iterator[Tensor]:
        for block in self.encoder_blocks.get_submodule("blocks").children():
            hidden = block(hidden + positions, self.attention_mask, rotation)
            yield hidden

    def _positions(self) -> Tensor | float:
        if self.options.pos_type == "rope":
            return 0.0
        table = self.pos_embed.unflatten(0, (self.options.c, self.options.p))
        return table[list(self.options.lead_index)].flatten(0, 1)

    def _rotation(self) -> tuple[Tensor, Tensor] | None:
        """Sine and cosine of the rotary angles, [token, head_dim]; officially one-dimensional for fewer leads."""
        if self.options.pos_type != "rope":
            return None
        n_leads, n_patches = len(self.options.lead_index), self.options.p
        if n_leads < self.options.c:
            angles = self.rope_1d.angles(n_patches).repeat(n_leads, 1)
        else:
            leads = self.rope_2d.angles(n_leads).repeat_interleave(n_patches, dim=0)
            angles = torch.cat([leads, self.rope_2d.angles(n_patches).repeat(n_leads, 1)], dim=1)
        angles = torch.cat([angles, angles], dim=1)
        return angles.sin(), angles.cos()


class RotaryPeriods(nn.Module):
    """Periods of rotary positions, which the official state dict holds."""

    periods: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("periods", ROPE_BASE ** (torch.arange(n) / n))

    def angles(self, n_positions: int) -> Tensor:
        """Angles at the centres of `n_positions` equal parts of [-1, 1], float32 [n_positions, period]."""
        centres = 2 * torch.arange(0.5, n_positions, device=self.periods.device) / n_positions - 1
        return 2 * math.pi * centres[:, None] / self.periods.float()


class JepaBlock(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, options: JepaOptions) -> None:
        super().__init__()
        width, inner = options.embed_dim, int(options.embed_dim * options.mlp_ratio)
        self.norm1 = nn.LayerNorm(width)
        self.attn = JepaAttention(options)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Linear(width, inner))
        self.mlp.add_module("act", nn.GELU())
        self.mlp.add_module("fc2", nn.Linear(inner, width))

    def forward(self, x: Tensor, mask: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        """[batch, token, width] -> the same shape; `mask` [token, token] is True where a token may look."""
        x = x + self.attn(self.norm1(x), mask, rotation)
        return x + self.mlp(self.norm2(x))


class JepaAttention(nn.Module):
    """Multi-head attention within a mask."""

    def __init__(self, options: JepaOptions) -> None:
        super().__init__()
        self.num_heads, self.scale = options.num_heads, options.qk_scale
        self.qkv = nn.Linear(options.embed_dim, 3 * options.embed_dim, bias=options.qkv_bias)
        self.proj = nn.Linear(options.embed_dim, options.embed_dim)

    def forward(self, x: Tensor, mask: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        """[batch, token, width] -> the same shape."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if rotation is not None:
            query, key = _rotate(query, *rotation), _rotate(key, *rotation)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scale)
        return self.proj(mixed.transpose(1, 2).flatten(2))


def _rotate(x: Tensor, sine: Tensor, cosine: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return (x * cosine + torch.cat([-second, first], dim=-1) * sine).to(x.dtype)


def _cross_mask(n_leads: int, n_patches: int) -> Tensor:
    """Return bool [token, token]: True for tokens of the same lead or of the same moment."""
    token = torch.arange(n_leads * n_patches)
    lead, moment = token // n_patches, token % n_patches
    return (lead[:, None] == lead) | (moment[:, None] == moment)


def sincos_positions(dim: int, n_leads: int, n_patches: int) -> Tensor:
    """Return fixed positions [lead * patch, dim]: first half moment, second half lead, each [sin | cos]."""
    moment = torch.arange(n_patches).repeat(n_leads)
    lead = torch.arange(n_leads).repeat_interleave(n_patches)
    rates = 10000.0 ** -(torch.arange(dim // 4).double() / (dim / 4))
    angles = [axis[:, None] * rates for axis in (moment, lead)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1).float()


def options_from_state(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read off the shapes what a state dict says; it tells leads times patches, and its heads only with rotary ones."""
    if "W_P.weight" not in state:
        return {}
    width, samples = state["W_P.weight"].shape
    found: dict[str, Any] = {"embed_dim": width, "t": samples}
    found["depth"] = sum(k.startswith("encoder_blocks.blocks.") and k.endswith(".norm1.weight") for k in state)
    found["qkv_bias"] = "encoder_blocks.blocks.0.attn.qkv.bias" in state
    if (inner := state.get("encoder_blocks.blocks.0.mlp.fc1.weight")) is not None:
        found["mlp_ratio"] = inner.shape[0] / width
    if (periods := state.get("rope_2d.periods")) is not None:
        found |= {"pos_type": "rope", "num_heads": width // (4 * periods.shape[0])}
    return found


OPTION_NAMES = tuple(f.name for f in dataclasses.fields(JepaOptions))
