"""Two networks of ECG-FM's encoder that were trained against text: D-BETA's and MELP's, under the official key names.

Lives here: what stands around the encoder, their options, what a state dict says about them. Not here: the encoder
(`ecgfm_net`), signals and the published facts (`models.ecg.dbeta`, `models.ecg.melp`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from cache.errors import UsageError, WeightsError
from stages.experts.networks.ecgfm_net import (
    TRAINING_ONLY,
    EcgFmBackbone,
    EcgFmOptions,
    current_spelling,
    options_from_state,
    parse_conv_layers,
)
from stages.experts.options import architecture_overrides

ENCODER = "ecg_encoder."


@dataclass(frozen=True)
class DBetaOptions(EcgFmOptions):
    """Options of D-BETA's ECG side; the defaults are the published ones."""

    kind: str = "encoder"
    encoder_layers: int = 8
    apply_mask: bool = False
    hidden_dim: int = 768
    """Width of what ECG and text have in common."""


@dataclass(frozen=True)
class MelpOptions(EcgFmOptions):
    """Options of MELP's ECG side; the defaults are the published ones."""

    kind: str = "encoder"
    encoder_layers: int = 8
    apply_mask: bool = False
    shared_emb_dim: int = 256
    embed_dim_caption: int = 768
    n_queries_contrast: int = 13
    n_queries_caption: int = 128
    attn_pooler_heads: int = 8


AnyOptions = TypeVar("AnyOptions", DBetaOptions, MelpOptions)


class TextStates(NamedTuple):
    """What the networks give: the tokens entering the first block and after each, and the pooled vectors.

    Attributes
    ----------
    hidden
        [batch, token, dim] each, tokens of the ECG alone.
    pooled
        The vector of the authors' linear probe, [batch, dim].
    text_aligned
        The one that is compared with a text's, [batch, dim]; None where that is the pooled one.
    """

    hidden: list[Tensor]
    pooled: Tensor
    text_aligned: Tensor | None = None


class Pooler(nn.Module):
    """A linear map and a hyperbolic tangent."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, width] -> the same."""
        return torch.tanh(self.dense(x))


class DBeta(nn.Module):
    """ECG-FM's encoder with a class token, which enters behind the positions and is projected and pooled."""

    def __init__(self, options: DBetaOptions) -> None:
        super().__init__()
        self.options = options
        width = options.encoder_embed_dim
        self.ecg_encoder = EcgFmBackbone(options)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.multi_modal_ecg_proj = nn.Linear(width, options.hidden_dim)
        self.unimodal_ecg_pooler = Pooler(options.hidden_dim)

    def forward(self, x: Tensor) -> TextStates:
        """Encode [batch, lead, time]."""
        tokens = self.ecg_encoder.positioned(x)
        first = self.class_embedding.expand(len(tokens), 1, -1)
        hidden, final = self.ecg_encoder.encoder(torch.cat([first, tokens], dim=1), None)
        # One record at a time: the last bits of a product of few rows depend on the row.
        pooled = [self.unimodal_ecg_pooler(self.multi_modal_ecg_proj(cls)) for cls in final[:, 0].split(1)]
        return TextStates([each[:, 1:] for each in hidden], torch.cat(pooled))


