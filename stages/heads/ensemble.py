"""`EnsembleHeads`: experts' cached features in, predictions out, in scikit-learn manners.

Lives here: the public estimator's parameters and `fit`. Not here: how it is fitted (`fit`), how it predicts
(`predictor`), its files (`persist`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from cache.errors import InputError
from stages.devices import choose_device
from stages.heads.blockwise.blocks import memory_bytes
from stages.heads.blockwise.expert import Features, WorkSpace
from stages.heads.crossfit import as_rows, check_groups, check_splits
from stages.heads.decisions.answers import Decisions
from stages.heads.expert_head import HeadOptions
from stages.heads.fit import fit_all, inner_fold_count
from stages.heads.fold_model import FoldModel
from stages.heads.gate.gated import GatedOptions
from stages.heads.gate.inputs import parse_sources
from stages.heads.gate.training import GateOptions
from stages.heads.in_memory.lora import LoraOptions
from stages.heads.inputs.expert_features import ExpertFeatures, mix_layers, parse_mix, read_features
from stages.heads.layers.trained_mix import TRAINED, train_mixes
from stages.heads.options import EstimatorOptions, checked, signature_of
from stages.heads.out_of_sample import OutOfSample
from stages.heads.persist import load, save
from stages.heads.predictor import FittedHeads
from stages.heads.targets.standardised import read_targets
from stages.heads.targets.tasks import Block, TaskSpec, infer_tasks
from stages.heads.threads import fit_threads


class EnsembleHeads(FittedHeads):
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
        Parts of an expert's cached arrays, joined by "+": "embedding" (the authors'), "last", "ppa", "pma" (of layers),
        "std", "max", "last_token", "attention" (of views of the tokens). An expert without what is asked for gives its
        embedding. "pma" trains ECG-Soup's gate, "attention" a query over the seconds, per expert, fold and task, and
        then validation rows alone judge.
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
        Weigh the classes of a task alike while heads and gate are trained. With `calibrate`, what that does to the
        probabilities is undone out of sample; without, they are those of a cohort with as many of each class.
    strengths
        Penalties of the probe's path, for coordinates of mean squared length 1.
    inner_folds
        "auto", 0, or a number from 2.
    calibrate
        Temperature scaling out of sample.
    share_tasks
        Let a task's logits be read from those of all tasks, where that is better out of sample; see `gate.reader`.
    hierarchy
        Raise a class's logit by a share of its parents' (`TaskSpec.parents`), chosen out of sample; see
        `gate.hierarchy`.
    lora_patience, gate_patience
        Epochs without a better one after which training stops.
    device
        "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:i": where the heads of fits with 20,000 training records
        or more are trained. Smaller fits, and the gate, which sees at most 15,000 records' predictions, stay on the
        CPU. Not part of a saved fit.
    memory_gb
        Standardised features of one expert that may be kept, in 10^9 bytes; "auto": half of what is free. The others
        are made anew in every pass. Changes no result. Not part of a saved fit.
    on_unusable
        "error", or "skip": leave out a task whose training rows have no label or one class, with the reason in
        `skipped_`.
    seed
        Everything random follows from it.

    Attributes
    ----------
    held_out_
        What the fit says of records that it has not learnt from (`decisions.held_out.HeldOut`); a loaded fit has none.
    decisions_
        Thresholds and conformal limits, saved with the fit; none until they are chosen: `fit.decisions_ =
        Decisions.choose(fit.held_out_, fit.tasks_)` (`decisions.answers.Decisions`).
    tasks_, experts_, skipped_, n_trainable_, history_, seconds_, expert_seconds_, provenance_
        Tasks and experts in order; reasons of skipped tasks; trainable parameters of one fold; per stage what was
        chosen and the out-of-sample losses per epoch; seconds of `fit`, and of each expert's heads; the caller's own
        dict, saved with the fit.
    """

    __signature__ = signature_of(EstimatorOptions)

    def __init__(self, **options: Any) -> None:
        unknown = sorted(options.keys() - EstimatorOptions.model_fields.keys())
        if unknown:
            raise TypeError(f"EnsembleHeads has no parameter '{unknown[0]}'")
        for name, field in EstimatorOptions.model_fields.items():
            setattr(self, name, options.get(name, field.default))

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Let the parameters of `EstimatorOptions` be read as attributes."""

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
        seen: Mapping[str, Any] | None = None,
        taught: Mapping[str, int] | None = None,
    ) -> Self:
        """Fit all folds at once.

        Parameters
        ----------
        features
            Expert -> [n, d] array, or {"embedding": [n, d], "layers": [n, L, D], "embed": [n, D]}. A row that is all
            NaN: the expert is absent for this record. A single NaN: imputed by the training median. An array may be a
            `stages.heads.inputs.lazy_rows.LazyRows`, which is read block by block.
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
        seen
            Expert -> rows (numbers or a mask) of records whose labels have trained the expert itself. What its head
            says of them is no evidence of its worth: see `gate.seen`. Experts that are not named have seen nobody.
        taught
            Expert -> how many patients' labels have trained it, wherever they are; counted are those that `seen` names
            where they are more, or nobody says.

        Raises
        ------
        InputError, UsageError
            Data that do not fit together, or an option whose value is not allowed; one line that names it.
        """
        started = perf_counter()
        checked(EstimatorOptions, self.get_params())
        device = torch.device(choose_device(self.device))
        read = read_features(features)
        n = len(next(iter(read.values())))
        group_ids = check_groups(groups, n)
        sources = parse_sources(self.gate_input)
        if "signal" in sources and (gate_signal is None or len(gate_signal) != n):
            raise InputError(f"gate_input 'signal' needs gate_signal with {n} rows")
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
        trained = next((part for part in TRAINED if part in parts), "")
        n_inner = inner_fold_count(folds, self.inner_folds, trained)
        self.mixers_: dict[str, Any] = train_mixes(parts, read, data, folds, self.seed)
        present = np.stack([value.present for value in read.values()], 1).astype(np.float32)
        mask = None if seen is None else _seen_records(seen, tuple(read), n)
        with fit_threads(len(folds) * sum(value.size for value in read.values())):
            fitted = fit_all(
                ((name, self._inputs(name, value)) for name, value in read.items()),
                present,
                data,
                folds,
                group_ids,
                gate_signal,
                n_inner=n_inner,
                options=GatedOptions(
                    self._gate_options(), self._head_options(), sources, self.share_tasks, self.hierarchy
                ),
                seen=mask,
                taught=None if mask is None else _patients_taught(mask, tuple(read), group_ids, taught or {}),
                place=WorkSpace(device, memory_bytes(self.memory_gb, device)),
            )
        self.blocks_: tuple[Block, ...] = data.blocks
        self.tasks_ = tuple(block.task for block in data.blocks)
        self.experts_ = tuple(read)
        self.skipped_ = data.skipped
        self.provenance_ = dict(provenance or {})
        self.models_: list[FoldModel] = fitted.models
        self.history_ = {**fitted.history(), "inner_folds": n_inner}
        self._out_of_sample: OutOfSample | None = fitted.out_of_sample
        self.held_out_ = fitted.held_out
        self.decisions_ = Decisions()
        self.expert_seconds_ = fitted.seconds
        self.seconds_ = perf_counter() - started
        return self

    def _inputs(self, name: str, value: ExpertFeatures) -> Features | list[np.ndarray]:
        """Features to fit on: one matrix per fold where the mixing of layers was trained, else read by rows."""
        if name in self.mixers_:
            return self._matrices(name, value, len(self.mixers_[name]))
        return Features(lambda rows: mix_layers(name, value.take(rows), parse_mix(self.layer_mix)), len(value))

    def _head_options(self) -> HeadOptions:
        lora = LoraOptions(
            rank=self.rank,
            alpha=self.alpha,
            learning_rate=self.lora_learning_rate,
            epochs=self.lora_epochs,
            patience=self.lora_patience,
            huber=self.huber,
        )
        return HeadOptions(tuple(self.strengths), lora if self.lora else None, self.calibrate, self.seed)

    def _gate_options(self) -> GateOptions:
        return GateOptions(
            hidden=self.gate_hidden,
            learning_rate=self.gate_learning_rate,
            epochs=self.gate_epochs,
            patience=self.gate_patience,
            top_k=self.top_k,
            expert_dropout=self.expert_dropout,
            entropy=self.entropy,
            load_balance=self.load_balance,
            huber=self.huber,
        )

    def save(self, folder: str | Path) -> Path:
        """Write config.json, heads.safetensors, out_of_sample.safetensors and, with LoRA, adapter/ in peft's format."""
        return save(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a saved fit; it predicts bit for bit what the fit did, whatever the random state.

        Raises
        ------
        MissingFileError, StoreError
            Not a saved fit, or a damaged one.
        """
        return load(cls, Path(folder))


def _seen_records(seen: Mapping[str, Any], experts: tuple[str, ...], n_records: int) -> np.ndarray:
    """Bool [n, E] of rows per expert.

    Raises
    ------
    InputError
        An expert without features, or rows that are none.
    """
    if unknown := sorted(set(seen) - set(experts)):
        raise InputError(f"seen names expert '{unknown[0]}', which has no features; there are: {', '.join(experts)}")
    mask = np.zeros((n_records, len(experts)), bool)
    for name, rows in seen.items():
        mask[as_rows(rows, n_records, f"records that {name} has seen"), experts.index(name)] = True
    return mask


def _patients_taught(
    seen: np.ndarray, experts: tuple[str, ...], groups: np.ndarray | None, said: Mapping[str, int]
) -> np.ndarray:
    """Count the patients that have taught each expert its labels, [E]: those of these records, or more."""
    patients = np.arange(len(seen)) if groups is None else groups
    counts = [len(np.unique(patients[column])) for column in seen.T]
    return np.array([max(count, said.get(name, 0)) for name, count in zip(experts, counts, strict=True)], float)
