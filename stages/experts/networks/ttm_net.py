"""TinyTimeMixer (TTM), the forecaster of granite-tsfm, natively under its official key names.

Not here: its options and what a state dict says of them (`ttm_options`), the expert (`models.time_series.ttm`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.experts.networks.ttm_options import TtmOptions, split_factor

STD_FLOOR = 1e-5
MEAN_FLOOR = 1e-10


@dataclass(frozen=True)
class Shape:
    """What the mixers of one stack see: tokens, width, and the options that matter to them."""

    n_patches: int
    width: int
    num_layers: int
    mode: str
    levels: int
    options: TtmOptions


@dataclass(frozen=True)
class TtmOutput:
    """Hidden states in the official order, each [batch, channel, patch, width]; backbone output; forecast."""

    hidden: list[Tensor]
    backbone: Tensor
    forecast: Tensor
    """[batch, time, channel], on the input's scale."""


class TtmForPrediction(nn.Module):
    """TinyTimeMixerForPrediction (Ekambaram et al. 2024, arXiv 2401.03955)."""

    def __init__(self, options: TtmOptions) -> None:
        super().__init__()
        self.options = options
        self.backbone = nn.ModuleDict({"encoder": TtmEncoder(options)})
        if options.use_decoder:
            self.decoder = Decoder(options)
        width = options.decoder_d_model if options.use_decoder else options.d_model
        forecast = nn.Linear(options.n_patches * width, options.prediction_length)
        self.head = nn.ModuleDict({"base_forecast_block": forecast})

    def forward(self, x: Tensor) -> TtmOutput:
        """Encode and forecast [batch, channel, time], raw, `context_length` samples."""
        scaled, loc, scale = standardise(x.float(), self.options.scaling)
        patches = self.patchify(scaled).to(next(self.parameters()).dtype)
        backbone, hidden = self.backbone["encoder"](patches)
        features = backbone
        if self.options.use_decoder:
            features, more = self.decoder(backbone, patches)
            hidden = hidden + more
        forecast = self.head["base_forecast_block"](features.flatten(-2)).float() * scale + loc
        if self.options.prediction_channel_indices is not None:
            forecast = forecast[:, list(self.options.prediction_channel_indices)]
        return TtmOutput(hidden, backbone, forecast[..., : self.options.output_length].transpose(1, 2))

    def patchify(self, x: Tensor) -> Tensor:
        """[batch, channel, time] -> [batch, channel, patch, patch_length]; a rest at the start is left out."""
        length, stride = self.options.patch_length, self.options.patch_stride
        return x[..., (x.shape[-1] - length) % stride :].unfold(-1, length, stride)


def standardise(x: Tensor, scaling: str | bool | None) -> tuple[Tensor, Tensor, Tensor]:
    """Scale every channel over time, [batch, channel, time]: scaled, location and scale, [batch, channel, 1]."""
    zero = torch.zeros_like(x[..., :1])
    if scaling == "mean":
        scale = x.abs().mean(-1, keepdim=True).clamp(min=MEAN_FLOOR)
        return x / scale, zero, scale
    if scaling == "std" or scaling is True:
        loc = x.mean(-1, keepdim=True)
        scale = ((x - loc).square().mean(-1, keepdim=True) + STD_FLOOR).sqrt()
        return (x - loc) / scale, loc, scale
    return x, zero, zero + 1


