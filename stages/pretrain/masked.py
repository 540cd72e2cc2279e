"""Masked pretraining of ST-MEM, and ECG-Soup's variant of it (IPASTMEM), under the official key names.

Lives here: masking, decoder, reconstruction loss. Not here: the encoder (`stages.experts.networks`), the training
loop (`stages.training`), where records come from.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cache.errors import UsageError
from stages.experts.networks.stmem_net import (
    FeedForward,
    StMemAttention,
    StMemBlock,
    StMemOptions,
    StMemVit,
    sincos_positions,
)

VARIANTS = ("stmem", "ipastmem")
TARGET_EPS = 1e-6


@dataclass(frozen=True)
class MaskedOptions:
    """What masked pretraining adds to the encoder, under the official names (models/st_mem.py)."""

    encoder: StMemOptions = field(default_factory=StMemOptions)
    decoder_embed_dim: int = 256
    decoder_depth: int = 4
    decoder_num_heads: int = 4
    decoder_dim_head: int = 64
    decoder_norm_eps: float = 1e-6
    mlp_ratio: float = 4.0
    mask_ratio: float = 0.75
    norm_pix_loss: bool = True
    variant: str = "stmem"
    """`stmem`: the decoder reads the last block. `ipastmem`: it reads the mean over all blocks."""

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise UsageError(f"--variant {self.variant}: expected {' or '.join(VARIANTS)}")
        if not 0 < self.mask_ratio < 1 or self.n_kept == 0:
            raise UsageError(f"mask_ratio {self.mask_ratio}: it has to leave some of {self.encoder.n_patches} patches")

    @property
    def n_kept(self) -> int:
        """Patches of a lead that the encoder sees."""
        return int(self.encoder.n_patches * (1 - self.mask_ratio))


@dataclass(frozen=True)
class MaskedOutput:
    """What one masked forward gives.

    Attributes
    ----------
    prediction
        [batch, lead, patch, patch_size], every patch.
    mask
        [batch, lead, patch], 1 where the encoder did not see the patch.
    latent
        What the decoder reads, [batch, lead * (kept + 2), width].
    layers
        The encoder's norm of each block that `latent` is the mean of, [batch, block, token, width].
    """

    prediction: Tensor
    mask: Tensor
    latent: Tensor
    layers: Tensor


class MaskedStMem(nn.Module):
    """ST-MEM's masked autoencoder (Na et al. 2024, arXiv 2402.09450) or IPASTMEM (ECG-Soup, arXiv 2509.00102).

    The latent of IPASTMEM is the mean over blocks, token by token, of the encoder's own norm of each block's output.
    """

    def __init__(self, options: MaskedOptions) -> None:
        super().__init__()
        self.options = options
        encoder, width = options.encoder, options.decoder_embed_dim
        self.encoder = StMemVit(encoder)
        # The official model holds its encoder's patch embedding under a second name.
        self.to_patch_embedding = self.encoder.to_patch_embedding
        self.to_decoder_embedding = nn.Linear(encoder.width, width)
        self.mask_embedding = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.decoder_pos_embed = nn.Parameter(sincos_positions(encoder.n_patches, width), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(_decoder_block(options) for _ in range(options.decoder_depth))
        self.decoder_norm = nn.LayerNorm(width, eps=options.decoder_norm_eps)
        self.decoder_head = nn.Linear(width, encoder.patch_size)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """Loss of [batch, lead, time] under `noise` [batch, lead, patch], uniform, which decides what is masked."""
        # On a CPU, torch's fused attention takes twice the time of plain products over so few tokens.
        plain = sdpa_kernel(SDPBackend.MATH) if x.device.type == "cpu" else nullcontext()
        with plain:
            return self.loss(x, self.reconstruct(x, noise))

    def reconstruct(self, x: Tensor, noise: Tensor) -> MaskedOutput:
        """Predict every patch of [batch, lead, time] from those that `noise` lets the encoder see."""
        kept, restore, mask = choose_patches(noise, self.options.n_kept)
        patches = self.encoder.embed_patches(x)
        patches = patches.gather(2, kept.unsqueeze(-1).expand(-1, -1, -1, patches.shape[-1]))
        layers = self.layers(self.encoder.add_separators(patches))
        latent = layers.mean(1)
        return MaskedOutput(self.decode(latent, restore), mask, latent, layers)

    def layers(self, tokens: Tensor) -> Tensor:
        """Return the normed outputs of the blocks that the decoder reads, [batch, block, token, width]."""
        outputs = list(self.encoder.block_outputs(tokens))
        if self.options.variant == "stmem":
            outputs = outputs[-1:]
        return torch.stack([self.encoder.norm(output) for output in outputs], dim=1)

    def decode(self, latent: Tensor, restore: Tensor) -> Tensor:
        """Put the mask tokens in place and decode every lead on its own: [batch, lead, patch, patch_size]."""
        batch, leads, n_patches = restore.shape
        tokens = self.to_decoder_embedding(latent).unflatten(1, (leads, -1))
        hidden = self.mask_embedding.to(tokens.dtype).expand(batch, leads, n_patches - self.options.n_kept, -1)
        inner = torch.cat([tokens[:, :, 1:-1], hidden], dim=2)
        inner = inner.gather(2, restore.unsqueeze(-1).expand(-1, -1, -1, tokens.shape[-1]))
        tokens = torch.cat([tokens[:, :, :1], inner, tokens[:, :, -1:]], dim=2).flatten(0, 1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return self.decoder_head(self.decoder_norm(tokens))[:, 1:-1].unflatten(0, (batch, leads))

    def target(self, x: Tensor, *, normalised: bool | None = None) -> Tensor:
        """Return the patches of [batch, lead, time]; normalised each to mean 0 and (unbiased) variance 1."""
        patches = self.encoder.patchify(x)
        if not (self.options.norm_pix_loss if normalised is None else normalised):
            return patches
        mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
        return (patches - mean) / (variance + TARGET_EPS).sqrt()

    def loss(self, x: Tensor, output: MaskedOutput, *, normalised: bool | None = None) -> Tensor:
        """Mean squared error over the masked patches."""
        per_patch = self.patch_errors(x, output, normalised=normalised)
        return (per_patch * output.mask).sum() / output.mask.sum()

    def patch_errors(self, x: Tensor, output: MaskedOutput, *, normalised: bool | None = None) -> Tensor:
        """Return the mean squared error of each patch, masked or not, [batch, lead, patch]."""
        return (output.prediction.float() - self.target(x, normalised=normalised)).square().mean(-1)


def choose_patches(noise: Tensor, n_kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """Choose per record and lead the `n_kept` patches of the least noise, in the order of their noise.

    Parameters
    ----------
    noise
        [batch, lead, patch], uniform.

    Returns
    -------
    Indices of the kept patches [batch, lead, n_kept], the indices that undo the shuffle [batch, lead, patch], and the
    mask, 1 where a patch is left out.
    """
    shuffled = noise.argsort(dim=-1)
    restore = shuffled.argsort(dim=-1)
    return shuffled[..., :n_kept], restore, (restore >= n_kept).to(noise.dtype)


def _decoder_block(options: MaskedOptions) -> StMemBlock:
    width = options.decoder_embed_dim
    attention = StMemAttention(
        width, options.decoder_num_heads, options.decoder_dim_head, qkv_bias=options.encoder.qkv_bias
    )
    return StMemBlock(attention, FeedForward(width, int(options.mlp_ratio * width)), width, 0.0)
