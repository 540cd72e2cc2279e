"""TEMPO: GPT-2 over trend, season and residual of one lead.

Lives here: the published facts, `prepare`, `encode`. Not here: the network (`networks.tempo_net`), EnECG's input path
(`signals.enecg_input`), STL (`signals.decompose`).
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
from stages.experts.chunks import encode_in_chunks, windows_in_cache
from stages.experts.contract import Encoding, Expert, ExpertSpec, WeightsSource
from stages.experts.networks.tempo_net import PARTS, Tempo, TempoOptions, official_keys
from stages.experts.options import HUGGING_FACE, TIME_SERIES_LIBRARY, architecture_overrides
from stages.experts.registry import register
from stages.experts.signals import enecg_input as _enecg
from stages.experts.signals.decompose import stl
from stages.experts.token_times import TokenTimes

TRAINING_ONLY = (
    *("is_gpt", "pretrain", "freeze", "loss_func", "cos", "decay_fac", "equal", "hid_dim", "lora", "percent", "tmax"),
    *("c_out", "d_ff", "e_layers", "enc_in", "only_multimodal", "stl_weight", *TIME_SERIES_LIBRARY),
)
GPT2_NAMES = (
    *("activation_function", "layer_norm_epsilon", "n_ctx", "n_embd", "n_head", "n_inner", "n_layer", "n_positions"),
    *("reorder_and_upcast_attn", "scale_attn_by_inverse_layer_idx", "scale_attn_weights", "vocab_size"),
)
GPT2_UNUSED = (
    *("add_cross_attention", "attn_pdrop", "embd_pdrop", "initializer_range", "resid_pdrop", "summary_activation"),
    *("summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj"),
)
"""Options of GPT-2's training, and of heads that are not built."""
# GPT-2's causal buffers of older transformers, EnECG's attention map, the probabilistic heads, an unused prompt pool.
UNUSED_KEYS = (
    r"gpt2_trend\..*\.attn\.(bias|masked_bias)$",
    r"time_attn\.",
    r"(mu|sigma|nu|alpha)\.",
    r"(prompt_key_dict|prompt_value_dict|summary_map)\b",
)
_PUBLISHED_PARAMETERS = 94_439_770
_PROMPT_TEXT = "Predict the future time step given the "


@register("tempo")
class TempoExpert(Expert):
    """TEMPO. The embedding is the mean over all tokens behind the final norm; `Encoding.output` the forecast.

    Config `variant`: "enecg" (the network is given STL's parts; default) or "original" (it derives its own).
    """

    preprocessing_variants = ("authors", "enecg")
    residual_branches = r"(?P<block>gpt2_trend\.base_model\.model\.h\.\d+)\.(attn|mlp)"
    module: Tempo

    @classmethod
    def published_spec(cls, variant: str | None = None) -> ExpertSpec:
        """Spec of TEMPO-80M."""
        return _spec(TempoOptions(), "authors", _PUBLISHED_PARAMETERS)

    @classmethod
    def small_config(cls, variant: str | None = None) -> Mapping[str, Any]:
        """Return the published architecture made narrow and shallow, see `Expert.small_config`."""
        gpt2 = {"n_head": 4, "vocab_size": 64, "n_positions": 256}
        return {"d_model": 32, "gpt_layers": 3, "pred_len": 8, "gpt2": gpt2}

    @classmethod
    def build(
        cls,
        config: Mapping[str, Any] | None,
        state: Mapping[str, Tensor] | None,
        *,
        variant: str | None = None,
        preprocessing: str | None = None,
    ) -> TempoExpert:
        """Construct from overrides (`gpt2` holds GPT-2's own) and an official state dict of any peft version."""
        options = _options(config)
        expert = cls(preprocessing=preprocessing)
        expert.module = Tempo(options)
        if state is not None:
            load_strict(expert.module, official_keys(state), expert="tempo", unused_keys=UNUSED_KEYS)
        n_parameters = sum(p.numel() for p in expert.module.parameters())
        expert.spec = _spec(options, expert.preprocessing, n_parameters)
        return expert

    def prepare(self, signals_mv: np.ndarray | Tensor, rate_hz: float) -> Tensor:
        """[batch, 12, time] in mV -> [batch, windows, 4, seq_len]: the lead, its trend, season and residual."""
        o = self.module.options
        x = _enecg.published_input(signals_mv, rate_hz, o.seq_len, self.spec.leads, self.preprocessing)[..., 0, :]
        stack = np.stack([x, *stl(x, o.period)], axis=-2)
        return torch.from_numpy(stack.astype(np.float32))

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Encoding:
        """[batch, 4, seq_len] -> the mean over tokens of every layer, and the forecast [batch, pred_len]."""
        o = self.module.options
        if mask is not None:
            raise UsageError("expert 'tempo' takes no mask")
        if x.ndim != 3 or tuple(x.shape[1:]) != (1 + len(PARTS), o.seq_len):
            raise InputError(f"expert 'tempo': input {list(x.shape)}; expected [batch, 4, {o.seq_len}]")
        return encode_in_chunks(self._encode, x, None, self.windows_at_once(x))

    def windows_at_once(self, x: Tensor) -> int:
        """Return how many windows stay in a CPU's cache, see `Expert.windows_at_once`."""
        return windows_in_cache(3 * (self.module.options.prompt_length + self.module.options.patch_num))

    def _encode(self, x: Tensor, mask: Tensor | None) -> Encoding:
        y, hidden, final = self.module(x)
        layers = torch.stack([tokens.float().mean(dim=1) for tokens in hidden], dim=1)
        tokens = final.unflatten(1, (len(PARTS), -1))[:, :, self.module.options.prompt_length :].mean(1)
        return Encoding(layers, final.float().mean(dim=1), y, tokens)


