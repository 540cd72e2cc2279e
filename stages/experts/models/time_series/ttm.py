"""TinyTimeMixer (TTM): IBM's small forecaster, each lead a channel; what it knows of a window, and its forecast.

Lives here: the published facts, `prepare`, `encode`. Not here: the network (`networks.ttm_net`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache.errors import InputError, UsageError, WeightsError
from stages.experts.checkpoints import load_strict
from stages.experts.contract import STANDARD_LEADS, Encoding, Expert, ExpertSpec, WeightsSource
from stages.experts.networks.ttm_net import TtmForPrediction
from stages.experts.networks.ttm_options import OPTION_NAMES, TtmOptions, hidden_widths, options_from_state
from stages.experts.options import HUGGING_FACE, architecture_overrides
from stages.experts.registry import register
from stages.experts.signals import dsp as _dsp
from stages.experts.token_times import TokenTimes

RECORD_SECONDS = 10.0
LOWEST_RATE_HZ = 100.0
# Of training alone, though they look like architecture options.
TRAINING_ONLY = (
    *("dropout", "head_dropout", "positional_encoding_type", "num_patches", "d_model_scale", "init_std", "loss"),
    *("decoder_d_model_scale", "decoder_num_patches", "distribution_output", "gate_mode", "huber_delta", "init_embed"),
    *("init_linear", "init_processing", "mask_value", "masked_context_length", "num_parallel_samples", "post_init"),
    *("quantile", "stride_ratio", "fcm_context_length", "fcm_gated_attn", "fcm_mix_layers", "fcm_prepend_past"),
    *("fcm_prepend_past_offset", "fcm_use_mixer", "exogenous_channel_indices", "use_fft_embedding", "use_cls"),
)
# Official options that would need what an ECG does not have, or give something else than one forecast.
REFUSED = {
    "enable_forecast_channel_mixing": "forecast channel mixing",
    "categorical_vocab_size_list": "static categories",
    "multi_quantile_heads": "quantile heads",
    "multi_quantile_head": "quantile head of release r3",
    "multi_scale": "several scales, of release r3",
    "register_tokens": "registers, of release r3",
    "fft_length": "spectral tokens, of release r3",
    "decompose": "trend and residual networks, of release r3",
    "masked_context_length": "a shorter context behind a mask",
}
PUBLISHED_PARAMETERS = 805_280

_RELEASES = {  # at the commits that hold the 512-96 weights
    "r2": WeightsSource(
        "ibm-granite/granite-timeseries-ttm-r2",
        "model.safetensors",
        "defc940ce03f35e147ddd8b12a620b5caa6ff5e3",
        note="context 512, forecast 96; weights of other contexts (branches 1024-96-r2, 1536-96-r2 ...) by local path",
    ),
    "r1": WeightsSource(
        "ibm-granite/granite-timeseries-ttm-r1",
        "model.safetensors",
        "561687c62cb6aa6f598c62eb27a7f2374f129d4e",
        note="context 512, forecast 96; the weights of context 1024 (branch 1024_96_v1) by local path",
    ),
}


@register("ttm")
class Ttm(Expert):
    """TinyTimeMixer (Ekambaram et al. 2024, arXiv 2401.03955), releases r2 and r1.

    `layers` are the official `hidden_states` in their order, `block_1` the first: of every level of adaptive patching
    its input, the same split, what each mixer layer gives, and that joined again; then the decoder's. Each is the mean
    over its patches, the channels one after the other, as is the embedding (of the backbone's last state).
    """

    variants = ("r2", "r1")
    module: TtmForPrediction

    @classmethod
    def published_spec(cls, variant: str | None = None) -> ExpertSpec:
        """Spec of a published release (both have the same architecture)."""
        return _spec(TtmOptions(), variant, PUBLISHED_PARAMETERS)

    @classmethod
    def small_config(cls, variant: str | None = None) -> Mapping[str, Any]:
        """Return the published architecture made narrow and shallow, see `Expert.small_config`."""
        return {"d_model": 24, "num_layers": 1, "decoder_d_model": 16, "decoder_num_layers": 1}

    @classmethod
    def build(
        cls,
        config: Mapping[str, Any] | None,
        state: Mapping[str, Tensor] | None,
        *,
        variant: str | None = None,
        preprocessing: str | None = None,
    ) -> Ttm:
        """Construct from (a part of) the hub's config.json and an official state dict, see `Expert.build`."""
        options = _options(config, state)
        expert = cls(preprocessing=preprocessing)
        expert.module = TtmForPrediction(options)
        if state is not None:
            load_strict(expert.module, state, expert="ttm")
        expert.spec = _spec(options, variant, sum(p.numel() for p in expert.module.parameters()))
        return expert

    def prepare(self, signals_mv: np.ndarray | Tensor, rate_hz: float) -> Tensor:
        """[batch, 12, time] in mV -> [batch, windows, lead, context_length]; the network scales inside.

        10 s are resampled (anti-aliased) to as few whole windows as keep at least 100 Hz: two of 512 at 102.4 Hz, one
        of 1024 at 102.4 Hz, one of 1536 at 153.6 Hz.
        """
        context = self.module.options.context_length
        if not self.spec.leads:
            raise InputError(
                f"expert 'ttm': the weights are for {self.module.options.num_input_channels} channels; "
                "12-lead records do not fit"
            )
        signals = _dsp.pick_leads(_dsp.fill_gaps(_dsp.as_signals(signals_mv)), self.spec.leads)
        x = _dsp.hold_ends(_dsp.resample_rate(signals, rate_hz, self.spec.sampling_rate_hz), context)
        return torch.from_numpy(np.ascontiguousarray(_dsp.even_windows(x, context), dtype=np.float32))

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Encoding:
        """Encode one window per record, [batch, channel, time]; `output` is the forecast, [batch, time * channel].

        Any number of channels where none of them mix. Of a longer window the last `context_length` samples are seen, as
        in the official code. There is no mask.
        """
        options = self.module.options
        if mask is not None:
            raise UsageError("expert 'ttm' takes no mask; leave it out")
        if x.ndim != 3 or x.shape[2] < options.context_length:
            raise InputError(
                f"expert 'ttm': input {list(x.shape)}; expected [batch, channel, {options.context_length}]"
            )
        if options.mixes_channels and x.shape[1] != options.num_input_channels:
            raise InputError(
                f"expert 'ttm': input of {x.shape[1]} channels; the weights mix {options.num_input_channels} channels"
            )
        result = self.module(x[..., -options.context_length :])
        layers = [_pooled(state) for state in result.hidden]
        patches = result.backbone[:, :, int(options.resolution_prefix_tuning) :]
        tokens = patches.transpose(1, 2).flatten(2)
        return Encoding(layers, _pooled(result.backbone), result.forecast.flatten(1), tokens)


def _pooled(state: Tensor) -> Tensor:
    """[batch, channel, patch, width] -> the mean over patches, [batch, channel * width], at least float32."""
    return state.mean(2, dtype=torch.promote_types(state.dtype, torch.float32)).flatten(1)


def _options(config: Mapping[str, Any] | None, state: Mapping[str, Tensor] | None) -> TtmOptions:
    """Merge the published options, then what the weights' shapes say, then the overrides."""
    for name, what in REFUSED.items():
        if (config or {}).get(name):
            raise UsageError(f"expert 'ttm': config option {name} ({what}) is not supported; use weights without it")
    if (config or {}).get("loss") == "nll":
        raise UsageError("expert 'ttm': config option loss 'nll' (distribution head) is not supported; use mse weights")
    if (config or {}).get("gate_mode", "softmax") != "softmax":
        raise UsageError(
            f"expert 'ttm': config option gate_mode '{(config or {})['gate_mode']}'; only softmax is supported"
        )
    overrides = architecture_overrides("ttm", config, OPTION_NAMES, (*TRAINING_ONLY, *REFUSED, *HUGGING_FACE))
    if overrides.get("prediction_channel_indices") is not None:
        overrides["prediction_channel_indices"] = tuple(sorted(overrides["prediction_channel_indices"]))
    if "patch_length" in overrides:
        overrides.setdefault("patch_stride", overrides["patch_length"])
    found = {} if state is None else options_from_state(state)
    if found.get("self_attn") and "self_attn_heads" not in overrides:
        raise WeightsError("expert 'ttm': the weights do not say their self_attn_heads; give the config")
    options = TtmOptions(**found | overrides)
    _check(options)
    return options


def _check(options: TtmOptions) -> None:
    if options.context_length <= options.patch_length:
        raise UsageError(
            f"expert 'ttm': context_length {options.context_length} must be more than patch_length "
            f"{options.patch_length}"
        )
    for name, width, levels in (
        ("d_model", options.d_model, options.adaptive_patching_levels),
        ("decoder_d_model", options.decoder_d_model, options.decoder_adaptive_patching_levels),
    ):
        if levels > 0 and width % 2 ** (levels - 1):
            raise UsageError(f"expert 'ttm': {name} {width} is no multiple of {2 ** (levels - 1)}, as its levels need")


def _leads(options: TtmOptions) -> tuple[str, ...]:
    """Return the leads that `prepare` gives: all, or the first ones where the config says for how many channels.

    1 is the published value of weights that see each channel on its own. Empty where more are needed than there are.
    """
    n = options.num_input_channels
    if n > len(STANDARD_LEADS):
        return () if options.mixes_channels else STANDARD_LEADS
    return STANDARD_LEADS if n == 1 and not options.mixes_channels else STANDARD_LEADS[:n]


def _spec(options: TtmOptions, variant: str | None, n_parameters: int) -> ExpertSpec:
    release = variant or "r2"
    n_windows = math.ceil(LOWEST_RATE_HZ * RECORD_SECONDS / options.context_length)
    rate_hz = n_windows * options.context_length / RECORD_SECONDS
    leads = _leads(options)
    widths = hidden_widths(options)
    n_forecast = len(leads) if options.prediction_channel_indices is None else len(options.prediction_channel_indices)
    return ExpertSpec(
        name="ttm" if release == "r2" else f"ttm-{release}",
        title=f"TinyTimeMixer {release}",
        version="1",
        source="Ekambaram et al. 2024, arXiv 2401.03955; ibm-granite/granite-tsfm 0.3.11",
        sampling_rate_hz=rate_hz,
        seconds=options.context_length / rate_hz,
        leads=leads,
        normalisation="none before the network, which standardises every lead of a window",
        layer_names=tuple(f"block_{k + 1}" for k in range(len(widths))),
        layer_dims=tuple(len(leads) * width for width in widths),
        embedding_dim=len(leads) * options.d_model,
        output_dim=n_forecast * options.output_length,
        licence="Apache-2.0",
        parameters=n_parameters,
        published_parameters=PUBLISHED_PARAMETERS,
        weights=_RELEASES[release],
        windows=f"evenly placed windows of {options.context_length} samples at {rate_hz:g} Hz ({n_windows} in 10 s), "
        "mean of their vectors",
        shortest_s=options.context_length / rate_hz,
        missing_leads="gaps bridged linearly, ends held; a missing lead is a channel of zeros",
        preprocessing={"path": "authors", "rate_hz": rate_hz, "context_length": options.context_length},
        tokens=TokenTimes(
            len(leads) * options.d_model,
            options.n_patches - options.resolution_prefix_tuning,
            options.patch_stride / rate_hz,
            (
                (options.context_length - options.patch_length) % options.patch_stride
                + (options.patch_length - options.patch_stride) / 2
            )
            / rate_hz,
        ),
    )
