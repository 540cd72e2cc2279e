"""openecg: a small codec of one lead that names the wave, beat and rhythm of every sample; its weights are in a wheel.

Lives here: the published facts, `prepare`, `encode`. Not here: the network (`networks.openecg_net`); nothing of the
package openecg is imported, only its weights file is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from cache.errors import InputError, UsageError
from stages.experts.checkpoints import load_strict
from stages.experts.contract import Encoding, Expert, ExpertSpec, WeightsSource
from stages.experts.networks.openecg_net import POSITIONS, OpenEcgCodec, OpenEcgOptions, options_from_state
from stages.experts.networks.parts.pooling import mean_tokens
from stages.experts.options import architecture_overrides
from stages.experts.registry import register
from stages.experts.signals import dsp
from stages.experts.token_times import TokenTimes

RATE_HZ = 500
WINDOW_SECONDS = 10
LEAD = "II"
PUBLISHED_PARAMETERS = 1_159_056
# A head for whole patches, from which training of the heads for samples started.
UNUSED_KEYS = (r"head\.",)
OPTION_NAMES = tuple(field.name for field in dataclasses.fields(OpenEcgOptions))
TRAINING_ONLY = ("n_leads", "dropout", "n_reg", "n_input_channels")
# sha256 of models/codec_VERSION.pt in openecg 0.11.0.
CODECS = {
    "v6": "4caf710737c4b9024b5b2b79b897af04c13f82f4f8e5f29b7dc4c8309e487a58",
    "v5": "86a9cb734afb9e1c1ba4114aa200103601dfe8880daf7ccd01fafe8c87b23ea5",
    "v4": "eefe1ac8fbceb0f7997b581e6bb3b4053119d67f102d460d3ac389b8b6957272",
    "v3": "9e2f7b5567bc0ecbee14b529f384b3a5312e6ca9463b5e478e04d0a8acc10951",
    "v1": "7659fcf0ca11186c0b722347f53f893e6ed619d812d12632b2c2fac50853fc02",
}


@register("openecg")
class OpenEcg(Expert):
    """The codecs of openecg 0.11.0 (vitaldb/openecg, Apache-2.0).

    The embedding is the mean of the transformer's tokens (20 ms each); `output` the share of samples that the heads
    give each class of frame (other, P, QRS, T), beat (none, sinus, vpc, paced, fusion, unknown) and rhythm (sinus, avb,
    paced, afib, bbb, ventricular), as the mean of their probabilities.

    Examples
    --------
    >>> import numpy as np
    >>> from stages.experts import load_expert
    >>> expert = load_expert("openecg", random_weights=True)
    >>> expert.encode(expert.prepare(np.zeros((1, 12, 5000)), 500)[:, 0]).embedding.shape
    torch.Size([1, 128])
    """

    variants = tuple(CODECS)
    residual_branches = r"(?P<block>upper_transformer\.layers\.\d+)\.(dropout1|dropout2)"
    module: OpenEcgCodec

    @classmethod
    def published_spec(cls, variant: str | None = None) -> ExpertSpec:
        """Spec of a codec (all have one architecture)."""
        return _spec(OpenEcgOptions(), variant, PUBLISHED_PARAMETERS)

    @classmethod
    def small_config(cls, variant: str | None = None) -> Mapping[str, Any]:
        """Return the published architecture made narrow and shallow, see `Expert.small_config`."""
        return {"d_model": 16, "n_heads": 2, "n_layers": 3, "mid_split": 1, "ff": 24}

    @classmethod
    def build(
        cls,
        config: Mapping[str, Any] | None,
        state: Mapping[str, Tensor] | None,
        *,
        variant: str | None = None,
        preprocessing: str | None = None,
    ) -> OpenEcg:
        """Construct from (a part of) a checkpoint's `model_config` and its `model_state`, see `Expert.build`."""
        overrides = architecture_overrides("openecg", config, OPTION_NAMES, TRAINING_ONLY)
        found = {} if state is None else options_from_state(state)
        options = OpenEcgOptions(**found | overrides)
        _check(options)
        expert = cls(preprocessing=preprocessing)
        expert.module = OpenEcgCodec(options)
        if state is not None:
            load_strict(expert.module, state, expert=_name(variant), unused_keys=UNUSED_KEYS)
        expert.spec = _spec(options, variant, sum(p.numel() for p in expert.module.parameters()))
        return expert

    def prepare(self, signals_mv: np.ndarray | Tensor, rate_hz: float) -> Tensor:
        """[batch, 12, time] in mV -> [batch, windows, time at 500 Hz]: ranks of lead II within the window, in [-1, 1].

        Ties have their mean rank, so a flat lead is zeros.
        """
        lead = dsp.pick_leads(dsp.fill_gaps(dsp.as_signals(signals_mv)), (LEAD,))
        x = dsp.resample_rate(lead, rate_hz, RATE_HZ)
        n_window = WINDOW_SECONDS * RATE_HZ
        windows = (dsp.even_windows(x, n_window) if x.shape[-1] > n_window else x[:, None])[:, :, 0]
        windows = windows[..., : windows.shape[-1] // self.module.options.patch_size * self.module.options.patch_size]
        ranks = (scipy.stats.rankdata(windows, axis=-1) - 1) / (windows.shape[-1] - 1)
        return torch.from_numpy(np.ascontiguousarray(2 * ranks - 1, dtype=np.float32))

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Encoding:
        """Encode one window per record, [batch, time], time a multiple of the patch, at most 512 patches; no mask."""
        patch = self.module.options.patch_size
        if mask is not None:
            raise UsageError("expert 'openecg' takes no mask; leave it out")
        if x.ndim != 2 or x.shape[1] % patch or not 0 < x.shape[1] <= POSITIONS * patch:
            raise InputError(
                f"expert 'openecg': input {list(x.shape)}; expected [batch, time], time a multiple of {patch} up to "
                f"{POSITIONS * patch}"
            )
        states = self.module(x)
        layers = [mean_tokens(layer) for layer in states.layers]
        shares = [logits.float().softmax(-1).mean(1) for logits in states.logits]
        return Encoding(torch.stack(layers, dim=1), layers[-1], torch.cat(shares, dim=-1), tokens=states.layers[-1])


def _check(options: OpenEcgOptions) -> None:
    if options.d_model % options.n_heads:
        raise UsageError(f"expert 'openecg': d_model {options.d_model} is no multiple of n_heads {options.n_heads}")
    if not 0 <= options.mid_split < options.n_layers:
        raise UsageError(
            f"expert 'openecg': mid_split {options.mid_split} leaves none of {options.n_layers} n_layers to the "
            "transformer"
        )


def _name(variant: str | None) -> str:
    return "openecg" if variant in (None, "v6") else f"openecg-{variant}"


def _spec(options: OpenEcgOptions, variant: str | None, n_parameters: int) -> ExpertSpec:
    codec = variant or "v6"
    convolutions = [f"conv_{k + 1}" for k in range(options.mid_split)]
    blocks = [f"block_{k + 1}" for k in range(options.n_layers - options.mid_split)]
    return ExpertSpec(
        name=_name(variant),
        title=f"openecg codec {codec}: waves, beats and rhythm of one lead",
        version="1",
        source="vitaldb/openecg 0.11.0 (model cards in the package)",
        sampling_rate_hz=RATE_HZ,
        seconds=WINDOW_SECONDS,
        leads=(LEAD,),
        normalisation="ranks of the window's samples, scaled to [-1, 1]",
        layer_names=("embed", *convolutions, *blocks),
        layer_dims=(options.d_model,) * (options.n_layers + 1),
        embedding_dim=options.d_model,
        output_dim=options.n_outputs,
        licence="Apache-2.0",
        store_dtype="float32",  # float16 would cost its first layer 1.4 % of the spread between records
        parameters=n_parameters,
        published_parameters=PUBLISHED_PARAMETERS,
        weights=WeightsSource(
            "",
            f"models/codec_{codec}.pt",
            "",
            CODECS[codec],
            note="supervised on LUDB, QTDB, ISP, MIT-BIH and LYDUS; not a medical device, by its own card",
            package="openecg",
            packaged=True,
        ),
        pretrained_on=("ludb", "qtdb", "isp", "mitdb", "lydus"),
        unused_keys=UNUSED_KEYS,
        windows="evenly placed windows of 10 s, mean of their vectors; a shorter record whole, from 1 s",
        shortest_s=1.0,
        scale_free=("authors",),
        missing_leads="gaps bridged linearly, ends held; a missing lead II is zeros, as a flat one is",
        preprocessing={"path": "authors", "rate_hz": RATE_HZ, "lead": LEAD},
        tokens=TokenTimes(
            dim=options.d_model,
            per_window=WINDOW_SECONDS * RATE_HZ // options.patch_size,
            step_s=options.patch_size / RATE_HZ,
        ),
        placement="even",
    )
