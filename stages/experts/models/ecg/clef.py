"""CLEF: residual networks of three sizes over one lead at 500 Hz; every lead is embedded alone.

Lives here: the published facts, `prepare`, `encode`. Not here: the network (`networks.net1d`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.signal
import torch
from torch import Tensor

from cache.errors import InputError, UsageError
from stages.experts.checkpoints import load_strict
from stages.experts.contract import STANDARD_LEADS, Encoding, Expert, ExpertSpec, WeightsSource
from stages.experts.networks.net1d import Net1D, Net1DOptions, options_from_state
from stages.experts.options import architecture_overrides
from stages.experts.registry import register
from stages.experts.signals import dsp
from stages.experts.token_times import TokenTimes

RATE_HZ = 500.0
WINDOW = 5000
SHORTEST_S = 1.0
"""Seconds of the shortest record that is still encoded (the zero-phase filter needs some)."""
EPS = 1e-8
PREFIX = "backbone."
POOLINGS = ("mean", "concatenate")
TRAINING_ONLY = ("use_do", "verbose", "return_features", "n_classes")
UNUSED_KEYS = (r"backbone_k\.", r"backbone_target\.", r"queue", r"predictor\.")
"""What momentum contrast and BYOL would leave; the released encoders were trained without them."""
LEAD_WINDOWS = 2
"""Windows (of 12 leads each) that a CPU encodes at a time."""


@dataclasses.dataclass(frozen=True)
class ClefOptions(Net1DOptions):
    """Net1D's options, and what becomes of twelve leads."""

    in_channels: int = 1
    n_classes: int = 0
    lead_pooling: Literal["mean", "concatenate"] = "mean"
    """Ours: the leads' mean, or the leads side by side (twelve times as wide)."""


class _Release(NamedTuple):
    options: ClefOptions
    filename: str
    parameters: int


def _net1d(base: int, ratio: float, widths: tuple[int, ...], blocks: tuple[int, ...], group: int) -> ClefOptions:
    return ClefOptions(1, base, ratio, widths, blocks, groups_width=group)


OPTION_NAMES = tuple(field.name for field in dataclasses.fields(ClefOptions) if field.name != "n_classes")
RELEASES = {
    "small": _Release(_net1d(32, 0.5, (32, 64, 64, 128, 128, 256), (1, 1, 2, 2, 2, 2), 8), "clef_small.ckpt", 447_792),
    "medium": _Release(
        _net1d(64, 1.0, (64, 160, 160, 400, 400, 1024, 1024), (2, 2, 2, 3, 3, 4, 4), 16), "clef_medium.ckpt", 30_654_000
    ),
    "large": _Release(
        _net1d(128, 1.5, (128, 256, 256, 512, 512, 1024, 1024, 2048, 2048), (2, 3, 3, 4, 4, 5, 5, 6, 6), 32),
        "clef_largel.ckpt",
        296_623_360,
    ),
}


