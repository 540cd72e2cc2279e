"""Mantis: a small transformer over one series at a time, pretrained by contrast; 8M, Mantis+, Utica and MantisV2.

Lives here: the published facts, `prepare`, `encode`. Not here: the networks (`networks.mantis_net`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cache.errors import InputError, UsageError
from stages.experts.checkpoints import load_strict
from stages.experts.chunks import encode_in_chunks
from stages.experts.contract import STANDARD_LEADS, Encoding, Expert, ExpertSpec, WeightsSource
from stages.experts.networks.mantis_net import Mantis, MantisOptions, options_from_state
from stages.experts.options import architecture_overrides
from stages.experts.registry import register
from stages.experts.signals import dsp
from stages.experts.token_times import TokenTimes

WINDOW_SECONDS = 10.0
OLD_PREFIX, PREFIX = "vit_unit.", "transf_unit."
TRAINING_ONLY = ("transf_dropout", "pre_training", "device")
OPTION_NAMES = tuple(field.name for field in dataclasses.fields(MantisOptions) if field.name != "architecture")


class _Release(NamedTuple):
    title: str
    options: MantisOptions
    parameters: int
    weights: WeightsSource


_V1 = MantisOptions(return_transf_layer=2)
_V2 = MantisOptions(architecture="v2", transf_dim_head=32, return_transf_layer=2)
_PARAMETERS = {"v1": 8_103_936, "v2": 4_188_672}
RELEASES = {
    "8m": _Release(
        "Mantis-8M", _V1, _PARAMETERS["v1"], WeightsSource("paris-noah/Mantis-8M", "model.safetensors", "main")
    ),
    "v2": _Release(
        "MantisV2", _V2, _PARAMETERS["v2"], WeightsSource("paris-noah/MantisV2", "model.safetensors", "main")
    ),
    "plus": _Release(
        "Mantis+",
        dataclasses.replace(_V1, return_transf_layer=1),
        _PARAMETERS["v1"],
        WeightsSource("paris-noah/MantisPlus", "model.safetensors", "main"),
    ),
    "utica": _Release("Utica", _V1, _PARAMETERS["v1"], WeightsSource("fegounna/Utica", "model.safetensors", "main")),
}


@register("mantis")
class MantisExpert(Expert):
    """Mantis (Feofanov et al. 2025, arXiv 2502.15637; vfeofanov/mantis).

    Every lead runs alone. The embedding is, lead by lead, class token and mean of the patch tokens behind the layer
    that the authors found best (the third of six; the second of Mantis+); layers are the mean of the patch tokens, lead
    by lead.

    Examples
    --------
    >>> import numpy as np
    >>> from stages.experts import load_expert
    >>> expert = load_expert("mantis", random_weights=True)
    >>> expert.encode(expert.prepare(np.zeros((1, 12, 5000)), 500)[:, 0]).embedding.shape
    torch.Size([1, 6144])
    """

    variants = tuple(RELEASES)
    residual_branches = r"(?P<block>transf_unit\.transformer\.layers\.\d+)\.(0|1|attention|mlp)"
    module: Mantis

    @classmethod
    def published_spec(cls, variant: str | None = None) -> ExpertSpec:
        """Spec of a published release."""
        release = RELEASES[variant or "8m"]
        return _spec(release.options, variant, release.parameters)

    @classmethod
    def small_config(cls, variant: str | None = None) -> Mapping[str, Any]:
        """Return the published architecture made narrow and shallow, see `Expert.small_config`."""
        return {"hidden_dim": 16, "hidden_dim_scalar_enc": 4, "transf_depth": 3, "transf_num_heads": 2} | {
            "transf_mlp_dim": 24,
            "transf_dim_head": 8,
        }

    @classmethod
    def build(
        cls,
        config: Mapping[str, Any] | None,
        state: Mapping[str, Tensor] | None,
        *,
        variant: str | None = None,
        preprocessing: str | None = None,
    ) -> MantisExpert:
        """Construct from (a part of) the hub's config.json and an official state dict, see `Expert.build`."""
        if state is not None:
            state = {_current(key): value for key, value in state.items()}
        options = _options(config, state, variant)
        expert = cls(preprocessing=preprocessing)
        expert.module = Mantis(options)
        if state is not None:
            load_strict(expert.module, state, expert=_name(variant))
        expert.spec = _spec(options, variant, sum(p.numel() for p in expert.module.parameters()))
        return expert

    def prepare(self, signals_mv: np.ndarray | Tensor, rate_hz: float) -> Tensor:
        """[batch, 12, time] in mV -> [batch, windows, 12, seq_len]: each lead resized linearly, without a filter.

        The authors resize a whole series, whatever its length (`torch.nn.functional.interpolate`, corners not aligned).
        So do records up to 10 s; of longer ones, evenly placed windows of 10 s.
        """
        signals = dsp.fill_gaps(dsp.as_signals(signals_mv))
        n_window = round(WINDOW_SECONDS * rate_hz)
        windows = dsp.even_windows(signals, n_window) if signals.shape[-1] > n_window else signals[:, None]
        x = torch.from_numpy(np.ascontiguousarray(windows, dtype=np.float32))
        resized = F.interpolate(x.flatten(0, 1), size=self.module.options.seq_len, mode="linear", align_corners=False)
        return resized.unflatten(0, x.shape[:2])

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Encoding:
        """Encode one window per record, [batch, lead, seq_len]; any number of leads. There is no mask."""
        options = self.module.options
        if mask is not None:
            raise UsageError("expert 'mantis' takes no mask; leave it out")
        if x.ndim != 3 or x.shape[2] != options.seq_len:
            raise InputError(f"expert 'mantis': input {list(x.shape)}; expected [batch, lead, {options.seq_len}]")
        return encode_in_chunks(self._encode, x, mask, x.shape[1] * options.num_patches)

    def _encode(self, x: Tensor, mask: Tensor | None) -> Encoding:
        batch = x.shape[:2]
        states = self.module(x.flatten(0, 1))
        layers = [each.mean(1) for each in (states.entering, *states.patches)]
        joined = [each.unflatten(0, batch).flatten(1) for each in layers]
        tokens = states.patches[-1].unflatten(0, batch).transpose(1, 2).flatten(2)
        embedding = self.module.embedding(states).unflatten(0, batch).flatten(1)
        return Encoding(torch.stack(joined, dim=1), embedding, tokens=tokens)


