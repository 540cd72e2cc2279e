"""What a post-training is asked for, where it reads and writes, and what it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from cache.errors import UsageError
from stages.training.settings import Augmentation, LoopSettings, TrainingSection, loop_settings

if TYPE_CHECKING:
    import numpy as np

    from cache.storage.locations import Location
    from stages.experts.contract import ExpertSpec

RATE_HZ = 500
"""At which crops are cut."""
Select = Literal["best", "metric", "last"]
HeadKind = Literal["probe", "joint", "linear"]


class PosttrainSection(TrainingSection):
    """One version to post-train; see docs/pretraining.md."""

    expert: str = ""
    task: str = ""
    weights: str | None = None
    preprocessing: str | None = None
    batch_size: int = Field(default=64, ge=1)
    min_learning_rate: float | None = Field(default=None, ge=0)
    probing: bool = True
    drop_path: float = Field(default=0.5, ge=0, lt=1)
    drop_path_schedule: Literal["constant", "linear"] = "constant"
    dropout: float | None = Field(default=None, ge=0, lt=1)
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    ema: float = Field(default=0.0, ge=0, lt=1)
    select: Select = "best"
    fractions: tuple[float, ...] = (1.0,)
    seeds: tuple[int, ...] | None = None
    warmup_epochs: float = Field(default=0.0, ge=0)
    clip_norm: float | None = Field(default=None, gt=0)
    start: Literal["weights", "random"] = "weights"
    head: HeadKind = "probe"
    head_dropout: float = Field(default=0.0, ge=0, lt=1)
    crop_s: float | None = Field(default=None, gt=0)
    test_crops: Literal["mean", "middle"] = "mean"
    half_decay: float = Field(default=1.0, gt=0, le=1)
    absolute_error: bool = False
    augment: Augmentation = Augmentation()
    mixup: float = Field(default=0.0, ge=0)
    teacher: str | None = None
    teacher_share: float = Field(default=0.5, ge=0, le=1)
    store: Literal["float32", "float16"] = "float32"

    def loop(self, seed: int, device: str) -> LoopSettings:
        """Return how the network is trained; what the section does not say is as a re-implementation has it.

        That is AdamW at 5e-4 with a cosine to 1e-5 (docs/pretraining.md).
        """
        rate = self.learning_rate or 5e-4
        return loop_settings(
            self,
            seed,
            device,
            epochs=self.epochs or 30,
            learning_rate=rate,
            min_learning_rate=rate / 50 if self.min_learning_rate is None else self.min_learning_rate,
            weight_decay=0.05 if self.weight_decay is None else self.weight_decay,
            ema=self.ema,
            warmup_epochs=self.warmup_epochs,
            clip_norm=self.clip_norm,
        )


def refused_crop(spec: ExpertSpec, crop_s: float | None) -> str:
    """Say why an expert takes no crops of that length; "" where it does."""
    reason = spec.too_short(round((crop_s or 0.0) * RATE_HZ), RATE_HZ) if crop_s is not None else ""
    return f"{crop_s:g}: {reason}; give at least {spec.shortest_s:g}, or leave it out" if reason else ""


@dataclass(frozen=True)
class PosttrainSettings:
    """What is adapted to what, and how; see docs/pretraining.md.

    Attributes
    ----------
    probing, drop_path
        False and 0 are the two ablations; both together are plain fine-tuning.
    select
        `best`: the epoch of the lowest validation loss, the weights before the first step (epoch 0) included. `metric`:
        that of the best headline metric on validation records (the loss, where their labels define none). `last`.
    fractions
        Shares of the training patients; the largest makes the version.
    seeds
        One run each per fraction; the first makes the version.
    task
        Name of the target, or several names separated by commas, which `head: joint` learns together.
    start
        `weights`: the checkpoint, or the expert's own. `random`: weights that the seed draws.
    head
        `probe`: one linear map, fitted before anything else is trained. `joint`: maps that are trained with the
        network from the start, one for each part of the embedding. `linear`: one map of the embedding as it is,
        trained with the network from the start.
    crop_s
        Seconds of a crop, one of which, beginning anywhere, stands for each record at each visit; None: whole records.
    test_crops
        What is said of a record: `mean`, of what is said of its crops one after the other; or of the `middle` one.
    half_decay
        Factor of the learning rate of the later blocks below the head; its square is that of the earlier ones (half of
        them, or those that the ECG-FM benchmark names).
    absolute_error
        Whether regressions are trained by the absolute error instead of the squared one.
    augment, mixup
        What a step sees instead of the records: changed ones (see `Augmentation`), and mixtures of two (the parameter
        of the Beta distribution that shares are drawn from; 0: none).
    teacher, teacher_share
        A predictions.parquet whose out-of-fold predictions stand in for a share of each label.
    store
        Precision of the weights in the version's file.
    """

    name: str
    expert: str
    task: str
    loop: LoopSettings
    weights: str | Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: str | None = None
    probing: bool = True
    drop_path: float = 0.5
    drop_path_schedule: str = "constant"
    layer_decay: float = 1.0
    dropout: float | None = None
    gradient_checkpointing: bool = False
    select: Select = "best"
    fractions: tuple[float, ...] = (1.0,)
    seeds: tuple[int, ...] = (0,)
    start: Literal["weights", "random"] = "weights"
    head: HeadKind = "probe"
    head_dropout: float = 0.0
    crop_s: float | None = None
    test_crops: Literal["mean", "middle"] = "mean"
    half_decay: float = 1.0
    absolute_error: bool = False
    augment: Mapping[str, float] = field(default_factory=dict)
    mixup: float = 0.0
    teacher: str | Path | None = None
    teacher_share: float = 0.5
    store: Literal["float32", "float16"] = "float32"

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the targets."""
        return tuple(name.strip() for name in self.task.split(",") if name.strip())

    def __post_init__(self) -> None:
        from stages.experts.versions import check_version_name

        check_version_name(self.name, self.expert)
        if any(not 0 < fraction <= 1 for fraction in self.fractions) or not self.fractions:
            raise UsageError(f"fractions {list(self.fractions)}: expected shares such as 0.1,0.3,1")
        if not self.seeds:
            raise UsageError("seeds: give at least one")
        if self.half_decay != 1 and self.layer_decay != 1:
            raise UsageError("half_decay and layer_decay: set one of them")
        if self.absolute_error and self.head == "joint":
            raise UsageError("absolute_error: belongs to `head: linear` or `probe`")
        if len(self.tasks) > 1 and self.select == "metric":
            raise UsageError("select: metric chooses by one task; of several tasks choose `best` or `last`")
        if len(self.tasks) > 1 and self.head != "joint":
            raise UsageError(f"task {self.task}: several tasks are learnt together by `head: joint` alone")


@dataclass(frozen=True)
class PosttrainPaths:
    """Where a run reads, and its state folder. `features`: the expert's own store of these records, if there is one."""

    records: Location
    signals: Location
    state: Path
    features: Location | None = None


@dataclass
class PosttrainSummary:
    """What was done.

    Attributes
    ----------
    runs
        One entry per fraction and seed: records, chosen penalty and epoch, metrics on validation and test records of
        the probe alone and of the tuned network, and the curve.
    folder
        Empty in a process that leaves writing to another.
    predictions
        Of each run, the tuned network's test predictions [n, columns]; `test_rows` are their rows.
    """

    name: str
    folder: str = ""
    runs: list[dict[str, Any]] = field(default_factory=list)
    predictions: list[np.ndarray] = field(default_factory=list)
    probe_predictions: list[np.ndarray] = field(default_factory=list)
    test_rows: np.ndarray | None = None
