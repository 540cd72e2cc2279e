"""Expert `rocket`: MiniRocket features (Dempster, Schmidt and Webb, KDD 2021), multivariate, without a training cohort.

84 kernels of length 9 (six weights -1, three weights 2) in seven dilations, over one or two leads that are drawn
twelve times, each with five thresholds; a feature is the share of time the convolution lies above its threshold:
84 x 12 x 5 = 5,040.

Where it departs from the paper: kernels reach over 80 to 640 ms, a beat at most, and over two leads at most (version 1
reached over ten seconds and nine leads, was twice as wide, and told less: docs/methods.md); thresholds are quantiles of
the convolutions of a fixed set of generated signals (`signals.reference_ecgs`), not of training records, so that a
cached vector never depends on the cohort; signals stay in mV, because wave heights carry diagnoses.

Signals are whole microvolts and thresholds lie halfway between, so that float32 arithmetic is exact: batch size,
device and order of summation cannot change a feature.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import scipy.signal
import torch
import torch.nn.functional as F
from torch import Tensor

from cache.errors import UsageError
from stages.experts.contract import STANDARD_LEADS, Encoding, Expert, ExpertSpec
from stages.experts.options import architecture_overrides
from stages.experts.registry import register
from stages.experts.signals.dsp import as_signals, fill_gaps, resample_rate
from stages.experts.signals.reference_ecgs import reference_signals, uniform

RATE_HZ, N_SAMPLES, N_LEADS = 100, 1000, 12
KERNEL_LENGTH, N_KERNELS = 9, 84
DRAWS = {1: 3, 2: 3, 3: 1, 4: 2, 5: 1, 6: 1, 8: 1}
"""Dilation, in samples, and how many times leads are drawn for the 84 kernels."""
PER_DRAW = 5
"""Thresholds of each kernel and choice of leads."""
WIDTH = N_KERNELS * PER_DRAW * sum(DRAWS.values())
MAX_LEADS = 2
HIGHPASS_HZ = 0.5
MAX_MV = 100.0
"""Beyond this, sums of 12 leads x weights would leave float32's exact integers (2^24)."""
SEED = 2021
N_REFERENCE, REFERENCE_STEP = 64, 16
CHUNK = {"cpu": 4, "cuda": 128}
"""Records at a time: what fits the processor's cache, and what fills a GPU."""

_HIGHPASS = scipy.signal.butter(2, HIGHPASS_HZ, "highpass", fs=RATE_HZ, output="sos")


@dataclass(frozen=True)
class DilationGroup:
    """All kernels at one dilation, K = 84 times the draws of leads.

    Attributes
    ----------
    dilation
        Samples between neighbouring weights.
    weights
        [K, 9 * 12]: kernel weights times the choice of leads.
    thresholds
        [5, K], in microvolts.
    """

    dilation: int
    weights: Tensor
    thresholds: Tensor

    def to(self, device: torch.device) -> DilationGroup:
        """Return a copy on `device`."""
        return DilationGroup(self.dilation, self.weights.to(device), self.thresholds.to(device))


def _kernels() -> np.ndarray:
    """Make the 84 kernels [84, 9]: -1 everywhere but 2 at each choice of three places."""
    kernels = np.full((N_KERNELS, KERNEL_LENGTH), -1.0)
    kernels[np.arange(N_KERNELS)[:, None], list(itertools.combinations(range(KERNEL_LENGTH), 3))] = 2
    return kernels


def _lead_choices(seed: int) -> np.ndarray:
    """Draw which leads every kernel sees, [draw, 84, 12] of 0 and 1; one lead is likelier than two."""
    draws = uniform(seed, sum(DRAWS.values()), N_KERNELS, N_LEADS + 1)
    wanted = np.exp2(draws[..., :1] * np.log2(MAX_LEADS + 1)).astype(int)
    return (draws[..., 1:].argsort(-1).argsort(-1) < wanted).astype(float)


def _quantile_levels() -> np.ndarray:
    """Give the quantile levels [draw, 84, 5], a low-discrepancy sequence (multiples of the golden ratio, modulo 1)."""
    return (np.arange(1, WIDTH + 1) * ((np.sqrt(5) + 1) / 2) % 1).reshape(-1, N_KERNELS, PER_DRAW)


@lru_cache(maxsize=2)
def draw_groups(seed: int) -> tuple[DilationGroup, ...]:
    """Draw leads and thresholds, one group per dilation."""
    ends = np.cumsum(list(DRAWS.values()))[:-1]
    choices, levels = np.split(_lead_choices(seed), ends), np.split(_quantile_levels(), ends)
    signals = to_microvolts(reference_signals(N_REFERENCE, N_SAMPLES, RATE_HZ, seed))
    groups = []
    for dilation, leads, level in zip(DRAWS, choices, levels, strict=True):
        by_place = _kernels()[None, :, :, None] * leads[:, :, None, :]
        weights = torch.from_numpy(by_place.reshape(-1, KERNEL_LENGTH * N_LEADS)).float()
        thresholds = _thresholds(signals, weights, dilation, level.reshape(-1, PER_DRAW))
        groups.append(DilationGroup(dilation, weights, thresholds))
    return tuple(groups)


def _thresholds(signals: Tensor, weights: Tensor, dilation: int, levels: np.ndarray) -> Tensor:
    """Take quantiles `levels` [K, 5] of each kernel's convolutions, pooled over all signals: [5, K]."""
    parts = [_convolve(part, weights, dilation)[..., ::REFERENCE_STEP] for part in signals.split(CHUNK["cpu"])]
    pooled = torch.cat(parts).transpose(0, 1).reshape(len(weights), -1).sort(-1).values
    at = torch.from_numpy((levels * pooled.shape[1]).astype(np.int64))
    return pooled.gather(1, at).T.contiguous() + 0.5


