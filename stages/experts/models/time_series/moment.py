"""MOMENT: a T5 encoder over patches of each lead, small, base and large.

Lives here: the network around transformers' T5 encoder, the published facts, `prepare`, `encode`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cache.errors import InputError, UsageError, WeightsError
from stages.experts.checkpoints import load_strict
from stages.experts.chunks import encode_in_chunks, windows_in_cache
from stages.experts.contract import STANDARD_LEADS, Encoding, Expert, ExpertSpec, WeightsSource
from stages.experts.networks.parts.positions import SinePositions
from stages.experts.options import HUGGING_FACE, architecture_overrides
from stages.experts.registry import register
from stages.experts.signals import dsp as _dsp
from stages.experts.token_times import TokenTimes

WINDOW_SECONDS = 10.0
ENECG_SAMPLES = 5000
BEAT_RATE_HZ = 250.0
REVIN_EPS = 1e-5
# Heads of other tasks (classification, forecasting) and a backbone saved as an encoder-decoder.
UNUSED_KEYS = (r"head\.", r"decoder\.", r"(encoder\.)?shared\.")
TRAINING_ONLY = (
    *("task_name", "task", "model_name", "device", "model_kwargs", "patch_dropout", "head_dropout", "dropout"),
    *("transformer_backbone", "freeze_embedder", "freeze_encoder", "freeze_head", "enable_gradient_checkpointing"),
    *("orth_gain", "set_input_mask", "n_channels", "num_class", "forecast_horizon", "reduction", "debug", "mask_ratio"),
    *("randomly_initialize_backbone", "getattr"),
)
T5_UNUSED = (
    "classifier_dropout",
    "dense_act_fn",
    "dropout_rate",
    "initializer_factor",
    "is_gated_act",
    "num_decoder_layers",
)
"""Options of T5's training, and of its decoder, which is never built."""

