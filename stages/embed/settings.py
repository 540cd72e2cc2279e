"""What a run of one expert is asked for (`EmbedSettings`) and what it did (`EmbedSummary`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import AliasChoices, Field

from stages.devices import Precision
from stages.settings import Settings

if TYPE_CHECKING:
    from cache.storage.locations import Location

DEFAULT_WEIGHTS = "weights/default"
"""Marker file of a study: this expert takes no weights, or the published ones from the model hub."""


class ExpertSection(Settings):
    """One expert of the ensemble: an entry under `experts` in params.yaml."""

    weights: str = DEFAULT_WEIGHTS
    config: dict[str, Any] = Field(default_factory=dict)
    preprocessing: str | None = None
    precision: Precision = "fp32"
    dtype: Literal["float16", "float32"] | None = None
    accept_licence: bool = Field(default=False, validation_alias=AliasChoices("accept_licence", "accept_license"))
    views: tuple[Literal["segments", "std", "max", "last"], ...] = ()
    zscores_as_mv: bool = False


class EmbedSection(Settings):
    """Section `embed` of params.yaml: how stores of embeddings are written; none of it changes a vector."""

    shard_records: int = Field(default=1024, ge=1)
    max_bad: int | None = Field(default=None, ge=0)


@dataclass(frozen=True)
class EmbedSettings:
    """How one expert is run; `weights` to `dtype` change the numbers and are part of the fingerprint."""

    expert: str
    weights: str | Path | None = None
    config: Mapping[str, Any] | None = None
    preprocessing: str | None = None
    precision: Precision = "fp32"
    dtype: str | None = None
    device: str = "cpu"
    batch_size: int | None = None
    """Records a forward pass; None: chosen by the device, and halved when its memory is full."""
    shard_records: int = 1024
    threads: int = 1
    """CPU threads of the forward pass. The last bits of a sum depend on it, so it does not follow the worker count."""
    views: tuple[str, ...] = ()
    """Views of the tokens that are stored beside the means, of `ExpertSpec.views`; part of the fingerprint."""
    zscores_as_mv: bool = False
    """Take one standard deviation for one millivolt where the cohort's signals are z-scores."""


@dataclass(frozen=True)
class EmbedPaths:
    """Where a run reads and writes.

    Attributes
    ----------
    state
        Folder where claims lie: outside the store and outside every DVC output.
    """

    records: Location
    signals: Location
    store: Location
    state: Path


@dataclass(frozen=True)
class ReplacedStore:
    """A store with vectors that a run would put another one in the place of.

    Attributes
    ----------
    n_records
        How many of its records are embedded.
    why
        What it was made from that is otherwise now.
    kept
        Where it is moved to; None: it is removed, because only the size of its shards is another one.
    brings_back
        Whether vectors of what is asked for were moved aside earlier, and come back.
    """

    store: Location
    n_records: int
    why: str
    kept: Location | None
    brings_back: bool


@dataclass
class EmbedSummary:
    """What a run did, for the run record and the last line on the terminal."""

    expert: str
    store: str
    n_records: int
    n_embedded: int = 0
    """Records embedded in this run."""
    n_resumed: int = 0
    """Records that were there already (or that another process embedded meanwhile)."""
    fresh_because: str = ""
    """Why the store was started afresh."""
    bad: dict[str, str] = field(default_factory=dict)
    """record_id -> why this run could not embed it."""
    n_without_vector: int = 0
    """Records of the whole store that have no vector."""
    n_short: int = 0
    """Records of less than ten seconds: embedded as the expert's policy for short records says, if at all."""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("read", "compute", "write", "total"), 0.0))

    def add(self, part: EmbedSummary) -> None:
        """Count in what another worker did; busy seconds add up, `total` is the longest."""
        self.n_embedded += part.n_embedded
        self.n_resumed = self.n_records - self.n_embedded
        self.bad.update(part.bad)
        self.fresh_because = self.fresh_because or part.fresh_because
        self.n_short = max(self.n_short, part.n_short)
        self.n_without_vector = max(self.n_without_vector, part.n_without_vector)
        for name, seconds in part.seconds.items():
            before = self.seconds[name]
            self.seconds[name] = max(before, seconds) if name == "total" else before + seconds
