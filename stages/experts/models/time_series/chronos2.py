"""Chronos-2: a forecaster's encoder over 12 leads as one multivariate series, through the package chronos-forecasting.

Lives here: the published facts, `prepare`, `encode`. Not here: the network, a class of the package (an extra).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cache.errors import InputError, UsageError, WeightsError
from stages.experts.checkpoints import load_strict
from stages.experts.contract import STANDARD_LEADS, Encoding, Expert, ExpertSpec, WeightsSource
from stages.experts.options import HUGGING_FACE, architecture_overrides
from stages.experts.registry import register
from stages.experts.signals import dsp
from stages.experts.token_times import TokenTimes

WINDOW_SECONDS, N_PATCHES = 10.0, 64
PUBLISHED_PARAMETERS = 119_477_664
QUANTILES = (0.01, *(round(0.05 * k, 2) for k in range(1, 20)), 0.99)
CORE: dict[str, Any] = {
    "d_model": 768,
    "d_kv": 64,
    "d_ff": 3072,
    "num_layers": 12,
    "num_heads": 12,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
    "rope_theta": 10_000.0,
}
FORECASTING: dict[str, Any] = {
    "context_length": 8192,
    "input_patch_size": 16,
    "input_patch_stride": 16,
    "output_patch_size": 16,
    "max_output_patches": 64,
    "quantiles": QUANTILES,
    "time_encoding_scale": 8192,
    "use_arcsinh": True,
    "use_reg_token": True,
}
"""The hub's config.json and its part `chronos_config`, as far as they shape the network."""
TRAINING_ONLY = (
    *("dropout_rate", "initializer_factor", "vocab_size", "pad_token_id", "reg_token_id", "dense_act_fn"),
    *("is_gated_act", "model_type", "architectures", "attn_implementation"),
)


