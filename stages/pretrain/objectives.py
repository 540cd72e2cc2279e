"""What is pretrained, expert by expert: network, model input, loss, and how the result is told to `load_expert`.

Lives here: joining settings, networks and data. Not here: the objectives themselves (`masked`, `forecast`), the loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cache.errors import UsageError
from stages.experts import expert_class
from stages.experts.models.ecg.seed import seed_options
from stages.experts.models.ecg.stmem import SOUP_GEOMETRY
from stages.experts.networks.stmem_net import StMemAttention, StMemOptions
from stages.experts.options import architecture_overrides
from stages.pretrain.forecast import SERIES_VERSION, Forecaster, Series, prepare_series
from stages.pretrain.masked import VARIANTS, MaskedOptions, MaskedStMem
from stages.training.inputs import Prepare, input_identity
from stages.training.loop import Batches

SIZES = {"tiny": (192, 3, 768), "small": (384, 6, 1536), "base": (768, 12, 3072)}
"""Width, heads and feed-forward width; all have 12 blocks."""
SEED_DECODER: dict[str, Any] = {
    "decoder_embed_dim": 64,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
    "decoder_dim_head": 32,
    "mask_ratio": 0.5,
    "norm_pix_loss": False,
}
LEADS = ("each", "joint")


@dataclass(frozen=True)
class Objective:
    """One network to pretrain.

    Attributes
    ----------
    model
        Gives the loss of what `batches(inputs).fetch` returns.
    blocks
        Those that gradient checkpointing may compute twice.
    identity
        Everything that the prepared inputs depend on.
    state
        The result under the official keys.
    config, preprocessing
        How `load_expert` reads it.
    """

    model: nn.Module
    blocks: list[nn.Module]
    prepare: Prepare
    identity: dict[str, Any]
    batches: Callable[[np.ndarray], Batches]
    state: Callable[[nn.Module], Mapping[str, Tensor]]
    config: dict[str, Any]
    preprocessing: str


class MaskedBatches:
    """Records with fresh noise; of a record with several windows, one is drawn."""

    def __init__(self, inputs: np.ndarray, n_patches: int) -> None:
        self.inputs, self.n_patches = inputs, n_patches

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.inputs)

    def fetch(self, rows: np.ndarray, generator: np.random.Generator) -> tuple[Tensor, ...]:
        """Return x [row, lead, time] and noise [row, lead, patch]."""
        window = generator.integers(self.inputs.shape[1], size=len(rows))
        x = np.ascontiguousarray(self.inputs[rows, window])
        noise = generator.random((*x.shape[:2], self.n_patches), dtype=np.float32)
        return torch.from_numpy(x), torch.from_numpy(noise)


def make_objective(
    expert: str, *, variant: str, size: str, preprocessing: str, leads: str, config: Mapping[str, Any], seed: int
) -> Objective:
    """Build what `ensemble pretrain --expert EXPERT` trains, its weights drawn from the seed.

    Raises
    ------
    UsageError
        An expert that cannot be pretrained here, or an option that it does not have.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        if expert == "stmem":
            return _masked(variant or "stmem", size, preprocessing, config)
        if expert == "seed":
            return _seed(variant or "stmem", config)
        if expert in ("timesnet", "dlinear"):
            if variant:
                raise UsageError(f"--variant {variant}: expert '{expert}' has no variants; leave it out")
            return _forecast(expert, leads, config)
    raise UsageError(f"--expert {expert}: only stmem, seed, timesnet and dlinear can be pretrained here")


