"""MERL's two encoders: a ResNet of 1-d convolutions without max pool, and a ViT over patches of all leads.

Lives here: the networks under their official key names. Not here: their input path (`signals.min_max`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEXT_HEADS = 4


@dataclass(frozen=True)
class MerlOptions:
    """Sizes of the ResNet; the defaults are the published ones."""

    num_leads: int = 12
    widths: tuple[int, ...] = (64, 128, 256, 512)
    num_blocks: tuple[int, ...] = (2, 2, 2, 2)
    projection_size: int = 0
    """Width of the text-aligned vector; 0: the weights are the encoder alone."""
    spacial_dim: int = 313
    """Tokens that the text-aligned vector is pooled from; it has a position for each."""


class BasicBlock(nn.Module):
    """Two convolutions beside a shortcut: [batch, channels, time] -> [batch, width, time / stride]."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm1d(width)
        self.conv2 = nn.Conv1d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm1d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(nn.Conv1d(channels, width, 1, stride, bias=False), nn.BatchNorm1d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        branch = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(branch + self.shortcut(x))


class TextAlignedPool(nn.Module):
    """Attention of one learned query over the tokens (the official AttentionPool2d)."""

    def __init__(self, n_tokens: int, width: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(1, n_tokens + 1, width) / width)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.mhsa = nn.MultiheadAttention(width, TEXT_HEADS, batch_first=True)
        self.c_proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, token, width] -> [batch, width]; the query gets the first position twice, as published."""
        first = (self.cls_token + self.positional_embedding[:, :1]).expand(len(tokens), -1, -1)
        x = torch.cat([first, tokens], dim=1) + self.positional_embedding
        pooled, _ = self.mhsa(x[:, :1], x, x, need_weights=False)
        return self.c_proj(pooled[:, 0])


class MerlResNet(nn.Module):
    """[batch, lead, time] -> what leaves the first convolution and each stage, each [batch, token, width]."""

    def __init__(self, options: MerlOptions) -> None:
        super().__init__()
        self.options = options
        channels = options.widths[0]
        self.conv1 = nn.Conv1d(options.num_leads, channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm1d(channels)
        for stage, (width, n_blocks) in enumerate(zip(options.widths, options.num_blocks, strict=True)):
            blocks = []
            for block in range(n_blocks):
                blocks.append(BasicBlock(channels, width, 2 if stage and not block else 1))
                channels = width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        if options.projection_size:
            self.downconv = nn.Conv1d(channels, options.projection_size, 1)
            self.att_pool_head = TextAlignedPool(options.spacial_dim, options.projection_size)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the states, the first convolution's first."""
        x = torch.relu(self.bn1(self.conv1(x)))
        states = [x]
        for stage in range(len(self.options.widths)):
            x = self.get_submodule(f"layer{stage + 1}")(x)
            states.append(x)
        return [state.transpose(1, 2) for state in states]

    def text_aligned(self, tokens: Tensor) -> Tensor:
        """Return the vector that is compared with the text's, from `spacial_dim` tokens of the last stage.

        Record by record: the last bits of a product of few rows depend on the row.
        """
        mapped = self.downconv(tokens.transpose(1, 2)).transpose(1, 2)
        return torch.cat([self.att_pool_head(record) for record in mapped.split(1)])


def encoder_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Strip `module.` (parallel training) and, of a full checkpoint, `ecg_encoder.`."""
    return {key.removeprefix("module.").removeprefix("ecg_encoder."): value for key, value in state.items()}


def has_text_side(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict (see `encoder_state`) is that of the text-aligned model."""
    return any(key.startswith(("downconv.", "att_pool_head.")) for key in state)


def options_from_state(state: Mapping[str, Tensor]) -> dict[str, object]:
    """Read the sizes off the shapes of an official state dict; what cannot be read is left out."""
    found: dict[str, object] = {}
    if "conv1.weight" in state:
        found["num_leads"] = state["conv1.weight"].shape[1]
    if "att_pool_head.positional_embedding" in state:
        _, positions, found["projection_size"] = state["att_pool_head.positional_embedding"].shape
        found["spacial_dim"] = positions - 1
    blocks: dict[int, dict[int, int]] = {}
    for key, value in state.items():
        if match := re.fullmatch(r"layer(\d+)\.(\d+)\.conv1\.weight", key):
            blocks.setdefault(int(match[1]), {})[int(match[2])] = value.shape[0]
    if blocks and sorted(blocks) == list(range(1, len(blocks) + 1)):
        stages = [blocks[stage] for stage in sorted(blocks)]
        found["widths"] = tuple(stage[min(stage)] for stage in stages)
        found["num_blocks"] = tuple(max(stage) + 1 for stage in stages)
    return found


