"""Products of tall matrices of features with narrow ones, at the rate that the machine has.

Lives here: x W, R' x and x' x of a block of records. Not here: what they are for (`blockwise.loss_pass`), and why a CPU
multiplies by convolution (`stages.onednn`).
"""

from __future__ import annotations

from torch import Tensor

from stages.onednn import convolution_pays, linear_as_convolution

PIECE_ROWS = 1024
"""Rows of which R' x is taken at a time: what a core's second cache holds."""


def linear(x: Tensor, w: Tensor) -> Tensor:
    """Multiply [b, d] by [d, k]: [b, k]. Without gradients."""
    return linear_as_convolution(x, w.t().contiguous()) if convolution_pays(x) else x @ w


def add_transposed_(out: Tensor, r: Tensor, x: Tensor) -> None:
    """Add R' x to `out` [k, d], of R [b, k] and x [b, d]."""
    for start in range(0, len(x), PIECE_ROWS):
        part = slice(start, start + PIECE_ROWS)
        out.addmm_(r[part].t(), x[part])


def gram(x: Tensor) -> Tensor:
    """Return x' x, [d, d], of [b, d]."""
    columns = x.t().contiguous()
    return linear(columns, columns.t())
