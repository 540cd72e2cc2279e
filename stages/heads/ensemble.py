"""`EnsembleHeads`: experts' cached features in, predictions out, in scikit-learn manners.

Lives here: the public estimator. Not here: how it is fitted (`fitting`), how it predicts (`fitted`), its files
(`persist`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import numpy as np

from cache.errors import InputError, UsageError
from stages.heads.crossfit import check_groups, check_splits
from stages.heads.estimator import Estimator, Predictions, decide, mean_score
from stages.heads.features import ExpertFeatures, mix_layers, parse_mix, read_features
from stages.heads.fitted import FoldModel, Output, run_fold, to_means
from stages.heads.fitting import fit_all, inner_fold_count, read_targets
from stages.heads.gate import GateOptions
from stages.heads.gate_input import parse_sources
from stages.heads.lora import LoraOptions
from stages.heads.out_of_sample import OutOfSample
from stages.heads.probe import STRENGTHS
from stages.heads.stack import HeadOptions
from stages.heads.tasks import Block, TaskSpec, infer_tasks
from stages.heads.threads import fit_threads


class EnsembleHeads(Estimator):
    """Low-rank heads on every expert's cached features, and a gate per task over the experts.

    Per expert and task: layer mixing, robust standardisation, preview probe (ridge, logistic, multinomial; penalty
    chosen out of sample), frozen, LoRA on top; per task a gate over experts. docs/methods.md says how each is trained.

    Out of sample means: validation rows, judged by the model of all training rows; and, unless there are 1,500
    validation rows or more, training rows, judged by models of five inner folds (whole groups together) that have not
    seen them. The gate is trained on such outputs alone. LoRA and the record-dependent gate replace what they start
    from only where the paired out-of-sample improvement exceeds one standard error.

    Parameters
    ----------
    layer_mix
        Parts of an expert's cached arrays, joined by "+": "embedding" (the authors'), "last", "ppa", "pma". An expert
        without layers gives its embedding. "pma" trains ECG-Soup's gate per expert and fold, and then validation rows
        alone judge.
    lora
        Train LoRA on the probe.
    rank, alpha, lora_epochs, lora_learning_rate
        Of LoRA.
    gate_input
        "embedding", "predictions", "signal" joined by "+", or "both" (embedding and signal), "all", "none".
    gate_epochs, gate_hidden, gate_learning_rate, top_k, expert_dropout, entropy, load_balance
        Of the gate; see `gate.GateOptions`. `gate_epochs` 0 keeps constant weights.
    huber
        Huber loss on standardised regression targets in LoRA and gate (the probe is ridge).
    balanced
        Weigh the classes of a task alike.
    strengths
        Penalties of the probe's path, for coordinates of mean squared length 1.
    inner_folds
        "auto", 0, or a number from 2.
    calibrate
        Temperature scaling out of sample.
    on_unusable
        "error", or "skip": leave out a task whose training rows have no label or one class, with the reason in
        `skipped_`.
    seed
        Everything random follows from it.

    Attributes
    ----------
    tasks_, experts_, skipped_, n_trainable_, history_, seconds_, expert_seconds_, provenance_
        Tasks and experts in order; reasons of skipped tasks; trainable parameters of one fold; per stage what was
        chosen and the out-of-sample losses per epoch; seconds of `fit`, and of each expert's heads; the caller's own
        dict, saved with the fit.
    """

    _folder: Path
    """Of a loaded fit."""

    def __init__(
        self,
        *,
        layer_mix: str = "embedding+ppa",
        lora: bool = True,
        rank: int = 8,
        alpha: int = 32,
        lora_epochs: int = 30,
        lora_learning_rate: float = 1e-3,
        gate_input: str | tuple[str, ...] = "embedding+predictions",
        gate_epochs: int = 60,
        gate_hidden: int = 16,
        gate_learning_rate: float = 3e-3,
        top_k: int = 0,
        expert_dropout: float = 0.1,
        entropy: float = 0.0,
        load_balance: float = 0.0,
        huber: bool = True,
        balanced: bool = False,
        strengths: Sequence[float] = STRENGTHS,
        inner_folds: int | str = "auto",
        calibrate: bool = True,
        on_unusable: str = "error",
        seed: int = 42,
    ) -> None:
        self.layer_mix = layer_mix
        self.lora = lora
        self.rank = rank
        self.alpha = alpha
        self.lora_epochs = lora_epochs
        self.lora_learning_rate = lora_learning_rate
        self.gate_input = gate_input
        self.gate_epochs = gate_epochs
        self.gate_hidden = gate_hidden
        self.gate_learning_rate = gate_learning_rate
        self.top_k = top_k
        self.expert_dropout = expert_dropout
        self.entropy = entropy
        self.load_balance = load_balance
        self.huber = huber
        self.balanced = balanced
        self.strengths = strengths
        self.inner_folds = inner_folds
        self.calibrate = calibrate
        self.on_unusable = on_unusable
        self.seed = seed

    def fit(
        self,
        features: Mapping[str, Any],
        targets: Mapping[str, Any],
        tasks: Sequence[TaskSpec] | None = None,
        *,
        splits: Sequence[Sequence[Any]] | None = None,
        groups: Any = None,
        gate_signal: np.ndarray | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> Self:
        """Fit all folds at once.

        Parameters
        ----------
        features
            Expert -> [n, d] array, or {"embedding": [n, d], "layers": [n, L, D], "embed": [n, D]}. A row that is all
            NaN: the expert is absent for this record. A single NaN: imputed by the training median.
        targets
            Task -> array; see `tasks.encode`. Missing labels are masked in every stage.
        tasks
            None: guessed by `tasks.infer_tasks`.
        splits
            (train_rows, val_rows, test_rows) per fold, as row numbers or masks; test rows may be left out. None: one
            fold that trains on all records and judges by inner folds.
        groups
            [n] patient ids: a group in two parts of a split is refused, inner folds keep groups together.
        gate_signal
            [n, p] or [n, lead, time] that `gate_input` "signal" reads, lead II for instance.
        provenance
            JSON-ready dict saved with the fit, such as the experts' fingerprints.

        Raises
        ------
        InputError, UsageError
            Data that do not fit together, or an option that does not exist; one line that names it.
        """
        started = perf_counter()
        read = read_features(features)
        n = len(next(iter(read.values())))
        group_ids = check_groups(groups, n)
        sources = parse_sources(self.gate_input)
        if "signal" in sources and (gate_signal is None or len(gate_signal) != n):
            raise InputError(f"gate_input 'signal' needs gate_signal with {n} rows")
        if self.on_unusable not in ("error", "skip"):
            raise UsageError(f"on_unusable '{self.on_unusable}' is neither error nor skip")
        folds = check_splits(splits if splits is not None else [(np.arange(n), [], [])], n, group_ids)
        data = read_targets(
            dict(targets),
            tuple(tasks) if tasks is not None else infer_tasks(targets),
            folds,
            n,
            skip_unusable=self.on_unusable == "skip",
            balanced=self.balanced,
        )
        parts = parse_mix(self.layer_mix)
        n_inner = inner_fold_count(folds, self.inner_folds, "pma" in parts)
        self.mixers_: dict[str, Any] = {}
        if "pma" in parts:
            from stages.heads.pma import train_mixers

            self.mixers_ = train_mixers(read, data, folds, self.seed)
        present = np.stack([value.present for value in read.values()], 1).astype(np.float32)
        with fit_threads(len(folds) * sum(value.size for value in read.values())):
            fitted = fit_all(
                ((name, self._matrices(name, value, len(folds))) for name, value in read.items()),
                present,
                data,
                folds,
                group_ids,
                gate_signal,
                n_inner=n_inner,
                head_options=self._head_options(),
                gate_options=self._gate_options(),
                sources=sources,
            )
        self.blocks_: tuple[Block, ...] = data.blocks
        self.tasks_ = tuple(block.task for block in data.blocks)
        self.experts_ = tuple(read)
        self.skipped_ = data.skipped
        self.provenance_ = dict(provenance or {})
        self.models_: list[FoldModel] = fitted.models
        self.history_ = {**fitted.history(), "inner_folds": n_inner}
        self._out_of_sample: OutOfSample | None = OutOfSample(fitted.gate_data.outputs, fitted.gate_masks.judge)
        self.expert_seconds_ = fitted.seconds
        self.seconds_ = perf_counter() - started
        return self

    @property
    def out_of_sample_(self) -> OutOfSample:
        """The experts' logits of records that they were not trained on; read from the fit's folder when asked for."""
        self._fitted()
        if self._out_of_sample is None:
            self._out_of_sample = OutOfSample.load(self._folder)
        return self._out_of_sample

    def _matrices(self, name: str, value: ExpertFeatures, n_folds: int) -> list[np.ndarray]:
        """One feature matrix per fold; the very same array where nothing about it was trained."""
        parts = parse_mix(self.layer_mix)
        if name not in self.mixers_:
            return [mix_layers(name, value, parts, None)] * n_folds
        return [mix_layers(name, value, parts, mixer(value)) for mixer in self.mixers_[name]]

    def _head_options(self) -> HeadOptions:
        lora = LoraOptions(
            rank=self.rank,
            alpha=self.alpha,
            learning_rate=self.lora_learning_rate,
            epochs=self.lora_epochs,
            huber=self.huber,
        )
        return HeadOptions(tuple(self.strengths), lora if self.lora else None, self.calibrate, self.seed)

    def _gate_options(self) -> GateOptions:
        return GateOptions(
            hidden=self.gate_hidden,
            learning_rate=self.gate_learning_rate,
            epochs=self.gate_epochs,
            top_k=self.top_k,
            expert_dropout=self.expert_dropout,
            entropy=self.entropy,
            load_balance=self.load_balance,
            huber=self.huber,
        )

    @property
    def n_trainable_(self) -> int:
        """Trained parameters of one fold: probes, LoRA, gate (and PMA gates)."""
        model = self._fitted()[0]
        heads = sum(h.weight.size + h.bias.size + h.lora_a.size + h.lora_b.size for h in model.heads.values())
        mixers = sum(m[0].n_parameters for m in self.mixers_.values())
        return heads + sum(a.size for a in model.gate.arrays.values()) + mixers

    def _fitted(self) -> list[FoldModel]:
        models: list[FoldModel] | None = getattr(self, "models_", None)
        if models is None:
            raise UsageError("these EnsembleHeads are not fitted; call fit, or load a fit")
        return models

    def _outputs(self, features: Mapping[str, Any], gate_signal: np.ndarray | None, fold: int | None) -> list[Output]:
        """Predict with one fold, or with all."""
        models = self._fitted()
        if fold is not None and not 0 <= fold < len(models):
            raise UsageError(f"fold {fold} does not exist; there are folds 0 to {len(models) - 1}")
        read = read_features(features)
        if unknown := sorted(set(read) - set(self.experts_)):
            raise InputError(f"expert '{unknown[0]}' is not in this fit; it has: {', '.join(self.experts_)}")
        n = len(next(iter(read.values())))
        sources = parse_sources(self.gate_input)
        if "signal" in sources and (gate_signal is None or len(gate_signal) != n):
            raise InputError(f"this fit's gate reads the signal: give gate_signal with {n} rows")
        folds = range(len(models)) if fold is None else [fold]
        present = np.zeros((n, len(self.experts_)), np.float32)
        matrices: dict[str, list[np.ndarray]] = {}
        for e, name in enumerate(self.experts_):
            if name in read:
                present[:, e] = read[name].present
                matrices[name] = self._matrices(name, read[name], len(models))
                self._check_width(name, matrices[name][0])
            else:
                width = len(models[0].heads[name].scaler.median)
                matrices[name] = [np.full((n, width), np.nan, np.float32)] * len(models)
        return [
            run_fold(models[f], {k: v[f] for k, v in matrices.items()}, present, gate_signal, sources, self.blocks_)
            for f in folds
        ]

    def _check_width(self, name: str, x: np.ndarray) -> None:
        wanted = len(self.models_[0].heads[name].scaler.median)
        if x.shape[1] != wanted:
            raise InputError(f"expert '{name}': {x.shape[1]} features, but this fit was made on {wanted}")

    def _means(self, logits: list[np.ndarray], fold: int | None) -> Predictions:
        """Average the folds' values and probabilities."""
        models = self._fitted() if fold is None else [self._fitted()[fold]]
        per_fold = [
            to_means(x, m.target_centre, m.target_scale, self.blocks_) for x, m in zip(logits, models, strict=True)
        ]
        return {name: np.mean([p[name] for p in per_fold], axis=0) for name in per_fold[0]}

    def predict_proba(
        self, features: Mapping[str, Any], *, gate_signal: np.ndarray | None = None, fold: int | None = None
    ) -> Predictions:
        """Calibrated probabilities (regression: values in the task's unit) of the gated ensemble.

        Parameters
        ----------
        fold
            One fold's model; None averages the folds' probabilities.

        Returns
        -------
        task -> [n] (regression; binary: of the positive class) or [n, classes]. NaN where no expert saw the record.
        """
        outputs = self._outputs(features, gate_signal, fold)
        return self._means([o.mixed for o in outputs], fold)

    def predict(
        self, features: Mapping[str, Any], *, gate_signal: np.ndarray | None = None, fold: int | None = None
    ) -> Predictions:
        """Values (regression), 0 or 1 (binary, each class of multilabel) or class index (multiclass); -1: no expert."""
        means = self.predict_proba(features, gate_signal=gate_signal, fold=fold)
        return decide(self.tasks_, means)

    def predict_interval(
        self, features: Mapping[str, Any], *, gate_signal: np.ndarray | None = None, fold: int | None = None
    ) -> Predictions:
        """90 % intervals [n, 2] of regression tasks, from the quantiles of out-of-sample residuals."""
        means = self.predict_proba(features, gate_signal=gate_signal, fold=fold)
        models = self._fitted() if fold is None else [self._fitted()[fold]]
        width = np.mean([m.interval for m in models], axis=0)
        regression = (b for b in self.blocks_ if b.task.kind == "regression")
        return {b.task.name: means[b.task.name][:, None] + width[:, b.start] for b in regression}

    def expert_predictions(
        self, features: Mapping[str, Any], *, gate_signal: np.ndarray | None = None, fold: int | None = None
    ) -> dict[str, Predictions]:
        """Expert -> what that expert alone says, as `predict_proba` gives it; NaN where it is absent."""
        outputs = self._outputs(features, gate_signal, fold)
        return {
            name: self._means([np.ascontiguousarray(o.experts[:, e]) for o in outputs], fold)
            for e, name in enumerate(self.experts_)
        }

    def uniform_mean(
        self, features: Mapping[str, Any], *, gate_signal: np.ndarray | None = None, fold: int | None = None
    ) -> Predictions:
        """Plain mean of the present experts' probabilities or values: the ensemble without a gate."""
        experts = self.expert_predictions(features, gate_signal=gate_signal, fold=fold)
        out = {}
        for task in self.tasks_:
            stacked = np.stack([experts[name][task.name] for name in self.experts_])
            known = ~np.isnan(stacked)
            total = np.where(known, stacked, 0).sum(0)
            out[task.name] = np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)
        return out

    def gate_weights(
        self, features: Mapping[str, Any], *, gate_signal: np.ndarray | None = None, fold: int | None = None
    ) -> Predictions:
        """Task -> weights [n, experts] in the order of `experts_`; each row sums to 1, an absent expert has 0."""
        outputs = self._outputs(features, gate_signal, fold)
        mean = np.mean([o.weights for o in outputs], axis=0)
        return {task.name: mean[:, t] for t, task in enumerate(self.tasks_)}

    def score(
        self,
        features: Mapping[str, Any],
        targets: Mapping[str, Any],
        *,
        gate_signal: np.ndarray | None = None,
        fold: int | None = None,
    ) -> float:
        """Mean over tasks of R2 (regression) or accuracy (others), on labelled records; higher is better."""
        predicted = self.predict(features, gate_signal=gate_signal, fold=fold)
        return mean_score(self.tasks_, predicted, targets)

    def save(self, folder: str | Path) -> Path:
        """Write config.json, heads.safetensors, out_of_sample.safetensors and, with LoRA, adapter/ in peft's format."""
        from stages.heads.persist import save

        return save(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a saved fit; it predicts bit for bit what the fit did, whatever the random state.

        Raises
        ------
        MissingFileError, StoreError
            Not a saved fit, or a damaged one.
        """
        from stages.heads.persist import load

        return load(cls, Path(folder))