@dataclass(frozen=True)
class MerlVitOptions:
    """Arguments of the class ViT, with the values of vit_tiny."""

    num_leads: int = 12
    seq_len: int = 5000
    patch_size: int = 50
    width: int = 192
    depth: int = 12
    heads: int = 3
    dim_head: int = 64
    mlp_dim: int = 768
    mlp_hidden_size: int = 0
    """Inner width of the projection to the text's space; 0: the weights are the encoder alone."""
    projection_size: int = 0

    @property
    def n_tokens(self) -> int:
        """Patches of a window; the positions are learnt for as many."""
        return self.seq_len // self.patch_size


class _Norm(nn.Module):
    """A norm and what it leads to, under the official names."""

    def __init__(self, width: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """Apply both."""
        return self.fn(self.norm(x))


class MerlAttention(nn.Module):
    """Multi-head self-attention, queries, keys and values from one map."""

    def __init__(self, options: MerlVitOptions) -> None:
        super().__init__()
        inner = options.heads * options.dim_head
        self.heads = options.heads
        self.to_qkv = nn.Linear(options.width, 3 * inner)
        self.to_out = nn.Sequential(nn.Linear(inner, options.width))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, token, width] -> the same."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.to_qkv(x).chunk(3, -1))
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MerlFeedForward(nn.Module):
    """Two linear maps with GELU; dropouts stand between them in the official numbering."""

    def __init__(self, options: MerlVitOptions) -> None:
        super().__init__()
        width, inner = options.width, options.mlp_dim
        self.net = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Identity(), nn.Linear(inner, width))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, token, width] -> the same."""
        return self.net(x)


class MerlVitBlock(nn.Module):
    """Attention and feed-forward part, each behind a norm and beside a shortcut."""

    def __init__(self, options: MerlVitOptions) -> None:
        super().__init__()
        self.attn = _Norm(options.width, MerlAttention(options))
        self.ff = _Norm(options.width, MerlFeedForward(options))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, token, width] -> the same."""
        x = x + self.attn(x)
        return x + self.ff(x)


class MerlVit(nn.Module):
    """[batch, lead, time] -> tokens entering the first block and after each, and the pooled, normed vector."""

    def __init__(self, options: MerlVitOptions) -> None:
        super().__init__()
        self.options = options
        width, patch = options.width, options.patch_size
        self.to_patch_embedding = nn.Conv1d(options.num_leads, width, patch, patch, bias=False)
        self.pos_embedding = nn.Parameter(torch.randn(1, options.n_tokens, width))
        for block in range(options.depth):
            self.add_module(f"block{block}", MerlVitBlock(options))
        self.norm = nn.LayerNorm(width)
        if options.projection_size:
            hidden, size = options.mlp_hidden_size, options.projection_size
            head = (nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, size))
            self.proj_e = nn.Sequential(*head, nn.BatchNorm1d(size))

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return tokens [batch, token, width], the entering ones first, and `norm` of the last ones' mean."""
        states = [self.to_patch_embedding(x).transpose(1, 2) + self.pos_embedding]
        for block in range(self.options.depth):
            states.append(self.get_submodule(f"block{block}")(states[-1]))
        return states, self.norm(states[-1].mean(1))

    def text_aligned(self, pooled: Tensor) -> Tensor:
        """Return the vector that is compared with the text's, from the pooled one; record by record, as above."""
        return torch.cat([self.proj_e(record) for record in pooled.split(1)])


def vit_options_from_state(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Read the sizes off the shapes of an official state dict; what cannot be read is left out."""
    shape = {key: tuple(value.shape) for key, value in state.items()}
    found: dict[str, int] = {}
    if patch := shape.get("to_patch_embedding.weight"):
        found |= {"width": patch[0], "num_leads": patch[1], "patch_size": patch[2]}
        if positions := shape.get("pos_embedding"):
            found["seq_len"] = positions[1] * patch[2]
    if inner := shape.get("block0.ff.fn.net.0.weight"):
        found["mlp_dim"] = inner[0]
    if blocks := {match[1] for key in shape if (match := re.match(r"block(\d+)\.", key))}:
        found["depth"] = len(blocks)
    if head := shape.get("proj_e.3.weight"):
        found |= {"projection_size": head[0], "mlp_hidden_size": head[1]}
    return found
