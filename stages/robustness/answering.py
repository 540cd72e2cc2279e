"""What a fit says of ECGs as they are given: the experts run, the heads of one fold answer.

Lives here: from ECGs to answers of the gate and of each expert. Not here: disturbing (`disturbances`), judging.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cache.errors import FingerprintError, InputError
from stages.experts.run import RunSettings, Signal, embed_records
from stages.heads import EnsembleHeads
from stages.learning.data import layer_parts
from stages.learning.gate_signal import gate_signal, leads_of, reads_signal
from stages.readers.at_500_hz import all_at_500_hz
from stages.robustness.disturbances import DisturbedEcg
from stages.robustness.settings import RobustnessSettings
from stages.scoring.comparison import EXPERT_PREFIX, MAIN_METHOD

Answers = dict[str, dict[str, np.ndarray]]
"""Method -> task -> [n] or [n, answers]; NaN: none."""


class FitAnswerer:
    """A fit and its experts.

    Raises
    ------
    FingerprintError
        An expert is not the one that the heads were fitted on.
    InputError
        None of the fit's experts can run.
    """

    def __init__(self, heads: EnsembleHeads, settings: RobustnessSettings) -> None:
        for name, digest in heads.provenance_["identities"].items():
            if settings.identities.get(name, digest) != digest:
                raise FingerprintError(
                    f"expert '{name}' is not the one that heads/ was fitted on; run `ensemble embed --expert {name}` "
                    "and `ensemble fit-heads` again"
                )
        self.heads, self._running = heads, settings.running or RunSettings()
        self._experts = {name: settings.experts[name] for name in heads.experts_ if name in settings.experts}
        if not self._experts:
            raise InputError(f"none of the fit's experts can run here: {', '.join(heads.experts_)}")

    @property
    def absent(self) -> tuple[str, ...]:
        """Experts of the fit that do not run: their weight goes to the others, undisturbed and disturbed."""
        return tuple(name for name in self.heads.experts_ if name not in self._experts)

    def __call__(self, ecgs: Sequence[DisturbedEcg], fold: int) -> Answers:
        """Answer with one fold's heads."""
        kept = self.heads.provenance_
        features = {}
        for name, expert in self._experts.items():
            views = tuple(kept.get("views", {}).get(name, ()))
            running = replace(self._running, dtype=kept.get("dtypes", {}).get(name), views=views)
            found = embed_records(expert, [Signal(ecg.signals_mv, ecg.rate_hz) for ecg in ecgs], running)
            spec = expert.spec
            layers = found.layers
            parts = layer_parts(found.embedding, spec.layer_names, spec.layer_dims, lambda layers=layers: layers)
            features[name] = parts | found.views
        signal = None
        if reads_signal(self.heads):
            signal = gate_signal(all_at_500_hz([(e.signals_mv, e.rate_hz) for e in ecgs]), leads_of(self.heads))
        alone = self.heads.expert_predictions(features, gate_signal=signal, fold=fold)
        gate = self.heads.predict_proba(features, gate_signal=signal, fold=fold)
        return {MAIN_METHOD: gate} | {f"{EXPERT_PREFIX}{name}": alone[name] for name in self._experts}
