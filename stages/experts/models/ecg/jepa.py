"""ECG-JEPA: a transformer over patches of eight leads, pretrained to predict its own representation of hidden patches.

Lives here: the published facts, `prepare`, `encode`. Not here: the network (`networks.jepa_net`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache.errors import InputError, UsageError, WeightsError
from stages.experts.checkpoints import load_strict
from stages.experts.chunks import encode_in_chunks, windows_in_cache
from stages.experts.contract import STANDARD_LEADS, Encoding, Expert, ExpertSpec, WeightsSource
from stages.experts.networks.jepa_net import OPTION_NAMES, JepaEncoder, JepaOptions, options_from_state
from stages.experts.networks.parts.pooling import mean_tokens
from stages.experts.options import architecture_overrides
from stages.experts.registry import register
from stages.experts.signals import dsp as _dsp
from stages.experts.token_times import TokenTimes

RATE_HZ = 250
SOURCE_RATE_HZ = 500
LEADS = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
POSITION_TYPES = ("sincos", "learnable", "rope")
# The whole pretraining model's names for what the encoder calls otherwise.
ALIASES = {"encoder_embed_dim": "embed_dim", "encoder_depth": "depth", "encoder_num_heads": "num_heads"}
PREDICTOR_OPTIONS = (
    *("predictor_embed_dim", "predictor_depth", "predictor_num_heads", "mask_scale", "mask_type", "drop_rate"),
    *("attn_drop_rate", "drop_path_rate", "norm_layer", "init_std"),
)
"""Options of the pretraining predictor and of training."""
UNUSED_KEYS = (r"target_encoder\.", r"predictor\.")
PUBLISHED_PARAMETERS = 85_374_720
_HEADS = {768: 16}


@register("jepa")
class Jepa(Expert):
    """ECG-JEPA (Kim 2024, arXiv 2410.08559; sehunfromdaegu/ECG_JEPA)."""

    residual_branches = r"(?P<block>encoder_blocks\.blocks\.\d+)\.(attn|mlp)"
    early_blocks = r"encoder_blocks\.blocks\.[0-2]"
    module: JepaEncoder

    @classmethod
    def published_spec(cls, variant: str | None = None) -> ExpertSpec:
        """Spec at the published configuration."""
        return _spec(JepaOptions(), "authors", PUBLISHED_PARAMETERS)

    @classmethod
    def small_config(cls, variant: str | None = None) -> Mapping[str, Any]:
        """Return the published architecture made narrow and shallow, see `Expert.small_config`."""
        return {"embed_dim": 32, "depth": 3, "num_heads": 4, "mlp_ratio": 1.5}

    @classmethod
    def build(
        cls,
        config: Mapping[str, Any] | None,
        state: Mapping[str, Tensor] | None,
        *,
        variant: str | None = None,
        preprocessing: str | None = None,
    ) -> Jepa:
        """Construct from overrides and the state dict of an encoder or of a whole pretraining model."""
        state = None if state is None else encoder_state(state)
        options = _options(config, state)
        expert = cls(preprocessing=preprocessing)
        expert.module = JepaEncoder(options)
        if state is not None:
            load_strict(expert.module, state, expert="jepa", unused_keys=UNUSED_KEYS)
        n_parameters = sum(p.numel() for p in expert.module.parameters())
        expert.spec = _spec(options, expert.preprocessing, n_parameters)
        return expert

    def prepare(self, signals_mv: np.ndarray | Tensor, rate_hz: float) -> Tensor:
        """[batch, 12, time] in mV -> [batch, 1, lead, 2500]: the first 10 s at 250 Hz in mV (official ecg_data.py).

        Raises
        ------
        InputError
            Weights of leads that are not known by name.
        """
        options = self.module.options
        if not self.spec.leads:
            raise InputError(f"expert 'jepa': the weights are for {options.c} leads; only 8 or 12 are known by name")
        signals = _dsp.pick_leads(_dsp.fill_gaps(_dsp.as_signals(signals_mv)), self.spec.leads)
        n_window = options.p * options.t
        n_source = n_window * SOURCE_RATE_HZ // RATE_HZ
        n_samples = max(n_source, int(signals.shape[-1] * SOURCE_RATE_HZ / rate_hz + 1e-6))
        x = _dsp.resample_fft(_dsp.resample_fft(signals, n_samples)[..., :n_source], n_window)
        return torch.from_numpy(np.ascontiguousarray(x[:, None], dtype=np.float32))

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Encoding:
        """Encode one window per record, [batch, lead, p * t]; there is no mask.

        `embed` is the mean of the tokens as they enter the first block, positions added.
        """
        options = self.module.options
        shape = (len(options.lead_index), options.p * options.t)
        if mask is not None:
            raise UsageError("expert 'jepa' takes no mask; leave it out")
        if x.ndim != 3 or tuple(x.shape[1:]) != shape:
            raise InputError(f"expert 'jepa': input {list(x.shape)}; expected [batch, {shape[0]}, {shape[1]}]")
        return encode_in_chunks(self._encode, x, mask, self.windows_at_once(x))

    def windows_at_once(self, x: Tensor) -> int:
        """Return how many windows stay in a CPU's cache, see `Expert.windows_at_once`."""
        return windows_in_cache(x.shape[1] * self.module.options.p)

    def _encode(self, x: Tensor, mask: Tensor | None) -> Encoding:
        entering, outputs = self.module(x)
        pooled, hidden = [mean_tokens(entering)], entering
        for hidden in outputs:
            pooled.append(mean_tokens(hidden))
        final = self.module.norm(hidden)
        tokens = final.unflatten(1, (-1, self.module.options.p)).mean(1)
        return Encoding(torch.stack(pooled, dim=1), mean_tokens(final), tokens=tokens)


