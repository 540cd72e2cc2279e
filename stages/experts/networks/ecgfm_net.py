"""The architecture of ECG-FM (fairseq-signals' wav2vec 2.0 for 12 leads) under its official key names.

Lives here: options, what a state dict says about them, the network. Not here: signals, windows and the published facts
(`models.ecg.ecgfm`). Pretraining-only parts (quantizer, projections, mask token) are held so that a checkpoint loads
strictly; no embedding uses them.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from cache.errors import UsageError
from stages.experts.networks.parts.pooling import token_validity

ConvLayers = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class EcgFmOptions:
    """Architecture options under the official names; the defaults are the published ones."""

    kind: str = "pretrain"
    """"pretrain" (with the quantizer), "classifier" (with `proj`), or "encoder" (neither)."""
    in_d: int = 12
    conv_feature_layers: ConvLayers = ((256, 2, 2),) * 4
    """(width, kernel, stride) of each convolution."""
    extractor_mode: str = "default"
    conv_bias: bool = False
    conv_pos: int = 128
    conv_pos_groups: int = 16
    encoder_layers: int = 12
    encoder_embed_dim: int = 768
    encoder_ffn_embed_dim: int = 3072
    encoder_attention_heads: int = 12
    layer_norm_first: bool = False
    apply_mask: bool = True
    """Whether there is a mask token."""
    quantize_targets: bool = True
    final_dim: int = 256
    latent_vars: int = 320
    latent_groups: int = 2
    latent_dim: int = 0
    num_labels: int = 0


OPTION_NAMES = tuple(field.name for field in fields(EcgFmOptions))
TRAINING_ONLY = (
    *("_name", "activation_dropout", "activation_fn", "all_gather", "args", "attention_dropout"),
    *("checkpoint_activations", "codebook_negatives", "conv_dropout", "cross_sample_negatives", "data", "dropout"),
    *("dropout_features", "dropout_input", "encoder_layerdrop", "feature_grad_mult", "filter", "final_dropout"),
    *("freeze_finetune_updates", "in_channels", "input_size", "label_smoothing", "latent_temp", "layer_type"),
    *("layerdrop", "logit_temp", "mask_channel_before", "mask_channel_length", "mask_channel_min_space"),
    *("mask_channel_other", "mask_channel_prob", "mask_channel_selection", "mask_length", "mask_min_space"),
    *("mask_other", "mask_prob", "mask_selection", "max_positions", "model_path", "n_negatives"),
    *("negatives_from_everywhere", "no_mask_channel_overlap", "no_mask_overlap", "no_pretrained_weights"),
    *("normalize", "num_negatives", "output_size", "quantize_input", "quantizer_depth", "quantizer_factor"),
    *("saliency", "same_quantizer", "sample_rate", "target_glu"),
)
"""Options of fairseq-signals' wav2vec 2.0 models that a frozen network does not depend on."""
SPELLINGS = {
    ".0.weight_g": ".0.parametrizations.weight.original0",
    ".0.weight_v": ".0.parametrizations.weight.original1",
}


