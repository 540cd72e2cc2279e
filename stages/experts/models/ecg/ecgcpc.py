"""ECG-CPC and the five encoders of its architecture that other objectives gave: convolutions and state-space layers.

Lives here: the published facts, `prepare`, `encode`. Not here: the network (`networks.ecgcpc_net`), the resampling
(`signals.resampy`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cache.errors import InputError, UsageError
from stages.experts.checkpoints import load_strict
from stages.experts.contract import STANDARD_LEADS, Encoding, Expert, ExpertSpec, WeightsSource
from stages.experts.networks.ecgcpc_net import EcgCpcNet, EcgCpcOptions, options_from_state
from stages.experts.networks.parts.pooling import mean_tokens
from stages.experts.options import architecture_overrides
from stages.experts.registry import register
from stages.experts.signals import dsp
from stages.experts.signals.resampy import resample_kaiser_best
from stages.experts.token_times import TokenTimes

RATE_HZ = 240
CLIP_MV = 3.0
CROP_SECONDS = 2.5
"""Of the benchmark's evaluation."""
WINDOWS_A_PASS = 4
"""On a CPU; as fast as eight, and a record alone costs no more than so many windows."""
UNUSED_KEYS = (r"ts_encoder\.(?!encoder\.|predictor\.)",)
"""Heads, teachers and codebooks of pretraining: the authors too load the encoder and the predictor alone."""
PARTS = {
    "base": (("input_channels",), ("fs", "input_size", "normalize", "batch_size", "lr", "weight_decay", "optimizer")),
    "enc": (("features", "kss", "strides"), ("dilations", "normalization", "layer_norm")),
    "pred": (("model_dim", "causal", "state_dim", "layers"), ("backbone", "dropout", "prenorm", "batchnorm")),
}
"""Parts of the authors' configuration -> options that shape the network, and others, checked or passed over."""
ONLY = {"normalize": False, "normalization": True, "layer_norm": False, "backbone": "s42", "prenorm": False} | {
    "batchnorm": False
}
"""What the published networks have, and no other is known here."""
BENCHMARK = "Al-Masud et al. 2026, ICLR, arXiv 2509.25095; AI4HealthUOL/ecg-fm-benchmarking 6367295"
STUDY = "Al-Masud and Strodthoff 2026, arXiv 2605.12241; AI4HealthUOL/ecg-pretraining-strategies"


class _Release(NamedTuple):
    title: str
    options: EcgCpcOptions
    parameters: int
    weights: WeightsSource
    licence: str = "none stated"
    source: str = STUDY
    pretrained_on: tuple[str, ...] = ("heedb", "code15")


def _study(title: str, filename: str, *, causal: bool = False) -> _Release:
    """Return an encoder of the study of objectives, trained on crops of 2.5 s."""
    options = EcgCpcOptions(causal=causal, l_max=300)
    weights = WeightsSource(
        "", filename, "", note="in the folder checkpoints of AI4HealthUOL/ecg-pretraining-strategies"
    )
    return _Release(title, options, 2_932_736 if causal else 2_949_120, weights)


RELEASES = {
    "heedb": _Release(
        "ECG-CPC",
        EcgCpcOptions(),
        2_932_736,
        WeightsSource(
            "",
            "last_11597276.ckpt",
            "",
            "bc253edc6ac279ce2caec86d3c3a21b740e43735ca03be1dc7c50e630b0ad4cf",
            note="in 'ECG-CPC Checkpoint.zip' of figshare article 30192604 (MD5 7cdd0d54786b4d98248afc6dce63beea, "
            "sha256 94972d80645ac479acfee439da910bd0df1532dce6fae088e65f7529cc6af15d)",
        ),
        "CC-BY-4.0 (weights); the code states none",
        BENCHMARK,
        ("heedb",),
    ),
    "cpc": _study("CPC", "cpc_e10.ckpt", causal=True),
    "jepa": _study("JEPA", "jepa_e10.ckpt"),
    "data2vec": _study("data2vec", "data2vec_e10.ckpt"),
    "dinosr": _study("DinoSR", "dinosr_e10.ckpt"),
    "hubert": _study("HuBERT++", "hubert++_e10.ckpt"),
}


