"""What every expert is: a frozen spec, `prepare` (signals -> model input), `encode` (model input -> layers, embedding).

Lives here: the contract alone. Not here: the registry (`registry`), where weights come from (`checkpoints`), signal
processing that several experts share (`signals.dsp`), any one expert (a file of its own name).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from cache.errors import InputError
from stages.devices import Precision
from stages.experts.pretraining import PretrainingRecipe
from stages.experts.token_times import Placement, TokenTimes

STANDARD_LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")

WINDOWS_AT_ONCE = 8
PRECISION_DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class WeightsSource:
    """Where an expert's published weights come from: a file of a hub repository at a pinned revision."""

    repo_id: str
    filename: str
    revision: str
    """A commit where it is known, else a branch: the commit of the first download is then recorded and kept to."""
    sha256: str | None = None
    """None where it is not known: recorded at first use and checked from then on."""
    note: str = ""
    also_at: tuple[str, ...] = ()
    """Other ids of the same repository (a renamed account), tried where the first is not found."""
    package: str = ""
    """Installed package of somebody else that `filename` lies in, where `packaged`; also the extra that brings it."""
    packaged: bool = False
    """Whether `filename` lies beside the experts' code, in the package."""
    patients: str = ""
    """File beside packaged weights that holds a keyed hash of every patient they were trained on."""
    labelled: bool = False
    """Whether labels of these patients trained them, so that gates must not weigh the expert by these patients."""
    companions: tuple[str, ...] = ()
    """Further files of the repository or folder that `Expert.build_from_path` reads beside `filename`: a config.json,
    the parts of a checkpoint in several files."""


@dataclass(frozen=True)
class ExpertSpec:
    """Facts about one expert, as printed by `ensemble experts NAME`. Sizes are those of the loaded configuration."""

    name: str
    title: str
    version: str
    """Raised whenever the numbers it gives change; part of every fingerprint."""
    source: str
    """Paper and official code."""
    sampling_rate_hz: float
    seconds: float
    """Length of one window."""
    leads: tuple[str, ...]
    normalisation: str
    layer_names: tuple[str, ...]
    layer_dims: tuple[int, ...]
    embedding_dim: int
    licence: str
    parameters: int
    """Trainable-sized parameters of the loaded module (0 for an expert without any)."""
    published_parameters: int = 0
    """At the published configuration; a registry-wide test builds that and counts."""
    output_dim: int | None = None
    """Width of the expert's own head output, where it has one."""
    output_pooling: Literal["mean", "sigmoid", "softmax"] = "mean"
    """How outputs of several windows become one: their mean, or of logits those of their mean probabilities."""
    output_maxima: tuple[int, ...] = ()
    """Positions in `output` at which the largest of the windows counts instead."""
    weights: WeightsSource | None = None
    non_commercial: bool = False
    pretrained_on: tuple[str, ...] = ()
    """Names of cohorts, as in `stages.cohorts`, whose records the published weights have seen."""
    unused_keys: tuple[str, ...] = ()
    """Regular expressions of pretraining-only keys that a checkpoint may hold and that are not used."""
    windows: str = "one window"
    """How a 10 s record becomes windows, and how their vectors are pooled."""
    shortest_s: float = 0.0
    """Seconds of the shortest record that is encoded; `prepare` refuses a shorter one. 0: any length."""
    longest_s: float | None = None
    """Seconds of a record, from its start, that are encoded; None: the whole of it, in windows."""
    missing_leads: str = "zeros after normalisation"
    """Declared policy for missing leads and NaN samples."""
    needs_weights: bool = True
    nan_features: bool = False
    """Whether single values may be NaN (a feature that a record does not have); elsewhere NaN means a failed record."""
    store_dtype: Literal["float16", "float32"] = "float16"
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """Every option that changes what `prepare` gives; part of the fingerprint."""
    tokens: TokenTimes | None = None
    """How the last layer's tokens lie in time; None for an expert whose `encode` gives no tokens."""
    scale_free: tuple[str, ...] = ()
    """Input paths (`preprocessing`) whose vectors stay the same when each lead is multiplied by a positive factor of
    its own and moved; every other path needs millivolts."""
    placement: Placement = "even"
    """How windows lie on the record; with `tokens` and `seconds` it says which second each token belongs to."""

    def needs_millivolts(self, preprocessing: str) -> bool:
        """Whether an input path gives other vectors for signals in another unit."""
        return preprocessing not in self.scale_free

    def too_short(self, n_samples: int, rate_hz: float) -> str:
        """Say that a record or crop is shorter than the expert takes; "" where it is not.

        Half a sample may lack, for lengths that were rounded to whole samples.
        """
        seconds = n_samples / rate_hz
        if n_samples >= self.shortest_s * rate_hz - 0.5:
            return ""
        return f"expert '{self.name}': {seconds:g} s are shorter than {self.shortest_s:g} s, the shortest that it takes"

    @property
    def views(self) -> tuple[str, ...]:
        """Views of the tokens that can be stored beside the means: `segments`, `std`, `max`, and `last` if causal."""
        if self.tokens is None:
            return ()
        return ("segments", "std", "max", "last") if self.tokens.causal else ("segments", "std", "max")


