"""The openecg codec: convolutions and a transformer over 20 ms of one lead, with heads for every sample.

Lives here: the network under the official key names. Not here: signals, published facts (`models.ecg.openecg`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POSITIONS = 512
REFINING_KERNEL = 5


@dataclass(frozen=True)
class OpenEcgOptions:
    """Architecture under the official names (openecg 0.11.0, `model_config`), with the values of the codecs."""

    patch_size: int = 10
    d_model: int = 128
    n_heads: int = 4
    n_layers: int = 8
    """Convolutions and transformer layers together."""
    mid_split: int = 4
    """Convolutions."""
    ff: int = 256
    lower_kernel: int = 7
    n_classes: int = 4
    beat_n_classes: int = 6
    rhythm_n_classes: int = 6

    @property
    def n_outputs(self) -> int:
        """Classes of the three heads together."""
        return self.n_classes + self.beat_n_classes + self.rhythm_n_classes


class OpenEcgStates(NamedTuple):
    """What the network gives for [batch, time].

    Attributes
    ----------
    layers
        [batch, token, width] before the first convolution, and after each convolution and transformer layer.
    logits
        Of frame, beat and rhythm for every sample, [batch, time, classes] each.
    """

    layers: list[Tensor]
    logits: tuple[Tensor, Tensor, Tensor]


class OpenEcgCodec(nn.Module):
    """The codec of openecg (vitaldb/openecg; arch `vit_transformer_sample_res_convtok_mh_1ch`)."""

    pos_enc: Tensor

    def __init__(self, options: OpenEcgOptions) -> None:
        super().__init__()
        self.options = options
        width, patch = options.d_model, options.patch_size
        self.register_buffer("pos_enc", torch.zeros(1, POSITIONS, width))
        self.conv_tok = nn.Conv1d(1, width, 2 * patch, stride=patch, padding=patch // 2)
        padding = options.lower_kernel // 2
        self.lower_convs = nn.ModuleList(
            nn.Conv1d(width, width, options.lower_kernel, padding=padding) for _ in range(options.mid_split)
        )
        self.lower_norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(options.mid_split))
        self.upper_transformer = nn.Module()
        self.upper_transformer.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, options.n_heads, options.ff, 0.0, F.gelu, batch_first=True, norm_first=True
            )
            for _ in range(options.n_layers - options.mid_split)
        )
        self.refine = nn.Sequential(
            nn.Conv1d(width, width, REFINING_KERNEL, padding=REFINING_KERNEL // 2),
            nn.GELU(),
            nn.Conv1d(width, width, REFINING_KERNEL, padding=REFINING_KERNEL // 2),
        )
        self.head_sample = nn.Linear(width, options.n_classes)
        self.beat_sample = nn.Linear(width, options.beat_n_classes)
        self.rhythm_sample = nn.Linear(width, options.rhythm_n_classes)

    def forward(self, x: Tensor) -> OpenEcgStates:
        """Encode [batch, time]; time is a multiple of the patch size, at most 512 patches."""
        tokens = self.conv_tok(x.unsqueeze(1)).transpose(1, 2)
        hidden = tokens + self.pos_enc[:, : tokens.shape[1]]
        layers = [hidden]
        for conv, norm in zip(self.lower_convs, self.lower_norms, strict=True):
            hidden = norm(F.gelu(conv(hidden.transpose(1, 2)).transpose(1, 2)) + hidden)
            layers.append(hidden)
        for layer in self.upper_transformer.layers:  # type: ignore[union-attr]
            hidden = layer(hidden)
            layers.append(hidden)
        samples = F.interpolate(hidden.transpose(1, 2), scale_factor=float(self.options.patch_size), mode="nearest")
        samples = (samples + self.refine(samples)).transpose(1, 2)
        return OpenEcgStates(
            layers, (self.head_sample(samples), self.beat_sample(samples), self.rhythm_sample(samples))
        )


def options_from_state(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what keys and shapes of a state dict say of the options; the number of heads is not among it."""
    found: dict[str, Any] = {}
    if (tokenizer := state.get("conv_tok.weight")) is not None:
        found |= {"d_model": tokenizer.shape[0], "patch_size": tokenizer.shape[2] // 2}
    n_convolutions = sum(key.startswith("lower_norms.") and key.endswith(".weight") for key in state)
    n_upper = sum(key.startswith("upper_transformer.") and key.endswith(".norm1.weight") for key in state)
    if n_convolutions and n_upper:
        found |= {"mid_split": n_convolutions, "n_layers": n_convolutions + n_upper}
        found["lower_kernel"] = state["lower_convs.0.weight"].shape[2]
        found["ff"] = state["upper_transformer.layers.0.linear1.weight"].shape[0]
    for name, key in (("n_classes", "head_sample"), ("beat_n_classes", "beat_sample")):
        if f"{key}.bias" in state:
            found[name] = len(state[f"{key}.bias"])
    if "rhythm_sample.bias" in state:
        found["rhythm_n_classes"] = len(state["rhythm_sample.bias"])
    return found