def current_spelling(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the position convolution's older weight-norm keys."""
    renamed = {}
    for key, value in state.items():
        old = next((s for s in SPELLINGS if key.endswith(f"conv_pos.pos_conv{s}")), None)
        renamed[key.removesuffix(old) + SPELLINGS[old] if old else key] = value
    return renamed


def parse_conv_layers(text: str | Sequence[Any]) -> ConvLayers:
    """Read convolution layers written as a list, or officially as an expression: `[(256, 2, 2)] * 4`.

    Raises
    ------
    UsageError
        Anything but lists and tuples of integers, joined by + and *.
    """
    try:
        value: Any = _literal(ast.parse(text.strip(), mode="eval").body) if isinstance(text, str) else text
        layers = tuple((int(width), int(kernel), int(stride)) for width, kernel, stride in value)
    except (SyntaxError, TypeError, ValueError) as error:
        raise UsageError(
            f"conv_feature_layers: cannot read {text!r}; write a list of (width, kernel, stride)"
        ) from error
    if not layers or min(min(layer) for layer in layers) < 1:
        raise UsageError(f"conv_feature_layers: {text!r} needs at least one layer of positive sizes")
    return layers


def _literal(node: ast.expr) -> Any:
    """Evaluate literals joined by + and *, and nothing else (a configuration is not code)."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mult):
        left, right = _literal(node.left), _literal(node.right)
        if isinstance(node.op, ast.Add):
            return left + right
        count = right if isinstance(right, int) else left
        if not isinstance(count, int) or count > 100:
            raise ValueError("repetition")
        return left * right
    return ast.literal_eval(node)


def options_from_state(state: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """Read from the shapes of an official state dict every option that they determine.

    Parameters
    ----------
    prefix
        "encoder." for the classifier, whose backbone lies under it; else "".
    """
    shape = {k.removeprefix(prefix): tuple(v.shape) for k, v in state.items() if k.startswith(prefix)}
    found: dict[str, Any] = {"apply_mask": "mask_emb" in shape} if prefix else {}
    found |= _conv_options(shape)
    blocks = {k.split(".")[2] for k in shape if k.startswith("encoder.layers.")}
    if blocks:
        found["encoder_layers"] = len(blocks)
    if fc1 := shape.get("encoder.layers.0.fc1.weight"):
        found |= {"encoder_ffn_embed_dim": fc1[0], "encoder_embed_dim": fc1[1]}
    v = shape.get("conv_pos.pos_conv.0.parametrizations.weight.original1")
    if v:
        found |= {"conv_pos": v[2], "conv_pos_groups": v[0] // v[1]}
    if proj := shape.get("final_proj.weight"):
        found |= {"final_dim": proj[0], "quantize_targets": any(k.startswith("quantizer.") for k in shape)}
    if codes := shape.get("quantizer.vars"):
        latent_dim = shape["project_q.weight"][1] if "project_q.weight" in shape else 0
        groups = max(1, latent_dim // codes[2])
        found |= {"latent_groups": groups, "latent_vars": codes[1] // groups, "latent_dim": latent_dim}
    return found


def _conv_options(shape: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return what the convolutions' shapes say (strides are not among it: a stride equal to the kernel is assumed)."""
    kernels: list[tuple[int, ...]] = []
    while (weight := shape.get(f"feature_extractor.conv_layers.{len(kernels)}.0.weight")) is not None:
        kernels.append(weight)
    if not kernels:
        return {}
    return {
        "in_d": kernels[0][1],
        "conv_feature_layers": tuple((width, size, size) for width, _, size in kernels),
        "conv_bias": "feature_extractor.conv_layers.0.0.bias" in shape,
        "extractor_mode": "layer_norm" if "feature_extractor.conv_layers.0.2.1.weight" in shape else "default",
    }


class Fp32GroupNorm(nn.GroupNorm):
    """Group norm computed in (at least) float32, as the authors' Fp32GroupNorm: one channel's 1,250 squares add up."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [batch, channel, time]."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        y = F.group_norm(x.to(dtype), self.num_groups, self.weight.to(dtype), self.bias.to(dtype), self.eps)
        return y.to(x.dtype)


class ChannelLayerNorm(nn.Sequential):
    """Layer norm over the channels of [batch, channel, time]; its key is `1`, between two official transpositions."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Identity(), nn.LayerNorm(width), nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [batch, channel, time]."""
        return self[1](x.transpose(1, 2)).transpose(1, 2)


class FeatureExtractor(nn.Module):
    """Strided convolutions with GELU: [batch, lead, time] -> [batch, width, token]."""

    def __init__(self, options: EcgFmOptions) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList()
        width_in = options.in_d
        for index, (width, kernel, stride) in enumerate(options.conv_feature_layers):
            parts: list[nn.Module] = [nn.Conv1d(width_in, width, kernel, stride, bias=options.conv_bias), nn.Identity()]
            if options.extractor_mode == "layer_norm":
                parts.append(ChannelLayerNorm(width))
            elif index == 0:
                parts.append(Fp32GroupNorm(width, width))
            self.conv_layers.append(nn.Sequential(*parts, nn.GELU()))
            width_in = width

    def forward(self, x: Tensor) -> Tensor:
        """Apply every layer."""
        for layer in self.conv_layers:
            x = layer(x)
        return x


class SamePad(nn.Module):
    """Drop the surplus last sample that padding by half an even kernel leaves."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.surplus = 1 - kernel % 2

    def forward(self, x: Tensor) -> Tensor:
        """Return as many samples as went in."""
        return x[..., : x.shape[-1] - self.surplus]


class PositionConv(nn.Module):
    """Grouped convolution over tokens, its weight normalised per kernel position: the position embedding."""

    def __init__(self, options: EcgFmOptions) -> None:
        super().__init__()
        width, kernel = options.encoder_embed_dim, options.conv_pos
        conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=options.conv_pos_groups)
        self.pos_conv = nn.Sequential(weight_norm(conv, dim=2), SamePad(kernel), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        """[batch, token, dim] -> the same."""
        return self.pos_conv(x.transpose(1, 2)).transpose(1, 2)


class EcgFmAttention(nn.Module):
    """Multi-head self-attention with four biased projections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, key_mask: Tensor | None) -> Tensor:
        """[batch, token, dim] -> the same; `key_mask` [batch, 1, 1, token] is True where attention may look."""
        q, k, v = (
            p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask)
        return self.out_proj(y.transpose(1, 2).flatten(2))


