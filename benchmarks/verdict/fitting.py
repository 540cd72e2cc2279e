"""Fits of all compared methods on one setting, and their predictions of the test rows, kept in a file."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.verdict.cohorts import EXPERT_SETS, N_FOLDS, read_study, read_vectors, rotations
from stages.heads import EnsembleHeads
from stages.heads.baselines.methods import METHODS
from stages.heads.targets.losses import task_losses
from stages.heads.targets.standardised import read_targets
from stages.heads.targets.tasks import layout


def fit(study: Path, key: str, size: int | None, results: Path, n_rotations: int = N_FOLDS) -> None:
    """Fit all methods of one setting, and keep what they say of the test rows."""
    final = results / f"{study.name}--{key}--{size or 'all'}.npz"
    if final.is_file():
        return
    patients, targets, tasks = read_study(study)
    if size is not None and size >= 0.8 * len(np.unique(patients)):
        return
    features, splits = read_vectors(study, EXPERT_SETS[key]), rotations(patients, size)[:n_rotations]
    started = time.process_time()
    heads = EnsembleHeads(on_unusable="skip", device="cpu")
    heads.fit(features, targets, tasks, splits=splits, groups=patients)
    seconds = {"gate": time.process_time() - started}
    predictors: dict[str, Any] = {"gate": heads.predict_proba}
    for name in ("stacking", "mean", "concat"):
        started = time.process_time()
        method = METHODS[name](**({} if name == "concat" else {"heads": heads}))
        method.fit(features, targets, heads.tasks_, splits=splits, groups=patients)
        seconds[name], predictors[name] = time.process_time() - started, method.predict_proba
    arrays: dict[str, np.ndarray] = {}
    best = best_singles(heads, {t.name: targets[t.name] for t in heads.tasks_})
    for f, (_, _, test) in enumerate(splits):
        held = {name: {part: a[test] for part, a in value.items()} for name, value in features.items()}
        found = {name: predict(held, fold=f) for name, predict in predictors.items()}
        single = heads.expert_predictions(held, fold=f)
        found |= {f"expert:{name}": p for name, p in single.items()}
        found["best_single"] = {t.name: single[heads.experts_[best[f, i]]][t.name] for i, t in enumerate(heads.tasks_)}
        for method, of_tasks in found.items():
            for task, p in of_tasks.items():
                whole = arrays.setdefault(
                    f"{task}/{method}", np.full((len(patients), *p.shape[1:]), np.nan, np.float32)
                )
                whole[test] = p
    about = {"seconds": seconds, "tasks": {t.name: t.to_dict() for t in heads.tasks_}}
    results.mkdir(parents=True, exist_ok=True)
    truth = {f"{t.name}/truth": targets[t.name] for t in heads.tasks_}
    kept: dict[str, Any] = {"about": np.array(json.dumps(about)), "patients": patients, **truth, **arrays}
    np.savez(final.with_suffix(".writing.npz"), **kept)
    final.with_suffix(".writing.npz").rename(final)
    print(f"{final.stem}: processor seconds {seconds}", flush=True)


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
