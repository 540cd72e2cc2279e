"""xECG: a recurrent network (xLSTM) over quarter seconds of all leads, run in turn forwards and backwards.

Lives here: the published facts, `prepare`, `encode`. Not here: the network (`networks.xecg_net`).
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
from stages.experts.networks.parts.pooling import mean_tokens
from stages.experts.networks.xecg_net import Xecg, XecgOptions, options_from_state, published_layout
from stages.experts.options import architecture_overrides
from stages.experts.registry import register
from stages.experts.signals import dsp
from stages.experts.token_times import TokenTimes

RATE_HZ = 100
WINDOW_SECONDS = 10
"""Of an ordinary record; the network takes any length, the authors' input path up to 12 s."""
LONGEST_SAMPLES = 1200
OPTION_NAMES = tuple(field.name for field in dataclasses.fields(XecgOptions) if field.name != "n_leads")
TRAINING_ONLY = ("sampling_freq", "xlstm_dropout", "dropout", "mask_ratio", "backend")
PUBLISHED_PARAMETERS = 57_021_472


@register("xecg")
class XecgExpert(Expert):
    """xECG (Lunelli et al. 2025, arXiv 2509.10151; dlaskalab/bench-xecg).

    Examples
    --------
    >>> import numpy as np
    >>> from stages.experts import load_expert
    >>> expert = load_expert("xecg", config={"embedding_size": 32}, random_weights=True)
    >>> x = expert.prepare(np.ones((1, 12, 5000)), 500)
    >>> x.shape, expert.encode(x[:, 0]).embedding.shape
    (torch.Size([1, 1, 1000, 12]), torch.Size([1, 32]))
    """

    residual_branches = r"(?P<block>core\.model\.blocks\.\d+)\.(xlstm|ffn)"
    module: Xecg

    @classmethod
    def published_spec(cls, variant: str | None = None) -> ExpertSpec:
        """Spec at the published configuration."""
        return _spec(XecgOptions(), PUBLISHED_PARAMETERS)

    @classmethod
    def small_config(cls, variant: str | None = None) -> Mapping[str, Any]:
        """Return the published architecture made narrow and shallow, see `Expert.small_config`."""
        return {"embedding_size": 32, "xlstm_config": ["s", "m", "s"]}

    @classmethod
    def build(
        cls,
        config: Mapping[str, Any] | None,
        state: Mapping[str, Tensor] | None,
        *,
        variant: str | None = None,
        preprocessing: str | None = None,
    ) -> XecgExpert:
        """Construct from (a part of) the hub's config and an official state dict of either cell layout."""
        state = None if state is None else published_layout(state)
        options = _options(config, state)
        expert = cls(preprocessing=preprocessing)
        expert.module = Xecg(options)
        if state is not None:
            load_strict(expert.module, state, expert="xecg")
        expert.spec = _spec(options, sum(p.numel() for p in expert.module.parameters()))
        return expert

    def prepare(self, signals_mv: np.ndarray | Tensor, rate_hz: float) -> Tensor:
        """[batch, 12, time] in mV -> [batch, 1, time at 100 Hz, 12]: at most 12 s, cut to whole patches.

        Resampled by Fourier transform to round(n * 100 / rate_hz) samples; no filter, no normalisation (the authors'
        pretraining and downstream settings).
        """
        patch = self.module.options.patch_size
        signals = dsp.fill_gaps(dsp.as_signals(signals_mv))
        n_samples = max(patch, round(signals.shape[-1] * RATE_HZ / rate_hz))
        x = dsp.resample_fft(signals, n_samples)[..., :LONGEST_SAMPLES]
        x = x[..., : x.shape[-1] // patch * patch]
        return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 2, 1)[:, None], dtype=np.float32))

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Encoding:
        """Encode one window per record, [batch, time, lead]; any whole number of patches.

        A patch whose first sample is 0 in every lead is padding, wherever it lies: it runs through the network and
        leaves the means, as in the official code. There is no other mask.
        """
        options = self.module.options
        if mask is not None:
            raise UsageError("expert 'xecg' takes no mask (patches that begin with 0 in every lead are padding)")
        if x.ndim != 3 or x.shape[2] != options.n_leads or x.shape[1] % options.patch_size or not x.shape[1]:
            raise InputError(
                f"expert 'xecg': input {list(x.shape)}; expected [batch, time, {options.n_leads}], time a multiple of "
                f"{options.patch_size}"
            )
        states = self.module(x)
        layers = [mean_tokens(tokens, states.valid) for tokens in (states.entering, *states.blocks)]
        return Encoding(torch.stack(layers, dim=1), layers[-1], tokens=states.blocks[-1])


