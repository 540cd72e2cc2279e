"""HuBERT-ECG: 5 s of 12 leads flattened one after the other at 100 Hz, encoded as if it were speech.

Lives here: the published facts of the three sizes, `prepare`, `encode`. Not here: the network (`networks.hubert_net`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.signal
import torch
from torch import Tensor, nn

from cache.errors import InputError, UsageError, WeightsError
from stages.experts.checkpoints import load_strict
from stages.experts.contract import STANDARD_LEADS, Encoding, Expert, ExpertSpec, WeightsSource
from stages.experts.networks.parts.pooling import mean_tokens
from stages.experts.options import HUGGING_FACE, architecture_overrides
from stages.experts.registry import register
from stages.experts.signals import dsp as _dsp
from stages.experts.token_times import convolved_token_times

if TYPE_CHECKING:
    from stages.experts.networks.hubert_net import HubertEcg

RATE_HZ = 500
BAND_HZ = (0.05, 47.0)
FIR_SECONDS = 0.3
"""Length of the filter, at the record's own rate."""
WINDOW = 2500
DECIMATION = 5
SMOOTH = 1e-8
# Of training, and of a head that HubertConfig describes and this model has not (the authors' own is `vocab_sizes`).
NOT_OURS = (
    *("activation_dropout", "apply_spec_augment", "attention_dropout", "classifier_dropout", "ctc_loss_reduction"),
    *("ctc_zero_infinity", "feat_proj_dropout", "feat_quantizer_dropout", "final_dropout", "hidden_dropout"),
    *("initializer_range", "layerdrop", "mask_feature_length", "mask_feature_min_masks", "mask_time_length"),
    *("mask_time_min_masks", "tokenizer_class", "use_weighted_layer_sum", "vocab_size"),
)
# A finetuned checkpoint's own classifier.
UNUSED_KEYS = (r"classifier\.", r"label_embedding\.weight$")
# The authors' Cardio-Learning union, which their pretraining data is said to contain; taken as seen, to be safe.
PRETRAINED_ON = (
    "challenge2021",
    "ptb",
    "ptbxl",
    "cpsc2018",
    "georgia",
    "chapman",
    "ningbo",
    "sph",
    "code",
    "sami-trop",
    "hefei",
)
SPELLINGS = {
    "pos_conv_embed.conv.weight_g": "pos_conv_embed.conv.parametrizations.weight.original0",
    "pos_conv_embed.conv.weight_v": "pos_conv_embed.conv.parametrizations.weight.original1",
}

_SIZES = {  # blocks, width, heads, feed-forward width, codebook width, parameters
    "small": (8, 512, 8, 2048, 256, 30_366_592),
    "base": (12, 768, 12, 3072, 256, 93_021_312),
    "large": (16, 960, 12, 3840, 512, 188_187_968),
}
_SHA256 = {"base": "05bc1b1317f8e3063811a03fb840f5bf8a85968191e209c0cfbaa0c52c8aa1ae"}
_HEADS = {width: heads for _, width, heads, *_ in _SIZES.values()}


def published_options(variant: str | None) -> dict[str, Any]:
    """Architecture of a published size, under the names of transformers' HubertConfig and two of the authors'."""
    blocks, width, heads, inner, codebook_width, _ = _SIZES[variant or "small"]
    return {
        "num_hidden_layers": blocks,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "num_feat_extract_layers": 5,
        "conv_dim": (512,) * 5,
        "conv_kernel": (10, 3, 3, 2, 2),
        "conv_stride": (4, 2, 2, 2, 2),
        "mask_time_prob": 0.33,
        "classifier_proj_size": codebook_width,
        "ensemble_length": 1,
        "vocab_sizes": (100,),
    }


