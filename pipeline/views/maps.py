"""What `ensemble map` is asked for, and where it reads and writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache.errors import UsageError
from cache.storage.locations import store_exists
from pipeline.study.folder import Study
from pipeline.study.params import overridden
from stages.ecg_map.settings import MapPaths, MapSection, MapSettings
from stages.spaces.space import SpacePaths

if TYPE_CHECKING:
    from cache.storage.locations import Location


def map_settings(
    study: Study, name: str | None, expert: str | None, gate: bool, given: Mapping[str, Any]
) -> MapSettings:
    """Join an entry of `maps` in params.yaml with the options of the command line.

    Raises
    ------
    UsageError
        An expert and the gate at once, a task without the gate, or an entry that is not there.
    """
    if expert is not None and gate:
        raise UsageError("--expert and --gate: a map lies in one space; give one of them")
    section = MapSection()
    if name is not None:
        if name not in study.params.maps:
            raise UsageError(
                f"--name {name}: params.yaml has no such map; it has {', '.join(study.params.maps) or 'none'}"
            )
        section = study.params.maps[name]
    if gate:
        section = section.model_copy(update={"expert": None})
    chosen = overridden(MapSection, section, {**given, "expert": expert})
    if chosen.expert is not None and chosen.task is not None:
        raise UsageError(f"--task {chosen.task}: only the gate's space has a task; leave --expert out")
    space = f"expert {chosen.expert}" if chosen.expert else "the gate"
    return MapSettings(**chosen.model_dump(), seed=study.seed, title=f"Map of the records by {space}")


def map_paths(study: Study, settings: MapSettings, page: Path) -> MapPaths:
    """Return where the map of a study reads and writes."""
    return MapPaths(
        records=study.records,
        space=space_paths(study, settings.expert),
        page=page,
        table=page.with_suffix(".parquet"),
        signals=study.signals if store_exists(study.signals) else None,
        predictions=study.predictions if study.predictions.is_file() else None,
        gate_weights=study.gate_weights if study.gate_weights.is_file() else None,
    )


def space_paths(study: Study, expert: str | None) -> SpacePaths:
    """Return what the space of an expert, or of the gate (None), is made of.

    Raises
    ------
    MissingFileError
        The gate's, and there is no fit.
    """
    signals: Location = study.signals
    if expert is not None:
        return SpacePaths({expert: study.embedding(expert)})
    stores = {name: study.embedding(name) for name in study.fitted_experts()}
    return SpacePaths(stores, study.heads, signals)
