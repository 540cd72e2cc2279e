"""TinyTimeMixer's options under the official names, and what the keys and shapes of a state dict say of them.

Not here: the network (`networks.ttm_net`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

SMALLEST_SPLIT = 4
"""Adaptive patching is switched off at a level whose patches would be this narrow or narrower."""


@dataclass(frozen=True)
class TtmOptions:
    """Architecture under the official names (tsfm_public TinyTimeMixerConfig), with the values of ttm-r2."""

    context_length: int = 512
    patch_length: int = 64
    patch_stride: int = 64
    num_input_channels: int = 1
    prediction_length: int = 96
    d_model: int = 192
    num_layers: int = 2
    expansion_factor: int = 2
    mode: str = "common_channel"
    gated_attn: bool = True
    norm_mlp: str = "LayerNorm"
    norm_eps: float = 1e-5
    self_attn: bool = False
    self_attn_heads: int = 1
    use_positional_encoding: bool = False
    scaling: str | bool | None = "std"
    adaptive_patching_levels: int = 3
    resolution_prefix_tuning: bool = False
    frequency_token_vocab_size: int = 5
    use_decoder: bool = True
    decoder_num_layers: int = 2
    decoder_d_model: int = 128
    decoder_adaptive_patching_levels: int = 0
    decoder_raw_residual: bool = False
    decoder_mode: str = "common_channel"
    prediction_channel_indices: tuple[int, ...] | None = None
    prediction_filter_length: int | None = None

    @property
    def n_patches(self) -> int:
        """Tokens of one channel, the frequency token included."""
        n = (max(self.context_length, self.patch_length) - self.patch_length) // self.patch_stride + 1
        return n + self.resolution_prefix_tuning

    @property
    def mixes_channels(self) -> bool:
        """Whether the number of channels is fixed by the weights."""
        return "mix_channel" in (self.mode, self.decoder_mode if self.use_decoder else "")

    @property
    def output_length(self) -> int:
        """Time steps of the forecast."""
        return self.prediction_filter_length or self.prediction_length


def hidden_widths(options: TtmOptions) -> list[int]:
    """Return the width of each hidden state, in the official order."""
    widths = _stack_widths(options.d_model, options.num_layers, options.adaptive_patching_levels)
    if options.use_decoder:
        width = options.decoder_d_model
        widths += [width] * ((options.d_model != width) + options.decoder_raw_residual)
        widths += _stack_widths(width, options.decoder_num_layers, options.decoder_adaptive_patching_levels)
    return widths


def _stack_widths(width: int, n_layers: int, levels: int) -> list[int]:
    if levels <= 0:
        return [width] * n_layers
    split = [width // split_factor(width, level) for level in reversed(range(levels))]
    return [each for narrow in split for each in (width, *[narrow] * (n_layers + 1), width)]


def split_factor(width: int, level: int) -> int:
    """Into how many parts adaptive patching splits a patch at a level."""
    return 2**level if width // 2**level > SMALLEST_SPLIT else 1


def options_from_state(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read off the keys and shapes what a state dict says; it tells neither stride nor attention heads nor scaling."""
    mixers = "backbone.encoder.mlp_mixer_encoder.mixers."
    decoder = "decoder.decoder_block.mixers."
    if "backbone.encoder.patcher.weight" not in state or "head.base_forecast_block.weight" not in state:
        return {}
    d_model, patch_length = state["backbone.encoder.patcher.weight"].shape
    prediction_length, flat = state["head.base_forecast_block.weight"].shape
    found = _stack(state, mixers, "adaptive_patching_levels", "num_layers", "mode")
    found |= {"d_model": d_model, "patch_length": patch_length, "patch_stride": patch_length}
    found |= {"prediction_length": prediction_length, "use_decoder": any(k.startswith(decoder) for k in state)}
    found |= {
        "gated_attn": any(".gating_block." in k for k in state),
        "norm_mlp": "BatchNorm" if any(".norm.norm.batchnorm." in k for k in state) else "LayerNorm",
        "self_attn": any(".self_attn_layer." in k for k in state),
        "use_positional_encoding": "backbone.encoder.positional_encoder.position_enc" in state,
        "resolution_prefix_tuning": "backbone.encoder.freq_mod.0.weight" in state,
    }
    width = d_model
    if found["use_decoder"]:
        names = ("decoder_adaptive_patching_levels", "decoder_num_layers", "decoder_mode")
        found |= _stack(state, decoder, *names)
        width = state["decoder.adapter.weight"].shape[0] if "decoder.adapter.weight" in state else d_model
        found |= {"decoder_d_model": width, "decoder_raw_residual": "decoder.decoder_raw_embedding.weight" in state}
    if found["resolution_prefix_tuning"]:
        found["frequency_token_vocab_size"] = state["backbone.encoder.freq_mod.0.weight"].shape[0]
    found["context_length"] = (flat // width - found["resolution_prefix_tuning"]) * patch_length
    for key, value in state.items():
        if key.endswith("channel_feature_mixer.mlp.fc2.bias"):
            found["num_input_channels"] = value.shape[0]
        elif key.endswith("feature_mixer.mlp.fc1.weight"):
            found["expansion_factor"] = value.shape[0] // value.shape[1]
    return found


def _stack(state: Mapping[str, Tensor], prefix: str, levels: str, layers: str, mode: str) -> dict[str, Any]:
    """Read the levels, layers and mode of one stack of mixers, under the given option names."""
    paths = [key.removeprefix(prefix).split(".") for key in state if key.startswith(prefix)]
    n_outer = 1 + max((int(path[0]) for path in paths), default=-1)
    is_split = any(path[1] == "mixer_layers" for path in paths)
    n_inner = 1 + max((int(path[2]) for path in paths), default=-1) if is_split else n_outer
    mixes = any("channel_feature_mixer" in path for path in paths)
    return {
        levels: n_outer if is_split else 0,
        layers: n_inner,
        mode: "mix_channel" if mixes else "common_channel",
    }


OPTION_NAMES = tuple(f.name for f in dataclasses.fields(TtmOptions))
