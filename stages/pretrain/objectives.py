"""What is pretrained, expert by expert: network, model input, loss, and how the result is told to `load_expert`.

Lives here: joining settings, networks and data. Not here: the objectives (`masked`, `forecast`, `inpaint`), the loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cache.errors import UsageError
from stages.experts import expert_class, list_experts
from stages.experts.networks.stmem_net import StMemAttention, StMemOptions
from stages.experts.pretraining import PretrainingRecipe
from stages.experts.versions import is_version
from stages.pretrain.forecast import SERIES_VERSION, Forecaster, Series, prepare_series
from stages.pretrain.inpaint import PIECES, InpaintBatches, Inpainter
from stages.pretrain.masked import MaskedOptions, MaskedStMem
from stages.training.inputs import Prepare, input_identity
from stages.training.loop import Batches


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


def recipe_of(expert: str) -> PretrainingRecipe:
    """Return how an expert is pretrained.

    Raises
    ------
    UsageError
        No such expert, or one that cannot be pretrained here; the message lists those that can.
    """
    recipe = None if is_version(expert) else expert_class(expert)[0].pretraining
    if recipe is None:
        raise UsageError(f"--expert {expert}: cannot be pretrained here; these can: {', '.join(pretrainable())}")
    return recipe


def pretrainable() -> list[str]:
    """Names of the experts whose file declares how they are pretrained, without their sizes."""
    names = [name for name in list_experts() if not is_version(name)]
    with_recipe = {expert_class(name)[0]: name for name in reversed(names) if expert_class(name)[0].pretraining}
    return sorted(with_recipe.values())


def make_objective(
    expert: str, *, variant: str, size: str, preprocessing: str, leads: str, config: Mapping[str, Any], seed: int
) -> Objective:
    """Build what `ensemble pretrain --expert EXPERT` trains, its weights drawn from the seed.

    Parameters
    ----------
    variant, size, preprocessing, leads
        Names that the expert's recipe has; "" means its first.

    Raises
    ------
    UsageError
        An expert that cannot be pretrained here, or an option that it does not have.
    """
    recipe = recipe_of(expert)
    variant = _choice("variant", variant, recipe.variants)
    size = _choice("size", size, recipe.sizes)
    path = _choice("preprocessing", preprocessing, recipe.geometry)
    leads = _choice("leads", leads, recipe.joint)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        if recipe.objective == "forecast":
            return _forecast(expert, recipe, leads, config)
        if recipe.objective == "inpaint":
            return _inpaint(expert, config)
        architecture = {**recipe.sizes.get(size, {}), **recipe.geometry.get(path, {})}
        return _masked(expert, recipe, variant, path or None, {**architecture, **config})


def _choice(option: str, name: str, known: Iterable[str]) -> str:
    """Return one of the names that a recipe has; the first where none is asked for.

    Raises
    ------
    UsageError
        A name that it does not have.
    """
    names = list(known)
    if not names and name:
        raise UsageError(f"--{option} {name}: this expert has no {option}s; leave it out")
    if name and name not in names:
        raise UsageError(f"--{option} {name}: expected {', '.join(names[:-1])} or {names[-1]}")
    return name or (names[0] if names else "")


def _masked(
    expert: str,
    recipe: PretrainingRecipe,
    variant: str,
    preprocessing: str | None,
    config: Mapping[str, Any],
) -> Objective:
    """Build a masked autoencoder around the expert's encoder."""
    decoder_options = [f.name for f in dataclasses.fields(MaskedOptions) if f.name not in ("encoder", "variant")]
    decoder = {**recipe.decoder, **{name: value for name, value in config.items() if name in decoder_options}}
    encoder = {name: value for name, value in config.items() if name not in decoder_options}
    cls, size = expert_class(expert)
    with torch.random.fork_rng([]):  # the weights that are trained are drawn below, those of `built` are not used
        built = cls.build(encoder, None, variant=size, preprocessing=preprocessing)
    options: StMemOptions = built.module.options  # type: ignore[union-attr, assignment]
    model = MaskedStMem(MaskedOptions(options, variant=variant, **decoder))
    if recipe.attentive_start:
        _start_attentive(model)
    return Objective(
        model,
        [*model.encoder.blocks, *model.decoder_blocks],
        built.prepare,
        input_identity(built),
        lambda inputs: MaskedBatches(inputs, options.n_patches),
        _encoder_state if recipe.encoder_only else lambda trained: trained.state_dict(),
        encoder if recipe.encoder_only else {**encoder, "dim_head": options.dim_head},
        built.preprocessing,
    )


def _inpaint(expert: str, config: Mapping[str, Any]) -> Objective:
    """Build what tells hidden samples around a convolutional network, which no label teaches to say anything."""
    cls, size = expert_class(expert)
    if config.get("logits"):
        raise UsageError(
            f"config logits: {config['logits']}: pretraining has no labels to learn them from; leave it out"
        )
    config = {**config, "logits": 0}
    built = cls.build(config, None, variant=size)
    net: Any = built.module
    return Objective(
        Inpainter(net),
        [],
        built.prepare,
        input_identity(built),
        lambda inputs: InpaintBatches(inputs, PIECES * net.options.stride),
        lambda trained: half_state(trained.get_submodule("net")),
        dict(config),
        built.preprocessing,
    )


def _encoder_state(trained: nn.Module) -> dict[str, Tensor]:
    return half_state(trained.get_submodule("encoder"))


def half_state(module: nn.Module) -> dict[str, Tensor]:
    """Return a network's tensors in float16; counters stay what they are."""
    return {k: value.half() if value.is_floating_point() else value for k, value in module.state_dict().items()}


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


def _forecast(expert: str, recipe: PretrainingRecipe, leads: str, config: Mapping[str, Any]) -> Objective:
    leads = _choice("leads", leads, recipe.joint)
    merged = {**recipe.joint[leads], **config}
    cls, size = expert_class(expert)
    built = cls.build(merged, None, variant=size)
    net: Any = built.module
    seq_len, n_samples = net.options.seq_len, net.options.seq_len + net.options.pred_len
    return Objective(
        Forecaster(net),
        [],
        partial(prepare_series, n_samples=n_samples),
        {"expert": expert, "version": built.spec.version, "series": SERIES_VERSION, "n_samples": n_samples},
        lambda inputs: Series(inputs, seq_len, joint=leads == "joint"),
        lambda trained: trained.get_submodule("net").state_dict(),
        merged,
        "authors",
    )
