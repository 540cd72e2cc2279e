"""What a map is asked for, where it reads and writes, and what it found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from stages.settings import Settings

if TYPE_CHECKING:
    from cache.storage.locations import Location
    from stages.spaces.space import SpacePaths


class MapSection(Settings):
    """One entry of section `maps` of params.yaml.

    Attributes
    ----------
    expert
        In whose space; None: in the gate's.
    task
        Whose gate weighs the experts; None: the mean of the tasks' weights.
    records
        test, or all.
    method
        umap, pca, or auto: UMAP where umap-learn is installed, else PCA.
    thumbnails
        Most records that have small ECGs: a map of more is without; 0: none.
    hide_ids
        The page has no record ids.
    """

    expert: str | None = None
    task: str | None = None
    records: Literal["test", "all"] = "test"
    method: Literal["auto", "umap", "pca"] = "auto"
    thumbnails: int = Field(default=3000, ge=0, le=10_000)
    hide_ids: bool = False


class MapSettings(MapSection):
    """What one map is asked for.

    Examples
    --------
    >>> MapSettings(expert="seed").space
    'seed'
    """

    seed: int = 0
    title: str = "Map of the records"

    @property
    def space(self) -> str:
        """Name of the space."""
        return self.expert or (f"gate of {self.task}" if self.task else "gate")


@dataclass(frozen=True)
class MapPaths:
    """Where a map reads and writes; None: there is no such file, and the map does without.

    Attributes
    ----------
    page, table
        map.html and map.parquet.
    """

    records: Location
    space: SpacePaths
    page: Path
    table: Path
    signals: Location | None = None
    predictions: Path | None = None
    gate_weights: Path | None = None


@dataclass(frozen=True)
class MapSummary:
    """What was written.

    Attributes
    ----------
    method
        UMAP or PCA.
    n_left_out
        Records without a vector in this space.
    notes
        What a reader of the map should know, one line each.
    """

    n_records: int
    n_left_out: int
    method: str
    n_thumbnails: int
    page_bytes: int
    notes: tuple[str, ...] = ()