@register("hubert")
class Hubert(Expert):
    """HuBERT-ECG (Coppola et al., medRxiv 2024.11.14.24317328; Edoar-do/HuBERT-ECG)."""

    variants = ("small", "base", "large")
    residual_branches = r"(?P<block>encoder\.layers\.\d+)\.(attention|feed_forward)"
    module: HubertEcg

    @classmethod
    def published_spec(cls, variant: str | None = None) -> ExpertSpec:
        """Spec of a published size."""
        return _spec(published_options(variant), variant, "authors")

    @classmethod
    def small_config(cls, variant: str | None = None) -> Mapping[str, Any]:
        """Return the published architecture made narrow and shallow, see `Expert.small_config`."""
        sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
        positions = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
        return {**sizes, **positions, "conv_dim": (16, 24, 24, 24, 24), "classifier_proj_size": 8}

    @classmethod
    def build(
        cls,
        config: Mapping[str, Any] | None,
        state: Mapping[str, Tensor] | None,
        *,
        variant: str | None = None,
        preprocessing: str | None = None,
    ) -> Hubert:
        """Construct from overrides and an official state dict, see `Expert.build`; its shapes tell the size."""
        from stages.experts.networks.hubert_net import HubertEcg

        if state is not None:
            state = _current_spelling(state)
        options = _options(config, state, variant)
        expert = cls(preprocessing=preprocessing)
        expert.module = HubertEcg(options)
        if state is not None:
            load_strict(expert.module, state, expert="hubert", unused_keys=UNUSED_KEYS)
        expert.spec = _spec(options, variant, expert.preprocessing, expert.module)
        return expert

    def prepare(self, signals_mv: np.ndarray | Tensor, rate_hz: float) -> Tensor:
        """Filter, resample, scale, flatten and decimate the first 5 s: [batch, 12, time] mV -> [batch, 1, 6000]."""
        signals = _dsp.as_signals(signals_mv)
        x = _dsp.hold_ends(preprocess(_dsp.fill_gaps(signals), rate_hz), WINDOW)
        x[~np.isfinite(signals).any(-1)] = 0.0
        flat = x[..., :WINDOW].reshape(len(x), 1, -1)
        decimated = scipy.signal.decimate(flat, DECIMATION)
        return torch.from_numpy(np.ascontiguousarray(decimated, dtype=np.float32))

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Encoding:
        """Encode one window per record.

        Parameters
        ----------
        x
            [batch, sample], the leads one after the other.
        mask
            The authors' attention mask, [batch, sample] or [batch, token]: 1 where real, padding at the end.
        """
        hidden, final, valid = self.module(x, None if mask is None else mask.bool())
        layers = torch.stack([mean_tokens(h, valid) for h in hidden], 1)
        return Encoding(layers, mean_tokens(final, valid), tokens=final)


def preprocess(signals: np.ndarray, rate_hz: float) -> np.ndarray:
    """Band-pass with zero phase, resample to 500 Hz, scale each lead to [-1, 1] (official utils.ecg_preprocessing)."""
    x = _dsp.resample_fft(filter_band(signals, rate_hz), int(signals.shape[-1] * RATE_HZ / rate_hz + 1e-6))
    low, high = x.min(-1, keepdims=True), x.max(-1, keepdims=True)
    return 2 * (x - low) / (high - low + SMOOTH) - 1