@register("ecgcpc")
class EcgCpc(Expert):
    """ECG-CPC (Al-Masud et al. 2026, ICLR), and its siblings by CPC, JEPA, data2vec, DinoSR and HuBERT++.

    The embedding is the mean over tokens. ECG-CPC and its CPC sibling are causal: their last token has seen all. The
    input path `benchmark` is that of the published evaluation: crops of 2.5 s, each resampled alone, not clipped.

    Examples
    --------
    >>> import numpy as np
    >>> from stages.experts import load_expert
    >>> config = {"enc": {"features": [8, 8, 8, 8]}, "pred": {"model_dim": 8}}
    >>> expert = load_expert("ecgcpc", config=config, random_weights=True)
    >>> x = expert.prepare(np.ones((1, 12, 5000)), 500)
    >>> x.shape, expert.encode(x[:, 0]).embedding.shape
    (torch.Size([1, 1, 12, 2400]), torch.Size([1, 8]))
    """

    variants = tuple(RELEASES)
    preprocessing_variants = ("authors", "benchmark")
    residual_branches = r"(?P<block>ts_encoder\.predictor\.predictor\.s4_layers\.\d+)"
    early_blocks = "$"  # none: the convolutions alone are slower than the layers
    module: EcgCpcNet

    @classmethod
    def published_spec(cls, variant: str | None = None) -> ExpertSpec:
        """Spec of a published checkpoint."""
        release = RELEASES[variant or "heedb"]
        return _spec(release.options, variant, "authors", release.parameters)

    @classmethod
    def small_config(cls, variant: str | None = None) -> Mapping[str, Any]:
        """Return the published architecture made narrow and shallow, see `Expert.small_config`."""
        return {"enc": {"features": [12, 12, 12, 16]}, "pred": {"model_dim": 16, "layers": 2, "state_dim": 4}}

    @classmethod
    def build(
        cls,
        config: Mapping[str, Any] | None,
        state: Mapping[str, Tensor] | None,
        *,
        variant: str | None = None,
        preprocessing: str | None = None,
    ) -> EcgCpc:
        """Construct from (a part of) the authors' configuration and a Lightning file's state dict."""
        options = _options(config, state, variant)
        expert = cls(preprocessing=preprocessing)
        expert.module = EcgCpcNet(options)
        if state is not None:
            load_strict(expert.module, state, expert=_name(variant), unused_keys=UNUSED_KEYS)
        n_parameters = sum(p.numel() for p in expert.module.parameters())
        expert.spec = _spec(options, variant, expert.preprocessing, n_parameters)
        return expert

    def prepare(self, signals_mv: np.ndarray | Tensor, rate_hz: float) -> Tensor:
        """[batch, 12, time] in mV -> [batch, windows, 12, time at 240 Hz]; neither filtered nor scaled.

        Clipped to 3 mV and resampled whole, as for pretraining; `benchmark` cuts first and does not clip. Windows are
        as long as the kernels reach (10 s; 2.5 s of the siblings).
        """
        signals = dsp.as_signals(signals_mv)
        signals = _bridged(signals)
        if self.preprocessing == "benchmark":
            x = resample_kaiser_best(_cut(signals, round(self.spec.seconds * rate_hz)), rate_hz, RATE_HZ)
        else:
            x = resample_kaiser_best(np.clip(signals, -CLIP_MV, CLIP_MV), rate_hz, RATE_HZ)
            x = _cut(x, round(self.spec.seconds * RATE_HZ))
        return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))

    def windows_at_once(self, x: Tensor) -> int:
        """Return how many windows one forward pass on a CPU takes, see `Expert.windows_at_once`."""
        del x
        return WINDOWS_A_PASS

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Encoding:
        """Encode one window per record, [batch, lead, time], time as the kernels reach or shorter; no mask."""
        options = self.module.options
        longest = options.l_max * options.stride
        if mask is not None:
            raise UsageError("expert 'ecgcpc' takes no mask; leave it out")
        if x.ndim != 3 or x.shape[1] != options.input_channels or not 0 < x.shape[2] <= longest:
            raise InputError(
                f"expert 'ecgcpc': input {list(x.shape)}; expected [batch, {options.input_channels}, time], time up to "
                f"{longest} samples: the saved kernels reach no further"
            )
        states = self.module(x)
        layers = [mean_tokens(tokens) for tokens in (states.entering, *states.layers)]
        return Encoding(layers, layers[-1], tokens=states.layers[-1])


def _bridged(signals: np.ndarray) -> np.ndarray:
    """Bridge gaps as the authors do: linearly inside, the last sample held at the end, 0 before the first one."""
    known = np.maximum.accumulate(np.isfinite(signals), axis=-1)
    return np.where(known, dsp.fill_gaps(signals), 0.0)


def _cut(signals: np.ndarray, n_samples: int) -> np.ndarray:
    return dsp.even_windows(signals, n_samples) if signals.shape[-1] > n_samples else signals[:, None]


