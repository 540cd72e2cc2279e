"""MERL: a ResNet-18 over twelve leads in MIMIC order, pretrained against the text of the reports.

Lives here: the published facts, `prepare`, `encode`. Not here: the network (`networks.merl_net`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from cache.errors import InputError, UsageError
from stages.experts.checkpoints import load_strict
from stages.experts.contract import STANDARD_LEADS, Encoding, Expert, ExpertSpec, WeightsSource
from stages.experts.networks.merl_net import (
    TEXT_HEADS,
    MerlOptions,
    MerlResNet,
    encoder_state,
    has_text_side,
    options_from_state,
)
from stages.experts.networks.parts.pooling import mean_tokens
from stages.experts.options import architecture_overrides
from stages.experts.registry import register
from stages.experts.signals import min_max
from stages.experts.signals.min_max import LEADS, RATE_HZ, WINDOW_SECONDS
from stages.experts.token_times import TokenTimes

OPTION_NAMES = tuple(field.name for field in dataclasses.fields(MerlOptions))
TEXT_SIDE = ("projection_size", "spacial_dim")
WINDOWS_A_PASS = 4
"""On a CPU; as fast as eight, and a record alone costs no more than so many windows."""
UNUSED_KEYS = (r"linear\.", r"(linear[12]|lm_model|proj_[te])\.")
PUBLISHED_PARAMETERS = 3_848_832


@register("merl")
class MerlExpert(Expert):
    """MERL's ResNet-18 (Liu et al. 2024, ICML; cheliu-computation/MERL-ICML2024).

    The embedding is the mean over tokens, as in the authors' linear probe. Weights of the full checkpoint
    (res18_best_ckpt.pth) also give `Encoding.output`, the vector that zero-shot classification compares with the text's
    (by cosine; its length is not 1). The input path `pretraining` rounds to 1/1000, as the records of pretraining were.

    Examples
    --------
    >>> import numpy as np
    >>> from stages.experts import load_expert
    >>> expert = load_expert("merl", config={"widths": [4, 4, 8, 8]}, random_weights=True)
    >>> x = expert.prepare(np.ones((1, 12, 5000)), 500)
    >>> x.shape, expert.encode(x[:, 0]).embedding.shape
    (torch.Size([1, 1, 12, 5000]), torch.Size([1, 8]))
    """

    preprocessing_variants = ("authors", "pretraining")
    residual_branches = r"(?P<block>layer\d+\.\d+)\.bn2"
    module: MerlResNet

    @classmethod
    def published_spec(cls, variant: str | None = None) -> ExpertSpec:
        """Spec at the published configuration."""
        return _spec(MerlOptions(), "authors", PUBLISHED_PARAMETERS)

    @classmethod
    def small_config(cls, variant: str | None = None) -> Mapping[str, Any]:
        """Return the published architecture made narrow, see `Expert.small_config`."""
        return {"widths": [4, 6, 8, 12], "num_blocks": [1, 2, 1, 1], "projection_size": 8}

    @classmethod
    def build(
        cls,
        config: Mapping[str, Any] | None,
        state: Mapping[str, Tensor] | None,
        *,
        variant: str | None = None,
        preprocessing: str | None = None,
    ) -> MerlExpert:
        """Construct from sizes and an official state dict: the encoder's alone or the full checkpoint's."""
        state = None if state is None else encoder_state(state)
        options = _options(config, state)
        expert = cls(preprocessing=preprocessing)
        expert.module = MerlResNet(options)
        if state is not None:
            load_strict(expert.module, state, expert="merl", unused_keys=UNUSED_KEYS)
        expert.spec = _spec(options, expert.preprocessing, sum(p.numel() for p in expert.module.parameters()))
        return expert

    def prepare(self, signals_mv: np.ndarray | Tensor, rate_hz: float) -> Tensor:
        """[batch, 12, time] in mV -> [batch, windows, 12 in MIMIC's order, 5000 at 500 Hz], each window in [0, 1].

        See `min_max.scaled_windows`. `pretraining` cuts to whole thousandths.
        """
        if self.preprocessing == "pretraining":
            return min_max.scaled_windows(signals_mv, rate_hz, eps=0.0, int16=True)
        return min_max.scaled_windows(signals_mv, rate_hz)

    def windows_at_once(self, x: Tensor) -> int:
        """Return how many windows one forward pass on a CPU takes, see `Expert.windows_at_once`."""
        del x
        return WINDOWS_A_PASS

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Encoding:
        """Encode one window per record, [batch, lead, time]; no mask.

        Any length without the text side; with it, the length that its tokens are for (10 s).
        """
        options = self.module.options
        n_leads = options.num_leads
        if mask is not None:
            raise UsageError("expert 'merl' takes no mask; leave it out")
        if x.ndim != 3 or x.shape[1] != n_leads or not x.shape[2]:
            raise InputError(f"expert 'merl': input {list(x.shape)}; expected [batch, {n_leads}, time]")
        states = self.module(x)
        layers = [mean_tokens(state) for state in states]
        output = self._text_aligned(states[-1]) if options.projection_size else None
        return Encoding(layers, layers[-1], output, states[-1])

    def _text_aligned(self, tokens: Tensor) -> Tensor:
        expected = self.module.options.spacial_dim
        if tokens.shape[1] != expected:
            raise InputError(
                f"expert 'merl': {tokens.shape[1]} tokens; the text-aligned vector is pooled from {expected}: give "
                f"windows of {WINDOW_SECONDS} s, or the encoder's weights alone"
            )
        return self.module.text_aligned(tokens)


def _options(config: Mapping[str, Any] | None, state: Mapping[str, Tensor] | None) -> MerlOptions:
    """Merge the published options, then what the weights' shapes say, then the overrides."""
    overrides = architecture_overrides("merl", config, OPTION_NAMES, ("ecg_model",))
    for name in {"widths", "num_blocks"} & overrides.keys():
        overrides[name] = tuple(overrides[name])
    found: dict[str, Any] = {} if state is None else options_from_state(state)
    if state is not None and not has_text_side(state):  # an official config names it for the encoder's file too
        overrides = {name: value for name, value in overrides.items() if name not in TEXT_SIDE}
    options = MerlOptions(**found | overrides)
    if not options.widths or len(options.widths) != len(options.num_blocks):
        raise UsageError(
            f"expert 'merl': widths {list(options.widths)} and num_blocks {list(options.num_blocks)} "
            "differ in length; both have one number a stage"
        )
    if min(options.num_blocks) < 1:
        raise UsageError(f"expert 'merl': num_blocks {list(options.num_blocks)}; every stage has at least one block")
    if options.projection_size % TEXT_HEADS or options.spacial_dim < 1:
        raise UsageError(
            f"expert 'merl': projection_size {options.projection_size} and spacial_dim {options.spacial_dim}; the one "
            f"is a multiple of {TEXT_HEADS}, the other at least 1"
        )
    if options.num_leads != len(STANDARD_LEADS):
        raise UsageError(f"expert 'merl': the weights are for {options.num_leads} leads; only 12 are known by name")
    return options


def _spec(options: MerlOptions, preprocessing: str, n_parameters: int) -> ExpertSpec:
    rounded = ", cut to 1/1000" if preprocessing == "pretraining" else ""
    step = 2 ** len(options.widths)
    return ExpertSpec(
        name="merl",
        title="MERL: ResNet-18 aligned with the text of reports",
        version="1",
        source="Liu et al. 2024, ICML, arXiv 2403.06659; cheliu-computation/MERL-ICML2024",
        sampling_rate_hz=RATE_HZ,
        seconds=WINDOW_SECONDS,
        leads=LEADS,
        normalisation=f"one min-max over leads and time, to [0, 1]{rounded}",
        layer_names=("embed", *(f"stage_{k + 1}" for k in range(len(options.widths)))),
        layer_dims=(options.widths[0], *options.widths),
        embedding_dim=options.widths[-1],
        output_dim=options.projection_size or None,
        licence="MIT (repository)",
        parameters=n_parameters,
        published_parameters=PUBLISHED_PARAMETERS,
        weights=WeightsSource(
            "",
            "res18_best_encoder.pth",
            "",
            note="in the authors' drive folder, linked from their README; res18_best_ckpt.pth is read as well, "
            "and gives the vector of zero-shot classification too",
        ),
        pretrained_on=("mimic-iv-ecg",),
        unused_keys=UNUSED_KEYS,
        windows=min_max.windows_policy(min_max.WINDOW_SECONDS),
        shortest_s=min_max.SHORTEST_S,
        missing_leads=min_max.MISSING_LEADS,
        preprocessing={"path": preprocessing, "rate_hz": RATE_HZ, "leads": LEADS},
        tokens=TokenTimes(
            dim=options.widths[-1],
            per_window=-(-WINDOW_SECONDS * RATE_HZ // step),
            step_s=step / RATE_HZ,
        ),
        placement="even",
    )
