"""Attention pooling with a learned query, as the ECG-FM benchmark reads frozen encoders.

Lives here: the module under the official keys. Not here: training it (`layers.attention`), where the tokens come from.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cache.errors import UsageError

HEADS = 16


class AttentionPool(nn.Module):
    """Pool tokens [batch, token, dim] by attention of one learned query: no biases, no norm, no residual.

    z = concat over heads h of sum_t softmax_t(q_h . k_ht / sqrt(dim / heads)) v_ht; q = query Wq, k = x Wk, v = x Wv
    (AI4HealthUOL/ecg-fm-benchmarking 6367295, LearnableQueryAttentionPoolingHead, whose `c_proj` reads z).

    A token that holds NaN (a second that the expert has not seen) gets no weight; a record of such tokens alone is NaN.

    Parameters
    ----------
    dim, heads
        Width of the tokens, and how many heads share it.

    Examples
    --------
    >>> pool = AttentionPool(64)
    >>> pool(torch.randn(2, 10, 64)).shape, pool.weights(torch.randn(2, 10, 64)).shape
    (torch.Size([2, 64]), torch.Size([2, 16, 10]))
    """

    def __init__(self, dim: int, heads: int = HEADS) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise UsageError(f"AttentionPool: dim {dim} is no multiple of heads {heads}; give another number of heads")
        self.heads = heads
        self.query = nn.Parameter(torch.randn(1, 1, dim) / dim**0.5)
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)

    def start_from_mean(self) -> None:
        """Make it the plain mean over tokens: the query asks for nothing, values are the tokens themselves."""
        nn.init.zeros_(self.query)
        nn.init.eye_(self.v_proj.weight)

    def weights(self, tokens: Tensor) -> Tensor:
        """Return how much each head takes of each token, [batch, head, token]; rows sum to 1."""
        # The query meets the key's projection first: one product of [head, dim] in place of one a token.
        query = self.q_proj(self.query)[0, 0].unflatten(0, (self.heads, -1))
        keys = self.k_proj.weight.unflatten(0, (self.heads, -1))
        asked = torch.einsum("hd,hdi->hi", query, keys) / (query.shape[1] ** 0.5)
        known = _known(tokens)
        scores = torch.einsum("hi,bti->bht", asked, tokens.nan_to_num(0.0))
        return F.softmax(scores.masked_fill(~known[:, None], -torch.inf), dim=-1)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, token, dim] -> [batch, dim]."""
        pooled = self.weights(tokens) @ tokens.nan_to_num(0.0)
        values = self.v_proj.weight.unflatten(0, (self.heads, -1))
        return torch.einsum("bhi,hdi->bhd", pooled, values).flatten(1)


def _known(tokens: Tensor) -> Tensor:
    return tokens.isfinite().all(-1)