def encoder_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the wrappers' prefixes off the keys; of a pretraining model, the online encoder is the one to use."""
    bare = {key.removeprefix("module."): value for key, value in state.items()}
    return {re.sub(r"^encoder\.", "", key): value for key, value in bare.items()}


def _options(config: Mapping[str, Any] | None, state: Mapping[str, Tensor] | None) -> JepaOptions:
    """Merge the published options, then what the weights' shapes say, then the overrides."""
    overrides = architecture_overrides("jepa", config, (*OPTION_NAMES, *ALIASES), PREDICTOR_OPTIONS)
    overrides = {ALIASES.get(name, name): value for name, value in overrides.items()}
    if "leads" in overrides:
        overrides["leads"] = tuple(overrides["leads"] or ())
    found = {} if state is None else options_from_state(state)
    if "num_heads" not in found and found:
        if found["embed_dim"] not in _HEADS and "num_heads" not in overrides:
            raise WeightsError(
                f"expert 'jepa': the weights are {found['embed_dim']} wide, which is not published, and do not say "
                "their num_heads; give the config"
            )
        found["num_heads"] = _HEADS.get(found["embed_dim"], 1)
    options = dataclasses.asdict(JepaOptions()) | found | overrides
    if state is not None and (table := state.get("pos_embed")) is not None:
        options |= _grid(len(table), overrides, options)
    merged = JepaOptions(**options)
    _check(merged)
    return merged


def _grid(n_tokens: int, overrides: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, int]:
    """Leads and patches out of the number of positions, as far as the config does not say them."""
    if "p" in overrides and "c" not in overrides:
        return {"c": n_tokens // options["p"]}
    return {} if "p" in overrides else {"p": n_tokens // options["c"]}


def _check(options: JepaOptions) -> None:
    if options.pos_type not in POSITION_TYPES:
        raise UsageError(f"expert 'jepa': pos_type '{options.pos_type}'; it has to be {', '.join(POSITION_TYPES)}")
    if options.embed_dim % options.num_heads or options.embed_dim % 4:
        raise UsageError(
            f"expert 'jepa': embed_dim {options.embed_dim} is no multiple of 4 and of num_heads {options.num_heads}; "
            "correct the config"
        )
    if options.pos_type == "rope" and options.embed_dim % (4 * options.num_heads):
        raise UsageError(f"expert 'jepa': embed_dim {options.embed_dim} is no multiple of 4 x num_heads, as rope needs")
    if not set(options.leads) <= set(range(options.c)):
        raise UsageError(f"expert 'jepa': leads {list(options.leads)} go beyond c {options.c}; correct the config")


def _spec(options: JepaOptions, preprocessing: str, n_parameters: int) -> ExpertSpec:
    known = {len(LEADS): LEADS, len(STANDARD_LEADS): STANDARD_LEADS}.get(options.c, ())
    n_window = options.p * options.t
    return ExpertSpec(
        name="jepa",
        title="ECG-JEPA",
        version="1",
        source="Kim 2024, arXiv 2410.08559; sehunfromdaegu/ECG_JEPA d937ad2",
        sampling_rate_hz=RATE_HZ,
        seconds=n_window / RATE_HZ,
        leads=tuple(known[index] for index in options.lead_index) if known else (),
        normalisation="none: mV",
        layer_names=("embed", *(f"block_{k + 1}" for k in range(options.depth))),
        layer_dims=(options.embed_dim,) * (options.depth + 1),
        embedding_dim=options.embed_dim,
        licence="MIT",
        store_dtype="float32",  # float16 would cost 8 % of the spread between records
        parameters=n_parameters,
        published_parameters=PUBLISHED_PARAMETERS,
        weights=WeightsSource(
            "",
            "multiblock_epoch100.pth",
            "",
            "61334869f905a7d6de32bc573c60024eaf6efba7c35c0e45fc2ea7d52b6ff66e",
            note="the authors' drive: multi-block masking "
            "https://drive.google.com/file/d/1gMOT4xjQQg0GZkY1iE6NuDzua4ALw00l, random masking "
            "https://drive.google.com/file/d/1mh-XL0XOvvhFbhvuZ9c2KnTHa9B4F3Wx",
        ),
        pretrained_on=("chapman", "ningbo", "code15"),
        unused_keys=UNUSED_KEYS,
        windows=f"one window, the first {n_window / RATE_HZ:g} s of the record, as the authors; the rest is not seen",
        shortest_s=n_window / RATE_HZ,
        longest_s=n_window / RATE_HZ,
        missing_leads="gaps bridged linearly, ends held; a missing lead is zeros; a flat one keeps its level",
        preprocessing={"path": preprocessing, "rate_hz": RATE_HZ, "samples": n_window},
        tokens=TokenTimes(options.embed_dim, options.p, options.t / RATE_HZ),
        placement="consecutive",
    )
