"""MERL's ViT-tiny: a transformer over tenths of a second of all leads, pretrained against the text of the reports.

Lives here: the published facts, `prepare`, `encode`. Not here: the network (`networks.merl_net`), its input path
(`signals.min_max`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache.errors import InputError, UsageError
from stages.experts.checkpoints import load_strict
from stages.experts.contract import STANDARD_LEADS, Encoding, Expert, ExpertSpec, WeightsSource
from stages.experts.networks.merl_net import MerlVit, MerlVitOptions, encoder_state, vit_options_from_state
from stages.experts.networks.parts.pooling import mean_tokens
from stages.experts.options import architecture_overrides
from stages.experts.registry import register
from stages.experts.signals import min_max
from stages.experts.token_times import TokenTimes

OPTION_NAMES = tuple(field.name for field in dataclasses.fields(MerlVitOptions))
TEXT_SIDE = ("projection_size", "mlp_hidden_size")
TRAINING_ONLY = ("ecg_model", "num_classes", "drop_path_rate", "drop_out_rate")
UNUSED_KEYS = (r"head\.", r"(linear[12]|lm_model|proj_t)\.")
PUBLISHED_PARAMETERS = 5_473_152


@register("merl-vit")
class MerlVitExpert(Expert):
    """MERL's ViT-tiny (Liu et al. 2024, ICML; cheliu-computation/MERL-ICML2024).

    The embedding is the layer norm of the tokens' mean. Weights of the full checkpoint also give `Encoding.output`, the
    vector that zero-shot classification compares with the text's.

    Examples
    --------
    >>> import numpy as np
    >>> from stages.experts import load_expert
    >>> expert = load_expert("merl-vit", config={"width": 24, "depth": 2}, random_weights=True)
    >>> x = expert.prepare(np.ones((1, 12, 5000)), 500)
    >>> x.shape, expert.encode(x[:, 0]).embedding.shape
    (torch.Size([1, 1, 12, 5000]), torch.Size([1, 24]))
    """

    preprocessing_variants = ("authors", "pretraining")
    residual_branches = r"(?P<block>block\d+)\.(attn|ff)"
    module: MerlVit

    @classmethod
    def published_spec(cls, variant: str | None = None) -> ExpertSpec:
        """Spec at the published configuration."""
        return _spec(MerlVitOptions(), "authors", PUBLISHED_PARAMETERS)

    @classmethod
    def small_config(cls, variant: str | None = None) -> Mapping[str, Any]:
        """Return the published architecture made narrow and shallow, see `Expert.small_config`."""
        sizes = {"width": 24, "depth": 3, "heads": 2, "dim_head": 8, "mlp_dim": 32}
        return {**sizes, "projection_size": 6, "mlp_hidden_size": 10}

    @classmethod
    def build(
        cls,
        config: Mapping[str, Any] | None,
        state: Mapping[str, Tensor] | None,
        *,
        variant: str | None = None,
        preprocessing: str | None = None,
    ) -> MerlVitExpert:
        """Construct from sizes and an official state dict: the encoder's alone or the full checkpoint's."""
        state = None if state is None else encoder_state(state)
        options = _options(config, state)
        expert = cls(preprocessing=preprocessing)
        expert.module = MerlVit(options)
        if state is not None:
            load_strict(expert.module, state, expert="merl-vit", unused_keys=UNUSED_KEYS)
        expert.spec = _spec(options, expert.preprocessing, sum(p.numel() for p in expert.module.parameters()))
        return expert

    def prepare(self, signals_mv: np.ndarray | Tensor, rate_hz: float) -> Tensor:
        """[batch, 12, time] in mV -> [batch, windows, 12 in MIMIC's order, 5000 at 500 Hz], each window in [0, 1].

        See `min_max.scaled_windows`. `pretraining` cuts to whole thousandths.
        """
        n_samples = self.module.options.seq_len
        if self.preprocessing == "pretraining":
            return min_max.scaled_windows(signals_mv, rate_hz, eps=0.0, int16=True, n_samples=n_samples)
        return min_max.scaled_windows(signals_mv, rate_hz, n_samples=n_samples)

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Encoding:
        """Encode one window per record, [batch, lead, time] of the length that its positions are for; no mask."""
        options = self.module.options
        if mask is not None:
            raise UsageError("expert 'merl-vit' takes no mask; leave it out")
        if x.ndim != 3 or tuple(x.shape[1:]) != (options.num_leads, options.seq_len):
            raise InputError(
                f"expert 'merl-vit': input {list(x.shape)}; expected [batch, {options.num_leads}, {options.seq_len}]"
            )
        states, pooled = self.module(x)
        layers = torch.stack([mean_tokens(tokens) for tokens in states], dim=1)
        output = self.module.text_aligned(pooled) if options.projection_size else None
        return Encoding(layers, pooled.to(layers.dtype), output, states[-1])


def _options(config: Mapping[str, Any] | None, state: Mapping[str, Tensor] | None) -> MerlVitOptions:
    """Merge the published options, then what the weights' shapes say, then the overrides."""
    overrides = architecture_overrides("merl-vit", config, OPTION_NAMES, TRAINING_ONLY)
    found: dict[str, Any] = {}
    if state is not None:
        found = vit_options_from_state(state)
        if "projection_size" not in found:  # an official config names it for the encoder's file too
            overrides = {name: value for name, value in overrides.items() if name not in TEXT_SIDE}
        inner = state.get("block0.attn.fn.to_out.0.weight")
        dim_head = overrides.get("dim_head", MerlVitOptions.dim_head)
        found |= {} if inner is None else {"heads": inner.shape[1] // dim_head}
    options = MerlVitOptions(**found | overrides)
    if options.num_leads != len(STANDARD_LEADS):
        raise UsageError(f"expert 'merl-vit': the weights are for {options.num_leads} leads; only 12 are known by name")
    if options.patch_size < 1 or options.seq_len % options.patch_size or not options.n_tokens:
        raise UsageError(
            f"expert 'merl-vit': seq_len {options.seq_len} is no multiple of patch_size {options.patch_size}"
        )
    if bool(options.projection_size) != bool(options.mlp_hidden_size):
        raise UsageError("expert 'merl-vit': projection_size and mlp_hidden_size go together; give both or none")
    return options


def _spec(options: MerlVitOptions, preprocessing: str, n_parameters: int) -> ExpertSpec:
    seconds = options.seq_len / min_max.RATE_HZ
    rounded = ", cut to 1/1000" if preprocessing == "pretraining" else ""
    return ExpertSpec(
        name="merl-vit",
        title="MERL: ViT-tiny aligned with the text of reports",
        version="1",
        source="Liu et al. 2024, ICML, arXiv 2403.06659; cheliu-computation/MERL-ICML2024 38799b7",
        sampling_rate_hz=min_max.RATE_HZ,
        seconds=seconds,
        leads=min_max.LEADS,
        normalisation=f"one min-max over leads and time, to [0, 1]{rounded}",
        layer_names=("embed", *(f"block_{k + 1}" for k in range(options.depth))),
        layer_dims=(options.width,) * (options.depth + 1),
        embedding_dim=options.width,
        output_dim=options.projection_size or None,
        licence="MIT (repository)",
        parameters=n_parameters,
        published_parameters=PUBLISHED_PARAMETERS,
        weights=WeightsSource(
            "",
            "vit_tiny_best_encoder.pth",
            "",
            note="in the authors' drive folder, linked from their README; the full checkpoint is read as well, and "
            "gives the vector of zero-shot classification too",
        ),
        pretrained_on=("mimic-iv-ecg",),
        unused_keys=UNUSED_KEYS,
        windows=min_max.windows_policy(seconds),
        shortest_s=min_max.SHORTEST_S,
        missing_leads=min_max.MISSING_LEADS,
        preprocessing={"path": preprocessing, "rate_hz": min_max.RATE_HZ, "leads": min_max.LEADS},
        tokens=TokenTimes(dim=options.width, per_window=options.n_tokens, step_s=options.patch_size / min_max.RATE_HZ),
        placement="even",
    )