class TtmEncoder(nn.Module):
    """Patch embedding and mixers."""

    def __init__(self, options: TtmOptions) -> None:
        super().__init__()
        self.patcher = nn.Linear(options.patch_length, options.d_model)
        if options.use_positional_encoding:
            self.positional_encoder = nn.Module()
            self.positional_encoder.position_enc = nn.Parameter(torch.zeros(options.n_patches, options.d_model))
        shape = Shape(
            options.n_patches,
            options.d_model,
            options.num_layers,
            options.mode,
            options.adaptive_patching_levels,
            options,
        )
        self.mlp_mixer_encoder = Mixers(shape)
        if options.resolution_prefix_tuning:
            middle = (options.patch_length + options.d_model) // 2
            self.freq_mod = nn.Sequential(
                nn.Embedding(options.frequency_token_vocab_size, options.patch_length),
                nn.Linear(options.patch_length, middle),
                nn.GELU(),
                nn.Linear(middle, options.d_model),
            )

    def forward(self, patches: Tensor) -> tuple[Tensor, list[Tensor]]:
        """[batch, channel, patch, patch_length] -> the last hidden state, and all of them.

        The frequency token, where there is one, is the official 0, "out of vocabulary": no table entry means an ECG.
        """
        tokens = self.patcher(patches)
        if hasattr(self, "freq_mod"):
            frequency = self.freq_mod(torch.zeros((), dtype=torch.long, device=tokens.device))
            tokens = torch.cat([frequency.expand(*tokens.shape[:2], 1, -1), tokens], dim=2)
        if hasattr(self, "positional_encoder"):
            tokens = tokens + self.positional_encoder.position_enc
        return self.mlp_mixer_encoder(tokens)


class Decoder(nn.Module):
    """Smaller mixers behind the encoder, over an adapter where their width differs."""

    def __init__(self, options: TtmOptions) -> None:
        super().__init__()
        if options.d_model != options.decoder_d_model:
            self.adapter = nn.Linear(options.d_model, options.decoder_d_model)
        if options.decoder_raw_residual:
            self.decoder_raw_embedding = nn.Linear(options.patch_length, options.decoder_d_model)
        shape = Shape(
            options.n_patches,
            options.decoder_d_model,
            options.decoder_num_layers,
            options.decoder_mode,
            options.decoder_adaptive_patching_levels,
            options,
        )
        self.decoder_block = Mixers(shape)

    def forward(self, hidden: Tensor, patches: Tensor) -> tuple[Tensor, list[Tensor]]:
        """[batch, channel, patch, d_model] -> the decoder's last hidden state, and all of them."""
        states = []
        if hasattr(self, "adapter"):
            hidden = self.adapter(hidden)
            states.append(hidden)
        if hasattr(self, "decoder_raw_embedding"):
            patches = F.pad(patches, (0, 0, hidden.shape[2] - patches.shape[2], 0))
            hidden = hidden + self.decoder_raw_embedding(patches)
            states.append(hidden)
        hidden, more = self.decoder_block(hidden)
        return hidden, states + more


class Mixers(nn.Module):
    """Mixer layers one after the other, or levels of them, the finest patches first."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        if shape.levels > 0:
            levels: list[nn.Module] = [Level(shape, index) for index in reversed(range(shape.levels))]
            self.mixers = nn.ModuleList(levels)
        else:
            self.mixers = nn.ModuleList([MixerLayer(shape) for _ in range(shape.num_layers)])

    def forward(self, hidden: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the last hidden state and, in the official order, all of them."""
        states: list[Tensor] = []
        for mixer in self.mixers:
            produced = mixer(hidden)
            states += produced if isinstance(produced, list) else [produced]
            hidden = states[-1]
        return hidden, states


