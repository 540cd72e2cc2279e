"""Layers that run on CPUs through oneDNN, and putting them into a network.

Not here: the product itself (`stages.onednn`); GPUs and 16-bit floats, which torch does well.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from stages.onednn import convolution_pays, linear_as_convolution


class OneDnnLinear(nn.Linear):
    """`nn.Linear`, same keys; without gradients, on a CPU and in float32 it runs as a convolution."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        if convolution_pays(input):
            return linear_as_convolution(input, self.weight, self.bias)
        return F.linear(input, self.weight, self.bias)


class OneDnnConv1D(Conv1D):
    """GPT-2's `Conv1D` (a linear map with weight [in, out]), likewise."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return linear_as_convolution(x, self.weight.t(), self.bias) if convolution_pays(x) else super().forward(x)


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
