"""Products of tall matrices of features with narrow ones, at the rate that the machine has.

Lives here: x W, R' x and x' x of a block of records. Not here: what they are for (`blockwise.loss_pass`).

On a CPU, torch's float32 products end in the BLAS it is linked to, which multiplies a block of features with some
tens of columns at a tenth of what the core can do (MKL on AMD). Its 1 x 1 convolutions go to oneDNN: features, channels
last, are an image without copying, and a dilation, which changes nothing in a 1 x 1 kernel, keeps torch from choosing
its own convolution, which ends in the same BLAS. Results differ in the order of summation alone (about 1e-6).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FEWEST_ROWS = 64
"""Below this, rearranging costs more than is won."""
PIECE_ROWS = 1024
"""Rows of which R' x is taken at a time: what a core's second cache holds."""


def linear(x: Tensor, w: Tensor) -> Tensor:
    """Multiply [b, d] by [d, k]: [b, k]. Without gradients."""
    if not _pays(x):
        return x @ w
    image = x.reshape(1, -1, 1, x.shape[1]).permute(0, 3, 1, 2)
    mapped = F.conv2d(image, w.t().contiguous()[:, :, None, None], dilation=2)
    return mapped.permute(0, 2, 3, 1).reshape(len(x), w.shape[1])


def add_transposed_(out: Tensor, r: Tensor, x: Tensor) -> None:
    """Add R' x to `out` [k, d], of R [b, k] and x [b, d]."""
    for start in range(0, len(x), PIECE_ROWS):
        part = slice(start, start + PIECE_ROWS)
        out.addmm_(r[part].t(), x[part])


def gram(x: Tensor) -> Tensor:
    """Return x' x, [d, d], of [b, d]."""
    columns = x.t().contiguous()
    return linear(columns, columns.t())


def _pays(x: Tensor) -> bool:
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
    return on_cpu and len(x) >= FEWEST_ROWS and not torch.is_grad_enabled() and torch.backends.mkldnn.is_available()