def _current(key: str) -> str:
    return PREFIX + key.removeprefix(OLD_PREFIX) if key.startswith(OLD_PREFIX) else key


def _name(variant: str | None) -> str:
    return "mantis" if variant in (None, "8m") else f"mantis-{variant}"


def _options(
    config: Mapping[str, Any] | None, state: Mapping[str, Tensor] | None, variant: str | None
) -> MantisOptions:
    """Merge the published options, then what the weights' shapes say, then the overrides."""
    overrides = architecture_overrides("mantis", config, OPTION_NAMES, TRAINING_ONLY)
    if "scalar_scales" in overrides:
        overrides["scalar_scales"] = tuple(float(scale) for scale in overrides["scalar_scales"])
    published = RELEASES[variant or "8m"].options
    found: dict[str, Any] = {} if state is None or "transf_unit.cls_token" not in state else options_from_state(state)
    if found.get("architecture", published.architecture) != published.architecture:
        published = _V2 if found["architecture"] == "v2" else _V1
    options = dataclasses.replace(published, **found | overrides)
    _check(options)
    return options


def _check(options: MantisOptions) -> None:
    if options.seq_len % options.num_patches:
        raise UsageError(
            f"expert 'mantis': seq_len {options.seq_len} is no multiple of num_patches {options.num_patches}"
        )
    if not -1 <= options.return_transf_layer < options.transf_depth:
        raise UsageError(
            f"expert 'mantis': return_transf_layer {options.return_transf_layer}; there are {options.transf_depth} "
            "layers, counted from 0"
        )
    if options.output_token not in ("combined", "cls_token", "mean_token"):
        raise UsageError(
            f"expert 'mantis': output_token '{options.output_token}'; it has to be combined, cls_token or mean_token"
        )


def _spec(options: MantisOptions, variant: str | None, n_parameters: int) -> ExpertSpec:
    release = RELEASES[variant or "8m"]
    n_leads = len(STANDARD_LEADS)
    n_parts = 2 if options.output_token == "combined" else 1
    return ExpertSpec(
        name=_name(variant),
        title=f"{release.title}: a transformer over 32 patches, each lead alone",
        version="1",
        source="Feofanov et al. 2025, arXiv 2502.15637; vfeofanov/mantis 9018b98 (mantis-tsfm 1.1.0)",
        sampling_rate_hz=options.seq_len / WINDOW_SECONDS,
        seconds=WINDOW_SECONDS,
        leads=STANDARD_LEADS,
        normalisation="z-score of each lead and of its differences inside; mean and deviation of raw patches beside",
        layer_names=("embed", *(f"block_{k + 1}" for k in range(options.transf_depth))),
        layer_dims=(n_leads * options.hidden_dim,) * (options.transf_depth + 1),
        embedding_dim=n_parts * n_leads * options.hidden_dim,
        licence="Apache-2.0 (package), MIT (metadata of the class)",
        parameters=n_parameters,
        published_parameters=release.parameters,
        weights=release.weights,
        windows="the whole record resized to 512 samples, as the authors; of one longer than 10 s evenly placed "
        "windows of 10 s, mean of their vectors",
        shortest_s=1.0,
        missing_leads="gaps bridged linearly, ends held; a missing lead is a series of zeros",
        preprocessing={"path": "authors", "samples": options.seq_len},
        tokens=TokenTimes(
            dim=n_leads * options.hidden_dim,
            per_window=options.num_patches,
            step_s=WINDOW_SECONDS / options.num_patches,
        ),
        placement="even",
    )