def require_length(spec: ExpertSpec, n_samples: int, rate_hz: float) -> None:
    """Refuse records that are shorter than an expert takes.

    Every subclass's `prepare` begins with it.

    Raises
    ------
    InputError
        Names the expert and both lengths.
    """
    if reason := spec.too_short(n_samples, rate_hz):
        raise InputError(f"{reason}; leave out the record or the expert, or keep more of it (cohort.seconds)")


Prepare = Callable[["Expert", "np.ndarray | Tensor", float], Tensor]
LENGTH_CHECK = "checked_length"
"""Function around every `prepare`, as tracebacks name it."""


def _of_enough_length(prepare: Prepare) -> Prepare:
    """Let a `prepare` check the length first."""

    @wraps(prepare)
    def checked_length(expert: Expert, signals_mv: np.ndarray | Tensor, rate_hz: float) -> Tensor:
        require_length(expert.spec, signals_mv.shape[-1], rate_hz)
        return prepare(expert, signals_mv, rate_hz)

    return checked_length


def patients_key(spec: ExpertSpec) -> bytes:
    """Return the key of the digests in `WeightsSource.patients`."""
    return f"{spec.name.partition('+')[0]} {spec.version}".encode()


@dataclass(frozen=True)
class Encoding:
    """What `encode` gives for one window per record.

    Attributes
    ----------
    layers
        Stacked [batch, layer, dim], or a list of [batch, dim_l] where widths differ; the order of `spec.layer_names`.
    embedding
        The authors' own pooled output, [batch, dim].
    output
        The expert's own head output [batch, output_dim], where it has one.
    tokens
        The last layer's tokens in time order, [batch, token, dim], as `spec.tokens` declares them: those that the
        embedding is pooled from, in the network's own precision. One token a moment: where the network has a token per
        lead and moment, the leads' mean, or the leads side by side where the embedding keeps them apart. Tokens that
        stand for no moment (class tokens, separators, prompts) are left out. None where `spec.tokens` is None.
    """

    layers: Tensor | list[Tensor]
    embedding: Tensor
    output: Tensor | None = None
    tokens: Tensor | None = None


