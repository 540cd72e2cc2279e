"""What of an expert's feature matrix is trained before its head: the gate over layers, attention over seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from torch import Tensor

from stages.heads.inputs.expert_features import ExpertFeatures
from stages.heads.layers.attention import AttentionMixer, train_attention
from stages.heads.layers.pma import Mixer, train_mixers

if TYPE_CHECKING:
    from stages.heads.crossfit import Split
    from stages.heads.targets.standardised import Targets

TRAINED = ("pma", "attention")
"""Parts of `layer_mix` that are trained, and so need validation rows in every fold."""
_ATTENTION = "attention/"


@dataclass(frozen=True)
class TrainedMix:
    """Trained mixing of one expert in one fold."""

    pma: Mixer | None = None
    attention: AttentionMixer | None = None

    def __call__(self, features: ExpertFeatures) -> dict[str, np.ndarray]:
        """Return the parts [n, T * D] by their name in `layer_mix`."""
        parts = {"pma": self.pma, "attention": self.attention}
        return {name: mixer(features) for name, mixer in parts.items() if mixer is not None}

    @property
    def n_parameters(self) -> int:
        """Trained parameters."""
        return sum(mixer.n_parameters for mixer in (self.pma, self.attention) if mixer is not None)

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that `from_arrays` reads."""
        state = {} if self.pma is None else self.pma.state_dict()
        if self.attention is not None:
            state |= {f"{_ATTENTION}{key}": value for key, value in self.attention.state_dict().items()}
        return state

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Rebuild from saved arrays."""
        attention = {k.removeprefix(_ATTENTION): v for k, v in arrays.items() if k.startswith(_ATTENTION)}
        pma = {k: v for k, v in arrays.items() if not k.startswith(_ATTENTION)}
        return cls(
            Mixer.from_arrays(pma) if pma else None,
            AttentionMixer.from_arrays(attention) if attention else None,
        )


def train_mixes(
    parts: tuple[str, ...],
    features: Mapping[str, ExpertFeatures],
    targets: Targets,
    splits: list[Split],
    seed: int,
) -> dict[str, list[TrainedMix]]:
    """Train what `parts` ask for: expert -> one mix per fold, of the experts that have what it takes."""
    pma = train_mixers(features, targets, splits, seed) if "pma" in parts else {}
    attention = train_attention(features, targets, splits, seed) if "attention" in parts else {}
    none = [None] * len(splits)
    return {
        name: [TrainedMix(p, a) for p, a in zip(pma.get(name, none), attention.get(name, none), strict=True)]
        for name in features
        if name in pma or name in attention
    }