class EncoderBlock(nn.Module):
    """One transformer block, post-norm (published) or pre-norm."""

    def __init__(self, options: EcgFmOptions) -> None:
        super().__init__()
        width = options.encoder_embed_dim
        self.norm_first = options.layer_norm_first
        self.self_attn = EcgFmAttention(width, options.encoder_attention_heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, options.encoder_ffn_embed_dim)
        self.fc2 = nn.Linear(options.encoder_ffn_embed_dim, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, key_mask: Tensor | None) -> Tensor:
        """[batch, token, dim] -> the same."""
        if self.norm_first:
            x = x + self.self_attn(self.self_attn_layer_norm(x), key_mask)
            return x + self._ffn(self.final_layer_norm(x))
        x = self.self_attn_layer_norm(x + self.self_attn(x, key_mask))
        return self.final_layer_norm(x + self._ffn(x))

    def _ffn(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class EcgFmEncoder(nn.Module):
    """The blocks and their norm, which stands before them (post-norm blocks) or after them (pre-norm)."""

    def __init__(self, options: EcgFmOptions) -> None:
        super().__init__()
        self.norm_first = options.layer_norm_first
        self.layers = nn.ModuleList(EncoderBlock(options) for _ in range(options.encoder_layers))
        self.layer_norm = nn.LayerNorm(options.encoder_embed_dim)

    def forward(self, x: Tensor, valid: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """Return the tokens entering block 1 and each block's output, and the final tokens."""
        if valid is not None:
            x = x * valid.unsqueeze(-1)
        hidden = [x if self.norm_first else self.layer_norm(x)]
        key_mask = None if valid is None else valid[:, None, None, :]
        for block in self.layers:
            hidden.append(block(hidden[-1], key_mask))
        return hidden, self.layer_norm(hidden[-1]) if self.norm_first else hidden[-1]


class Quantizer(nn.Module):
    """The parameters of the pretraining's Gumbel codebook (never run)."""

    def __init__(self, width: int, options: EcgFmOptions, latent_dim: int) -> None:
        super().__init__()
        codes = options.latent_groups * options.latent_vars
        self.vars = nn.Parameter(torch.empty(1, codes, latent_dim // options.latent_groups).uniform_())
        self.weight_proj = nn.Linear(width, codes)


class EcgFmBackbone(nn.Module):
    """ECG-FM from leads to tokens, with the pretraining-only parts where the checkpoint has them."""

    def __init__(self, options: EcgFmOptions) -> None:
        super().__init__()
        width = options.conv_feature_layers[-1][0]
        dim = options.encoder_embed_dim
        self.convolutions = tuple((kernel, stride) for _, kernel, stride in options.conv_feature_layers)
        self.feature_extractor = FeatureExtractor(options)
        self.layer_norm = nn.LayerNorm(width)
        self.post_extract_proj = nn.Linear(width, dim) if width != dim else None
        self.conv_pos = PositionConv(options)
        self.encoder = EcgFmEncoder(options)
        self.mask_emb = nn.Parameter(torch.empty(dim).uniform_()) if options.apply_mask else None
        if options.kind == "pretrain":
            self._add_pretraining(options, width)

    def _add_pretraining(self, options: EcgFmOptions, width: int) -> None:
        final_dim = options.final_dim or options.encoder_embed_dim
        latent_dim = (options.latent_dim or final_dim) if options.quantize_targets else width
        if options.quantize_targets:
            self.quantizer = Quantizer(width, options, latent_dim)
        self.project_q = nn.Linear(latent_dim, final_dim)
        self.final_proj = nn.Linear(options.encoder_embed_dim, final_dim)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """Encode [batch, lead, time].

        Returns
        -------
        The tokens entering block 1 and after each block, the final tokens, and which tokens are valid (None: all).
        """
        tokens = self.positioned(x)
        if valid is not None:
            valid = token_validity(valid, self.convolutions, tokens.shape[1])
        hidden, final = self.encoder(tokens, valid)
        return hidden, final, valid

    def positioned(self, x: Tensor) -> Tensor:
        """[batch, lead, time] -> the tokens that enter the encoder, with their positions, [batch, token, dim]."""
        tokens = self.layer_norm(self.feature_extractor(x).transpose(1, 2))
        if self.post_extract_proj is not None:
            tokens = self.post_extract_proj(tokens)
        return tokens + self.conv_pos(tokens)


class EcgFmClassifier(nn.Module):
    """The finetuned classifier: backbone under `encoder`, linear head `proj` on the pooled tokens."""

    def __init__(self, options: EcgFmOptions) -> None:
        super().__init__()
        self.encoder = EcgFmBackbone(options)
        self.proj = nn.Linear(options.encoder_embed_dim, options.num_labels)


def pool_nonzero(tokens: Tensor) -> Tensor:
    """Sum over tokens divided by the count of non-zero ones, per dimension: the authors' pooling, in >= float32."""
    tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    return tokens.sum(1) / (tokens != 0).sum(1).clamp(min=1)
