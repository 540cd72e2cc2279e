"""Linear maps on CPUs through oneDNN, which multiplies float32 up to twice as fast as torch's BLAS (MKL on AMD).

Lives here: the layers and putting them into a network. Not here: GPUs and 16-bit floats, which torch does well.

torch has no public switch for this, but its convolutions go to oneDNN: a linear map is a 1 x 1 convolution over tokens
stored channels last, which needs no copy. A dilation changes nothing in a 1 x 1 kernel; it keeps torch from choosing
its own convolution, which ends in the same BLAS. Results differ in the order of summation alone (about 1e-6).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

FEWEST_ROWS = 64
"""Below this, rearranging the weights costs more than is won."""


class OneDnnLinear(nn.Linear):
    """`nn.Linear`, same keys; without gradients, on a CPU and in float32 it runs as a convolution."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        if _pays(input):
            return _as_convolution(input, self.weight, self.bias)
        return F.linear(input, self.weight, self.bias)


class OneDnnConv1D(Conv1D):
    """GPT-2's `Conv1D` (a linear map with weight [in, out]), likewise."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return _as_convolution(x, self.weight.t(), self.bias) if _pays(x) else super().forward(x)


def use_onednn(module: nn.Module) -> None:
    """Put a network's linear maps and 1 x 1 convolutions on oneDNN; parameters and keys stay what they are."""
    if not torch.backends.mkldnn.is_available():
        return
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = OneDnnLinear
        elif type(layer) is Conv1D:
            layer.__class__ = OneDnnConv1D
            layer.weight.data = layer.weight.data.t().contiguous().t()  # the layout oneDNN wants, the same numbers
        elif type(layer) is nn.Conv1d and layer.kernel_size == (1,):
            layer.dilation = (2,)


def _pays(x: Tensor) -> bool:
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
    return on_cpu and not torch.is_grad_enabled() and x.numel() >= FEWEST_ROWS * x.shape[-1]


def _as_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    image = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
    mapped = F.conv2d(image, weight[:, :, None, None], bias, dilation=2)
    return mapped.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))
