"""From tokens to one vector per record, and from sample masks to token masks: what several transformers share."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def mean_tokens(tokens: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean over the valid tokens in (at least) float32: [batch, token, dim] -> [batch, dim]."""
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    if valid is None:
        return tokens.mean(1, dtype=dtype)
    weight = valid.to(dtype).unsqueeze(-1)
    return (tokens.to(dtype) * weight).sum(1) / weight.sum(1).clamp(min=1)


def token_validity(valid: Tensor, convolutions: Iterable[tuple[int, int]], n_tokens: int) -> Tensor:
    """Turn a sample mask [batch, sample] (True = real, padding at the end) into a token mask [batch, token].

    Parameters
    ----------
    convolutions
        (kernel, stride) of each unpadded convolution between samples and tokens.
    n_tokens
        A mask that is as long already is returned as it is.
    """
    if valid.shape[-1] == n_tokens:
        return valid
    lengths = valid.sum(-1)
    for kernel, stride in convolutions:
        lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
    return torch.arange(n_tokens, device=valid.device) < lengths.unsqueeze(-1)
