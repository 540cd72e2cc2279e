"""GPT-2's linear maps on CPUs through oneDNN; apart from `onednn`, because importing transformers takes seconds."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from stages.onednn import convolution_pays, linear_as_convolution


class OneDnnConv1D(Conv1D):
    """GPT-2's `Conv1D` (a linear map with weight [in, out]); on a CPU in float32 it runs as a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return linear_as_convolution(x, self.weight.t(), self.bias) if convolution_pays(x) else super().forward(x)


def use_in_gpt2(module: nn.Module) -> None:
    """Put a network's `Conv1D` layers on oneDNN; parameters and keys stay what they are."""
    for layer in module.modules():
        if type(layer) is Conv1D:
            layer.__class__ = OneDnnConv1D
            layer.weight.data = layer.weight.data.t().contiguous().t()  # the layout oneDNN wants, the same numbers
