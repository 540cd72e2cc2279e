"""How a network is trained: what the sections `pretrain` and `posttrain` of params.yaml share, and the loop's settings.

Light: imports neither arrays nor torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import Field

from stages.devices import Precision
from stages.settings import Settings


class TrainingSection(Settings):
    """How a network is trained: what `pretrain` and `posttrain` share."""

    epochs: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=256, ge=1)
    learning_rate: float | None = Field(default=None, gt=0)
    weight_decay: float | None = Field(default=None, ge=0)
    seed: int | None = None
    precision: Precision = "fp32"
    micro_batch: int | None = Field(default=None, ge=1)
    gradient_checkpointing: bool = False
    checkpoint_seconds: float = Field(default=60, ge=0)
    config: dict[str, Any] = Field(default_factory=dict)


class Augmentation(Settings):
    """How strongly input [record, window, lead, time] is changed; everything off by default.

    Attributes
    ----------
    crop
        Share of the time that is kept, from a random start.
    gain, lead_gain
        Standard deviation of the logarithm of a gain common to all leads, and of one for each lead.
    noise
        Mean standard deviation of white noise, which half of the records get, as a share of the record's spread.
    wander
        Mean amplitude of a sine of 0.1 to 1 cycles for each hundred samples, which half of the records get.
    lead_dropout
        Largest share of leads set to zero, in two of five records.
    gap
        Largest share of the time set to zero, in three of ten records.

    Examples
    --------
    >>> Augmentation(crop=0.8, noise=0.1).changes
    True
    """

    crop: float = Field(default=1.0, gt=0, le=1)
    gain: float = Field(default=0.0, ge=0)
    lead_gain: float = Field(default=0.0, ge=0)
    noise: float = Field(default=0.0, ge=0)
    wander: float = Field(default=0.0, ge=0)
    lead_dropout: float = Field(default=0.0, ge=0, le=1)
    gap: float = Field(default=0.0, ge=0, lt=1)

    @property
    def changes(self) -> bool:
        """Whether anything is changed at all."""
        return self != Augmentation()


@dataclass(frozen=True)
class LoopSettings:
    """How a network is trained; all but the last four change the numbers."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_epochs: float = 0.0
    min_learning_rate: float = 0.0
    clip_norm: float | None = None
    ema: float = 0.0
    """Decay of a moving average of the weights, which is then the result; 0: none."""
    seed: int = 0
    precision: Precision = "fp32"
    micro_batch: int | None = None
    """Records a forward pass: gradients are accumulated up to `batch_size`. None: all at once, halved when memory is
    full."""
    device: str = "cpu"
    checkpoint_seconds: float = 60.0


_SAME_RESULT = ("device", "micro_batch", "checkpoint_seconds")


def settings_of_result(loop: LoopSettings) -> dict[str, Any]:
    """Return the settings of the loop that change its numbers: a run goes on under others, and no version names them.

    >>> settings = LoopSettings(1, 16, 1e-3, device="cuda")
    >>> "device" in settings_of_result(settings), settings_of_result(settings)["batch_size"]
    (False, 16)
    """
    return {name: value for name, value in asdict(loop).items() if name not in _SAME_RESULT}


def loop_settings(section: TrainingSection, seed: int, device: str, **recipe: Any) -> LoopSettings:
    """Return the loop's settings: those of the section, `seed` where it names none, and what a recipe fills in."""
    return LoopSettings(
        batch_size=section.batch_size,
        seed=seed if section.seed is None else section.seed,
        precision=section.precision,
        micro_batch=section.micro_batch,
        device=device,
        checkpoint_seconds=section.checkpoint_seconds,
        **recipe,
    )


@dataclass
class History:
    """What happened, step by step and epoch by epoch."""

    losses: list[float] = field(default_factory=list)
    """Of every step."""
    epochs: list[dict[str, float]] = field(default_factory=list)
    """Mean training loss of each epoch, and what `after_epoch` added."""
    resumed_at: int = 0
    micro_batch: int = 0