@cache
def fir_taps(rate_hz: float) -> np.ndarray:
    """Return the band-pass at a rate: 0.3 s of taps, an odd number (official utils.apply_filter, biosppy).

    Raises
    ------
    InputError
        The band reaches beyond half of the rate.
    """
    if rate_hz <= 2 * BAND_HZ[1]:
        raise InputError(
            f"expert 'hubert': records of {rate_hz:g} Hz; its filter needs more than {2 * BAND_HZ[1]:g} Hz"
        )
    return np.asarray(
        scipy.signal.firwin(int(FIR_SECONDS * rate_hz) // 2 * 2 + 1, BAND_HZ, pass_zero=False, fs=rate_hz)
    )


@cache
def _kernel(rate_hz: float) -> np.ndarray:
    taps = fir_taps(rate_hz)
    return np.correlate(taps, taps, "full")


def filter_band(signals: np.ndarray, rate_hz: float) -> np.ndarray:
    """Filter forth and back by the FIR band-pass, as `scipy.signal.filtfilt` does.

    There and back is one convolution with the taps' autocorrelation; filtfilt's odd extension is longer than its reach,
    so that nothing else of the ends shows.
    """
    kernel = _kernel(rate_hz)
    reach = len(kernel) // 2
    left = 2 * signals[..., :1] - signals[..., reach:0:-1]
    right = 2 * signals[..., -1:] - signals[..., -2 : -reach - 2 : -1]
    extended = np.concatenate([left, signals, right], axis=-1)
    return scipy.signal.fftconvolve(extended, kernel.reshape((1,) * (signals.ndim - 1) + (-1,)), "valid", axes=-1)


def _current_spelling(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the backbone out of a finetuned checkpoint and rename the position convolution's older keys."""
    renamed = {}
    for name, value in state.items():
        key = name.removeprefix("hubert_ecg.")
        old = next((s for s in SPELLINGS if key.endswith(s)), None)
        renamed[key.removesuffix(old) + SPELLINGS[old] if old else key] = value
    return renamed


def _options(
    config: Mapping[str, Any] | None, state: Mapping[str, Tensor] | None, variant: str | None
) -> dict[str, Any]:
    """Merge the published options, then what the weights' shapes say, then the overrides."""
    from stages.experts.networks.hubert_net import OPTION_NAMES, options_from_state

    overrides = architecture_overrides("hubert", config, OPTION_NAMES, (*NOT_OURS, *HUGGING_FACE))
    for name in ("conv_dim", "conv_kernel", "conv_stride", "vocab_sizes"):
        if name in overrides:
            overrides[name] = tuple(overrides[name])
    if "conv_dim" in overrides:
        overrides.setdefault("num_feat_extract_layers", len(overrides["conv_dim"]))
    options = published_options(variant)
    if state is not None:
        found = options_from_state(state)
        for name in ("mask_time_prob", "mask_feature_prob"):
            overrides.pop(name, None)  # of training only, but for the mask token, which the state has or has not
        _check_determined(found, overrides)
        options |= found | {"num_attention_heads": _HEADS.get(found.get("hidden_size", 512), 1)}
    options |= overrides
    if options["hidden_size"] % options["num_attention_heads"]:
        raise UsageError(
            f"expert 'hubert': hidden_size {options['hidden_size']} is no multiple of num_attention_heads "
            f"{options['num_attention_heads']}; correct the config"
        )
    return options


def _check_determined(found: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    missing = []
    if "conv_kernel" in found and "conv_stride" not in found.keys() | overrides.keys():
        missing.append("conv_stride")
    if found.get("hidden_size", 512) not in _HEADS and "num_attention_heads" not in overrides:
        missing.append("num_attention_heads")
    if missing:
        raise WeightsError(
            f"expert 'hubert': the weights are of no published size and do not say {' and '.join(missing)}; "
            "give the config"
        )


def _spec(
    options: Mapping[str, Any], variant: str | None, preprocessing: str, module: nn.Module | None = None
) -> ExpertSpec:
    size = variant or "small"
    published = _SIZES[size][-1]
    blocks = tuple(f"block_{k + 1}" for k in range(options["num_hidden_layers"]))
    rate_hz, seconds = RATE_HZ / DECIMATION, WINDOW / RATE_HZ
    flattened = len(STANDARD_LEADS) * WINDOW // DECIMATION
    convolutions = zip(options["conv_kernel"], options["conv_stride"], strict=True)
    return ExpertSpec(
        name="hubert" if size == "small" else f"hubert-{size}",
        title=f"HuBERT-ECG {size}",
        version="2",
        source="Coppola et al., medRxiv 2024.11.14.24317328; Edoar-do/HuBERT-ECG affe1f9",
        sampling_rate_hz=rate_hz,
        seconds=seconds,
        leads=STANDARD_LEADS,
        normalisation="FIR 0.05-47 Hz at the record's own rate, each lead of the whole record to [-1, 1]",
        layer_names=("embed", *blocks),
        layer_dims=(options["hidden_size"],) * (1 + len(blocks)),
        embedding_dim=options["hidden_size"],
        licence="CC-BY-NC-4.0",
        non_commercial=True,
        parameters=sum(p.numel() for p in module.parameters()) if module else published,
        published_parameters=published,
        weights=WeightsSource(
            f"Edoardo-BS/hubert-ecg-{size}",
            "model.safetensors",
            "main",
            _SHA256.get(size),
            also_at=(f"Edoardo-Coppola/hubert-ecg-{size}",),
        ),
        pretrained_on=PRETRAINED_ON,
        unused_keys=UNUSED_KEYS,
        windows="the first 5 s of the record, as the authors; the rest counts in the scale alone",
        shortest_s=WINDOW / RATE_HZ,
        longest_s=WINDOW / RATE_HZ,
        scale_free=("authors",),
        missing_leads="gaps bridged linearly, ends held; a missing lead is zeros before the decimation, "
        "which lets its neighbours in the flattened signal leak in at its ends",
        preprocessing={"path": preprocessing, "rate_hz": RATE_HZ, "window": WINDOW, "decimation": DECIMATION},
        tokens=convolved_token_times(options["hidden_size"], flattened, rate_hz, convolutions, turn_s=seconds),
        placement="consecutive",
    )
