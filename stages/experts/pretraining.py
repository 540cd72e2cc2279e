"""How an expert can be pretrained: what its file declares as `Expert.pretraining`, for `stages.pretrain`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class PretrainingRecipe:
    """What `ensemble pretrain` makes of an expert where its options say nothing else.

    Attributes
    ----------
    objective
        `masked`: reconstruct hidden patches; the network is `stages.experts.networks.stmem_net.StMemVit`.
        `forecast`: tell the end of a record from its beginning.
        `inpaint`: tell hidden samples; the network is `stages.experts.networks.parts.seed_net.SeedNet`.
    epochs, learning_rate, weight_decay, betas, warmup_share
        Of AdamW with a cosine; `warmup_share` is the part of the epochs in which the rate rises.
    rate_per_256
        Whether `learning_rate` is that of a batch of 256 and grows with the batch.
    variants
        Names of `--variant`, the first is the default; none where there is one way only.
    sizes
        Name of `--size` -> options of the architecture, the first is the default; none where there is one size.
    geometry
        Input path that pretraining may take -> options of the architecture that go with it, the first is the default.
    decoder
        Options of the masked decoder, under the official names.
    joint
        Options of the architecture for `--leads each` and `--leads joint` (forecast alone).
    encoder_only
        Whether a version keeps the encoder alone, in float16, in place of encoder and decoder.
    attentive_start
        Whether attention and lead embeddings start so that a short training leaves its first plateau sooner.
    """

    objective: Literal["masked", "forecast", "inpaint"]
    epochs: int
    learning_rate: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_share: float = 0.0
    rate_per_256: bool = False
    variants: tuple[str, ...] = ()
    sizes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    geometry: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    decoder: Mapping[str, Any] = field(default_factory=dict)
    joint: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    encoder_only: bool = False
    attentive_start: bool = False
