"""What a pretraining is asked for, where it reads and writes, and what it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from stages.training.settings import History, LoopSettings, TrainingSection, loop_settings

if TYPE_CHECKING:
    from cache.storage.locations import Location


class PretrainSection(TrainingSection):
    """One version to pretrain; see docs/pretraining.md."""

    expert: str = "stmem"
    variant: str = ""
    size: str = ""
    preprocessing: str = ""
    leads: str = ""
    warmup_epochs: float | None = Field(default=None, ge=0)

    def loop(self, seed: int, device: str) -> LoopSettings:
        """Return how the network is trained; what the section does not say is the expert's recipe.

        Parameters
        ----------
        seed
            The study's, where the section names none.
        """
        from stages.pretrain.objectives import recipe_of

        recipe = recipe_of(self.expert)
        epochs = self.epochs or recipe.epochs
        rate = recipe.learning_rate * (self.batch_size / 256 if recipe.rate_per_256 else 1)
        return loop_settings(
            self,
            seed,
            device,
            epochs=epochs,
            learning_rate=self.learning_rate or rate,
            weight_decay=recipe.weight_decay if self.weight_decay is None else self.weight_decay,
            betas=recipe.betas,
            warmup_epochs=epochs * recipe.warmup_share if self.warmup_epochs is None else self.warmup_epochs,
        )


@dataclass(frozen=True)
class PretrainSettings:
    """What is pretrained and how; see docs/pretraining.md. Where a name is "", the expert's recipe has the default."""

    name: str
    """Of the version: EXPERT+TAG."""
    expert: str
    loop: LoopSettings
    variant: str = ""
    size: str = ""
    preprocessing: str = ""
    leads: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        from stages.experts.versions import check_version_name
        from stages.pretrain.objectives import recipe_of

        recipe_of(self.expert)
        check_version_name(self.name, self.expert)


@dataclass(frozen=True)
class PretrainPaths:
    """Where a run reads, and its state folder: prepared inputs and the checkpoint, safe to delete."""

    records: Location
    signals: Location
    state: Path


@dataclass(frozen=True)
class PretrainSummary:
    """What a run did."""

    name: str
    folder: str
    """Empty in a process that leaves writing to another."""
    n_records: int
    parameters: int
    resumed_at: int
    history: History