def to_microvolts(signals_mv: np.ndarray) -> Tensor:
    """Take the baseline wander off signals of 100 Hz, [batch, 12, time] in mV, and round to whole microvolts."""
    level = scipy.signal.sosfiltfilt(_HIGHPASS, signals_mv, axis=-1)
    return torch.from_numpy(np.rint(np.clip(level, -MAX_MV, MAX_MV) * 1000).astype(np.float32))


def _convolve(x: Tensor, weights: Tensor, dilation: int) -> Tensor:
    """Convolve whole microvolts [batch, 12, time] with weights [K, 108]: [batch, K, time], exact integers."""
    reach = dilation * (KERNEL_LENGTH // 2)
    padded = F.pad(x, (reach, reach))
    shifts = [padded[..., j * dilation : j * dilation + x.shape[-1]] for j in range(KERNEL_LENGTH)]
    return weights @ torch.cat(shifts, dim=1)


def _counts_above(y: Tensor, thresholds: Tensor) -> Tensor:
    """Count samples of [batch, K, time] above each threshold [n, K]: [batch, K, n].

    Eight neighbouring bytes of the comparison are added up as one 64-bit integer: 125 words of ones cannot carry over.
    """
    counts = [
        (y > row[:, None]).view(torch.int64).sum(-1, keepdim=True).view(torch.uint8).sum(-1) for row in thresholds
    ]
    return torch.stack(counts, dim=-1)


@contextmanager
def _exact_products() -> Iterator[None]:
    """Keep matrix products in full float32, whatever precision (TF32, bfloat16) the rest of the program asked for."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def rocket_features(x: Tensor, groups: tuple[DilationGroup, ...]) -> Tensor:
    """Compute features [batch, 5040] of whole microvolts [batch, 12, 1000] on x's device."""
    counts = [_counts_above(_convolve(x, g.weights, g.dilation), g.thresholds).flatten(1) for g in groups]
    return torch.cat(counts, dim=1) / x.shape[-1]


@register("rocket")
class Rocket(Expert):
    """MiniRocket features with drawn leads and fixed thresholds; config option: `seed`."""

    groups: tuple[DilationGroup, ...]

    @classmethod
    def published_spec(cls, variant: str | None = None) -> ExpertSpec:
        """Facts about this expert."""
        return cls._spec(SEED)

    @classmethod
    def _spec(cls, seed: int) -> ExpertSpec:
        return ExpertSpec(
            name="rocket",
            title="Random convolution kernels (MiniRocket, multivariate)",
            version="2",
            source="Dempster, Schmidt, Webb: MiniRocket (KDD 2021, arXiv 2012.08791)",
            sampling_rate_hz=float(RATE_HZ),
            seconds=N_SAMPLES / RATE_HZ,
            leads=STANDARD_LEADS,
            normalisation="none (mV); 0.5 Hz high-pass",
            layer_names=("features",),
            layer_dims=(WIDTH,),
            embedding_dim=WIDTH,
            licence="Apache-2.0",
            parameters=0,
            windows="the first 10 s; a shorter record holds its last sample",
            shortest_s=1.0,
            longest_s=N_SAMPLES / RATE_HZ,
            missing_leads="zeros; gaps are bridged linearly",
            needs_weights=False,
            preprocessing={"seed": seed, "highpass_hz": HIGHPASS_HZ, "max_mv": MAX_MV, "reference": N_REFERENCE},
        )

    @classmethod
    def build(
        cls,
        config: Mapping[str, Any] | None,
        state: Mapping[str, Tensor] | None,
        *,
        variant: str | None = None,
        preprocessing: str | None = None,
    ) -> Rocket:
        """Draw the kernels; `config` may name another `seed`."""
        seed = architecture_overrides("rocket", config, ("seed",)).get("seed", SEED)
        if state:
            raise UsageError(f"expert 'rocket' has no weights; remove {sorted(state)[:3]}")
        if not isinstance(seed, int) or seed < 0:
            raise UsageError(f"expert 'rocket': seed is {seed!r}; give a whole number from 0")
        expert = cls(preprocessing=preprocessing)
        expert.spec = cls._spec(seed)
        expert.groups = draw_groups(seed)
        return expert

    def prepare(self, signals_mv: np.ndarray | Tensor, rate_hz: float) -> Tensor:
        """Resample (anti-aliased), cut or extend to 10 s, high-pass: [batch, 1, 12, 1000] in whole microvolts."""
        signals = resample_rate(as_signals(signals_mv), rate_hz, RATE_HZ)[..., :N_SAMPLES]
        missing = N_SAMPLES - signals.shape[-1]
        whole = fill_gaps(np.pad(signals, ((0, 0), (0, 0), (0, missing)), constant_values=np.nan))
        return to_microvolts(whole)[:, None]

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Encoding:
        """Compute the features of [batch, 12, 1000], as the one layer and the embedding [batch, 5040]."""
        if x.ndim != 3 or tuple(x.shape[1:]) != (N_LEADS, N_SAMPLES):
            raise UsageError(f"expert 'rocket': input is {list(x.shape)}; expected [batch, {N_LEADS}, {N_SAMPLES}]")
        self.groups = tuple(group.to(self.device) for group in self.groups)
        size = CHUNK.get(self.device.type, 32)
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False), _exact_products():
            parts = [rocket_features(part.to(self.device, torch.float32), self.groups) for part in x.split(size)]
        features = torch.cat(parts) if parts else torch.empty((0, WIDTH), device=self.device)
        return Encoding(layers=features[:, None], embedding=features)
