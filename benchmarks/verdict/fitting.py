"""Fits of all compared methods on one setting, and their predictions of the test rows, kept in a file."""

from __future__ import annotations

import copy
import json
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.verdict.cohorts import EXPERT_SETS, N_FOLDS, read_study
from benchmarks.verdict.parts import Encoders, Part, parts_of
from stages.heads import EnsembleHeads, TaskSpec
from stages.heads.baselines.methods import METHODS
from stages.heads.targets.losses import task_losses
from stages.heads.targets.standardised import read_targets
from stages.heads.targets.tasks import layout

Answers = dict[str, dict[str, np.ndarray]]
"""Method -> task -> predictions."""


def fit(
    study: Path, key: str, size: int | None, results: Path, n_rotations: int = N_FOLDS, encoders: Encoders | None = None
) -> None:
    """Fit all methods of one setting, and keep what they say of the test rows."""
    final = results / f"{study.name}--{key}--{size or 'all'}.npz"
    if final.is_file():
        return
    patients, targets, tasks = read_study(study)
    if size is not None and size >= 0.8 * len(np.unique(patients)):
        return
    arrays: dict[str, np.ndarray] = {}
    seconds: dict[str, float] = defaultdict(float)
    labelled, fitted, shares = [], [], []
    for part in parts_of(study, EXPERT_SETS[key], patients, size, n_rotations, encoders):
        heads, found = _fit_part(part, targets, tasks, patients, seconds)
        fitted.append(heads.tasks_)
        shares.append(heads.history_["gate"].get("hierarchy", {}))
        for (train, val, test), answers in zip(part.splits, found, strict=True):
            labelled.append(np.isin(np.arange(len(patients)), np.concatenate([train, val])))
            arrays.setdefault("splits/tested", np.full(len(patients), -1))[test] = len(labelled) - 1
            _keep(arrays, answers, test, len(patients))
    tasks = tuple(task for task in tasks if any(task in of_part for of_part in fitted))
    about = {"seconds": seconds, "tasks": {t.name: t.to_dict() for t in tasks}, "hierarchy": shares}
    results.mkdir(parents=True, exist_ok=True)
    arrays |= {f"{t.name}/truth": targets[t.name] for t in tasks} | {"splits/labelled": np.stack(labelled)}
    kept: dict[str, Any] = {"about": np.array(json.dumps(about)), "patients": patients, **arrays}
    np.savez(final.with_suffix(".writing.npz"), **kept)
    final.with_suffix(".writing.npz").rename(final)
    print(f"{final.stem}: processor seconds {dict(seconds)}", flush=True)


def _keep(arrays: dict[str, np.ndarray], answers: Answers, test: np.ndarray, n_records: int) -> None:
    for method, of_tasks in answers.items():
        for task, p in of_tasks.items():
            empty = np.full((n_records, *p.shape[1:]), np.nan, np.float32)
            arrays.setdefault(f"{task}/{method}", empty)[test] = p


def _fit_part(
    part: Part,
    targets: dict[str, np.ndarray],
    tasks: tuple[TaskSpec, ...],
    patients: np.ndarray,
    seconds: dict[str, float],
) -> tuple[EnsembleHeads, list[Answers]]:
    """Fit all methods on one part; return the gate's fit, and what all say of each split's test rows."""
    started = time.process_time()
    heads = EnsembleHeads(on_unusable="skip", device="cpu")
    heads.fit(part.features, targets, tasks, splits=part.splits, groups=patients, seen=part.seen)
    seconds["gate"] += time.process_time() - started
    predictors: dict[str, Any] = {"gate": heads.predict_proba}
    for name in ("stacking", "mean", "concat"):
        started = time.process_time()
        method = METHODS[name](**({} if name == "concat" else {"heads": heads}))
        method.fit(part.features, targets, heads.tasks_, splits=part.splits, groups=patients)
        seconds[name] += time.process_time() - started
        predictors[name] = method.predict_proba
    flat = without_parents(heads)
    best = best_singles(heads, {t.name: targets[t.name] for t in heads.tasks_})
    found = []
    for f, (_, _, test) in enumerate(part.splits):
        held = {name: {kind: a[test] for kind, a in value.items()} for name, value in part.features.items()}
        answers = {name: predict(held, fold=f) for name, predict in predictors.items()}
        single = heads.expert_predictions(held, fold=f)
        answers |= {f"expert:{name}": p for name, p in single.items()}
        chosen = {t.name: heads.experts_[best[f, i]] for i, t in enumerate(heads.tasks_)}
        answers["best_single"] = {task: single[expert][task] for task, expert in chosen.items()}
        children = {task.name for task in heads.tasks_ if task.parents}
        answers["flat"] = {task: p for task, p in flat.predict_proba(held, fold=f).items() if task in children}
        found.append(answers)
    return heads, found


def without_parents(heads: EnsembleHeads) -> EnsembleHeads:
    """Return the same fit without what classes got of their parents."""
    flat = copy.copy(heads)
    flat.models_ = [replace(model, hierarchy=None) for model in heads.models_]
    return flat


def best_singles(heads: EnsembleHeads, targets: dict[str, np.ndarray]) -> np.ndarray:
    """Expert with the lowest out-of-sample loss per fold and task, int [F, T]."""
    found = heads.out_of_sample_
    blocks = layout(heads.tasks_)
    nothing = np.empty(0, np.int64)
    splits = [(found.rows[row >= 0].numpy(), nothing, nothing) for row in found.judge]
    data = read_targets(targets, heads.tasks_, splits, found.n_records, skip_unusable=False, balanced=False)
    data = data.take(found.rows)
    weight = data.weight * (found.judge >= 0).float()[..., None]
    losses = []
    for e in range(found.outputs.shape[2]):
        loss, row = task_losses(found.outputs[:, :, e], data.y, weight, blocks)
        losses.append((loss * row).sum(1) / row.sum(1).clamp_min(1e-9))
    return np.asarray(torch.stack(losses, -1).argmin(-1).numpy())