def _masked(variant: str, size: str, preprocessing: str, config: Mapping[str, Any]) -> Objective:
    if variant not in VARIANTS:
        raise UsageError(f"--variant {variant}: expected {' or '.join(VARIANTS)}")
    if size not in SIZES:
        raise UsageError(f"--size {size}: expected {', '.join(SIZES)}")
    if preprocessing not in ("soup", "authors"):
        raise UsageError(f"--preprocessing {preprocessing}: expected soup or authors")
    own = [f.name for f in dataclasses.fields(MaskedOptions) if f.name not in ("encoder", "variant")]
    more = {name: value for name, value in config.items() if name in own}
    width, heads, mlp_dim = SIZES[size]
    architecture: dict[str, Any] = {"width": width, "heads": heads, "mlp_dim": mlp_dim}
    architecture |= SOUP_GEOMETRY if preprocessing == "soup" else {}
    names = [f.name for f in dataclasses.fields(StMemOptions)]
    architecture |= architecture_overrides("stmem", {k: v for k, v in config.items() if k not in own}, names)
    options = MaskedOptions(StMemOptions(**architecture), variant=variant, **more)
    model = MaskedStMem(options)
    expert = expert_class("stmem")[0].build(architecture, None, preprocessing=preprocessing)
    return Objective(
        model,
        [*model.encoder.blocks, *model.decoder_blocks],
        expert.prepare,
        input_identity(expert),
        lambda inputs: MaskedBatches(inputs, options.encoder.n_patches),
        lambda trained: trained.state_dict(),
        {**architecture, "dim_head": options.encoder.dim_head},
        preprocessing,
    )


def _seed(variant: str, config: Mapping[str, Any]) -> Objective:
    """Build the masked autoencoder of expert `seed`; its version holds the encoder alone, in float16."""
    own = [f.name for f in dataclasses.fields(MaskedOptions) if f.name not in ("encoder", "variant")]
    more = {**SEED_DECODER, **{name: value for name, value in config.items() if name in own}}
    size = {name: value for name, value in config.items() if name not in own}
    model = MaskedStMem(MaskedOptions(seed_options(size), variant=variant, **more))
    _start_attentive(model)
    expert = expert_class("seed")[0].build(size, None)
    return Objective(
        model,
        [*model.encoder.blocks, *model.decoder_blocks],
        expert.prepare,
        input_identity(expert),
        lambda inputs: MaskedBatches(inputs, model.options.encoder.n_patches),
        lambda trained: {key: value.half() for key, value in trained.get_submodule("encoder").state_dict().items()},
        size,
        "authors",
    )


def _start_attentive(model: MaskedStMem) -> None:
    """Let tokens attend to what is like them, and tell the leads apart, from the first step on.

    Queries and keys begin alike (mimetic initialisation: Trockman and Kolter, ICML 2023, arXiv 2305.09828), and lead
    embeddings at the scale of the positions: a short training then leaves its first plateau sooner.
    """
    with torch.no_grad():
        for embedding in (model.encoder.sep_embedding, *model.encoder.lead_embeddings):
            embedding.normal_(0, 0.5)
        for module in model.modules():
            if isinstance(module, StMemAttention):
                query, key, _ = module.to_qkv.weight.chunk(3)
                query.normal_(0, query.shape[1] ** -0.5)
                key.copy_(query)


def _forecast(expert: str, leads: str, config: Mapping[str, Any]) -> Objective:
    if leads not in LEADS:
        raise UsageError(f"--leads {leads}: expected each (every lead a series of its own) or joint")
    joint = leads == "joint"
    shape: dict[str, Any] = (
        {"individual": joint} if expert == "dlinear" else {"enc_in": 12, "c_out": 12} if joint else {}
    )
    merged = {**shape, **config}
    built = expert_class(expert)[0].build(merged, None)
    net: Any = built.module
    seq_len, n_samples = net.options.seq_len, net.options.seq_len + net.options.pred_len
    return Objective(
        Forecaster(net),
        [],
        partial(prepare_series, n_samples=n_samples),
        {"expert": expert, "version": built.spec.version, "series": SERIES_VERSION, "n_samples": n_samples},
        lambda inputs: Series(inputs, seq_len, joint=joint),
        lambda trained: trained.get_submodule("net").state_dict(),
        merged,
        "authors",
    )
