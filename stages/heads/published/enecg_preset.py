"""The published EnECG recipe for all tasks and folds of a study, on cached outputs; saved beside the default fit.

Lives here: `EnecgHeads`, which experts' vectors the recipe reads, files. Not here: the model
(`published.enecg_model`), its training (`published.enecg_training`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from cache.errors import MissingFileError, StoreError
from stages.heads.estimator import Predictions
from stages.heads.inputs.scaler import RobustScaler
from stages.heads.published.enecg_model import EXPERTS, EnECG, EnecgTask
from stages.heads.published.enecg_training import (
    EPOCHS,
    SEED,
    EnecgRun,
    load_enecg,
    predict_enecg,
    run_enecg,
    save_enecg,
)
from stages.heads.targets.tasks import TaskSpec

FORMAT, SCHEMA = "ensemble-enecg", 1
Vectors = Mapping[str, np.ndarray]


class EnecgHeads:
    """One published EnECG per task and fold, each started afresh.

    An expert enters by the output of its own head (tempo's forecast, ecgfm's 26 logits, dlinear's and timesnet's
    value). One without such an output (moment: its scalar head is not part of the public weights) enters by its
    embedding, standardised on the fold's training rows; like tempo's forecast it then passes a frozen projection of the
    model. The experts may be others than the published five. A record that an expert has no vector for is left out: the
    published model cannot do without one.

    Attributes
    ----------
    tasks_, skipped_
        Tasks fitted; task -> why it was left out (the published model has no multilabel task).
    metrics_
        Task -> metric -> {"mean", "std"} over the folds' test rows, as the paper reports (std with divisor n).
    n_trainable_, seconds_
        Trainable parameters of one fold, all tasks; seconds of `fit`.
    """

    def __init__(self, *, epochs: int = EPOCHS, seed: int = SEED) -> None:
        self.epochs = epochs
        self.seed = seed

    def fit(
        self,
        outputs: Vectors,
        embeddings: Vectors,
        lead_ii: np.ndarray,
        targets: Mapping[str, Any],
        tasks: Sequence[TaskSpec],
        splits: Sequence[Sequence[Any]],
        groups: np.ndarray | None = None,
    ) -> Self:
        """Train every task and fold; validation rows are trained on, because the recipe has no validation set.

        Parameters
        ----------
        outputs, embeddings
            Expert -> [n, width]. Every expert has an embedding; those with a head of their own have an output.
        lead_ii
            [n, 5000], standardised as EnECG does.
        """
        started = perf_counter()
        self.experts_ = _ordered(embeddings)
        self.from_embedding_ = tuple(name for name in self.experts_ if name not in outputs)
        absent = ("multilabel", "survival")
        self.skipped_ = {t.name: f"EnECG as published has no {t.kind} task" for t in tasks if t.kind in absent}
        self.tasks_ = tuple(t for t in tasks if t.name not in self.skipped_)
        self.models_: dict[str, list[EnECG]] = {t.name: [] for t in self.tasks_}
        self.scalers_: list[dict[str, RobustScaler]] = []
        runs: dict[str, EnecgRun] = {}
        complete = self._complete(outputs, embeddings)
        for split in splits:
            rows = [np.asarray(part)[complete[np.asarray(part, dtype=np.int64)]] for part in split]
            trained_on = np.concatenate([*rows[:2]]).astype(np.int64)
            self.scalers_.append({e: RobustScaler.fit(embeddings[e][trained_on]) for e in self.from_embedding_})
            experts = self._inputs(outputs, embeddings, len(self.scalers_) - 1, complete)
            for task in self.tasks_:
                run = run_enecg(
                    experts,
                    lead_ii,
                    targets[task.name],
                    task,
                    [rows],
                    groups=groups,
                    epochs=self.epochs,
                    seed=self.seed,
                )
                self.models_[task.name] += run.models
                runs.setdefault(task.name, run)
                if runs[task.name] is not run:
                    runs[task.name].metrics += run.metrics
        self.metrics_ = {
            name: {k: {"mean": mean, "std": std} for k, (mean, std) in run.summary().items()}
            for name, run in runs.items()
        }
        self.seconds_ = perf_counter() - started
        return self

    @property
    def n_trainable_(self) -> int:
        """Trainable parameters of one fold."""
        return sum(models[0].n_trainable for models in self.models_.values())

    def predict_proba(self, outputs: Vectors, embeddings: Vectors, lead_ii: np.ndarray, *, fold: int) -> Predictions:
        """Values [n], probabilities of the positive class [n], or [n, classes]; NaN where an expert has no vector."""
        complete = self._complete(outputs, embeddings)
        experts = {k: torch.from_numpy(v) for k, v in self._inputs(outputs, embeddings, fold, complete).items()}
        gate, rows = torch.from_numpy(np.asarray(lead_ii, np.float32)), torch.from_numpy(np.flatnonzero(complete))
        found = {}
        for task in self.tasks_:
            predicted = predict_enecg(self.models_[task.name][fold], experts, gate, rows)
            values = np.full((len(complete), *predicted.shape[1:]), np.nan)
            values[complete] = predicted
            found[task.name] = values[:, 1] if task.kind == "binary" else values
        return found

    def _complete(self, outputs: Vectors, embeddings: Vectors) -> np.ndarray:
        """Mask [n] of the records that every expert has a vector for (single missing features do not count)."""
        vectors = [outputs.get(name, embeddings[name]) for name in self.experts_]
        return np.all([~np.isnan(v).all(axis=1) for v in vectors], axis=0)

    def _inputs(self, outputs: Vectors, embeddings: Vectors, fold: int, complete: np.ndarray) -> dict[str, np.ndarray]:
        """Expert -> float32 [n, width], 0 in the rows that are left out."""
        found = {}
        for name in self.experts_:
            if name in self.from_embedding_:
                x = self.scalers_[fold][name].transform(embeddings[name])
            else:
                x = np.asarray(outputs[name], np.float32)
            found[name] = np.where(complete[:, None], x, np.float32(0))
        return found

    def save(self, folder: Path) -> Path:
        """Write config.json, scalers.safetensors and, per task and fold, base weights, LoRA and peft's adapter."""
        folder.mkdir(parents=True, exist_ok=True)
        for t, (name, models) in enumerate(self.models_.items()):
            for f, model in enumerate(models):
                save_enecg(model, folder / _task_folder(t, name) / f"fold{f}")
        arrays = {
            f"fold{f}/{name}/{key}": np.ascontiguousarray(value)
            for f, scalers in enumerate(self.scalers_)
            for name, scaler in scalers.items()
            for key, value in scaler.state().items()
        }
        save_file(arrays, folder / "scalers.safetensors")
        config = {
            "format": FORMAT,
            "schema": SCHEMA,
            "epochs": self.epochs,
            "seed": self.seed,
            "experts": list(self.experts_),
            "from_embedding": list(self.from_embedding_),
            "tasks": [t.to_dict() for t in self.tasks_],
            "skipped": self.skipped_,
            "widths": [m.widths for models in self.models_.values() for m in models],
            "n_folds": len(self.scalers_),
            "metrics": self.metrics_,
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        for path in folder.rglob("*.safetensors"):  # safetensors makes them readable by the owner alone
            path.chmod((folder / "config.json").stat().st_mode)
        return folder

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote; predicts bit for bit what was fitted.

        Raises
        ------
        MissingFileError, StoreError
            No saved fit there, or one of another format.
        """
        path = folder / "config.json"
        if not path.is_file():
            raise MissingFileError(f"{path}: no saved EnECG fit; run `ensemble fit-heads --preset enecg` first")
        config = json.loads(path.read_text())
        if (config.get("format"), config.get("schema")) != (FORMAT, SCHEMA):
            raise StoreError(f"{path}: not a fit of this version; run `ensemble fit-heads --preset enecg` again")
        heads = cls(epochs=config["epochs"], seed=config["seed"])
        heads.tasks_ = tuple(TaskSpec(**t) for t in config["tasks"])
        heads.experts_, heads.from_embedding_ = tuple(config["experts"]), tuple(config["from_embedding"])
        heads.skipped_, heads.metrics_ = config["skipped"], config["metrics"]
        heads.scalers_ = _scalers(load_file(folder / "scalers.safetensors"), config["n_folds"], heads.from_embedding_)
        widths = iter(config["widths"])
        heads.models_ = {
            task.name: [
                load_enecg(folder / _task_folder(t, task.name) / f"fold{f}", _model(task, next(widths), heads))
                for f in range(config["n_folds"])
            ]
            for t, task in enumerate(heads.tasks_)
        }
        return heads


def _ordered(names: Vectors) -> tuple[str, ...]:
    """Put the published experts first, in the published order."""
    return (*(name for name in EXPERTS if name in names), *(name for name in names if name not in EXPERTS))


def _model(task: TaskSpec, widths: Mapping[str, int], heads: EnecgHeads) -> EnECG:
    kind: EnecgTask = "regression" if task.kind == "regression" else "classification"
    return EnECG(kind, max(2, task.n_outputs), widths={name: widths[name] for name in heads.experts_}, seed=heads.seed)


def _scalers(arrays: dict[str, np.ndarray], n_folds: int, names: Sequence[str]) -> list[dict[str, RobustScaler]]:
    fields = RobustScaler.__dataclass_fields__
    return [
        {name: RobustScaler(**{key: arrays[f"fold{f}/{name}/{key}"] for key in fields}) for name in names}
        for f in range(n_folds)
    ]


def _task_folder(number: int, name: str) -> str:
    return f"{number}-{re.sub(r'[^A-Za-z0-9_-]+', '_', name)}"
