"""Mantis: a transformer over patches of one series, first and second architecture, under the official key names.

Lives here: the networks alone. Not here: signals, published facts (`models.time_series.mantis`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALES = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1000.0, 1e4)
STATISTICS_EPS = 1e-15
"""Of the layer norms of the scalar encoders and of the token's linear map."""
ZSCORE_EPS = 1e-5
ROPE_BASE, XPOS_BASE = 10_000.0, 512.0


@dataclass(frozen=True)
class MantisOptions:
    """Architecture under the official names (mantis-tsfm 1.1.0), with the values of Mantis-8M."""

    architecture: Literal["v1", "v2"] = "v1"
    seq_len: int = 512
    hidden_dim: int = 256
    num_patches: int = 32
    scalar_scales: tuple[float, ...] = SCALES
    hidden_dim_scalar_enc: int = 32
    epsilon_scalar_enc: float = 1.1
    transf_depth: int = 6
    transf_num_heads: int = 8
    transf_mlp_dim: int = 512
    transf_dim_head: int = 128
    kernel_size: int = 41
    """Of the second architecture; the first has patches + 1 samples where a patch is even."""
    return_transf_layer: int = -1
    """After which layer, counted from 0, the embedding is taken; -1: the last."""
    output_token: Literal["combined", "cls_token", "mean_token"] = "combined"

    @property
    def patch(self) -> int:
        """Samples of a patch."""
        return self.seq_len // self.num_patches

    @property
    def kernel(self) -> int:
        """Samples of the token generator's convolutions."""
        if self.architecture == "v2":
            return self.kernel_size
        return self.patch + 1 - self.patch % 2

    @property
    def embedded_layer(self) -> int:
        """Index of the layer after which the embedding is taken."""
        return self.return_transf_layer % self.transf_depth


class MantisStates(NamedTuple):
    """What the network gives for series [batch, time]: `tokens` entering the first layer, then after each layer.

    Attributes
    ----------
    entering
        [batch, patch, width], without class token and positions.
    patches, cls
        One [batch, patch, width] and one [batch, width] a layer.
    """

    entering: Tensor
    patches: list[Tensor]
    cls: list[Tensor]


class Mantis(nn.Module):
    """Mantis (Feofanov et al. 2025, arXiv 2502.15637) and MantisV2; vfeofanov/mantis, architecture/version1|2.py."""

    def __init__(self, options: MantisOptions) -> None:
        super().__init__()
        self.options = options
        self.tokgen_unit = TokenGenerator(options)
        self.transf_unit = (
            MantisTransformerV1(options) if options.architecture == "v1" else MantisTransformerV2(options)
        )
        # Of contrastive pretraining: it is in every file, and no embedding passes through it.
        self.prj = nn.Sequential(nn.LayerNorm(options.hidden_dim), nn.Linear(options.hidden_dim, options.hidden_dim))

    def forward(self, x: Tensor) -> MantisStates:
        """Encode series [batch, time], each on its own."""
        entering = self.tokgen_unit(x)
        patches, cls = self.transf_unit(entering)
        return MantisStates(entering, patches, cls)

    def embedding(self, states: MantisStates) -> Tensor:
        """Return [batch, width], or [batch, 2 width] where class token and mean of patches are combined."""
        layer = self.options.embedded_layer
        cls, mean = states.cls[layer], states.patches[layer].mean(1)
        return {"cls_token": cls, "mean_token": mean}.get(self.options.output_token, torch.cat([cls, mean], dim=-1))


class TokenGenerator(nn.Module):
    """One token a patch: shape of the series and of its differences, mean and deviation of the raw patch."""

    def __init__(self, options: MantisOptions) -> None:
        super().__init__()
        self.num_patches = options.num_patches
        self.convs = nn.ModuleList(PaddedConvolution(options.hidden_dim, options.kernel) for _ in range(2))
        self.layer_norms = nn.ModuleList(nn.LayerNorm(options.hidden_dim) for _ in range(2))
        self.scalar_encoders = nn.ModuleList(MultiScaleEncoder(options) for _ in range(2))
        n_inputs = 2 * (options.hidden_dim + options.hidden_dim_scalar_enc)
        self.linear_encoder = TokenEncoder(n_inputs, options.hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time] -> [batch, patch, width]."""
        difference = F.pad(x.diff(dim=-1), (0, 1))
        shapes = [
            self._shape(series, conv, norm)
            for series, conv, norm in zip((difference, x), self.convs, self.layer_norms, strict=True)
        ]
        patches = x.unflatten(-1, (self.num_patches, -1))
        statistics = (patches.mean(-1, keepdim=True), patches.std(-1, keepdim=True))
        scalars = [encode(value) for value, encode in zip(statistics, self.scalar_encoders, strict=True)]
        return self.linear_encoder(torch.cat([*shapes, *scalars], dim=-1))

    def _shape(self, series: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor:
        scaled = (series - series.mean(-1, keepdim=True)) / (series.std(-1, keepdim=True) + ZSCORE_EPS)
        maps = norm(conv(scaled.unsqueeze(1)).transpose(1, 2))
        return maps.unflatten(1, (self.num_patches, -1)).mean(2)


class PaddedConvolution(nn.Module):
    """A convolution of one channel that keeps the length."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, width, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 1, time] -> [batch, width, time]."""
        return self.conv(x)[..., : x.shape[-1]]