@register("chronos2")
class Chronos2Expert(Expert):
    """Chronos-2 (Ansari et al. 2025, arXiv 2510.15821; amazon-science/chronos-forecasting).

    The leads of a record are one group, which the network's group attention mixes. `embedding` is the mean over leads
    and patches of the encoder's output, behind its last norm; its register token and forecast patch are left out.

    Examples
    --------
    >>> import numpy as np
    >>> from stages.experts import load_expert
    >>> small = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    >>> expert = load_expert("chronos2", config=small, random_weights=True)
    >>> expert.encode(expert.prepare(np.zeros((1, 12, 5000)), 500)[:, 0]).embedding.shape
    torch.Size([1, 32])
    """

    residual_branches = r"(?P<block>encoder\.block\.\d+)\.layer\.\d+\.dropout"

    @classmethod
    def published_spec(cls, variant: str | None = None) -> ExpertSpec:
        """Spec at the published configuration, without the package."""
        return _spec(CORE, FORECASTING, PUBLISHED_PARAMETERS)

    @classmethod
    def small_config(cls, variant: str | None = None) -> Mapping[str, Any]:
        """Return the published architecture made narrow and shallow, see `Expert.small_config`."""
        return {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}

    @classmethod
    def build(
        cls,
        config: Mapping[str, Any] | None,
        state: Mapping[str, Tensor] | None,
        *,
        variant: str | None = None,
        preprocessing: str | None = None,
    ) -> Chronos2Expert:
        """Construct from (a part of) the hub's config.json and an official state dict, see `Expert.build`."""
        core, forecasting = _options(config)
        expert = cls(preprocessing=preprocessing)
        expert.module = _network(core, forecasting)
        expert.core, expert.forecasting = core, forecasting
        if state is not None:
            load_strict(expert.module, state, expert="chronos2")
        expert.spec = _spec(core, forecasting, sum(p.numel() for p in expert.module.parameters()))
        return expert

    core: Mapping[str, Any]
    forecasting: Mapping[str, Any]

    def prepare(self, signals_mv: np.ndarray | Tensor, rate_hz: float) -> Tensor:
        """[batch, 12, time] in mV -> [batch, windows, 12, samples]: 64 patches for 10 s (102.4 Hz with patches of 16).

        Gaps and missing leads stay NaN: the network has a mask for them. A shorter record has fewer samples.
        """
        signals = dsp.as_signals(signals_mv)
        patch = self.forecasting["input_patch_size"]
        x = dsp.hold_ends(dsp.resample_rate(signals, rate_hz, self.spec.sampling_rate_hz), patch)
        n_window = N_PATCHES * patch
        windows = dsp.even_windows(x, n_window) if x.shape[-1] > n_window else x[:, None]
        return torch.from_numpy(np.ascontiguousarray(windows, dtype=np.float32))

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Encoding:
        """Encode one window per record, [batch, lead, time]; NaN is missing, and a record without any sample gives 0.

        Of a window that is no multiple of the patch the first patch is short, as in the official code.
        """
        if mask is not None:
            raise UsageError("expert 'chronos2' takes no mask; mark what is missing by NaN")
        patch, context = self.forecasting["input_patch_size"], self.forecasting["context_length"]
        if x.ndim != 3 or not patch <= x.shape[2] <= context:
            raise InputError(f"expert 'chronos2': input {list(x.shape)}; expected [batch, lead, {patch} to {context}]")
        states = self._states(x)
        observed = _observed_patches(x, patch)
        pooled = [_mean(state, observed) for state in states]
        return Encoding(torch.stack(pooled[:-1], dim=1), pooled[-1], tokens=_over_leads(states[-1], observed))

    def _states(self, x: Tensor) -> list[Tensor]:
        """Tokens [batch, lead, patch, width] before the first block, after each, and behind the last norm."""
        batch, leads = x.shape[:2]
        caught: list[Tensor] = []
        blocks = list(self.module.encoder.block)  # type: ignore[union-attr, arg-type]
        hooks = [blocks[0].register_forward_pre_hook(lambda _, given: caught.append(given[0]))]
        hooks += [block.register_forward_hook(lambda _module, _given, gave: caught.append(gave[0])) for block in blocks]
        groups = torch.arange(batch, device=x.device).repeat_interleave(leads)
        try:
            encoded, *_ = self.module.encode(context=x.flatten(0, 1).float(), group_ids=groups)  # type: ignore[operator, union-attr]
        finally:
            for hook in hooks:
                hook.remove()
        n_patches = -(-x.shape[2] // self.forecasting["input_patch_size"])
        return [state[:, :n_patches].unflatten(0, (batch, leads)) for state in (*caught, encoded[0])]


def _observed_patches(x: Tensor, patch: int) -> Tensor:
    """Bool [batch, lead, patch]: whether a patch has any sample."""
    padded = torch.nn.functional.pad(x, (-x.shape[2] % patch, 0), value=torch.nan)
    return padded.isfinite().unflatten(2, (-1, patch)).any(-1)


def _mean(state: Tensor, observed: Tensor) -> Tensor:
    """Mean over leads and observed patches, [batch, lead, patch, width] -> at least float32 [batch, width]."""
    weight = observed.unsqueeze(-1).to(torch.promote_types(state.dtype, torch.float32))
    return (state * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)


def _over_leads(state: Tensor, observed: Tensor) -> Tensor:
    """Mean over the leads that a patch is observed in, [batch, patch, width]; 0 where it is in none."""
    weight = observed.unsqueeze(-1).to(torch.promote_types(state.dtype, torch.float32))
    return (state * weight).sum(1) / weight.sum(1).clamp(min=1)


def _network(core: Mapping[str, Any], forecasting: Mapping[str, Any]) -> nn.Module:
    try:
        from chronos.chronos2.config import Chronos2CoreConfig
        from chronos.chronos2.model import Chronos2Model
    except ImportError as error:
        raise WeightsError(
            "expert 'chronos2' needs the package chronos-forecasting; pip install 'ecg-ensemble[chronos]'"
        ) from error
    config = Chronos2CoreConfig(**core, chronos_config={**forecasting, "quantiles": list(forecasting["quantiles"])})
    network: nn.Module = Chronos2Model(config)
    return network


def _options(config: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Merge (a part of) a hub config.json over the published one; `chronos_config` may be partial."""
    given = architecture_overrides("chronos2", config, (*CORE, "chronos_config"), (*TRAINING_ONLY, *HUGGING_FACE))
    forecasting = architecture_overrides("chronos2", given.pop("chronos_config", None), FORECASTING)
    core, forecasting = CORE | given, FORECASTING | forecasting
    if core["feed_forward_proj"] != "relu":
        raise UsageError(f"expert 'chronos2': feed_forward_proj '{core['feed_forward_proj']}'; only relu is published")
    if forecasting["input_patch_size"] != forecasting["output_patch_size"]:
        raise UsageError("expert 'chronos2': input_patch_size and output_patch_size differ; give the same for both")
    return core, forecasting


def _spec(core: Mapping[str, Any], forecasting: Mapping[str, Any], n_parameters: int) -> ExpertSpec:
    width, n_layers = core["d_model"], core["num_layers"]
    rate_hz = N_PATCHES * forecasting["input_patch_size"] / WINDOW_SECONDS
    return ExpertSpec(
        name="chronos2",
        title="Chronos-2: a forecaster's encoder, the leads one group",
        version="1",
        source="Ansari et al. 2025, arXiv 2510.15821; amazon-science/chronos-forecasting 2.3.2",
        sampling_rate_hz=rate_hz,
        seconds=WINDOW_SECONDS,
        leads=STANDARD_LEADS,
        normalisation="z-score of every lead of a window, then arcsinh, inside the network",
        layer_names=("embed", *(f"block_{k + 1}" for k in range(n_layers))),
        layer_dims=(width,) * (n_layers + 1),
        embedding_dim=width,
        licence="Apache-2.0",
        store_dtype="float32",  # float16 would cost 0.50 to 0.63 % of the spread between records
        parameters=n_parameters,
        published_parameters=PUBLISHED_PARAMETERS,
        weights=WeightsSource("amazon/chronos-2", "model.safetensors", "main"),
        windows="evenly placed windows of 10 s as 64 patches (102.4 Hz), mean of their vectors; a shorter record whole",
        shortest_s=WINDOW_SECONDS / N_PATCHES,
        scale_free=("authors",),
        missing_leads="masked inside the network and left out of the means",
        preprocessing={"path": "authors", "rate_hz": rate_hz},
        tokens=TokenTimes(dim=width, per_window=N_PATCHES, step_s=WINDOW_SECONDS / N_PATCHES),
        placement="even",
    )