@register("clef")
class Clef(Expert):
    """CLEF (Shu et al. 2025, arXiv 2512.02180; Nokia-Bell-Labs/ecg-foundation-model).

    The networks were trained on single leads of any name. Twelve leads run one by one, and embedding, layers and tokens
    are their mean over the leads that are not flat; with `lead_pooling: concatenate` the leads stand side by side.

    Examples
    --------
    >>> import numpy as np
    >>> from stages.experts import load_expert
    >>> expert = load_expert("clef-small", random_weights=True)
    >>> expert.encode(expert.prepare(np.zeros((1, 12, 5000)), 500)[:, 0]).embedding.shape
    torch.Size([1, 256])
    """

    variants = tuple(RELEASES)
    preprocessing_variants = ("authors", "authors-ptbxl")
    residual_branches = r"(?P<block>stage_list\.\d+\.block_list\.\d+)\.gate"
    module: Net1D
    lead_pooling: str

    @classmethod
    def published_spec(cls, variant: str | None = None) -> ExpertSpec:
        """Spec of a published checkpoint."""
        release = RELEASES[variant or "small"]
        return _spec(release.options, variant, "authors", release.parameters)

    @classmethod
    def small_config(cls, variant: str | None = None) -> Mapping[str, Any]:
        """Return the published architecture made narrow and shallow, see `Expert.small_config`."""
        return {"base_filters": 8, "filter_list": (8, 16, 16), "m_blocks_list": (1, 2, 1), "groups_width": 8}

    @classmethod
    def build(
        cls,
        config: Mapping[str, Any] | None,
        state: Mapping[str, Tensor] | None,
        *,
        variant: str | None = None,
        preprocessing: str | None = None,
    ) -> Clef:
        """Construct from overrides and an official state dict, with or without the Lightning module's `backbone.`."""
        if state is not None:
            state = {key.removeprefix(PREFIX): value for key, value in state.items()}
        options = dataclasses.asdict(RELEASES[variant or "small"].options)
        options |= options_from_state(state) if state is not None else {}
        options |= architecture_overrides("clef", config, OPTION_NAMES, TRAINING_ONLY)
        merged = ClefOptions(**options)
        _check(merged)
        expert = cls(preprocessing=preprocessing)
        expert.lead_pooling = merged.lead_pooling
        expert.module = Net1D(merged)
        if state is not None:
            load_strict(expert.module, state, expert=_name(variant), unused_keys=UNUSED_KEYS)
        count = sum(p.numel() for p in expert.module.parameters())
        expert.spec = _spec(merged, variant, expert.preprocessing, count)
        return expert

    def prepare(self, signals_mv: np.ndarray | Tensor, rate_hz: float) -> Tensor:
        """Band-pass and z-score every lead alone: [batch, 12, time] mV -> [batch, windows, 12, 5000 at 500 Hz].

        `authors-ptbxl` keeps mV as they are, as the authors' loader of PTB-XL does (which takes lead I at 100 Hz).
        Other rates are resampled by Fourier transform, as there. A shorter record is one shorter window.
        """
        rounded = dsp.as_signals(signals_mv).astype(np.float32).astype(np.float64)  # see `bandpass`
        signals = dsp.fill_gaps(rounded)
        n_samples = round(signals.shape[-1] * RATE_HZ / rate_hz)
        x = dsp.resample_fft(signals, n_samples)
        x = dsp.even_windows(x, WINDOW) if n_samples > WINDOW else x[:, None]
        if self.preprocessing == "authors":
            x = dsp.zscore(np.where(dsp.is_flat(x), 0.0, bandpass(x)), axis=-1, eps=EPS)
        return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))

    def windows_at_once(self, x: Tensor) -> int:
        """Return how many windows one forward pass on a CPU takes, see `Expert.windows_at_once`."""
        del x
        return LEAD_WINDOWS

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Encoding:
        """Encode each lead of one window per record alone, [batch, lead, time]; any number of leads, no mask."""
        if mask is not None:
            raise UsageError("expert 'clef' takes no mask; leave it out")
        if x.ndim != 3 or not x.shape[1] or not x.shape[2]:
            raise InputError(f"expert 'clef': input {list(x.shape)}; expected [batch, lead, time]")
        batch, leads = x.shape[:2]
        means, last = self.module.states(x.reshape(batch * leads, 1, -1))
        by_lead = [
            *(mean.unflatten(0, (batch, leads)) for mean in means),
            last.transpose(1, 2).unflatten(0, (batch, leads)),
        ]
        if self.lead_pooling == "concatenate":
            *layers, tokens = (part.movedim(1, -2).flatten(-2) for part in by_lead)
        else:
            weights = _lead_weights(x)
            layers = [(mean * weights).sum(1) for mean in by_lead[:-1]]
            tokens = (by_lead[-1] * weights.unsqueeze(-1).to(last.dtype)).sum(1)
        return Encoding(layers, layers[-1], tokens=tokens)


def _lead_weights(x: Tensor) -> Tensor:
    """Weigh leads alike, but for those that are 0 throughout (all alike where all are): [batch, lead, 1]."""
    present = (x != 0).any(-1, keepdim=True).float()
    present = torch.where(present.sum(1, keepdim=True) > 0, present, torch.ones_like(present))
    return present / present.sum(1, keepdim=True)


# butter(5, [0.67, 40] Hz, "band") at 500 Hz as numerator and denominator, and the state that lfilter_zi gives for it.
# Of order ten, that form hardly holds its numbers: the state is the solution of an ill-conditioned system and differs
# from one linear algebra kernel to the next, and the model input with it by 0.004. These are the official run's bits.
_NUMERATOR, _DENOMINATOR, _STATE = (
    np.array([float.fromhex(bits) for bits in text.split()])
    for text in (
        """0x1.dca75bdaadf1bp-12 0 -0x1.29e89968acb71p-9 0 0x1.29e89968acb71p-8 0 -0x1.29e89968acb71p-8 0
        0x1.29e89968acb71p-9 0 -0x1.dca75bdaadf1bp-12""",
        """1 -0x1.0c61646c04855p+3 0x1.fb8fa3ad51b74p+4 -0x1.1d2e91b584ee2p+6 0x1.a5ec40d4a9e94p+6
        -0x1.ad81985dab3d9p+6 0x1.30bace519593cp+6 -0x1.299d7bc547721p+5 0x1.7ef24809d79c5p+3
        -0x1.251ae65f77b45p+1 0x1.95554702af6e6p-3""",
        """-0x1.e3ead625ec4a1p-12 -0x1.a6ff9a99ab20cp-12 0x1.b0767206157d1p-10 0x1.18f6c443f029cp-9
        -0x1.9a9fcfd87a9d6p-9 -0x1.3921c5bcf7994p-9 0x1.ab07f87ba8596p-10 0x1.ee95feae29d9bp-10
        -0x1.ebd95315deae9p-12 -0x1.db37565e20109p-12""",
    )
)
_EDGE = 3 * len(_DENOMINATOR)
"""Samples that are put before and behind a lead, turned about its end."""