_FLAN_T5 = {
    "small": {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6},
    "base": {"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
    "large": {"d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_layers": 24, "num_heads": 16},
    "xl": {"d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32},
    "xxl": {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64},
}
_FLAN_T5_COMMON = {
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "tie_word_embeddings": False,
}
# With the reconstruction head; the first number counts token embeddings that nothing uses (vocabulary x width).
_PUBLISHED_PARAMETERS = {"small": 35_341_512, "base": 109_641_608, "large": 341_248_520}
_PINS = {  # commit of AutonLab/MOMENT-1-SIZE and sha256 of its model.safetensors
    "small": (
        "411e288267f82cce86296dbe4d6c8bc533cc162f",
        "785e6c6f57ffa7cac7e2a1fff6369618d49f2f441563ddea76c866231e5aa877",
    ),
    "base": (
        "5e44b0ea26376a176360f87831124e018f876d96",
        "1a436826ffe618273ec62b9656dc4cab8edc470364f104e90542a4ebc14fb825",
    ),
    "large": (
        "ca58581bc7bea2ebed4e80dc0a3e4b8b609c6ecc",
        "a56928052ac6f5d09b97c3834bea6ce3aef9f02b513b5fac98954e7377801572",
    ),
}


@dataclass(frozen=True)
class MomentOptions:
    """Architecture under the official names (momentfm config.json)."""

    t5_config: Mapping[str, Any] = field(default_factory=lambda: _FLAN_T5["small"])
    d_model: int = 512
    seq_len: int = 512
    patch_len: int = 8
    patch_stride_len: int = 8
    transformer_type: str = "encoder_only"
    add_positional_embedding: bool = True
    value_embedding_bias: bool = False
    revin_affine: bool = False


class MomentNet(nn.Module):
    """MOMENT (Goswami et al. 2024, arXiv 2402.03885; momentfm/models/moment.py, `embed`)."""

    def __init__(self, options: MomentOptions, with_head: bool = False) -> None:
        from transformers import T5Config, T5EncoderModel

        super().__init__()
        self.options = options
        if options.revin_affine:
            affine = {"affine_weight": torch.ones(1, 1, 1), "affine_bias": torch.zeros(1, 1, 1)}
            self.normalizer = nn.ParameterDict({name: nn.Parameter(value) for name, value in affine.items()})
        self.patch_embedding = PatchEmbedding(options)
        config = T5Config(**{**_FLAN_T5_COMMON, **options.t5_config, "attn_implementation": "sdpa"})
        self.encoder = T5EncoderModel(config).get_encoder()
        if with_head:
            self.head = nn.Module()
            self.head.linear = nn.Linear(options.d_model, options.patch_len)

    def forward(self, x: Tensor, observed: Tensor | None = None) -> tuple[list[Tensor], Tensor, Tensor]:
        """Encode every channel on its own.

        Parameters
        ----------
        x
            [batch, channel, time], raw.
        observed
            [batch, time], 1 where the sample is real; None: everywhere.

        Returns
        -------
        The mean over channels and observed patches of the tokens before the first block and after each,
        [batch, d_model]; the same of the final norm's output; that output of every patch, the channels' mean, [batch,
        patch, d_model]; all float32.
        """
        batch, channels = x.shape[:2]
        patches = None if observed is None else self.observed_patches(observed)
        normed = self.normalise(x.float(), observed).to(self.patch_embedding.value_embedding.weight.dtype)
        tokens = self.patch_embedding(normed, patches)
        hidden = tokens.flatten(0, 1)
        mask = self._attention_mask(hidden, patches, channels)
        pooled, bias = [pool(tokens, patches)], None
        for block in self.encoder.block:
            hidden, bias = block(hidden, mask, bias)[:2]
            pooled.append(pool(hidden.unflatten(0, (batch, channels)), patches))
        final = self.encoder.final_layer_norm(hidden).unflatten(0, (batch, channels))
        tokens = final.float().mean(dim=1)
        return pooled, pool_patches(tokens, patches), tokens

    def normalise(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """Subtract each channel's observed mean, divide by its deviation + 1e-5 (RevIN)."""
        known = x if observed is None else torch.where(observed[:, None].bool(), x, torch.nan)
        mean = known.nanmean(dim=-1, keepdim=True)
        scale = (known - mean).square().nanmean(dim=-1, keepdim=True).sqrt() + REVIN_EPS
        normed = (x - mean) / scale
        if self.options.revin_affine:
            normed = normed * self.normalizer["affine_weight"] + self.normalizer["affine_bias"]
        return torch.nan_to_num(normed, nan=0.0, posinf=0.0, neginf=0.0)

    def observed_patches(self, observed: Tensor) -> Tensor:
        """[batch, time] -> bool [batch, patch]: only a patch that is observed throughout counts."""
        return observed.bool().unfold(-1, self.options.patch_len, self.options.patch_stride_len).all(dim=-1)

    def _attention_mask(self, hidden: Tensor, patches: Tensor | None, channels: int) -> Any:
        if patches is None:
            return None
        from transformers.masking_utils import create_bidirectional_mask

        rows = patches.repeat_interleave(channels, dim=0)
        return create_bidirectional_mask(self.encoder.config, inputs_embeds=hidden, attention_mask=rows)


class PatchEmbedding(nn.Module):
    """Linear map of each patch, the mask embedding in place of unobserved ones, plus fixed positions."""

    def __init__(self, options: MomentOptions) -> None:
        super().__init__()
        self.patch_len, self.stride = options.patch_len, options.patch_stride_len
        self.value_embedding = nn.Linear(options.patch_len, options.d_model, bias=options.value_embedding_bias)
        self.mask_embedding = nn.Parameter(torch.zeros(options.d_model))
        if options.add_positional_embedding:
            self.position_embedding = SinePositions(options.d_model)

    def forward(self, x: Tensor, patches: Tensor | None) -> Tensor:
        """[batch, channel, time] -> [batch, channel, patch, d_model]."""
        tokens = self.value_embedding(x.unfold(-1, self.patch_len, self.stride))
        if patches is not None:
            tokens = torch.where(patches[:, None, :, None], tokens, self.mask_embedding)
        if hasattr(self, "position_embedding"):
            tokens = tokens + self.position_embedding(tokens.shape[2])
        return tokens


def pool(tokens: Tensor, patches: Tensor | None) -> Tensor:
    """Mean over channels and observed patches, [batch, channel, patch, dim] -> float32 [batch, dim]."""
    return pool_patches(tokens.float().mean(dim=1), patches)


def pool_patches(per_patch: Tensor, patches: Tensor | None) -> Tensor:
    """Mean over observed patches, [batch, patch, dim] -> [batch, dim]; NaN where no patch is observed."""
    if patches is None:
        return per_patch.mean(dim=1)
    weight = patches.unsqueeze(-1).float()
    return (per_patch * weight).sum(dim=1) / weight.sum(dim=1)


@register("moment")
class Moment(Expert):
    """MOMENT. The embedding is the mean over channels and patches behind the final norm.

    Preprocessing `authors`: their PTB-XL path, 10 s -> 512 samples (51.2 Hz). `enecg`: 5000 samples (625 patches) after
    one z-score over all leads. `beats`: five windows of 512 samples at 250 Hz, for what 25 Hz of bandwidth loses.
    """

    variants = ("small", "base", "large")
    preprocessing_variants = ("authors", "enecg", "beats")
    residual_branches = r"(?P<block>encoder\.block\.\d+)\.layer\.\d+\.dropout"
    module: MomentNet

    @classmethod
    def published_spec(cls, variant: str | None = None) -> ExpertSpec:
        """Spec of MOMENT-1 in the size that `variant` names."""
        return _spec(_options(None, variant), variant, "authors", _PUBLISHED_PARAMETERS[variant or "small"])

    @classmethod
    def small_config(cls, variant: str | None = None) -> Mapping[str, Any]:
        """Return the published architecture made narrow and shallow, see `Expert.small_config`."""
        return {"t5_config": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 4, "vocab_size": 16}}

    @classmethod
    def build(
        cls,
        config: Mapping[str, Any] | None,
        state: Mapping[str, Tensor] | None,
        *,
        variant: str | None = None,
        preprocessing: str | None = None,
    ) -> Moment:
        """Construct from (a part of) the hub's config.json and an official state dict, see `Expert.build`."""
        options = _options(config, variant)
        if state is not None:
            _refuse_other_size(config, variant, state)
        expert = cls(preprocessing=preprocessing)
        expert.module = MomentNet(options, with_head=state is None or _has_reconstruction_head(state, options))
        if state is not None:
            load_strict(expert.module, state, expert=f"moment-{variant or 'small'}", unused_keys=UNUSED_KEYS)
        n_parameters = sum(p.numel() for p in expert.module.parameters())
        expert.spec = _spec(options, variant, expert.preprocessing, n_parameters)
        return expert

    def prepare(self, signals_mv: np.ndarray | Tensor, rate_hz: float) -> Tensor:
        """[batch, 12, time] in mV -> [batch, windows, 12, samples], by the chosen preprocessing (see the class)."""
        signals = _dsp.as_signals(signals_mv)
        seq_len = self.module.options.seq_len
        if self.preprocessing == "enecg":
            finite = np.isfinite(signals)
            x = _dsp.zscore(signals if finite.all() else np.where(finite, signals, 0.0), axis=(-2, -1))
            x = _dsp.resample_fft(x, ENECG_SAMPLES)[:, None]
        elif self.preprocessing == "beats":
            n_samples = round(signals.shape[-1] / rate_hz * BEAT_RATE_HZ)
            x = _windows(_dsp.resample_fft(_dsp.fill_gaps(signals), n_samples), seq_len)
        else:
            x = _windows(_dsp.fill_gaps(signals), round(WINDOW_SECONDS * rate_hz))
            x = _dsp.zscore(_dsp.resample_linear(x, seq_len))
        return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Encoding:
        """[batch, channel, time] -> every layer, and the embedding; any number of channels, 5000 patches at most.

        `mask` is [batch, time], 1 where the sample is real (momentfm's `input_mask`).
        Samples behind the last whole patch are not seen, and a record whose mask hides every patch gives NaN, as in the
        official code.
        """
        if x.ndim != 3 or x.shape[-1] < self.module.options.patch_len:
            raise InputError(f"expert 'moment': input {list(x.shape)}; expected [batch, channel, time]")
        if mask is not None and tuple(mask.shape) != (x.shape[0], x.shape[2]):
            raise InputError(f"expert 'moment': mask {list(mask.shape)}; expected {[x.shape[0], x.shape[2]]}")
        return encode_in_chunks(self._encode, x, mask, self.windows_at_once(x))

    def windows_at_once(self, x: Tensor) -> int:
        """Return how many windows stay in a CPU's cache, see `Expert.windows_at_once`."""
        return windows_in_cache(x.shape[1] * (x.shape[2] // self.module.options.patch_stride_len))

    def _encode(self, x: Tensor, mask: Tensor | None) -> Encoding:
        pooled, embedding, tokens = self.module(x, mask)
        return Encoding(torch.stack(pooled, dim=1), embedding, tokens=tokens)


def _windows(signals: np.ndarray, n_samples: int) -> np.ndarray:
    """Evenly placed windows that cover [batch, lead, time]; a shorter record is held at its last sample."""
    return _dsp.even_windows(_dsp.hold_ends(signals, n_samples), n_samples)


def _options(config: Mapping[str, Any] | None, variant: str | None) -> MomentOptions:
    """Merge (a part of) a hub config.json over the published one of a size; `t5_config` may be partial or absent."""
    names = [f.name for f in dataclasses.fields(MomentOptions)] + ["transformer_backbone"]
    given = architecture_overrides("moment", config, names, (*TRAINING_ONLY, *HUGGING_FACE))
    backbone = str(given.pop("transformer_backbone", None) or f"google/flan-t5-{variant or 'small'}")
    size = backbone.rpartition("-")[2]
    if size not in _FLAN_T5:
        raise UsageError(f"expert 'moment': transformer_backbone '{backbone}'; it has to be google/flan-t5-SIZE")
    t5: dict[str, Any] = {**_FLAN_T5_COMMON, **_FLAN_T5[size]}
    width = given.pop("d_model", None)
    t5 |= {"d_model": width} if width else {}
    names = sorted(_T5_NAMES)
    t5 |= architecture_overrides("moment", given.pop("t5_config", None), names, (*T5_UNUSED, *HUGGING_FACE))
    if width and t5["d_model"] != width:
        raise UsageError(f"expert 'moment': d_model {width} and t5_config's {t5['d_model']} differ; give one of them")
    options = MomentOptions(t5_config=t5, d_model=t5["d_model"], **given)
    if options.transformer_type != "encoder_only":
        raise UsageError(
            f"expert 'moment': transformer_type '{options.transformer_type}'; only encoder_only is published"
        )
    return options


_T5_NAMES = _FLAN_T5_COMMON.keys() | _FLAN_T5["small"].keys()


def _has_reconstruction_head(state: Mapping[str, Tensor], options: MomentOptions) -> bool:
    weight = state.get("head.linear.weight")
    return weight is not None and tuple(weight.shape) == (options.patch_len, options.d_model)


def _refuse_other_size(config: Mapping[str, Any] | None, variant: str | None, state: Mapping[str, Tensor]) -> None:
    """Say so where the file holds another published size than the one that was named."""
    embedding = state.get("patch_embedding.mask_embedding")
    sizes = {_FLAN_T5[name]["d_model"]: name for name in Moment.variants}
    found = None if config or embedding is None else sizes.get(embedding.shape[0])
    if found and found != (variant or "small"):
        raise WeightsError(
            f"expert 'moment-{variant or 'small'}': the weights are MOMENT-1-{found}; use 'moment-{found}'"
        )


def _token_times(options: MomentOptions, n_samples: int, rate_hz: float) -> TokenTimes:
    length, stride = options.patch_len, options.patch_stride_len
    n_patches = (n_samples - length) // stride + 1
    return TokenTimes(options.d_model, n_patches, stride / rate_hz, (length - stride) / 2 / rate_hz)


def _spec(options: MomentOptions, variant: str | None, preprocessing: str, n_parameters: int) -> ExpertSpec:
    size = variant or "small"
    seconds = options.seq_len / BEAT_RATE_HZ if preprocessing == "beats" else WINDOW_SECONDS
    n_samples = ENECG_SAMPLES if preprocessing == "enecg" else options.seq_len
    vocabulary = {**_FLAN_T5_COMMON, **options.t5_config}["vocab_size"] * options.d_model
    n_layers = options.t5_config["num_layers"]
    return ExpertSpec(
        name="moment" if size == "small" else f"moment-{size}",
        title=f"MOMENT-1-{size}: T5 encoder over patches, each lead a channel",
        version="1",
        source="Goswami et al. 2024 (arXiv 2402.03885); moment-timeseries-foundation-model/moment, 38f7310. Records at "
        "their own rate, as momentfm's PTB-XL loader has 500 Hz files; its tutorial's default are 100 Hz files",
        sampling_rate_hz=n_samples / seconds,
        seconds=seconds,
        leads=STANDARD_LEADS,
        normalisation={
            "authors": "linear interpolation, per-lead z-score of the window (momentfm's PTB-XL data), RevIN inside",
            "enecg": "one z-score over all leads and time, RevIN inside",
            "beats": "FFT resampling, RevIN inside",
        }[preprocessing],
        layer_names=("embed", *(f"block_{i + 1}" for i in range(n_layers))),
        layer_dims=(options.d_model,) * (n_layers + 1),
        embedding_dim=options.d_model,
        licence="MIT",
        parameters=n_parameters,
        published_parameters=_PUBLISHED_PARAMETERS[size],
        weights=WeightsSource(
            f"AutonLab/MOMENT-1-{size}",
            "model.safetensors",
            *_PINS[size],
            note=f"{vocabulary:,} parameters are T5's token embeddings, which no time series ever uses",
        ),
        # The Time Series Pile holds single beats and short excerpts of PhysioNet ECGs (UCR, UEA, anomaly sets), none of
        # the cohorts here.
        unused_keys=UNUSED_KEYS,
        shortest_s=1.0,
        windows={
            "authors": "10 s as 512 samples; longer records in evenly placed 10 s windows, mean of their vectors",
            "enecg": "the whole record as one window of 5000 samples (625 patches)",
            "beats": "evenly placed windows of 512 samples at 250 Hz (five in 10 s), mean of their vectors",
        }[preprocessing],
        scale_free=("authors", "beats"),
        missing_leads="gaps are bridged linearly, a shorter record is held at its last sample, a missing lead is a "
        "channel of zeros, which counts in the mean (`enecg`: every missing sample is 0 mV before the z-score, as "
        "published)",
        preprocessing={"path": preprocessing, "n_samples": options.seq_len},
        tokens=_token_times(options, n_samples, n_samples / seconds),
        placement="whole" if preprocessing == "enecg" else "even",
    )
