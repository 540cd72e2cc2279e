"""HuBERT-ECG's network: transformers' HuBERT parts under the official key names.

Lives here: options, what a state dict says about them, the network. Not here: signals and the published facts
(`models.ecg.hubert`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import HubertConfig
from transformers.models.hubert.modeling_hubert import (
    HubertEncoder,
    HubertEncoderStableLayerNorm,
    HubertFeatureEncoder,
    HubertFeatureProjection,
)

from stages.experts.networks.parts.pooling import token_validity

OPTION_NAMES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "layer_norm_eps",
    "feat_extract_norm",
    "feat_extract_activation",
    "feat_proj_layer_norm",
    "num_feat_extract_layers",
    "conv_dim",
    "conv_kernel",
    "conv_stride",
    "conv_bias",
    "num_conv_pos_embeddings",
    "num_conv_pos_embedding_groups",
    "conv_pos_batch_norm",
    "do_stable_layer_norm",
    "mask_time_prob",
    "mask_feature_prob",
    "classifier_proj_size",
    "ensemble_length",
    "vocab_sizes",
)
PUBLISHED_STRIDES = {
    (10, 3, 3, 2, 2): (4, 2, 2, 2, 2),
    (10, 3, 3, 2): (4, 2, 2, 2),
    (10, 3, 3, 3, 3, 2, 2): (5, 2, 2, 2, 2, 2, 2),
}
"""The convolutions that the authors' pretraining script offers, for 100, 50 and 500 Hz."""
POSITION_V = "encoder.pos_conv_embed.conv.parametrizations.weight.original1"


def options_from_state(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read every option that the shapes of an official state dict determine."""
    shape = {k: tuple(v.shape) for k, v in state.items()}
    found = _conv_options(shape)
    blocks = {k.split(".")[2] for k in shape if k.startswith("encoder.layers.")}
    if blocks:
        found["num_hidden_layers"] = len(blocks)
    if dense := shape.get("encoder.layers.0.feed_forward.intermediate_dense.weight"):
        found |= {"intermediate_size": dense[0], "hidden_size": dense[1]}
    if v := shape.get(POSITION_V):
        found |= {"num_conv_pos_embeddings": v[2], "num_conv_pos_embedding_groups": v[0] // v[1]}
    codebooks = [v for k, v in sorted(shape.items()) if k.startswith("label_embedding.")]
    heads = [v for k, v in shape.items() if k.startswith("final_proj.") and k.endswith(".weight")]
    found |= {"ensemble_length": len(heads), "vocab_sizes": tuple(v[0] for v in codebooks)}
    if heads:
        found["classifier_proj_size"] = heads[0][0]
    found["mask_time_prob"] = 1.0 if "masked_spec_embed" in shape else 0.0
    found["feat_proj_layer_norm"] = "feature_projection.layer_norm.weight" in shape
    found["conv_pos_batch_norm"] = "encoder.pos_conv_embed.batch_norm.weight" in shape
    return found


def _conv_options(shape: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    kernels: list[tuple[int, ...]] = []
    while (weight := shape.get(f"feature_extractor.conv_layers.{len(kernels)}.conv.weight")) is not None:
        kernels.append(weight)
    if not kernels:
        return {}
    sizes = tuple(kernel[2] for kernel in kernels)
    found = {"conv_stride": PUBLISHED_STRIDES[sizes]} if sizes in PUBLISHED_STRIDES else {}
    return found | {
        "num_feat_extract_layers": len(kernels),
        "conv_dim": tuple(kernel[0] for kernel in kernels),
        "conv_kernel": sizes,
        "conv_bias": "feature_extractor.conv_layers.0.conv.bias" in shape,
        "feat_extract_norm": "layer" if "feature_extractor.conv_layers.1.layer_norm.weight" in shape else "group",
    }


class HubertEcg(nn.Module):
    """Convolutions over the flattened leads, position convolution, transformer; the codebook heads are never run."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__()
        of_hubert_ecg = ("classifier_proj_size", "ensemble_length", "vocab_sizes")
        config = HubertConfig(**{k: v for k, v in options.items() if k not in of_hubert_ecg})
        config._attn_implementation = "sdpa"  # noqa: SLF001
        self.convolutions = tuple(zip(config.conv_kernel, config.conv_stride, strict=True))
        self.norm_last = config.do_stable_layer_norm
        self.feature_extractor = HubertFeatureEncoder(config)
        self.feature_projection = HubertFeatureProjection(config)
        self.encoder = (HubertEncoderStableLayerNorm if self.norm_last else HubertEncoder)(config)
        masking = config.mask_time_prob > 0 or config.mask_feature_prob > 0
        self.masked_spec_embed = nn.Parameter(torch.empty(config.hidden_size).uniform_()) if masking else None
        width = options["classifier_proj_size"]
        self.final_proj = nn.ModuleList(nn.Linear(config.hidden_size, width) for _ in range(options["ensemble_length"]))
        self.label_embedding = nn.ModuleList(nn.Embedding(size, width) for size in options["vocab_sizes"])

    def forward(self, x: Tensor, valid: Tensor | None = None) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """Encode [batch, sample].

        Returns
        -------
        The tokens entering block 1 and after each block, the final tokens, and which tokens are valid (None: all).
        """
        tokens = self.feature_projection(self.feature_extractor(x).transpose(1, 2))
        if valid is not None:
            valid = token_validity(valid, self.convolutions, tokens.shape[1])
            tokens = tokens * valid.unsqueeze(-1)
        tokens = tokens + self.encoder.pos_conv_embed(tokens)
        hidden = [tokens if self.norm_last else self.encoder.layer_norm(tokens)]
        key_mask = None if valid is None else valid[:, None, None, :]
        for block in self.encoder.layers:
            hidden.append(block(hidden[-1], attention_mask=key_mask))
        return hidden, self.encoder.layer_norm(hidden[-1]) if self.norm_last else hidden[-1], valid
