"""Linear maps on CPUs through oneDNN, which multiplies float32 up to twice as fast as torch's BLAS (MKL on AMD).

torch has no public switch for this, but its convolutions go to oneDNN: a linear map is a 1 x 1 convolution over rows
stored channels last, which needs no copy. A dilation changes nothing in a 1 x 1 kernel; it keeps torch from choosing
its own convolution, which ends in the same BLAS. Results differ in the order of summation alone (about 1e-6).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FEWEST_ROWS = 64
"""Below this, rearranging the weights costs more than is won."""


def convolution_pays(x: Tensor) -> bool:
    """Whether a linear map of [..., d] is faster as a convolution: float32, on a CPU, without gradients, many rows."""
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
    enough_rows = x.numel() >= FEWEST_ROWS * x.shape[-1]
    return on_cpu and enough_rows and not torch.is_grad_enabled() and torch.backends.mkldnn.is_available()


def linear_as_convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Map [..., d] by `weight` [k, d] to [..., k]."""
    image = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
    mapped = F.conv2d(image, weight[:, :, None, None], bias, dilation=2)
    return mapped.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))
