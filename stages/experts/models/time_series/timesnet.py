"""TimesNet as EnECG uses it: one lead, 500 samples, folded along its own periods.

Lives here: the published facts, `prepare`, `encode`. Not here: the network (`networks.timesnet_net`), EnECG's input
path (`signals.enecg_input`).
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
from stages.experts.contract import Encoding, Expert, ExpertSpec, WeightsSource
from stages.experts.networks.timesnet_net import TIME_FEATURES, TimesNet, TimesNetOptions
from stages.experts.options import TIME_SERIES_LIBRARY, architecture_overrides
from stages.experts.pretraining import PretrainingRecipe
from stages.experts.registry import register
from stages.experts.signals import enecg_input as _enecg
from stages.experts.token_times import TokenTimes

TRAINING_ONLY = ("kernel_size", "individual", *TIME_SERIES_LIBRARY)
_PUBLISHED_PARAMETERS = 1_130_618


@register("timesnet")
class TimesNetExpert(Expert):
    """TimesNet. The embedding is the mean over time of the last block's normed output; `output` the forecast y."""

    preprocessing_variants = ("authors", "enecg")
    pretraining = PretrainingRecipe(
        "forecast", epochs=10, learning_rate=1e-3, joint={"each": {}, "joint": {"enc_in": 12, "c_out": 12}}
    )
    module: TimesNet

    @classmethod
    def published_spec(cls, variant: str | None = None) -> ExpertSpec:
        """Spec at EnECG's configuration."""
        return _spec(TimesNetOptions(), "authors", _PUBLISHED_PARAMETERS)

    @classmethod
    def small_config(cls, variant: str | None = None) -> Mapping[str, Any]:
        """Return the published architecture made narrow and shallow, see `Expert.small_config`."""
        return {"d_model": 8, "d_ff": 12, "e_layers": 2, "num_kernels": 3}

    @classmethod
    def build(
        cls,
        config: Mapping[str, Any] | None,
        state: Mapping[str, Tensor] | None,
        *,
        variant: str | None = None,
        preprocessing: str | None = None,
    ) -> TimesNetExpert:
        """Construct from overrides and an official state dict; sizes that the overrides leave open are the state's.

        `top_k` and `variant` are in no shape: give them where they are not EnECG's.
        """
        names = [field.name for field in dataclasses.fields(TimesNetOptions)]
        overrides = architecture_overrides("timesnet", config, names, TRAINING_ONLY)
        options = TimesNetOptions(**(_shapes(state or {}) | overrides))
        _check(options)
        expert = cls(preprocessing=preprocessing)
        expert.module = TimesNet(options)
        if state is not None:
            load_strict(expert.module, state, expert="timesnet")
        n_parameters = sum(p.numel() for p in expert.module.parameters())
        expert.spec = _spec(options, expert.preprocessing, n_parameters)
        return expert

    def prepare(self, signals_mv: np.ndarray | Tensor, rate_hz: float) -> Tensor:
        """[batch, 12, time] in mV -> [batch, windows, enc_in, seq_len], see `_enecg.published_input`."""
        o = self.module.options
        leads = _enecg.require_leads("timesnet", o.enc_in, self.spec.leads)
        x = _enecg.published_input(signals_mv, rate_hz, o.seq_len, leads, self.preprocessing)
        return torch.from_numpy(x.astype(np.float32))

    def windows_at_once(self, x: Tensor) -> int:
        """Return 1: records of one period are folded together, so that shapes depend on the neighbours otherwise."""
        return 1

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Encoding:
        """[batch, enc_in, seq_len] -> the mean over time of every layer, and y flattened per record."""
        o = self.module.options
        if mask is not None:
            raise UsageError("expert 'timesnet' takes no mask")
        if x.ndim != 3 or tuple(x.shape[1:]) != (o.enc_in, o.seq_len):
            raise InputError(f"expert 'timesnet': input {list(x.shape)}; expected [batch, {o.enc_in}, {o.seq_len}]")
        y, hidden = self.module(x)
        layers = torch.stack([tokens.float().mean(dim=1) for tokens in hidden], dim=1)
        return Encoding(layers, layers[:, -1], y.flatten(1), hidden[-1][:, : o.seq_len])