class TokenEncoder(nn.Module):
    """A linear map and its norm."""

    def __init__(self, n_inputs: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_inputs, width)
        self.layer_norm = nn.LayerNorm(width, eps=STATISTICS_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """[..., n_inputs] -> [..., width]."""
        return self.layer_norm(self.linear(x))


class MultiScaleEncoder(nn.Module):
    """A number of any magnitude as a vector: encoders for nine magnitudes, mixed by how near each one is."""

    scales: Tensor

    def __init__(self, options: MantisOptions) -> None:
        super().__init__()
        self.epsilon = options.epsilon_scalar_enc
        self.register_buffer("scales", torch.tensor(options.scalar_scales))
        width = options.hidden_dim_scalar_enc
        self.encoders = nn.ModuleList(ScalarEncoder(width) for _ in options.scalar_scales)

    def forward(self, x: Tensor) -> Tensor:
        """[..., 1] -> [..., width]."""
        nearness = (1 / torch.log(x.abs() / self.scales + self.epsilon)).abs()
        shares = nearness / nearness.sum(-1, keepdim=True)
        encoded = [encode(x, scale) for encode, scale in zip(self.encoders, self.scales, strict=True)]
        return (shares.unsqueeze(-1) * torch.stack(encoded, dim=-2)).sum(-2)


class ScalarEncoder(nn.Module):
    """A number of one magnitude as a vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.rand(1, width))
        self.b = nn.Parameter(torch.rand(1, width))
        self.layer_norm = nn.LayerNorm(width, eps=STATISTICS_EPS)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        """[..., 1] -> [..., width]."""
        return self.layer_norm(x * self.w + scale * self.b)


class MantisTransformerV1(nn.Module):
    """Pre-norm blocks behind sinusoidal positions; the class token comes first."""

    def __init__(self, options: MantisOptions) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(options.hidden_dim))
        self.pos_encoder = SinusoidalPositions(options.num_patches + 1, options.hidden_dim)
        self.transformer = nn.Module()
        self.transformer.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    MantisPreNorm(options.hidden_dim, MantisAttentionV1(options)),
                    MantisPreNorm(options.hidden_dim, MantisFeedForward(options.hidden_dim, options.transf_mlp_dim)),
                ]
            )
            for _ in range(options.transf_depth)
        )

    def forward(self, tokens: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """[batch, patch, width] -> patches and class token after each layer."""
        x = torch.cat([self.cls_token.expand(len(tokens), 1, -1), tokens], dim=1) + self.pos_encoder.pe[:, 0]
        patches, cls = [], []
        for attention, feed_forward in self.transformer.layers:  # type: ignore[union-attr]
            x = x + attention(x)
            x = x + feed_forward(x)
            cls.append(x[:, 0])
            patches.append(x[:, 1:])
        return patches, cls


class SinusoidalPositions(nn.Module):
    """The published table, which the files hold too: [position, 1, width]."""

    pe: Tensor

    def __init__(self, n_positions: int, width: int) -> None:
        super().__init__()
        at = torch.arange(n_positions)[:, None]
        rate = torch.exp(torch.arange(0, width, 2) * (-torch.log(torch.tensor(ROPE_BASE)) / width))
        table = torch.zeros(n_positions, 1, width)
        table[:, 0, 0::2], table[:, 0, 1::2] = torch.sin(at * rate), torch.cos(at * rate)
        self.register_buffer("pe", table)


class MantisPreNorm(nn.Module):
    """A layer norm in front of a branch."""

    def __init__(self, width: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """[batch, token, width] -> the same shape."""
        return self.fn(self.norm(x))


class MantisFeedForward(nn.Module):
    """Linear, GELU, Linear under the official indices."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, width), nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """[batch, token, width] -> the same shape."""
        return self.net(x)


class MantisAttentionV1(nn.Module):
    """Multi-head attention whose heads may be wider together than the tokens."""

    def __init__(self, options: MantisOptions) -> None:
        super().__init__()
        inner = options.transf_num_heads * options.transf_dim_head
        self.heads = options.transf_num_heads
        self.to_qkv = nn.Linear(options.hidden_dim, 3 * inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, options.hidden_dim), nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """[batch, token, width] -> the same shape."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.to_qkv(x).chunk(3, dim=-1))
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MantisTransformerV2(nn.Module):
    """RMS-normed blocks with rotary positions; the class token comes last."""

    def __init__(self, options: MantisOptions) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(options.hidden_dim))
        self.transformer = nn.Module()
        self.transformer.layers = nn.ModuleList(MantisBlockV2(options) for _ in range(options.transf_depth))

    def forward(self, tokens: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """[batch, patch, width] -> patches and class token after each layer."""
        x = torch.cat([tokens, self.cls_token.expand(len(tokens), 1, -1)], dim=1)
        patches, cls = [], []
        for layer in self.transformer.layers:  # type: ignore[union-attr]
            x = layer(x)
            cls.append(x[:, -1])
            patches.append(x[:, :-1])
        return patches, cls


class MantisBlockV2(nn.Module):
    """Attention and SwiGLU, each behind its RMS norm."""

    def __init__(self, options: MantisOptions) -> None:
        super().__init__()
        width, hidden = options.hidden_dim, options.transf_mlp_dim
        self.norm1, self.norm2 = ScaledRmsNorm(width), ScaledRmsNorm(width)
        self.attention = MantisAttentionV2(options)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * hidden), SwiGlu(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, token, width] -> the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ScaledRmsNorm(nn.Module):
    """Division by the root mean square, in float32."""

    def __init__(self, width: int, eps: float = 1e-8) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> the same shape."""
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        return (exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.scale


class SwiGlu(nn.Module):
    """SiLU of the first half times the second half."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., 2 n] -> [..., n]."""
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate) * value