class AttentionalPooler(nn.Module):
    """Learned queries that attend over tokens, both behind a norm."""

    def __init__(self, width: int, width_in: int, heads: int, n_queries: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(n_queries, width))
        self.attn = nn.MultiheadAttention(width, heads, kdim=width_in, vdim=width_in, batch_first=True)
        self.ln_q, self.ln_k = nn.LayerNorm(width), nn.LayerNorm(width_in)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, token, width_in] -> [batch, query, width]; record by record, as above."""
        query = self.ln_q(self.query)[None]
        keys = self.ln_k(tokens).split(1)
        return torch.cat([self.attn(query, key, key, need_weights=False)[0] for key in keys])


class Melp(nn.Module):
    """ECG-FM's encoder with a pooler for the contrast against text and one for captions."""

    def __init__(self, options: MelpOptions) -> None:
        super().__init__()
        self.options = options
        width, shared, caption = options.encoder_embed_dim, options.shared_emb_dim, options.embed_dim_caption
        heads = options.attn_pooler_heads
        self.ecg_encoder = EcgFmBackbone(options)
        self.attn_pool_contrast = AttentionalPooler(shared, width, heads, options.n_queries_contrast)
        self.ln_contrast = nn.LayerNorm(shared)
        self.proj_contrast = nn.Parameter(torch.randn(shared, shared) / shared**0.5)
        self.attn_pool_caption = AttentionalPooler(caption, width, heads, options.n_queries_caption)
        self.ln_caption = nn.LayerNorm(caption)

    def forward(self, x: Tensor) -> TextStates:
        """Encode [batch, lead, time]."""
        hidden, final, _ = self.ecg_encoder(x)
        by_query = self.ln_contrast(self.attn_pool_contrast(final))
        projected = torch.cat([each @ self.proj_contrast for each in by_query.split(1)])
        return TextStates(hidden, by_query.mean(1), projected.mean(1))

    def caption_tokens(self, x: Tensor) -> Tensor:
        """Return what the text decoder is given, [batch, query, embed_dim_caption]."""
        return self.ln_caption(self.attn_pool_caption(self.ecg_encoder(x)[1]))


def encoder_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Strip what all of the ECG side has in common, and spell the position convolution as torch does now."""
    if any(key.startswith(ENCODER * 2) for key in state):
        state = {key.removeprefix(ENCODER): value for key, value in state.items()}
    return current_spelling(state)


def text_options(
    expert: str,
    published: AnyOptions,
    config: Mapping[str, Any] | None,
    state: Mapping[str, Tensor] | None,
    training_only: Iterable[str] = (),
) -> AnyOptions:
    """Merge the published options, then what the weights' shapes say, then the overrides.

    Raises
    ------
    UsageError
        An unknown option, or heads that do not divide a width.
    WeightsError
        Weights of another width than the published ones, without a config that says how many heads there are.
    """
    names = [field.name for field in dataclasses.fields(published)]
    given = dict(config or {})
    given |= given.pop("model", None) or {}  # where the authors' config.json has them
    overrides = architecture_overrides(expert, given, names, (*TRAINING_ONLY, *training_only))
    if "conv_feature_layers" in overrides:
        overrides["conv_feature_layers"] = parse_conv_layers(overrides["conv_feature_layers"])
    found: dict[str, Any] = {}
    if state is not None:
        found = options_from_state(state, ENCODER) | _pooler_options(state)
        other = found.get("encoder_embed_dim", published.encoder_embed_dim) != published.encoder_embed_dim
        if other and "encoder_attention_heads" not in overrides:
            raise WeightsError(
                f"expert '{expert}': the weights are not of the published size and do not say encoder_attention_heads; "
                "give the config"
            )
    found = {name: value for name, value in found.items() if name in names}
    fixed = {"kind": "encoder", "apply_mask": False}  # what pretraining alone uses is passed over
    options = dataclasses.replace(published, **found | overrides | fixed)
    if options.encoder_embed_dim % options.encoder_attention_heads:
        raise UsageError(
            f"expert '{expert}': encoder_embed_dim {options.encoder_embed_dim} is no multiple of "
            f"encoder_attention_heads {options.encoder_attention_heads}; correct the config"
        )
    return options


def _pooler_options(state: Mapping[str, Tensor]) -> dict[str, int]:
    found: dict[str, int] = {}
    if "multi_modal_ecg_proj.weight" in state:
        found["hidden_dim"] = len(state["multi_modal_ecg_proj.weight"])
    for name, width in (("contrast", "shared_emb_dim"), ("caption", "embed_dim_caption")):
        if f"attn_pool_{name}.query" in state:
            found[f"n_queries_{name}"], found[width] = state[f"attn_pool_{name}.query"].shape
    return found