def _options(config: Mapping[str, Any] | None) -> TempoOptions:
    names = [field.name for field in dataclasses.fields(TempoOptions)]
    given = architecture_overrides("tempo", config, names, TRAINING_ONLY)
    if "gpt2" in given:
        unused = (*GPT2_UNUSED, *HUGGING_FACE)
        given["gpt2"] = architecture_overrides("tempo", given["gpt2"], GPT2_NAMES, unused)
    if given.get("prompt_token_ids"):
        given["prompt_token_ids"] = _by_part(given["prompt_token_ids"])
    if "d_model" not in given and "n_embd" in given.get("gpt2", {}):
        given["d_model"] = given["gpt2"]["n_embd"]
    options = TempoOptions(**given)
    if options.num_nodes != 1:
        raise UsageError(f"expert 'tempo': num_nodes {options.num_nodes}; it takes one lead, so 1")
    if options.gpt2.get("n_embd", options.d_model) != options.d_model:
        raise UsageError(f"expert 'tempo': d_model {options.d_model} and gpt2's n_embd {options.gpt2['n_embd']} differ")
    if options.kernel_size % 2 == 0:
        raise UsageError(f"expert 'tempo': kernel_size {options.kernel_size} is even; it has to be odd")
    return options


def _by_part(token_ids: Mapping[str, Any]) -> dict[str, Any]:
    """Accept the ids by part ("trend", "season", "noise") or by the prompts' texts."""
    texts = {"trend": "trend", "season": "season", "noise": "residual"}
    found = {part: token_ids.get(part, token_ids.get(_PROMPT_TEXT + text)) for part, text in texts.items()}
    missing = [part for part, ids in found.items() if ids is None]
    if missing:
        raise UsageError(f"expert 'tempo': prompt_token_ids has no '{missing[0]}'; it needs {', '.join(PARTS)}")
    return found


def _spec(options: TempoOptions, preprocessing: str, n_parameters: int) -> ExpertSpec:
    leads = _enecg.input_leads("tempo", 1, dataclasses.asdict(options))
    n_layers = options.n_layers
    return ExpertSpec(
        name="tempo",
        title="TEMPO-80M: GPT-2 over trend, season and residual of one lead",
        version="1",
        source="Cao et al. 2024 (arXiv 2310.04948), DC-research/TEMPO; EnECG (arXiv 2511.22935) models/TEMPO.py",
        sampling_rate_hz=options.seq_len / _enecg.WINDOW_SECONDS,
        seconds=_enecg.WINDOW_SECONDS,
        leads=leads,
        normalisation=f"{_enecg.NORMALISATION}; STL (period {options.period}) into trend, season and residual",
        layer_names=("embed", *(f"block_{i + 1}" for i in range(n_layers))),
        layer_dims=(options.d_model,) * (n_layers + 1),
        embedding_dim=options.d_model,
        output_dim=options.pred_len,
        licence="Apache-2.0 (repository), MIT (hub)",
        parameters=n_parameters,
        published_parameters=_PUBLISHED_PARAMETERS,
        weights=WeightsSource(
            "Melady/TEMPO",
            "TEMPO-80M_v1.pth",
            "main",
            note="trained as config variant 'original'; EnECG's leaves the learned decomposition (map_*) unused",
        ),
        unused_keys=UNUSED_KEYS,
        windows=_enecg.WINDOWS,
        shortest_s=_enecg.SHORTEST_S,
        missing_leads=_enecg.MISSING_LEADS,
        preprocessing={
            "path": preprocessing,
            "leads": leads,
            "n_samples": options.seq_len,
            "stl_period": options.period,
        },
        # Trend, season and residual have each their token of a moment; none sees what comes later in its own part.
        tokens=TokenTimes(
            options.d_model,
            options.patch_num,
            options.stride * _enecg.WINDOW_SECONDS / options.seq_len,
            (options.patch_size - options.stride) / 2 * _enecg.WINDOW_SECONDS / options.seq_len,
            causal=True,
        ),
    )