class Expert(ABC):
    """One frozen model. Construct through `load_expert`, which puts it in eval mode on the device.

    A subclass is one file, decorated with `@register("name")`, and implements `build`, `prepare` and `encode`. Its
    `prepare` sees no record that is shorter than `spec.shortest_s`.
    """

    spec: ExpertSpec
    module: nn.Module | None = None
    """The frozen network under official key names; None for an expert without parameters."""
    variants: ClassVar[tuple[str, ...]] = ()
    """Sizes such as ("small", "base", "large"), named `expert-size`; the first is what the bare name means."""
    preprocessing_variants: ClassVar[tuple[str, ...]] = ("authors",)
    """Named input paths; the first is the default. "enecg" is EnECG's own where it differs from the authors'."""
    preprocessing: str = "authors"
    precision: Precision = "fp32"
    """What the network was cast to; `stages.experts.run.set_precision` sets it."""
    residual_branches: ClassVar[str] = ""
    """Regular expression of the submodules whose output is added to the residual stream (or scales what is), the block
    they are in as group `block`: what stochastic depth drops and layer-wise rates count. Empty: there are none."""

    early_blocks: ClassVar[str | None] = None
    """Regular expression of the blocks that the ECG-FM benchmark fine-tunes most slowly, where it says so; None: half.
    (AI4HealthUOL/ecg-fm-benchmarking 6367295, clinical_ts/models/fm_ecg.py, `get_params`.)"""

    @property
    def embedding_parts(self) -> int:
        """Return how many equal parts the embedding has that are trained apart: networks side by side."""
        return 1

    pretraining: ClassVar[PretrainingRecipe | None] = None
    """How `ensemble pretrain` makes weights for it; None: it cannot be pretrained here."""

    def __init__(self, device: torch.device | str = "cpu", preprocessing: str | None = None) -> None:
        self.device = torch.device(device)
        self.preprocessing = preprocessing or self.preprocessing_variants[0]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "prepare" in vars(cls):
            cls.prepare = _of_enough_length(cls.prepare)  # type: ignore[method-assign, assignment]

    @classmethod
    @abstractmethod
    def published_spec(cls, variant: str | None = None) -> ExpertSpec:
        """Spec at the published configuration, without building the network or reading weights."""

    @classmethod
    def small_config(cls, variant: str | None = None) -> Mapping[str, Any] | None:
        """Config of a network with the parts of the published one, small enough for the tests that every expert gets.

        It keeps the input contract: what `prepare` gives at the published configuration fits it too. None, the
        default, means the published configuration, for experts that are small anyway.
        """
        del variant
        return None

    @classmethod
    @abstractmethod
    def build(
        cls,
        config: Mapping[str, Any] | None,
        state: Mapping[str, Tensor] | None,
        *,
        variant: str | None = None,
        preprocessing: str | None = None,
    ) -> Expert:
        """Construct on the CPU from architecture overrides (official names) and an official state dict (strict).

        `config` None means the published configuration (of `variant`), or what the state's own shapes say where they
        determine it. `state` None means randomly initialised (seeded by the caller), for tests and benchmarks.
        """

    @classmethod
    def build_from_path(
        cls,
        path: Path,
        config: Mapping[str, Any] | None,
        *,
        variant: str | None = None,
        preprocessing: str | None = None,
    ) -> Expert:
        """Construct from a weights file; by default `build` gets the tensors that are in it.

        An expert whose weights are more than one state dict overrides this: it reads `path`, and the files that
        `WeightsSource.companions` names, which lie in the same folder (`path.parent`).
        """
        from stages.experts.mismatch import build_from_file

        return build_from_file(cls, path, config, variant=variant, preprocessing=preprocessing)

    @abstractmethod
    def prepare(self, signals_mv: np.ndarray | Tensor, rate_hz: float) -> Tensor:
        """Turn raw signals into model input, as the authors' own code does it.

        Parameters
        ----------
        signals_mv
            [batch, 12, time] in mV, standard lead order; a missing lead or sample is NaN.
        rate_hz
            Sampling rate of `signals_mv`.

        Returns
        -------
        float32 CPU tensor [batch, windows, ...].

        Raises
        ------
        InputError
            Records shorter than `spec.shortest_s`, before a subclass's own code sees them (`require_length`); or
            records that this code cannot use.
        """

    def windows_at_once(self, x: Tensor) -> int:
        """Return how many windows such as x [batch, ...] one forward pass on a CPU takes.

        Passes always take as many: the last bits of a matrix product depend on the number of its rows.
        """
        del x
        return WINDOWS_AT_ONCE

    @abstractmethod
    def encode(self, x: Tensor, mask: Tensor | None = None) -> Encoding:
        """Encode one window per record, [batch, ...]. Records never influence one another."""
