"""Expert `seed`: small convolutional networks whose weights come with the package, trained on 2,272 ECGs of PTB-XL.

Lives here: its input, its configuration, `prepare`, `encode`. Not here: the network (`parts.seed_net`), how the
weights were made (docs/seed.md), the weights of self-supervision alone (`seed_ssl`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import scipy.signal
import torch
from torch import Tensor

from cache.errors import InputError, UsageError
from stages.experts.checkpoints import load_strict
from stages.experts.chunks import encode_in_chunks
from stages.experts.contract import STANDARD_LEADS, Encoding, Expert, ExpertSpec, WeightsSource
from stages.experts.networks.parts.seed_net import SeedNet, SeedOptions
from stages.experts.options import architecture_overrides
from stages.experts.pretraining import PretrainingRecipe
from stages.experts.registry import register
from stages.experts.signals import dsp as _dsp
from stages.experts.token_times import TokenTimes

RATE_HZ, N_SAMPLES = 100, 1000
HIGHPASS_HZ = 0.5
SHORTEST_S = 2.5
"""A third of what training showed of a record."""
WINDOWS_PER_PASS = 4
"""What stays in a CPU's cache."""
OPTIONS = SeedOptions()
FREE = ("members", "stem", "widths", "blocks", "kernel", "logits")
"""Options that a version of one's own may change; the input's geometry stays."""
LEAST = {"members": 1, "stem": 1, "widths": 4, "blocks": 1, "kernel": 1, "logits": 0}
LISTS = ("widths", "blocks")
_HIGHPASS = scipy.signal.butter(2, HIGHPASS_HZ, "highpass", fs=RATE_HZ, output="sos")


@dataclass(frozen=True)
class Release:
    """Weights in the package, made by docs/seed.md's recipe.

    Attributes
    ----------
    options
        Sizes of their network.
    weights_file, patients_file
        Beside the experts' code: the tensors in float16, and a keyed hash of every patient that they were trained on.
    labelled
        Whether labels taught them.
    """

    name: str
    title: str
    version: str
    options: SeedOptions
    parameters: int
    sha256: str
    labelled: bool = True

    @property
    def weights_file(self) -> str:
        """Name of the file of weights."""
        return f"{self.name}.safetensors"

    @property
    def patients_file(self) -> str:
        """Name of the file of hashed patients."""
        return f"{self.name}.patients.npy"

    @property
    def patients_key(self) -> bytes:
        """Key of the hashes in that file: name and version."""
        return f"{self.name} {self.version}".encode()


@register("seed")
class Seed(Expert):
    """Residual networks of convolutions with squeeze-and-excitation, side by side, on millivolts at 100 Hz."""

    release: ClassVar[Release] = Release(
        name="seed",
        title="Small convolutional networks, trained on PTB-XL's folds 1 to 8",
        version="3",
        options=replace(OPTIONS, logits=42),
        parameters=1_956_798,
        sha256="3e02195ee74bc984a5cc398ac86b8d7365925894dbd65ee0cda5d20eae8954c8",
    )

    residual_branches = r"(?P<block>members\.\d+\.stages\.\d+\.\d+)\.branch"
    early_blocks = r"members\.\d+\.stages\.[01]\..*"
    pretraining: ClassVar[PretrainingRecipe | None] = PretrainingRecipe(
        "inpaint", epochs=40, learning_rate=2e-3, weight_decay=0.05, warmup_share=0.05, encoder_only=True
    )
    module: SeedNet

    @classmethod
    def published_spec(cls, variant: str | None = None) -> ExpertSpec:
        """Spec of the weights in the package."""
        return _spec(cls.release, cls.release.options, cls.release.parameters)

    @classmethod
    def small_config(cls, variant: str | None = None) -> Mapping[str, Any]:
        """Return the architecture made narrow and shallow, see `Expert.small_config`."""
        return {"members": 2, "stem": 8, "widths": (8, 16, 16), "blocks": (1, 1, 1), "logits": 3}

    @classmethod
    def build(
        cls,
        config: Mapping[str, Any] | None,
        state: Mapping[str, Tensor] | None,
        *,
        variant: str | None = None,
        preprocessing: str | None = None,
    ) -> Seed:
        """Construct from overrides of `FREE` and the network's state dict, float16 or float32.

        How many logits there are the state dict knows, where the overrides do not say it.
        """
        expert = cls(preprocessing=preprocessing)
        if state is not None and "logits" not in (config or {}):
            readout = state.get("readouts.0.bias")
            config = {**(config or {}), "logits": 0 if readout is None else len(readout)}
        expert.module = SeedNet(seed_options(config, cls.release))
        if state is not None:
            state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
            load_strict(expert.module, state, expert=cls.release.name)
        n_parameters = sum(p.numel() for p in expert.module.parameters())
        expert.spec = _spec(cls.release, expert.module.options, n_parameters)
        return expert

    @property
    def embedding_parts(self) -> int:
        """Members are trained apart: the embedding is theirs side by side, see `Expert.embedding_parts`."""
        return self.module.options.members

    def prepare(self, signals_mv: np.ndarray | Tensor, rate_hz: float) -> Tensor:
        """[batch, 12, time] in mV -> [batch, windows, 12, time]: 100 Hz, 0.5 Hz high-pass, mV."""
        signals = _dsp.resample_rate(_dsp.as_signals(signals_mv), rate_hz, RATE_HZ)
        n_samples = signals.shape[-1]
        x = scipy.signal.sosfiltfilt(_HIGHPASS, _dsp.fill_gaps(signals), axis=-1).astype(np.float32)
        return torch.from_numpy(np.ascontiguousarray(_dsp.even_windows(x, min(n_samples, N_SAMPLES))))

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Encoding:
        """Encode one window per record, [batch, 12, time], time at most 1000. No mask."""
        if mask is not None:
            raise UsageError(f"expert '{self.release.name}' takes no mask; leave it out")
        if x.ndim != 3 or x.shape[1] != len(STANDARD_LEADS) or not OPTIONS.stride <= x.shape[2] <= N_SAMPLES:
            raise InputError(
                f"expert '{self.release.name}': input {list(x.shape)}; expected [batch, 12, time], time from "
                f"{OPTIONS.stride} to {N_SAMPLES}"
            )
        return encode_in_chunks(self._encode, x, mask, WINDOWS_PER_PASS)

    def windows_at_once(self, x: Tensor) -> int:
        """Return how many windows stay in a CPU's cache, see `Expert.windows_at_once`."""
        del x
        return WINDOWS_PER_PASS

    def _encode(self, x: Tensor, mask: Tensor | None) -> Encoding:
        del mask
        members = self.module(x)
        layers = [torch.cat([m[k].float().mean(-1) for m in members], dim=1) for k in range(len(members[0]))]
        tokens = torch.cat([m[-1] for m in members], dim=1).float().transpose(1, 2)
        return Encoding(layers, self.module.embedding(members), tokens=tokens)


