"""ECGFounder: a 30-million-parameter residual network over 10 s at 500 Hz, for 12 leads or lead I alone.

Lives here: the published facts, `prepare`, `encode`. Not here: the network (`networks.net1d`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import scipy.signal
import torch
from torch import Tensor, nn

from cache.errors import UsageError
from stages.experts.checkpoints import load_strict
from stages.experts.contract import STANDARD_LEADS, Encoding, Expert, ExpertSpec, WeightsSource
from stages.experts.networks.net1d import OPTION_NAMES, Net1D, Net1DOptions, options_from_state
from stages.experts.options import architecture_overrides
from stages.experts.registry import register
from stages.experts.signals import dsp as _dsp
from stages.experts.token_times import TokenTimes

RATE_HZ = 500.0
WINDOW = 5000
SHORTEST_S = 1.0
"""Seconds of the shortest record that is still encoded (the zero-phase filters and the median need some)."""
BASELINE_KERNEL = 201
"""Samples of the median filter that gives the baseline: 0.4 s, odd."""
EPS = 1e-8
_HUB, _COMMIT = "PKUDigitalHealth/ECGFounder", "d9b1793951b2342f5f7e84f1ac03cd37f8a08724"
_SHA256_12 = "ee199f3781f4ae1f732973267f003da0a759ea12bddb0dd28a77faa60aca7997"
_SHA256_1 = "f863a38897fb49a27fec7e44008ea3c7bdbd29c77fa4a02ecbb8c56df4f37603"
_PUBLISHED = {
    "12lead": (WeightsSource(_HUB, "12_lead_ECGFounder.pth", _COMMIT, _SHA256_12), 30_819_014, 12),
    "1lead": (WeightsSource(_HUB, "1_lead_ECGFounder.pth", _COMMIT, _SHA256_1), 30_807_750, 1),
}


def published_options(variant: str | None) -> Net1DOptions:
    """Architecture of the published checkpoint that `variant` names."""
    return Net1DOptions(in_channels=_PUBLISHED[variant or "12lead"][2])


TRAINING_ONLY = ("use_do", "verbose", "return_features")
"""Arguments of Net1D that a frozen network does not depend on."""


@register("ecgfounder")
class EcgFounder(Expert):
    """ECGFounder (Li et al., arXiv 2410.04133; PKUDigitalHealth/ECGFounder). `Encoding.output` holds its 150 logits."""

    variants = ("12lead", "1lead")
    preprocessing_variants = ("authors", "ptbxl_eval")
    residual_branches = r"(?P<block>stage_list\.\d+\.block_list\.\d+)\.gate"
    early_blocks = r"stage_list\.[0-2]\..*"
    module: Net1D

    @classmethod
    def published_spec(cls, variant: str | None = None) -> ExpertSpec:
        """Spec of a published checkpoint."""
        return _spec(published_options(variant), variant, "authors")

    @classmethod
    def small_config(cls, variant: str | None = None) -> Mapping[str, Any]:
        """Return the published architecture made narrow and shallow, see `Expert.small_config`."""
        return {"base_filters": 16, "filter_list": (16, 32, 48), "m_blocks_list": (1, 2, 2), "n_classes": 12}

    @classmethod
    def build(
        cls,
        config: Mapping[str, Any] | None,
        state: Mapping[str, Tensor] | None,
        *,
        variant: str | None = None,
        preprocessing: str | None = None,
    ) -> EcgFounder:
        """Construct from overrides and an official state dict, see `Expert.build`; one lead is told by its shapes."""
        options = dataclasses.asdict(published_options(variant))
        options |= options_from_state(state) if state is not None else {}
        options |= architecture_overrides("ecgfounder", config, OPTION_NAMES, TRAINING_ONLY)
        merged = Net1DOptions(**options)
        _check(merged)
        expert = cls(preprocessing=preprocessing)
        expert.module = Net1D(merged)
        if state is not None:
            load_strict(expert.module, state, expert="ecgfounder")
        expert.spec = _spec(merged, variant, expert.preprocessing, expert.module)
        return expert

    def prepare(self, signals_mv: np.ndarray | Tensor, rate_hz: float) -> Tensor:
        """Filter, take off the baseline, z-score: [batch, 12, time] mV -> [batch, windows, lead, 5000].

        `ptbxl_eval` leaves the filters and the baseline out, as the official script of that name does.
        """
        signals = _dsp.pick_leads(_dsp.as_signals(signals_mv), self.spec.leads)
        n_samples = round(signals.shape[-1] * RATE_HZ / rate_hz)
        x = _dsp.resample_linear(_dsp.fill_gaps(signals), n_samples)
        x = _cut(x if self.preprocessing == "ptbxl_eval" else filter_bandpass(x))
        x = _dsp.zscore(x, axis=(-2, -1), eps=EPS)
        x.swapaxes(1, 2)[~np.isfinite(signals).any(-1)] = 0.0
        return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Encoding:
        """Encode one window per record, [batch, lead, time]; there is no mask."""
        if mask is not None:
            raise UsageError("expert 'ecgfounder' takes no mask; leave it out")
        means, logits, last = self.module(x)
        return Encoding(means, means[-1], logits, last.transpose(1, 2))


@cache
def _filters() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    notch = scipy.signal.iirnotch(50, 30, RATE_HZ)
    band = scipy.signal.butter(4, (0.67, 40), btype="bandpass", fs=RATE_HZ)
    return notch, band


def filter_bandpass(signals: np.ndarray) -> np.ndarray:
    """Notch 50 Hz, band-pass 0.67-40 Hz, both zero phase; subtract the 0.4 s running median (official util.py)."""
    for numerator, denominator in _filters():
        signals = scipy.signal.filtfilt(numerator, denominator, signals)
    return signals - running_median(signals, BASELINE_KERNEL)


def running_median(signals: np.ndarray, kernel: int) -> np.ndarray:
    """Median over `kernel` samples of time with zeros around: `scipy.signal.medfilt` of every lead, bit for bit.

    All leads go through one call of scipy's one-dimensional filter (its only fast path), with zeros between them.
    """
    n = signals.shape[-1]
    gapped = np.zeros((*signals.shape[:-1], n + kernel // 2))
    gapped[..., :n] = signals
    return scipy.signal.medfilt(gapped.ravel(), kernel).reshape(gapped.shape)[..., :n]


def _cut(signals: np.ndarray) -> np.ndarray:
    """Cut into windows of 10 s (a shorter record is one shorter window): [batch, windows, lead, time]."""
    window = min(WINDOW, signals.shape[-1])
    count = signals.shape[-1] // window
    cut = signals[..., : count * window].reshape(*signals.shape[:2], count, window)
    return cut.swapaxes(1, 2)


def _check(options: Net1DOptions) -> None:
    if options.in_channels not in (1, 12):
        raise UsageError(f"expert 'ecgfounder': in_channels {options.in_channels} must be 12, or 1 for lead I")
    if len(options.filter_list) != len(options.m_blocks_list):
        raise UsageError(
            f"expert 'ecgfounder': filter_list has {len(options.filter_list)} stages and m_blocks_list "
            f"{len(options.m_blocks_list)}; give both the same length"
        )


def _token_times(options: Net1DOptions) -> TokenTimes:
    """Declare the last stage's steps; every strided convolution gives ceil(samples / stride)."""
    stride = options.stride ** (1 + len(options.filter_list))
    return TokenTimes(options.filter_list[-1], -(-WINDOW // stride), stride / RATE_HZ)


def _spec(
    options: Net1DOptions, variant: str | None, preprocessing: str, module: nn.Module | None = None
) -> ExpertSpec:
    weights, published, _ = _PUBLISHED[variant or "12lead"]
    filters = "" if preprocessing == "ptbxl_eval" else "50 Hz notch, 0.67-40 Hz, minus running median of 0.4 s; "
    widths = tuple(options.filter_list)
    return ExpertSpec(
        name="ecgfounder" if variant in (None, "12lead") else f"ecgfounder-{variant}",
        title="ECGFounder",
        version="1",
        source="Li et al., arXiv 2410.04133; PKUDigitalHealth/ECGFounder 04edac7",
        sampling_rate_hz=RATE_HZ,
        seconds=WINDOW / RATE_HZ,
        leads=STANDARD_LEADS if options.in_channels == 12 else ("I",),
        normalisation=f"{filters}one z-score over leads and time",
        layer_names=tuple(f"stage_{k + 1}" for k in range(len(widths))),
        layer_dims=widths,
        embedding_dim=widths[-1],
        output_dim=options.n_classes,
        licence="MIT",
        parameters=sum(p.numel() for p in module.parameters()) if module else published,
        published_parameters=published,
        weights=weights,
        pretrained_on=("heedb",),
        windows="one window of 10 s, a shorter record whole; longer ones cut, a rest left out, mean over windows",
        shortest_s=SHORTEST_S,
        scale_free=("authors", "ptbxl_eval") if options.in_channels == 1 else (),
        missing_leads="gaps bridged linearly, ends held; a missing lead is 0 before the joint z-score and after it",
        preprocessing={"path": preprocessing, "rate_hz": RATE_HZ, "window": WINDOW, "eps": EPS},
        tokens=_token_times(options),
        placement="consecutive",
    )