class MantisAttentionV2(nn.Module):
    """Attention with rotary positions that fade with distance (xPos); the rows of a head lie `heads` apart."""

    def __init__(self, options: MantisOptions) -> None:
        super().__init__()
        inner = options.transf_num_heads * options.transf_dim_head
        self.heads = options.transf_num_heads
        self.rotary_dim = options.hidden_dim // options.transf_num_heads
        self.wQKV = nn.Linear(options.hidden_dim, 3 * inner)
        self.wO = nn.Linear(inner, options.hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, token, width] -> the same shape."""
        q, k, v = self.wQKV(x).unflatten(-1, (3, -1, self.heads)).permute(2, 0, 4, 1, 3)
        angles, fading = _xpos(x.shape[1], self.rotary_dim, x.device)
        q, k = _rotated(q, angles, fading), _rotated(k, angles, 1 / fading)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.wO(mixed.transpose(1, 2).flatten(2))


def _xpos(n_tokens: int, dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Angles [token, dim / 2] of interleaved pairs, and the fading [token, dim], whose halves are the same."""
    pair = torch.arange(0, dim, 2, device=device, dtype=torch.float32)
    at = torch.arange(n_tokens, device=device, dtype=torch.float32)
    angles = at[:, None] * ROPE_BASE ** (-pair / dim)
    power = (at - n_tokens // 2) / XPOS_BASE
    fading = ((pair + 0.4 * dim) / (1.4 * dim)) ** power[:, None]
    return angles, torch.cat([fading, fading], dim=-1)


def _rotated(x: Tensor, angles: Tensor, fading: Tensor) -> Tensor:
    """Rotate the first entries of [batch, head, token, dim] and multiply them by the fading; the others pass."""
    n = fading.shape[-1]
    turned, rest = x[..., :n].to(torch.promote_types(x.dtype, torch.float32)), x[..., n:]
    even, odd = turned[..., 0::2], turned[..., 1::2]
    cosine, sine = angles.cos(), angles.sin()
    pairs = torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], dim=-1).flatten(-2)
    return torch.cat([(pairs * fading).to(x.dtype), rest], dim=-1)


def options_from_state(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what keys and shapes of a state dict (under the current names) say of the options.

    The number of heads follows only in part: the first architecture's heads share one matrix, so they are not there.
    """
    second = "transf_unit.pos_encoder.pe" not in state
    layers = {key.split(".")[3] for key in state if key.startswith("transf_unit.transformer.layers.")}
    scalar = [key for key in state if key.startswith("tokgen_unit.scalar_encoders.0.encoders.0.w")]
    found: dict[str, Any] = {
        "architecture": "v2" if second else "v1",
        "hidden_dim": len(state["transf_unit.cls_token"]),
        "transf_depth": len(layers),
    }
    if scalar:
        found["hidden_dim_scalar_enc"] = state[scalar[0]].shape[1]
    if second:
        found["kernel_size"] = state["tokgen_unit.convs.0.conv.weight"].shape[-1]
        found["transf_mlp_dim"] = state["transf_unit.transformer.layers.0.mlp.2.weight"].shape[1]
    else:
        found["num_patches"] = len(state["transf_unit.pos_encoder.pe"]) - 1
        found["transf_mlp_dim"] = len(state["transf_unit.transformer.layers.0.1.fn.net.0.weight"])
    return found
