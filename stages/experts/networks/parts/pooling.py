"""From tokens or windows to one vector a record, from sample masks to token masks: what several experts share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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


def pool_outputs(output: Tensor, windows: int, pooling: str, maxima: Sequence[int] = ()) -> Tensor:
    """Make one output a record of those of its windows: [record * windows, k] -> float32 [record, k].

    Parameters
    ----------
    pooling
        `mean`; or of logits those of their mean probabilities: `sigmoid` (each column alone), `softmax` (over columns).
        Probabilities are averaged in float64, where none becomes 0 or 1.
    maxima
        Columns in which the largest window counts instead.
    """
    if windows == 1:
        return output.float()
    by_window = output.double().unflatten(0, (-1, windows))
    if pooling == "sigmoid":
        pooled = by_window.sigmoid().mean(dim=1).logit()
    elif pooling == "softmax":
        pooled = by_window.softmax(dim=-1).mean(dim=1).log()
    else:
        pooled = output.float().unflatten(0, (-1, windows)).mean(dim=1)
    columns = list(maxima)
    pooled[:, columns] = by_window[:, :, columns].amax(dim=1).to(pooled.dtype)
    return pooled.float()
