"""DLinear as EnECG uses it: trend and season of each lead, each through one linear map that all leads share.

Lives here: the network (reused by `pretrain`), the published facts, `prepare` and `encode`. Not here: EnECG's input
path (`signals.enecg_input`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cache.errors import InputError, UsageError
from stages.experts.checkpoints import load_strict
from stages.experts.contract import Encoding, Expert, ExpertSpec, WeightsSource
from stages.experts.options import TIME_SERIES_LIBRARY, architecture_overrides
from stages.experts.pretraining import PretrainingRecipe
from stages.experts.registry import register
from stages.experts.signals import enecg_input as _enecg
from stages.experts.signals.decompose import moving_average


@dataclass(frozen=True)
class DLinearOptions:
    """Architecture under the official names; the defaults are EnECG's (main.py, `load_model_dlinear`)."""

    seq_len: int = 500
    pred_len: int = 1
    enc_in: int = 12
    kernel_size: int = 1001
    individual: bool = False
    """One pair of maps per channel instead of one shared pair."""
    leads: tuple[str, ...] | None = None
    """Names of the channels, where `enc_in` is neither 1, 8 nor 12."""

    def __post_init__(self) -> None:
        if self.kernel_size % 2 == 0:
            raise UsageError(f"expert 'dlinear': kernel_size {self.kernel_size} is even; it has to be odd")


class DLinearNet(nn.Module):
    """Decomposition and two linear maps (Zeng et al. 2023, arXiv 2205.13504; EnECG models/DLinears.py)."""

    def __init__(self, options: DLinearOptions) -> None:
        super().__init__()
        self.options = options
        self.Linear_Seasonal = self._maps()
        self.Linear_Trend = self._maps()

    def _maps(self) -> nn.Module:
        o = self.options
        if o.individual:
            return nn.ModuleList(nn.Linear(o.seq_len, o.pred_len) for _ in range(o.enc_in))
        return nn.Linear(o.seq_len, o.pred_len)

    def decompose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Split [batch, channel, time] into trend and season, float32."""
        trend = moving_average(x, self.options.kernel_size)
        return trend, x.float() - trend

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[batch, channel, seq_len] -> what trend and season each give, [batch, channel, pred_len]; y is their sum."""
        trend, season = self.decompose(x)
        return _apply(self.Linear_Trend, trend), _apply(self.Linear_Seasonal, season)


def _apply(maps: nn.Module, x: Tensor) -> Tensor:
    x = x.to(next(maps.parameters()).dtype)
    return (
        torch.stack([each(x[:, i]) for i, each in enumerate(maps)], dim=1)
        if isinstance(maps, nn.ModuleList)
        else maps(x)
    )


TRAINING_ONLY = ("c_out", "d_ff", "d_model", "e_layers", "num_kernels", "top_k", *TIME_SERIES_LIBRARY)
"""Arguments that its siblings read, and those of training."""


@register("dlinear")
class DLinear(Expert):
    """DLinear. Layers `trend` and `season` are the two maps' outputs, and the embedding is their sum, the forecast y.

    Every vector is [pred_len * channels], flattened from the official [pred_len, channel].
    """

    preprocessing_variants = ("authors", "enecg")
    pretraining = PretrainingRecipe(
        "forecast", epochs=10, learning_rate=1e-3, joint={"each": {"individual": False}, "joint": {"individual": True}}
    )
    module: DLinearNet

    @classmethod
    def published_spec(cls, variant: str | None = None) -> ExpertSpec:
        """Spec at EnECG's configuration, 12 leads."""
        return _spec(DLinearOptions(), "authors", 1002)

    @classmethod
    def build(
        cls,
        config: Mapping[str, Any] | None,
        state: Mapping[str, Tensor] | None,
        *,
        variant: str | None = None,
        preprocessing: str | None = None,
    ) -> DLinear:
        """Construct from overrides and an official state dict; lengths that no override gives are the state's."""
        names = [field.name for field in dataclasses.fields(DLinearOptions)]
        overrides = _shapes(state or {}) | architecture_overrides("dlinear", config, names, TRAINING_ONLY)
        expert = cls(preprocessing=preprocessing)
        expert.module = DLinearNet(DLinearOptions(**overrides))
        if state is not None:
            load_strict(expert.module, state, expert="dlinear")
        n_parameters = sum(p.numel() for p in expert.module.parameters())
        expert.spec = _spec(expert.module.options, expert.preprocessing, n_parameters)
        return expert

    def prepare(self, signals_mv: np.ndarray | Tensor, rate_hz: float) -> Tensor:
        """[batch, 12, time] in mV -> [batch, windows, channel, seq_len], see `_enecg.published_input`."""
        leads = _enecg.require_leads("dlinear", self.module.options.enc_in, self.spec.leads)
        x = _enecg.published_input(signals_mv, rate_hz, self.module.options.seq_len, leads, self.preprocessing)
        return torch.from_numpy(x.astype(np.float32))

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Encoding:
        """[batch, channel, seq_len] -> trend, season and y. Any number of channels, unless each has maps of its own."""
        o = self.module.options
        if mask is not None:
            raise UsageError("expert 'dlinear' takes no mask")
        if x.ndim != 3 or x.shape[-1] != o.seq_len or (o.individual and x.shape[1] != o.enc_in):
            raise InputError(f"expert 'dlinear': input {list(x.shape)}; expected [batch, {o.enc_in}, {o.seq_len}]")
        trend, season = (part.float().transpose(1, 2).flatten(1) for part in self.module(x))
        return Encoding(torch.stack([trend, season], dim=1), trend + season, trend + season)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Options that a state dict's own shapes determine."""
    shared, individual = (state.get(f"Linear_Trend{i}.weight") for i in ("", ".0"))
    weight = individual if shared is None else shared
    if weight is None or weight.ndim != 2:
        return {}
    found: dict[str, Any] = {"pred_len": weight.shape[0], "seq_len": weight.shape[1]}
    if shared is None:
        found |= {"individual": True, "enc_in": sum(k.startswith("Linear_Trend.") for k in state) // 2}
    return found


def _spec(options: DLinearOptions, preprocessing: str, n_parameters: int) -> ExpertSpec:
    one_lead = preprocessing == "enecg" and not options.individual
    channels = 1 if one_lead else options.enc_in
    leads = ("II",) if one_lead else _enecg.input_leads("dlinear", channels, dataclasses.asdict(options))
    width = channels * options.pred_len
    return ExpertSpec(
        name="dlinear",
        title="DLinear: trend and season, one linear map each",
        version="1",
        source="Zeng et al. 2023 (arXiv 2205.13504); EnECG (arXiv 2511.22935) models/DLinears.py, 67b8e65",
        sampling_rate_hz=options.seq_len / _enecg.WINDOW_SECONDS,
        seconds=_enecg.WINDOW_SECONDS,
        leads=leads,
        normalisation=_enecg.NORMALISATION,
        layer_names=("trend", "season"),
        layer_dims=(width, width),
        embedding_dim=width,
        output_dim=width,
        licence="none stated",
        weights=WeightsSource(
            "", "checkpoint.pth", "", note="EnECG's checkpoint, or `ensemble pretrain --expert dlinear`"
        ),
        parameters=n_parameters,
        published_parameters=1002,
        windows=_enecg.WINDOWS,
        shortest_s=_enecg.SHORTEST_S,
        missing_leads=_enecg.MISSING_LEADS,
        preprocessing={"path": preprocessing, "leads": leads, "n_samples": options.seq_len},
    )
