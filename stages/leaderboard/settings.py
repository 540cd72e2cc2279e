"""What a leaderboard is asked for, where it reads and writes, and what it found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from stages.settings import Settings, allowed

if TYPE_CHECKING:
    from cache.storage.locations import Location
    from stages.experts import Expert

Mode = Literal["linear", "frozen", "finetuned"]
Source = Literal["crops", "native"]


def _is_choice(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, list | tuple) and all(isinstance(name, str) for name in value))


class LeaderboardSection(Settings):
    """Section `leaderboard` of params.yaml; defaults as in the benchmark (AI4HealthUOL/ecg-fm-benchmarking 6367295).

    Attributes
    ----------
    inputs
        crops: those of the benchmark, mostly four of 2.5 s, embedded for it; native: the cached vectors and seconds of
        the whole record.
    epochs, batch_size, learning_rate, weight_decay
        Of AdamW, at a constant rate.
    fine_tune
        Whether every expert is fine-tuned to every task as well; or the names of those that are.
    """

    inputs: tuple[Source, ...] = ("crops", "native")
    epochs: int = Field(default=100, ge=1)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-3, ge=0)
    fine_tune: Annotated[
        bool | tuple[str, ...], allowed(_is_choice, "true, false, or a list of experts such as [openecg, seed]")
    ] = False

    def fine_tunes(self, expert: str) -> bool:
        """Whether an expert is fine-tuned."""
        return self.fine_tune is True or (self.fine_tune is not False and expert in self.fine_tune)


class LeaderboardSettings(LeaderboardSection):
    """What one board is asked for.

    Attributes
    ----------
    tasks
        Target columns; None: all of records.parquet.
    bootstrap
        Patient resamples behind each interval.
    threads
        CPU threads of the forward pass over crops.

    Examples
    --------
    >>> LeaderboardSettings().epochs, LeaderboardSettings().learning_rate
    (100, 0.001)
    """

    tasks: tuple[str, ...] | None = None
    bootstrap: int = Field(default=1000, ge=100)
    seed: int = 0
    threads: int = Field(default=1, ge=1)

    def recipe(self) -> dict[str, Any]:
        """Return what a trained head depends on besides its inputs."""
        kept = ("epochs", "batch_size", "learning_rate", "weight_decay", "seed")
        return {name: getattr(self, name) for name in kept}


@dataclass(frozen=True)
class ExpertRun:
    """One expert of the board.

    Attributes
    ----------
    load
        Loads the network, frozen; None: vectors of another tool, which cannot be run on crops.
    parameters
        Of the encoder, as its spec counts them; None where unknown.
    records_per_s
        Of the last `embed` that embedded records; None where unknown.
    finetuned
        Task -> npz with `rows` and `predictions` of a fine-tuned copy (and the kept `epoch`), as its caller made them.
    not_finetuned
        Task -> why there is no such copy although one was asked for.
    finetuned_crop_s
        Length in seconds of the crops that copies were trained on and judged by; None: whole records.
    """

    store: Location
    load: Callable[[], Expert] | None = None
    parameters: int | None = None
    records_per_s: float | None = None
    finetuned: Mapping[str, Path] = field(default_factory=dict)
    not_finetuned: Mapping[str, str] = field(default_factory=dict)
    finetuned_crop_s: float | None = None


@dataclass(frozen=True)
class LeaderboardPaths:
    """Where a leaderboard reads and writes.

    Attributes
    ----------
    predictions
        Test predictions of every row, in the layout of predictions.parquet; the method is EXPERT/MODE/INPUTS.
    board
        leaderboard.json: equal for equal runs.
    table
        The same as CSV, one line a row and task, with speeds.
    costs
        Records a second, which differ from run to run.
    state
        Folder of embedded crops and finished heads, from which a killed run goes on.
    """

    records: Location
    signals: Location
    experts: Mapping[str, ExpertRun]
    predictions: Path
    board: Path
    table: Path
    costs: Path
    state: Path

    @classmethod
    def of(
        cls, folder: Path, records: Location, signals: Location, experts: Mapping[str, ExpertRun], state: Path
    ) -> LeaderboardPaths:
        """Name the outputs of a board in its folder: leaderboard.json and the others beside it."""
        predictions, board, table, costs = (
            folder / f"leaderboard{end}" for end in (".parquet", ".json", ".csv", "_costs.json")
        )
        return cls(records, signals, experts, predictions, board, table, costs, state)


@dataclass
class LeaderboardSummary:
    """What a leaderboard found: the content of leaderboard.json and of leaderboard_costs.json."""

    board: dict[str, Any] = field(default_factory=dict)
    costs: dict[str, Any] = field(default_factory=dict)