def _options(config: Mapping[str, Any] | None, state: Mapping[str, Tensor] | None) -> XecgOptions:
    """Merge the published options, then what the weights' shapes say, then the overrides."""
    overrides = architecture_overrides("xecg", config, OPTION_NAMES, TRAINING_ONLY)
    if "xlstm_config" in overrides:
        overrides["xlstm_config"] = tuple(overrides["xlstm_config"])
    found = {} if state is None else options_from_state(state)
    options = XecgOptions(**found | overrides)
    _check(options)
    return options


def _check(options: XecgOptions) -> None:
    if not options.xlstm_config or set(options.xlstm_config) - {"s", "m"}:
        raise UsageError(f"expert 'xecg': xlstm_config {list(options.xlstm_config)}; it is a list of 's' and 'm'")
    if options.embedding_size % options.num_heads:
        raise UsageError(
            f"expert 'xecg': embedding_size {options.embedding_size} is no multiple of num_heads {options.num_heads}"
        )
    for name, supported in (("cls_type", "avg"), ("activation_fn", "gelu"), ("use_final_layer_norm", False)):
        if getattr(options, name) != supported:
            raise UsageError(f"expert 'xecg': {name} {getattr(options, name)!r}; only {supported!r} is published")
    if options.n_leads != len(STANDARD_LEADS):
        raise UsageError(f"expert 'xecg': the weights are for {options.n_leads} leads; only 12 are known by name")


def _spec(options: XecgOptions, n_parameters: int) -> ExpertSpec:
    n_blocks = len(options.xlstm_config)
    return ExpertSpec(
        name="xecg",
        title="xECG: xLSTM over quarter seconds of all leads",
        version="1",
        source="Lunelli et al. 2025, arXiv 2509.10151; dlaskalab/bench-xecg",
        sampling_rate_hz=RATE_HZ,
        seconds=WINDOW_SECONDS,
        leads=STANDARD_LEADS,
        normalisation="none: mV",
        layer_names=("embed", *(f"block_{k + 1}" for k in range(n_blocks))),
        layer_dims=(options.embedding_size,) * (n_blocks + 1),
        embedding_dim=options.embedding_size,
        licence="MIT (card); the repository asks for no clinical or commercial use",
        parameters=n_parameters,
        published_parameters=PUBLISHED_PARAMETERS,
        weights=WeightsSource(
            "riccardolunelli/xECG_base_model_v1",
            "model.safetensors",
            "main",  # the digest pins the file; of its commit only the first digits are known, b06053253a9b
            "812dec69ac0fbf13f39e50bde4f35f85435a66966d8785baec65c2b5c70e722c",
            note="the published numbers were made in bfloat16: vectors of the real weights agree with them to 0.3 %",
        ),
        non_commercial=True,
        pretrained_on=("code", "chapman", "ningbo", "incart"),
        windows="one window, the first 12 s of the record, cut to whole patches of 0.25 s",
        shortest_s=options.patch_size / RATE_HZ,
        longest_s=LONGEST_SAMPLES / RATE_HZ,
        missing_leads="gaps bridged linearly, ends held; a missing lead is zeros; a quarter second that begins with "
        "0 mV in every lead is padding",
        preprocessing={"path": "authors", "rate_hz": RATE_HZ, "longest_samples": LONGEST_SAMPLES},
        tokens=TokenTimes(
            dim=options.embedding_size,
            per_window=WINDOW_SECONDS * RATE_HZ // options.patch_size,
            step_s=options.patch_size / RATE_HZ,
        ),
        placement="consecutive",
    )