def bandpass(leads: np.ndarray) -> np.ndarray:
    """Filter [..., time] at 500 Hz to 0.67-40 Hz with zero phase, as scipy's `filtfilt` does.

    Its rounding turns the last bits of float64 into thousandths. `prepare` rounds to float32 before, so that one
    microvolt is the same number however it was computed.
    """
    before = 2 * leads[..., :1] - leads[..., _EDGE:0:-1]
    behind = 2 * leads[..., -1:] - leads[..., -2 : -_EDGE - 2 : -1]
    y = np.concatenate([before, leads, behind], axis=-1)
    for _ in range(2):
        y = scipy.signal.lfilter(_NUMERATOR, _DENOMINATOR, y, zi=_STATE * y[..., :1])[0][..., ::-1]
    return y[..., _EDGE:-_EDGE]


def _name(variant: str | None) -> str:
    return "clef" if variant in (None, "small") else f"clef-{variant}"


def _check(options: ClefOptions) -> None:
    if options.lead_pooling not in POOLINGS:
        raise UsageError(f"expert 'clef': lead_pooling '{options.lead_pooling}'; it has to be {' or '.join(POOLINGS)}")
    if options.in_channels != 1:
        raise UsageError(f"expert 'clef': in_channels {options.in_channels}; it takes one lead at a time")
    if len(options.filter_list) != len(options.m_blocks_list):
        raise UsageError(
            f"expert 'clef': filter_list has {len(options.filter_list)} stages and m_blocks_list "
            f"{len(options.m_blocks_list)}; give both the same length"
        )


def _spec(options: ClefOptions, variant: str | None, preprocessing: str, count: int) -> ExpertSpec:
    release = RELEASES[variant or "small"]
    widths = tuple(options.filter_list)
    n_leads = len(STANDARD_LEADS) if options.lead_pooling == "concatenate" else 1
    stride = options.stride ** (1 + len(widths))
    return ExpertSpec(
        name=_name(variant),
        title=f"CLEF {variant or 'small'}: one lead at a time",
        version="1",
        source="Shu et al. 2025, arXiv 2512.02180; Nokia-Bell-Labs/ecg-foundation-model 0a1156e",
        sampling_rate_hz=RATE_HZ,
        seconds=WINDOW / RATE_HZ,
        leads=STANDARD_LEADS,
        normalisation="0.67-40 Hz, z-score per lead" if preprocessing == "authors" else "none: mV",
        layer_names=("embed", *(f"stage_{k + 1}" for k in range(len(widths)))),
        layer_dims=tuple(n_leads * width for width in (options.base_filters, *widths)),
        embedding_dim=n_leads * widths[-1],
        licence="BSD-3-Clause-Clear",
        store_dtype="float32",  # float16 would cost a layer of the medium one 0.7 % of the spread between records
        parameters=count,
        published_parameters=release.parameters,
        weights=WeightsSource("", release.filename, "", note=f"file {release.filename} of Zenodo record 17572734"),
        pretrained_on=("mimic-iv-ecg",),
        unused_keys=UNUSED_KEYS,
        windows="evenly placed windows of 10 s, each filtered alone, mean of their vectors; a shorter record whole, "
        f"from 1 s; leads: {options.lead_pooling}",
        shortest_s=SHORTEST_S,
        scale_free=("authors",),
        missing_leads="gaps bridged linearly, ends held; a missing lead is 0, as a flat one after its z-score, and "
        "left out of the leads' mean",
        preprocessing={"path": preprocessing, "rate_hz": RATE_HZ, "window": WINDOW, "eps": EPS},
        tokens=TokenTimes(n_leads * widths[-1], -(-WINDOW // stride), stride / RATE_HZ),
        placement="even",
    )