def _name(variant: str | None) -> str:
    return "ecgcpc" if variant in (None, "heedb") else f"ecgcpc-{variant}"


def _options(
    config: Mapping[str, Any] | None, state: Mapping[str, Tensor] | None, variant: str | None
) -> EcgCpcOptions:
    """Merge the published options, then what the weights' shapes say, then the overrides."""
    given, sizes = _overrides(config)
    published = RELEASES[variant or "heedb"].options
    options = dataclasses.replace(published, **({} if state is None else options_from_state(state)) | given)
    if len({len(options.features), len(options.kss), len(options.strides)}) > 1 or not options.features:
        raise UsageError(
            f"expert 'ecgcpc': features {list(options.features)}, kss {list(options.kss)} and strides "
            f"{list(options.strides)} differ in length; give one number a convolution"
        )
    if options.state_dim < 2 or options.state_dim % 2:
        raise UsageError(f"expert 'ecgcpc': state_dim {options.state_dim}; it has to be even (conjugate pairs)")
    if options.input_channels != len(STANDARD_LEADS):
        raise UsageError(f"expert 'ecgcpc': the weights are for {options.input_channels} leads; only 12 are known")
    if state is None and "input_size" in sizes:
        n_samples = float(sizes["input_size"]) * float(sizes.get("fs", RATE_HZ))
        options = dataclasses.replace(options, l_max=int(n_samples) // options.stride)
    return options


def _overrides(config: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options that shape the network, and those of `base` that say how long and how fast its input is."""
    passed = ("trainer", "loss", "static", "head", "metric", "task", "head_ssl", "ema", "mask", "quantizer", "defaults")
    top = {name: value for name, value in (config or {}).items() if not re.fullmatch(r"data\d+", name)}
    parts = architecture_overrides("ecgcpc", top, [*PARTS, "ts"], passed)
    parts |= architecture_overrides("ecgcpc", parts.pop("ts", None), list(PARTS), passed)
    given: dict[str, Any] = {}
    for part, options in parts.items():
        names, others = PARTS[part]
        given |= architecture_overrides("ecgcpc", options, names, others)
        for name in ONLY.keys() & options.keys():
            if options[name] != ONLY[name]:
                raise UsageError(f"expert 'ecgcpc': {name} {options[name]!r}; only {ONLY[name]!r} is published")
    if float(parts.get("base", {}).get("fs", RATE_HZ)) != RATE_HZ:
        raise UsageError(f"expert 'ecgcpc': fs {parts['base']['fs']}; only {RATE_HZ} Hz is published")
    return {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}, dict(parts.get("base", {}))


def _spec(options: EcgCpcOptions, variant: str | None, preprocessing: str, n_parameters: int) -> ExpertSpec:
    release = RELEASES[variant or "heedb"]
    reach_s = options.l_max * options.stride / RATE_HZ
    seconds = min(CROP_SECONDS, reach_s) if preprocessing == "benchmark" else reach_s
    each = "cut, then resampled" if preprocessing == "benchmark" else "cut from the resampled record"
    return ExpertSpec(
        name=_name(variant),
        title=f"{release.title}: state-space layers over the tokens of 8 ms of all leads",
        version="1",
        source=release.source,
        sampling_rate_hz=RATE_HZ,
        seconds=seconds,
        leads=STANDARD_LEADS,
        normalisation="none: mV" + ("" if preprocessing == "benchmark" else ", clipped to 3 mV"),
        layer_names=("embed", *(f"block_{k + 1}" for k in range(options.layers))),
        layer_dims=(options.features[-1], *(options.model_dim,) * options.layers),
        embedding_dim=options.model_dim,
        licence=release.licence,
        parameters=n_parameters,
        published_parameters=release.parameters,
        weights=release.weights,
        pretrained_on=release.pretrained_on,
        unused_keys=UNUSED_KEYS,
        windows=f"evenly placed windows of {seconds:g} s, {each}, mean of their vectors; a shorter record whole, "
        "from 1 s",
        shortest_s=1.0,
        missing_leads="gaps bridged linearly, the last sample held, 0 mV before the first one; a missing lead is 0 mV",
        preprocessing={"path": preprocessing, "rate_hz": RATE_HZ, "seconds": seconds, "clip_mv": CLIP_MV},
        tokens=TokenTimes(
            dim=options.model_dim,
            per_window=-(-round(seconds * RATE_HZ) // options.stride),
            step_s=options.stride / RATE_HZ,
            causal=options.causal,
        ),
        placement="even",
    )