class Level(nn.Module):
    """Adaptive patching: mixer layers over patches split into 2^level parts of their features."""

    def __init__(self, shape: Shape, level: int) -> None:
        super().__init__()
        self.factor = split_factor(shape.width, level)
        split = replace(shape, n_patches=shape.n_patches * self.factor, width=shape.width // self.factor)
        self.mixer_layers = nn.ModuleList([MixerLayer(split) for _ in range(shape.num_layers)])

    def forward(self, hidden: Tensor) -> list[Tensor]:
        """Return the states: the input, split, behind each layer, joined again."""
        batch, channels, patches, width = hidden.shape
        states = [hidden, hidden.reshape(batch, channels, patches * self.factor, width // self.factor)]
        for layer in self.mixer_layers:
            states.append(layer(states[-1]))
        return [*states, states[-1].reshape(hidden.shape)]


class MixerLayer(nn.Module):
    """Mixing over channels (where chosen), patches (where there are several) and features."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        if shape.n_patches > 1:
            self.patch_mixer = PatchMixer(shape)
        self.feature_mixer = FeatureMixer(shape)
        if shape.mode == "mix_channel":
            self.channel_feature_mixer = ChannelMixer(shape)

    def forward(self, hidden: Tensor) -> Tensor:
        """[batch, channel, patch, width] -> the same shape."""
        if hasattr(self, "channel_feature_mixer"):
            hidden = self.channel_feature_mixer(hidden)
        if hasattr(self, "patch_mixer"):
            hidden = self.patch_mixer(hidden)
        return self.feature_mixer(hidden)


class GatedMlp(nn.Module):
    """Norm, MLP and gate, which the three mixers apply along different axes; the gate weighs by a softmax."""

    def __init__(self, shape: Shape, size: int) -> None:
        super().__init__()
        self.norm = Norm(shape)
        inner = size * shape.options.expansion_factor
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(size, inner), "fc2": nn.Linear(inner, size)})
        if shape.options.gated_attn:
            self.gating_block = nn.ModuleDict({"attn_layer": nn.Linear(size, size)})

    def mix(self, x: Tensor) -> Tensor:
        """Apply the MLP along the last axis."""
        return self.mlp["fc2"](F.gelu(self.mlp["fc1"](x)))

    def gate(self, x: Tensor) -> Tensor:
        """Weigh along the last axis."""
        return x * self.gating_block["attn_layer"](x).softmax(-1) if hasattr(self, "gating_block") else x


class FeatureMixer(GatedMlp):
    """Mixing within a patch."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape, shape.width)

    def forward(self, hidden: Tensor) -> Tensor:
        """[batch, channel, patch, width] -> the same shape."""
        return self.gate(self.mix(self.norm(hidden))) + hidden


class ChannelMixer(GatedMlp):
    """Mixing across channels; the gate stands before the MLP."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape, shape.options.num_input_channels)

    def forward(self, hidden: Tensor) -> Tensor:
        """[batch, channel, patch, width] -> the same shape."""
        return self.mix(self.gate(self.norm(hidden).transpose(1, 3))).transpose(1, 3) + hidden


class PatchMixer(GatedMlp):
    """Mixing across patches, with attention across patches beside it where chosen."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape, shape.n_patches)
        if shape.options.self_attn:
            self.self_attn_layer = TtmAttention(shape.width, shape.options.self_attn_heads)
            self.norm_attn = Norm(shape)

    def forward(self, hidden: Tensor) -> Tensor:
        """[batch, channel, patch, width] -> the same shape."""
        normed = self.norm(hidden)
        mixed = self.gate(self.mix(normed.transpose(2, 3))).transpose(2, 3)
        if hasattr(self, "self_attn_layer"):
            mixed = self.norm_attn(mixed + self.self_attn_layer(normed))
        return mixed + hidden


class TtmAttention(nn.Module):
    """Multi-head attention across the patches of each channel."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            self.add_module(name, nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channel, patch, width] -> the same shape."""
        query, key, value = (
            self.get_submodule(name)(x).unflatten(-1, (self.heads, -1)).transpose(2, 3)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        return self.get_submodule("out_proj")(
            F.scaled_dot_product_attention(query, key, value).transpose(2, 3).flatten(-2)
        )


class Norm(nn.Module):
    """LayerNorm over features, or batch norm over records, channels and patches."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.is_batch_norm = "batch" in shape.options.norm_mlp.lower()
        if self.is_batch_norm:
            self.norm: nn.Module = nn.Module()
            self.norm.batchnorm = nn.BatchNorm1d(shape.width, eps=shape.options.norm_eps)
        else:
            self.norm = nn.LayerNorm(shape.width, eps=shape.options.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channel, patch, width] -> the same shape."""
        if self.is_batch_norm:
            return self.norm.get_submodule("batchnorm")(x.reshape(-1, x.shape[-1])).view(x.shape)
        return self.norm(x)