def _check(options: TimesNetOptions) -> None:
    if options.freq not in TIME_FEATURES:
        raise UsageError(f"expert 'timesnet': freq '{options.freq}'; it has to be one of {', '.join(TIME_FEATURES)}")
    if not 0 < options.top_k <= options.n_tokens // 2:
        raise UsageError(f"expert 'timesnet': top_k {options.top_k}; it has to lie in 1 .. {options.n_tokens // 2}")
    if len({1, options.enc_in, options.c_out}) > 2:
        raise UsageError(f"expert 'timesnet': c_out {options.c_out} fits no input of {options.enc_in} channels")


def _shapes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Options that a state dict's own shapes determine."""
    found: dict[str, Any] = {}

    def read(key: str, *names: str | None) -> None:
        tensor = state.get(key)
        if tensor is not None and tensor.ndim >= len(names):
            found.update({name: size for name, size in zip(names, tensor.shape, strict=False) if name})

    read("enc_embedding.value_embedding.tokenConv.weight", "d_model", "enc_in")
    read("predict_linear.weight", "n_tokens", "seq_len")
    read("projection.weight", "c_out")
    read("model.0.conv.0.kernels.0.weight", "d_ff")
    if "n_tokens" in found:
        found["pred_len"] = found.pop("n_tokens") - found["seq_len"]
    blocks = {key.split(".")[1] for key in state if key.startswith("model.")}
    kernels = {key.split(".")[5] for key in state if key.startswith("model.0.conv.0.kernels.")}
    found |= {"e_layers": len(blocks)} if blocks else {}
    found |= {"num_kernels": len(kernels)} if kernels else {}
    return found | _calendar_options(state)


def _calendar_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    prefix = "enc_embedding.temporal_embedding."
    if f"{prefix}embed.weight" in state:
        size = state[f"{prefix}embed.weight"].shape[1]
        return {"embed": "timeF", "freq": next((f for f, n in TIME_FEATURES.items() if n == size), "h")}
    kind = {"fixed": f"{prefix}hour_embed.emb.weight", "learned": f"{prefix}hour_embed.weight"}
    freq = "t" if any(key.startswith(f"{prefix}minute_embed") for key in state) else "h"
    return next(({"embed": name, "freq": freq} for name, key in kind.items() if key in state), {})


def _spec(options: TimesNetOptions, preprocessing: str, n_parameters: int) -> ExpertSpec:
    leads = _enecg.input_leads("timesnet", options.enc_in, dataclasses.asdict(options))
    return ExpertSpec(
        name="timesnet",
        title="TimesNet: the series folded along its own periods",
        version="1",
        source="Wu et al. 2023 (arXiv 2210.02186); EnECG (arXiv 2511.22935) models/TimesNet.py, 67b8e65",
        sampling_rate_hz=options.seq_len / _enecg.WINDOW_SECONDS,
        seconds=_enecg.WINDOW_SECONDS,
        leads=leads,
        normalisation=_enecg.NORMALISATION + "; standardised once more per channel inside",
        layer_names=("embed", *(f"block_{i + 1}" for i in range(options.e_layers))),
        layer_dims=(options.d_model,) * (options.e_layers + 1),
        embedding_dim=options.d_model,
        output_dim=options.pred_len * max(options.enc_in, options.c_out),
        licence="none published",
        weights=WeightsSource(
            "", "model.safetensors", "", note="none are public: `ensemble pretrain --expert timesnet`"
        ),
        parameters=n_parameters,
        published_parameters=_PUBLISHED_PARAMETERS,
        windows=_enecg.WINDOWS,
        shortest_s=_enecg.SHORTEST_S,
        missing_leads=_enecg.MISSING_LEADS,
        preprocessing={"path": preprocessing, "leads": leads, "n_samples": options.seq_len},
        tokens=TokenTimes(options.d_model, options.seq_len, _enecg.WINDOW_SECONDS / options.seq_len),
    )
