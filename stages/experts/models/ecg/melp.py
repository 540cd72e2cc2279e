"""MELP: ECG-FM's encoder with attention poolers, pretrained against reports on three levels.

Lives here: the published facts, `prepare`, `encode`. Not here: the network (`networks.ecgfm_text_net`), its input path
(`signals.min_max`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache.errors import InputError, UsageError
from stages.experts.checkpoints import load_strict
from stages.experts.contract import Encoding, Expert, ExpertSpec, WeightsSource
from stages.experts.networks.ecgfm_text_net import Melp, MelpOptions, encoder_state, text_options
from stages.experts.networks.parts.pooling import mean_tokens
from stages.experts.registry import register
from stages.experts.signals import min_max
from stages.experts.token_times import convolved_token_times

WINDOWS_A_PASS = 2
"""On a CPU; as fast as eight, and a record alone costs no more than so many windows."""
UNUSED_KEYS = (
    r"ecg_encoder\.(mask_emb|(quantizer|project_q|final_proj)\.)",
    r"(logit_scale$|bn\.|head\.)",
    r"(lm_model|text_decoder|proj_t|sent_proj)\.",
)
"""What pretraining alone uses, and the text side."""
PUBLISHED_PARAMETERS = 65_083_776


@register("melp")
class MelpExpert(Expert):
    """MELP (Wang et al. 2025, ICML; HKU-MedAI/MELP).

    The embedding is that of the authors' linear probe: the mean over the queries of the contrast pooler.
    `Encoding.output` is the vector that zero-shot classification compares with the text's (by cosine; its length is not
    1). Layers are means over tokens, of which the last is the authors' `raw_features`.

    Examples
    --------
    >>> import numpy as np
    >>> from stages.experts import load_expert
    >>> expert = load_expert("melp", config={"encoder_layers": 1}, random_weights=True)
    >>> x = expert.prepare(np.ones((1, 12, 5000)), 500)
    >>> x.shape, expert.encode(x[:, 0]).embedding.shape
    (torch.Size([1, 1, 12, 5000]), torch.Size([1, 256]))
    """

    residual_branches = r"(?P<block>ecg_encoder\.encoder\.layers\.\d+)\.(self_attn|fc2)"
    module: Melp

    @classmethod
    def published_spec(cls, variant: str | None = None) -> ExpertSpec:
        """Spec at the published configuration."""
        return _spec(MelpOptions(), PUBLISHED_PARAMETERS)

    @classmethod
    def small_config(cls, variant: str | None = None) -> Mapping[str, Any]:
        """Return the published architecture made narrow and shallow, see `Expert.small_config`."""
        sizes = {"encoder_embed_dim": 32, "encoder_ffn_embed_dim": 48, "encoder_layers": 3, "shared_emb_dim": 16}
        convolutions = {"conv_feature_layers": "[(16, 2, 2)] * 4", "conv_pos": 16, "conv_pos_groups": 4}
        queries = {"n_queries_contrast": 3, "n_queries_caption": 4, "embed_dim_caption": 32, "attn_pooler_heads": 4}
        return {**sizes, **convolutions, **queries, "encoder_attention_heads": 4}

    @classmethod
    def build(
        cls,
        config: Mapping[str, Any] | None,
        state: Mapping[str, Tensor] | None,
        *,
        variant: str | None = None,
        preprocessing: str | None = None,
    ) -> MelpExpert:
        """Construct from sizes and a Lightning file's state dict, or its ECG side alone."""
        state = None if state is None else encoder_state(state)
        options = text_options("melp", MelpOptions(), config, state)
        if options.shared_emb_dim % options.attn_pooler_heads or options.embed_dim_caption % options.attn_pooler_heads:
            raise UsageError(
                f"expert 'melp': shared_emb_dim {options.shared_emb_dim} and embed_dim_caption "
                f"{options.embed_dim_caption} have to be multiples of attn_pooler_heads {options.attn_pooler_heads}"
            )
        expert = cls(preprocessing=preprocessing)
        expert.module = Melp(options)
        if state is not None:
            load_strict(expert.module, state, expert="melp", unused_keys=UNUSED_KEYS)
        expert.spec = _spec(options, sum(p.numel() for p in expert.module.parameters()))
        return expert

    def prepare(self, signals_mv: np.ndarray | Tensor, rate_hz: float) -> Tensor:
        """[batch, 12, time] in mV -> [batch, windows, 12 in MIMIC's order, 5000 at 500 Hz], each window in [0, 1].

        See `min_max.scaled_windows`.
        """
        return min_max.scaled_windows(signals_mv, rate_hz)

    def windows_at_once(self, x: Tensor) -> int:
        """Return how many windows one forward pass on a CPU takes, see `Expert.windows_at_once`."""
        del x
        return WINDOWS_A_PASS

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Encoding:
        """Encode one window per record, [batch, lead, time] of any length from one token on; no mask."""
        n_leads = self.module.options.in_d
        if mask is not None:
            raise UsageError("expert 'melp' takes no mask; leave it out")
        if x.ndim != 3 or x.shape[1] != n_leads:
            raise InputError(f"expert 'melp': input {list(x.shape)}; expected [batch, {n_leads}, time]")
        states = self.module(x)
        layers = torch.stack([mean_tokens(tokens) for tokens in states.hidden], dim=1)
        return Encoding(layers, states.pooled.to(layers.dtype), states.text_aligned, states.hidden[-1])


def _spec(options: MelpOptions, n_parameters: int) -> ExpertSpec:
    convolutions = [(kernel, stride) for _, kernel, stride in options.conv_feature_layers]
    dim, n_window = options.encoder_embed_dim, min_max.WINDOW_SECONDS * min_max.RATE_HZ
    return ExpertSpec(
        name="melp",
        title="MELP: ECG-FM's encoder with attention poolers, aligned with reports",
        version="1",
        source="Wang et al. 2025, ICML; HKU-MedAI/MELP 088741d",
        sampling_rate_hz=min_max.RATE_HZ,
        seconds=min_max.WINDOW_SECONDS,
        leads=min_max.LEADS,
        normalisation="one min-max over leads and time, to [0, 1]",
        layer_names=("embed", *(f"block_{k + 1}" for k in range(options.encoder_layers))),
        layer_dims=(dim,) * (1 + options.encoder_layers),
        embedding_dim=options.shared_emb_dim,
        output_dim=options.shared_emb_dim,
        licence="MIT (repository)",
        parameters=n_parameters,
        published_parameters=PUBLISHED_PARAMETERS,
        weights=WeightsSource(
            "",
            "melp_encoder.ckpt",
            "",
            note="hub fuyingw/MELP_Encoder, whose file names are not known here: download the file and give it; its "
            "ECG side has 65,593,601 numbers, of which those of pretraining are passed over",
        ),
        pretrained_on=("mimic-iv-ecg",),
        unused_keys=UNUSED_KEYS,
        windows=min_max.windows_policy(min_max.WINDOW_SECONDS),
        shortest_s=min_max.SHORTEST_S,
        missing_leads=min_max.MISSING_LEADS,
        preprocessing={"path": "authors", "rate_hz": min_max.RATE_HZ, "leads": min_max.LEADS},
        tokens=convolved_token_times(dim, n_window, min_max.RATE_HZ, convolutions),
        placement="even",
    )
