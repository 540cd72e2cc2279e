"""Layers that run on CPUs through oneDNN, and putting them into a network.

Not here: the product itself (`stages.onednn`); GPUs and 16-bit floats, which torch does well.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.onednn import convolution_pays, linear_as_convolution


class OneDnnLinear(nn.Linear):
    """`nn.Linear`, same keys; without gradients, on a CPU and in float32 it runs as a convolution."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        if convolution_pays(input):
            return linear_as_convolution(input, self.weight, self.bias)
        return F.linear(input, self.weight, self.bias)


def use_onednn(module: nn.Module) -> None:
    """Put a network's linear maps and 1 x 1 convolutions on oneDNN; parameters and keys stay what they are."""
    if not torch.backends.mkldnn.is_available():
        return
    if "transformers.pytorch_utils" in sys.modules:  # a network that holds a Conv1D has imported it; seconds otherwise
        from stages.experts.networks.parts.onednn_gpt2 import use_in_gpt2

        use_in_gpt2(module)
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = OneDnnLinear
        elif type(layer) is nn.Conv1d and layer.kernel_size == (1,):
            layer.dilation = (2,)