def seed_options(config: Mapping[str, Any] | None, release: Release) -> SeedOptions:
    """Lay overrides of the network's size over the published configuration.

    Raises
    ------
    UsageError
        Another option, a value that makes no network, or stages whose widths and blocks are not as many.
    """
    given = architecture_overrides(release.name, config, FREE)
    for name, value in given.items():
        _check_size(release.name, name, value)
    lists: dict[str, Any] = {key: tuple(given[key]) for key in LISTS if key in given}
    changed = {**given, **lists}
    options = replace(release.options, **changed)
    if len(options.widths) != len(options.blocks) or len(options.widths) < 2:
        raise UsageError(
            f"expert '{release.name}': widths {list(options.widths)} and blocks {list(options.blocks)} describe two "
            "stages or more, each with one width and one number of blocks"
        )
    return options


def _check_size(expert: str, name: str, value: object) -> None:
    """Refuse an option's value that makes no network."""
    sizes = value if name in LISTS and isinstance(value, list | tuple) else () if name in LISTS else (value,)
    right = [isinstance(size, int) and not isinstance(size, bool) and size >= LEAST[name] for size in sizes]
    if name == "kernel":  # an even one would make the branch shorter than the way past it
        right += [isinstance(size, int) and size % 2 == 1 for size in sizes]
    if not right or not all(right):
        kind = "a list of whole numbers" if name in LISTS else "an odd number" if name == "kernel" else "a whole number"
        raise UsageError(f"expert '{expert}': {name} is {value!r}; give {kind} from {LEAST[name]}")


def _spec(release: Release, options: SeedOptions, n_parameters: int) -> ExpertSpec:
    stages = (options.stem, *options.widths)
    return ExpertSpec(
        name=release.name,
        title=release.title,
        version=release.version,
        source="docs/seed.md; architecture after xresnet1d, Strodthoff et al. 2021, arXiv 2004.13701",
        sampling_rate_hz=RATE_HZ,
        seconds=N_SAMPLES / RATE_HZ,
        leads=STANDARD_LEADS,
        normalisation=f"0.5 Hz high-pass, asinh(mV / {options.unit_mv:g})",
        layer_names=("stem", *(f"stage_{k + 1}" for k in range(len(options.widths)))),
        layer_dims=tuple(options.members * width for width in stages),
        embedding_dim=options.members * options.member_dim,
        licence="Apache-2.0",
        parameters=n_parameters,
        published_parameters=release.parameters,
        weights=WeightsSource(
            "",
            release.weights_file,
            "",
            release.sha256,
            packaged=True,
            patients=release.patients_file,
            labelled=release.labelled,
        ),
        pretrained_on=("ptbxl",),
        windows="evenly placed windows of 10 s, mean of their vectors; a shorter record as it is, from 2.5 s",
        shortest_s=SHORTEST_S,
        missing_leads="gaps bridged linearly, ends held; a missing lead is 0 mV, as a flat one is",
        preprocessing={"rate_hz": RATE_HZ, "highpass_hz": HIGHPASS_HZ},
        tokens=TokenTimes(
            options.members * options.widths[-1],
            math.ceil(N_SAMPLES / options.stride),
            options.stride / RATE_HZ,
        ),
    )
