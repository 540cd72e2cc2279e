"""ST-MEM's encoder: a vision transformer over patches of every lead, under the official key names.

Lives here: the network alone, in pieces that frozen encoding, masked pretraining and fine-tuning share. Not here:
signals, windows, published facts (`models.ecg.stmem`), a pretraining decoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-5


@dataclass(frozen=True)
class StMemOptions:
    """Architecture under the official names (bakqui/ST-MEM models/encoder/st_mem_vit.py)."""

    seq_len: int = 2250
    patch_size: int = 75
    num_leads: int = 12
    num_classes: int | None = None
    width: int = 768
    depth: int = 12
    mlp_dim: int = 3072
    heads: int = 12
    dim_head: int = 64
    qkv_bias: bool = True
    patch_norm: bool = True
    """Not an official option. False: no norms around the patch embedding, so that patches keep their amplitude."""
    drop_out_rate: float = 0.0
    attn_drop_out_rate: float = 0.0
    drop_path_rate: float = 0.0
    """Of the last block; it grows linearly from 0 at the first."""

    @property
    def n_patches(self) -> int:
        """Patches of one lead."""
        return self.seq_len // self.patch_size


class StMemVit(nn.Module):
    """ST-MEM's ViT (Na et al. 2024, arXiv 2402.09450; ECG-Soup's backbone, arXiv 2509.00102).

    Tokens are ordered lead by lead, each lead as separator, patches, separator; attention joins all leads. Masked
    pretraining calls `embed_patches`, drops patches, then `add_separators` and `block_outputs`.
    """

    def __init__(self, options: StMemOptions) -> None:
        super().__init__()
        self.options = options
        width = options.width
        self.to_patch_embedding = nn.Sequential(
            nn.Identity(),
            nn.LayerNorm(options.patch_size, eps=NORM_EPS) if options.patch_norm else nn.Identity(),
            nn.Linear(options.patch_size, width),
            nn.LayerNorm(width, eps=NORM_EPS) if options.patch_norm else nn.Identity(),
        )
        positions = sincos_positions(options.n_patches, width)
        self.pos_embedding = nn.Parameter(positions, requires_grad=False)
        self.sep_embedding = nn.Parameter(0.02 * torch.randn(width))
        self.lead_embeddings = nn.ParameterList(
            [nn.Parameter(0.02 * torch.randn(width)) for _ in range(options.num_leads)]
        )
        rates = torch.linspace(0, options.drop_path_rate, options.depth, device="cpu").tolist()
        for index, rate in enumerate(rates):
            self.add_module(f"block{index}", StMemBlock.of(options, rate))
        self.dropout = nn.Dropout(options.drop_out_rate)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.head = nn.Identity() if options.num_classes is None else nn.Linear(width, options.num_classes)

    def patchify(self, x: Tensor) -> Tensor:
        """[batch, lead, time] -> [batch, lead, patch, patch_size]."""
        return x.unflatten(-1, (-1, self.options.patch_size))

    def embed_patches(self, x: Tensor) -> Tensor:
        """[batch, lead, time] -> patches with their positions, [batch, lead, patch, width]."""
        tokens = self.to_patch_embedding(self.patchify(x))
        return tokens + self.pos_embedding[:, 1 : tokens.shape[2] + 1]

    def add_separators(self, patches: Tensor) -> Tensor:
        """[batch, lead, patch, width] (all patches or the kept ones) -> [batch, lead * (patch + 2), width]."""
        batch, leads = patches.shape[:2]
        ends = (self.sep_embedding + self.pos_embedding[0, [0, -1]]).expand(batch, leads, 2, -1)
        tokens = torch.cat([ends[:, :, :1], patches, ends[:, :, 1:]], dim=2)
        return (tokens + torch.stack(list(self.lead_embeddings))[:, None]).flatten(1, 2)

    def block_outputs(self, tokens: Tensor) -> Iterator[Tensor]:
        """Yield the raw output of each block, [batch, token, width]."""
        hidden = self.dropout(tokens)
        for block in self.blocks:
            hidden = block(hidden)
            yield hidden

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks in order (officially they are attributes of the encoder, not a list)."""
        return [self.get_submodule(f"block{index}") for index in range(self.options.depth)]

    def drop_separators(self, tokens: Tensor) -> Tensor:
        """[batch, lead * (patch + 2), width] -> [batch, lead, patch, width]."""
        return tokens.unflatten(1, (self.options.num_leads, -1))[:, :, 1:-1]

    def pool(self, tokens: Tensor) -> Tensor:
        """Mean over leads and patches, separators left out: -> [batch, width], at least float32."""
        dtype = torch.promote_types(tokens.dtype, torch.float32)
        return self.drop_separators(tokens).mean((1, 2), dtype=dtype)

    def pooled_layers(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[batch, lead, time] -> what the encoder gives.

        Returns
        -------
        `pool` of the tokens entering block 1 and of each block's output, [batch, depth + 1, width], and the last
        block's raw output of every patch, the leads' mean, [batch, patch, width].
        """
        tokens = self.add_separators(self.embed_patches(x))
        pooled, last = [self.pool(tokens)], tokens
        for last in self.block_outputs(tokens):
            pooled.append(self.pool(last))
        return torch.stack(pooled, dim=1), self.drop_separators(last).mean(1)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, lead, time] -> the head's output, [batch, num_classes], or the embedding [batch, width]."""
        return self.head(self.final_norm(self.pooled_layers(x)[0][:, -1]))

    def final_norm(self, pooled: Tensor) -> Tensor:
        """Apply the encoder's norm behind the pooling, in the network's own precision."""
        return self.norm(pooled.to(self.norm.weight.dtype))


class StMemBlock(nn.Module):
    """Pre-norm attention and feed-forward, each with stochastic depth."""

    def __init__(self, attention: nn.Module, feed_forward: nn.Module, width: int, drop_path_rate: float) -> None:
        super().__init__()
        self.attn = StMemPreNorm(width, attention)
        self.ff = StMemPreNorm(width, feed_forward)
        self.drop_path_rate = drop_path_rate

    @classmethod
    def of(cls, options: StMemOptions, drop_path_rate: float) -> StMemBlock:
        """Build one block of an encoder."""
        attention = StMemAttention(
            options.width,
            options.heads,
            options.dim_head,
            qkv_bias=options.qkv_bias,
            drop_out_rate=options.drop_out_rate,
            attn_drop_out_rate=options.attn_drop_out_rate,
        )
        feed_forward = FeedForward(options.width, options.mlp_dim, options.drop_out_rate)
        return cls(attention, feed_forward, options.width, drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, token, width] -> the same shape."""
        x = drop_path(self.attn(x), self.drop_path_rate, self.training) + x
        return drop_path(self.ff(x), self.drop_path_rate, self.training) + x


class StMemPreNorm(nn.Module):
    """LayerNorm, then `fn`."""

    def __init__(self, width: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """Apply both."""
        return self.fn(self.norm(x))


class StMemAttention(nn.Module):
    """Multi-head attention whose head width does not depend on the token width; no projection for one full head."""

    def __init__(
        self,
        width: int,
        heads: int,
        dim_head: int,
        *,
        qkv_bias: bool = True,
        drop_out_rate: float = 0.0,
        attn_drop_out_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads, self.attn_drop_out_rate = heads, attn_drop_out_rate
        self.to_qkv = nn.Linear(width, 3 * heads * dim_head, bias=qkv_bias)
        projection = nn.Sequential(nn.Linear(heads * dim_head, width), nn.Dropout(drop_out_rate))
        self.to_out = nn.Identity() if heads == 1 and dim_head == width else projection

    def forward(self, x: Tensor) -> Tensor:
        """[batch, token, width] -> the same shape."""
        query, key, value = self.to_qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.attn_drop_out_rate if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, width: int, mlp_dim: int, drop_out_rate: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(width, mlp_dim),
            nn.GELU(),
            nn.Dropout(drop_out_rate),
            nn.Linear(mlp_dim, width),
            nn.Dropout(drop_out_rate),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[batch, token, width] -> the same shape."""
        return self.net(x)


def drop_path(branch: Tensor, rate: float, training: bool) -> Tensor:
    """Drop a residual branch for whole records with probability `rate`, scaling what is kept by 1 / (1 - rate)."""
    if not training or rate == 0.0:
        return branch
    kept = torch.rand(len(branch), *[1] * (branch.ndim - 1), device=branch.device) >= rate
    return branch * kept / (1 - rate)


def sincos_positions(n_patches: int, width: int) -> Tensor:
    """Return fixed positions [1, n_patches + 2, width]: sine half, cosine half; rows of zeros for both separators."""
    half = width // 2
    rates = 10000.0 ** -(torch.arange(half) / half)
    angles = torch.arange(n_patches)[:, None] * rates
    table = torch.cat([angles.sin(), angles.cos()], dim=1)
    return F.pad(table, (0, width - 2 * half, 1, 1))[None]


def options_from_state(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read off the shapes what a state dict says of its architecture; heads only where heads of 64 fit."""
    found: dict[str, Any] = {}
    if (norm := state.get("norm.weight")) is not None:
        found["width"] = norm.shape[0]
    if (patch := state.get("to_patch_embedding.1.weight")) is not None:
        found["patch_size"] = patch.shape[0]
    if (positions := state.get("pos_embedding")) is not None and patch is not None:
        found["seq_len"] = (positions.shape[1] - 2) * patch.shape[0]
    if leads := sum(key.startswith("lead_embeddings.") for key in state):
        found["num_leads"] = leads
    if depth := sum(key.startswith("block") and key.endswith(".attn.norm.weight") for key in state):
        found["depth"] = depth
    if (inner := state.get("block0.ff.fn.net.0.weight")) is not None:
        found["mlp_dim"] = inner.shape[0]
    if (qkv := state.get("block0.attn.fn.to_qkv.weight")) is not None:
        found["qkv_bias"] = "block0.attn.fn.to_qkv.bias" in state
        if qkv.shape[0] % 192 == 0:
            found |= {"dim_head": 64, "heads": qkv.shape[0] // 192}
    if (head := state.get("head.weight")) is not None:
        found["num_classes"] = head.shape[0]
    return found
