"""D-BETA: ECG-FM's encoder with a class token, pretrained on records together with their reports.

Lives here: the published facts, `prepare`, `encode`. Not here: the network (`networks.ecgfm_text_net`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache.errors import InputError, UsageError
from stages.experts.checkpoints import load_strict
from stages.experts.contract import STANDARD_LEADS, Encoding, Expert, ExpertSpec, WeightsSource
from stages.experts.networks.ecgfm_text_net import DBeta, DBetaOptions, encoder_state, text_options
from stages.experts.networks.parts.pooling import mean_tokens
from stages.experts.registry import register
from stages.experts.signals import dsp
from stages.experts.token_times import convolved_token_times

RATE_HZ = 500
WINDOW_SECONDS = 10
WINDOWS_A_PASS = 2
"""On a CPU; as fast as eight, and a record alone costs no more than so many windows."""
UNUSED_KEYS = (
    r"ecg_encoder\.mask_emb",
    r"(language_encoder|multi_modal_(language_|ecg_(layers|pooler)\.)|modality_type_embeddings)",
    r"(unimodal_language_pooler|mlm_head|mim_head|itm_head)\.",
)
"""The text and cross-modal side."""
TRAINING_ONLY = (
    *("lead_masking", "load_pretrained_weights", "pretrained_model_path", "vocab_size", "num_layers", "num_heads"),
    *("drop_rate", "num_top_layer", "mem_layer", "mem_prob", "mem_decoder_hidden_dim", "mem_decoder_num_layers"),
    *("mem_decoder_num_heads", "max_text_size"),
)
PUBLISHED_PARAMETERS = 63_203_712


@register("dbeta")
class DBetaExpert(Expert):
    """D-BETA (Pham Hung, Saeed and Ma 2025, ICML; manhph2211/D-BETA).

    The embedding is the pooled class token; layers are means over the tokens of the ECG, without it.

    Examples
    --------
    >>> import numpy as np
    >>> from stages.experts import load_expert
    >>> expert = load_expert("dbeta", config={"encoder_layers": 1}, random_weights=True)
    >>> x = expert.prepare(np.zeros((1, 12, 5000)), 500)
    >>> x.shape, expert.encode(x[:, 0]).embedding.shape
    (torch.Size([1, 1, 12, 5000]), torch.Size([1, 768]))
    """

    residual_branches = r"(?P<block>ecg_encoder\.encoder\.layers\.\d+)\.(self_attn|fc2)"
    module: DBeta

    @classmethod
    def published_spec(cls, variant: str | None = None) -> ExpertSpec:
        """Spec at the published configuration."""
        return _spec(DBetaOptions(), PUBLISHED_PARAMETERS)

    @classmethod
    def small_config(cls, variant: str | None = None) -> Mapping[str, Any]:
        """Return the published architecture made narrow and shallow, see `Expert.small_config`."""
        sizes = {"encoder_embed_dim": 32, "encoder_ffn_embed_dim": 48, "encoder_layers": 3, "hidden_dim": 24}
        return {**sizes, "encoder_attention_heads": 4, "conv_feature_layers": "[(16, 2, 2)] * 4"} | {
            "conv_pos": 16,
            "conv_pos_groups": 4,
        }

    @classmethod
    def build(
        cls,
        config: Mapping[str, Any] | None,
        state: Mapping[str, Tensor] | None,
        *,
        variant: str | None = None,
        preprocessing: str | None = None,
    ) -> DBetaExpert:
        """Construct from (a part of) the authors' config.json and the checkpoint's `model`."""
        state = None if state is None else encoder_state(state)
        options = text_options("dbeta", DBetaOptions(), config, state, TRAINING_ONLY)
        expert = cls(preprocessing=preprocessing)
        expert.module = DBeta(options)
        if state is not None:
            load_strict(expert.module, state, expert="dbeta", unused_keys=UNUSED_KEYS)
        expert.spec = _spec(options, sum(p.numel() for p in expert.module.parameters()))
        return expert

    def prepare(self, signals_mv: np.ndarray | Tensor, rate_hz: float) -> Tensor:
        """[batch, 12, time] in mV -> [batch, windows, 12, time at 500 Hz]; neither filtered nor scaled."""
        x = dsp.resample_rate(dsp.fill_gaps(dsp.as_signals(signals_mv)), rate_hz, RATE_HZ)
        n_window = WINDOW_SECONDS * RATE_HZ
        windows = dsp.even_windows(x, n_window) if x.shape[-1] > n_window else x[:, None]
        return torch.from_numpy(np.ascontiguousarray(windows, dtype=np.float32))

    def windows_at_once(self, x: Tensor) -> int:
        """Return how many windows one forward pass on a CPU takes, see `Expert.windows_at_once`."""
        del x
        return WINDOWS_A_PASS

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Encoding:
        """Encode one window per record, [batch, lead, time] of any length from one token on; no mask."""
        n_leads = self.module.options.in_d
        if mask is not None:
            raise UsageError("expert 'dbeta' takes no mask; leave it out")
        if x.ndim != 3 or x.shape[1] != n_leads:
            raise InputError(f"expert 'dbeta': input {list(x.shape)}; expected [batch, {n_leads}, time]")
        states = self.module(x)
        layers = torch.stack([mean_tokens(tokens) for tokens in states.hidden], dim=1)
        return Encoding(layers, states.pooled.to(layers.dtype), tokens=states.hidden[-1])


def _spec(options: DBetaOptions, n_parameters: int) -> ExpertSpec:
    convolutions = [(kernel, stride) for _, kernel, stride in options.conv_feature_layers]
    dim = options.encoder_embed_dim
    return ExpertSpec(
        name="dbeta",
        title="D-BETA: ECG-FM's encoder with a class token, trained with reports",
        version="1",
        source="Pham Hung, Saeed and Ma 2025, ICML, arXiv 2410.02131; manhph2211/D-BETA 92e07e7",
        sampling_rate_hz=RATE_HZ,
        seconds=WINDOW_SECONDS,
        leads=STANDARD_LEADS,
        normalisation="none: mV",
        layer_names=("embed", *(f"block_{k + 1}" for k in range(options.encoder_layers))),
        layer_dims=(dim,) * (1 + options.encoder_layers),
        embedding_dim=options.hidden_dim,
        licence="CC-BY-NC-4.0",
        parameters=n_parameters,
        published_parameters=PUBLISHED_PARAMETERS,
        weights=WeightsSource(
            "Manhph2211/D-BETA",
            "sample.pt",
            "main",  # of its commit only the first digits are known, 20ff3cc
            note="the repository is gated: ask for access there, and set HF_TOKEN",
        ),
        non_commercial=True,
        pretrained_on=("mimic-iv-ecg",),
        unused_keys=UNUSED_KEYS,
        windows="evenly placed windows of 10 s, mean of their vectors; a shorter record whole, from 1 s",
        shortest_s=1.0,
        missing_leads="gaps bridged linearly, ends held; a missing lead is 0 mV, as a flat one at 0 is",
        preprocessing={"path": "authors", "rate_hz": RATE_HZ},
        tokens=convolved_token_times(dim, WINDOW_SECONDS * RATE_HZ, RATE_HZ, convolutions),
        placement="even",
    )
