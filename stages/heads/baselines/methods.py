"""Reference methods beside the gate, all with the same face, so that an evaluation can loop over `METHODS`.

Lives here: trivial, single experts, uniform mean, stacking, concatenated embeddings, PPA, PMA, as estimators. Not
here: full-rank heads (`baselines.full_rank`), nearest neighbours (`baselines.nearest`), ECG-Soup's heads
(`published.soup_probe_head`), the default itself (`ensemble`), metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from cache.errors import InputError
from stages.heads.baselines.base import Given, Reference
from stages.heads.baselines.full_rank import FullRank
from stages.heads.baselines.nearest import NearestRecords
from stages.heads.ensemble import EnsembleHeads
from stages.heads.estimator import Predictions
from stages.heads.expert_head import HeadOptions
from stages.heads.fold_model import to_means
from stages.heads.in_memory.expert import choose_strength
from stages.heads.in_memory.probe import Problem, Rotation, pad_stack, prior_logits, probe_logits
from stages.heads.inputs.expert_features import SideBySide, parse_mix, read_features
from stages.heads.inputs.lazy_rows import LazyRows
from stages.heads.published.soup_probe_head import ProbeHeads
from stages.heads.survival.baseline import fold_hazards
from stages.heads.targets.calibration import fit_temperatures
from stages.heads.targets.class_weights import fit_intercepts, weight_shift
from stages.heads.targets.standardised import Targets, read_targets
from stages.heads.targets.tasks import layout


class Trivial(Reference):
    """Says of every record what the training labels say on average: median, base rate, frequencies, survival."""

    def __init__(self, *, on_unusable: str = "error") -> None:
        self.on_unusable = on_unusable

    def _fit(self, given: Given) -> None:
        """Count training labels; the features give only the number of records."""
        n = len(next(iter(given.read().values())))
        folds, _ = given.folds(n)
        data = given.read_targets(folds, n, self.on_unusable)
        train = torch.zeros(len(folds), 1, n)
        for f, (rows, _, _) in enumerate(folds):
            train[f, 0, torch.from_numpy(rows)] = 1
        problem = Problem(torch.zeros(len(folds), n, 1), data.y, data.weight, train, data.blocks)
        logits = prior_logits(problem)[:, 0].numpy()
        for block in data.blocks:
            if block.task.kind == "regression":  # the centre of a standardised target is its training median
                logits[:, block.start] = 0.0
        self.tasks_ = tuple(b.task for b in data.blocks)
        self.skipped_, self.n_folds_ = data.skipped, len(folds)
        self.means_ = [
            to_means(
                logits[f : f + 1],
                data.centre[f],
                data.scale[f],
                data.blocks,
                self._nelson_aalen(data, train[f, 0].numpy(), f),
            )
            for f in range(len(folds))
        ]

    @staticmethod
    def _nelson_aalen(data: Targets, train: np.ndarray, fold: int) -> np.ndarray:
        """Return cumulative hazards of the training records, all alike (Breslow's estimator at log-hazard 0)."""
        signed, counted = data.y[fold].numpy(), data.known.numpy() * train[:, None]
        return fold_hazards(np.zeros_like(signed), signed, counted, data.blocks)

    def fold_means(self, features: Mapping[str, Any], fold: int, signal: np.ndarray | None) -> Predictions:  # noqa: ARG002
        """Repeat the training answer for every record."""
        n = len(next(iter(read_features(features).values())))
        return {k: np.repeat(v, n, axis=0) for k, v in self.means_[fold].items()}


class _OnHeads(Reference):
    """A method that reads a fitted `EnsembleHeads`: one that is given (nothing is trained twice), or its own."""

    def __init__(self, *, heads: EnsembleHeads | None = None) -> None:
        self.heads = heads

    def _fit(self, given: Given) -> None:
        """Take the given fit if it is one, else fit."""
        self.heads_ = self.heads if self.heads is not None else EnsembleHeads()
        if not hasattr(self.heads_, "models_"):
            self.heads_.fit(
                given.features,
                given.targets,
                given.tasks,
                splits=given.splits,
                groups=given.groups,
                gate_signal=given.gate_signal,
            )
        self.tasks_, self.n_folds_ = self.heads_.tasks_, len(self.heads_.models_)


class UniformMean(_OnHeads):
    """Plain mean of the experts' probabilities or values."""

    def fold_means(self, features: Mapping[str, Any], fold: int, signal: np.ndarray | None) -> Predictions:
        """Average the present experts."""
        return self.heads_.uniform_mean(features, gate_signal=signal, fold=fold)


class SingleExpert(_OnHeads):
    """One expert's own head."""

    def __init__(self, *, expert: str, heads: EnsembleHeads | None = None) -> None:
        super().__init__(heads=heads)
        self.expert = expert

    def fold_means(self, features: Mapping[str, Any], fold: int, signal: np.ndarray | None) -> Predictions:
        """Give that expert's predictions."""
        return self.heads_.expert_predictions(features, gate_signal=signal, fold=fold)[self.expert]


class Stacking(_OnHeads):
    """Ridge, logistic, multinomial or Cox regression over the experts' out-of-sample logits (Wolpert 1992).

    All columns of a task's logits of all experts are read; an absent expert's are 0, with an indicator. The penalty is
    chosen on held-out records as the probe's is.
    """

    def _fit(self, given: Given) -> None:
        """Fit the experts' heads if need be, then the stack."""
        super()._fit(given)
        read, found = given.read(), self.heads_.out_of_sample_
        data = self._targets(given, len(next(iter(read.values())))).take(found.rows)
        blocks, masks = self.heads_.blocks_, found.masks
        seen = np.stack([read[name].present for name in self.heads_.experts_], 1)
        present = torch.from_numpy(seen[found.rows.numpy()]).float()
        options = HeadOptions(tuple(self.heads_.strengths), None, True, self.heads_.seed)
        self.weights_, self.rotations_, logits = [], [], torch.empty_like(data.y)
        for block in blocks:
            c = block.columns
            x = self._inputs(found.outputs, present, c).numpy()
            rows = [m[0] > 0 for m in masks.train.numpy()]
            rotations = [Rotation.fit(x[f][r]) for f, r in enumerate(rows)]
            z = pad_stack([r.transform(x[f]) for f, r in enumerate(rotations)])
            problem = Problem(z, data.y[..., c], data.weight[..., c], masks.train, layout([block.task]))
            weights, _ = choose_strength(problem, masks, options)
            logits[..., c] = masks.out_of_sample(probe_logits(z, weights))
            self.weights_.append(weights[:, 0])
            self.rotations_.append(rotations)
        known = (data.weight > 0).float() * masks.judged[..., None]
        if data.balanced:
            shift = weight_shift(data.y, data.weight * masks.train[:, 0, :, None], blocks)
            self.temperature_, self.intercept_ = fit_intercepts(logits, data.y, known, shift, blocks)
        else:
            self.temperature_ = fit_temperatures(logits, data.y, known, blocks)
            self.intercept_ = torch.zeros_like(self.temperature_)
        self.n_trainable_ = sum(w[0].numel() for w in self.weights_)
        logits = (logits + self.intercept_[:, None]) / self.temperature_[:, None]
        self.hazards_ = [
            fold_hazards(x.numpy(), y.numpy(), k.numpy(), blocks) for x, y, k in zip(logits, data.y, known, strict=True)
        ]

    def _targets(self, given: Given, n: int) -> Targets:
        """Read the targets as the heads did; refuses other records than those of a given fit."""
        fitted_on = self.heads_.out_of_sample_.n_records
        if n != fitted_on:
            raise InputError(f"stacking: the heads were fitted on {fitted_on} records, but {n} are given")
        folds, balanced = given.folds(n)[0], self.heads_.balanced
        return read_targets(dict(given.targets), self.heads_.tasks_, folds, n, skip_unusable=False, balanced=balanced)

    @staticmethod
    def _inputs(outputs: torch.Tensor, present: torch.Tensor, columns: slice) -> torch.Tensor:
        """Logits [F, n, E, C] and presence [n, E] -> [F, n, E * (K + 1)]."""
        given = (outputs[..., columns] * present[..., None]).flatten(2)
        absent = (1 - present).expand(outputs.shape[0], -1, -1)
        return torch.cat([given, absent], 2)

    def fold_means(self, features: Mapping[str, Any], fold: int, signal: np.ndarray | None) -> Predictions:
        """Apply one fold's stack."""
        blocks, model = self.heads_.blocks_, self.heads_.models_[fold]
        experts = torch.from_numpy(self.heads_._outputs(features, signal, fold)[0].experts)  # noqa: SLF001
        present = (~experts.isnan().any(-1)).float()
        outputs = experts.nan_to_num(0.0)[None]
        parts = []
        for block, weights, rotations in zip(blocks, self.weights_, self.rotations_, strict=True):
            z = torch.from_numpy(rotations[fold].transform(self._inputs(outputs, present, block.columns)[0].numpy()))
            parts.append(z @ weights[fold, : z.shape[1]] + weights[fold, -1])
        logits = ((torch.cat(parts, 1) + self.intercept_[fold]) / self.temperature_[fold]).numpy()
        return to_means(logits, model.target_centre, model.target_scale, blocks, self._hazards(fold))


class Concatenated(Reference):
    """Ridge, logistic, multinomial or Cox regression on all experts' standardised features side by side.

    Features that lie on disk are put side by side as they are read, some rows at a time.
    """

    def __init__(
        self,
        *,
        layer_mix: str = "embedding+ppa",
        on_unusable: str = "error",
        seed: int = 42,
        memory_gb: float | str = "auto",
    ) -> None:
        self.layer_mix = layer_mix
        self.on_unusable = on_unusable
        self.seed = seed
        self.memory_gb = memory_gb

    def _fit(self, given: Given) -> None:
        """Fit as one expert without LoRA."""
        joined = self._join(given.features)
        self.inner_ = EnsembleHeads(
            lora=False,
            gate_epochs=0,
            gate_input="none",
            on_unusable=self.on_unusable,
            seed=self.seed,
            memory_gb=self.memory_gb,
        )
        self.inner_.fit({"concat": joined}, given.targets, given.tasks, splits=given.splits, groups=given.groups)
        self.tasks_, self.n_folds_ = self.inner_.tasks_, len(self.inner_.models_)
        self.skipped_ = self.inner_.skipped_
        head = self.inner_.models_[0].heads["concat"]
        self.n_trainable_ = head.weight.size + head.bias.size

    def _join(self, features: Mapping[str, Any]) -> np.ndarray | LazyRows:
        joined = SideBySide(read_features(features), parse_mix(self.layer_mix))
        return joined if joined.lazy else joined.read(slice(0, len(joined)))

    def fold_means(self, features: Mapping[str, Any], fold: int, signal: np.ndarray | None) -> Predictions:  # noqa: ARG002
        """Predict with one fold's model."""
        return self.inner_.predict_proba({"concat": self._join(features)}, fold=fold)


METHODS: dict[str, Callable[..., Any]] = {
    "trivial": Trivial,
    "mean": UniformMean,
    "stacking": Stacking,
    "concat": Concatenated,
    "knn": NearestRecords,
    "full_rank": FullRank,
    "ppa": lambda **options: EnsembleHeads(**{**options, "layer_mix": "ppa"}),
    "pma": lambda **options: EnsembleHeads(**{**options, "layer_mix": "pma"}),
    "attention": lambda **options: EnsembleHeads(**{**options, "layer_mix": "attention"}),
    "probe_head": ProbeHeads,
    "gate": EnsembleHeads,
}
"""Name in metrics.json -> factory. `mean` and `stacking` take `heads=` a fitted `EnsembleHeads` to reuse."""
