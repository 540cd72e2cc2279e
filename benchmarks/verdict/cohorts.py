"""The cohorts of the verdict: their studies, the experts' vectors, and the rotations that all methods share."""

from __future__ import annotations

import argparse
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache.records import open_records, target_array
from cache.signals import open_signals
from stages.experts import load_expert
from stages.experts.run import Signal, embed_records
from stages.heads import TaskSpec
from stages.heads.crossfit import inner_folds

PACKAGED, RANDOM = ("rocket", "morphology", "seed"), ("ecgfounder", "mantis", "ttm")
EXPERT_SETS = {"default": ("rocket", "morphology"), "three": PACKAGED, "six": (*PACKAGED, *RANDOM)}
N_FOLDS, BATCH = 5, 64
VALIDATION_SHARE = 0.25
Split = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Cohort:
    """One collection: how `ensemble init` is called, and which (experts, labelled patients) are asked of it."""

    source: str
    path: str
    settings: tuple[tuple[str, int | None], ...]
    labels: str | None = None
    generated_seed: int | None = None


SIZES = (50, 100, 300, 1000, None)
COHORTS = {
    "ptbxl": Cohort("ptbxl", "ptbxl-all", (*(("three", n) for n in SIZES), ("six", 300), ("six", None))),
    "quality": Cohort("wfdb", "quality", (("three", 100), ("three", None), ("six", None)), labels="quality/labels.csv"),
    "ludb": Cohort("ludb", "ludb", (("three", None), ("six", None))),
    "challenge2021": Cohort("challenge", "challenge2021", (("three", None),)),
    **{
        f"generated{seed}": Cohort("mimic-iv-ecg", "", (("default", 100), ("three", None)), generated_seed=seed)
        for seed in (11, 12, 13)
    },
}


def is_there(cohort: Cohort, data: Path) -> bool:
    return cohort.generated_seed is not None or (data / cohort.path).is_dir()


def experts_asked(cohort: Cohort) -> tuple[str, ...]:
    """All experts of a cohort's settings."""
    return tuple(dict.fromkeys(expert for key, _ in cohort.settings for expert in EXPERT_SETS[key]))


def ingest(name: str, cohort: Cohort, options: argparse.Namespace) -> None:
    """Make the study of a cohort, once."""
    study, path = options.folder.resolve() / name, (options.data / cohort.path).resolve()
    if (study / "ingested").is_file():
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    if cohort.generated_seed is not None:
        path = study.with_name(f"{name}-files")
        size = ["--records", str(options.generated_records), "--seed", str(cohort.generated_seed)]
        subprocess.run(["ensemble", "generate", str(path), *size], check=True)
    labels = [] if cohort.labels is None else ["--labels", str((options.data / cohort.labels).resolve())]
    if not study.is_dir():
        subprocess.run(
            ["ensemble", "init", str(study), "--source", cohort.source, "--path", str(path), *labels], check=True
        )
    subprocess.run(["ensemble", "ingest"], check=True, cwd=study)
    (study / "ingested").touch()


def embed(study: Path, name: str) -> None:
    """Embed a cohort by one expert, foundation models with random weights; a finished part is not done again."""
    final = study / "vectors" / f"{name}.npz"
    if final.is_file():
        return
    signals = open_signals(study / "signals.zarr")
    torch.manual_seed(0)
    expert, parts = None, []
    folder = study / "vectors" / f"{name}.partial"
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(signals), BATCH):
        part = folder / f"{start}.npz"
        if not part.is_file():
            expert = expert or load_expert(name, random_weights=name in RANDOM)
            rows = slice(start, min(start + BATCH, len(signals)))
            valid, rates = signals.valid_of(rows), signals.rates_of(rows)
            signals_mv = signals.read_mv(rows)
            # A record that could not be read has no rate and no sample: an expert refuses it, and its row stays NaN.
            batch = [
                Signal(x[:, : max(int(n), 1)], float(r) or 500.0)
                for x, n, r in zip(signals_mv, valid, rates, strict=True)
            ]
            found = embed_records(expert, batch)
            np.savez(part.with_suffix(".writing.npz"), embedding=found.embedding, layers=found.layers)
            part.with_suffix(".writing.npz").rename(part)
        with np.load(part) as stored:
            parts.append({key: stored[key] for key in ("embedding", "layers")})
    whole: dict[str, Any] = {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}
    np.savez(final.with_suffix(".writing.npz"), **whole)
    final.with_suffix(".writing.npz").rename(final)
    print(f"{study.name}: {name} {whole['embedding'].shape}", flush=True)


def read_vectors(study: Path, experts: tuple[str, ...]) -> dict[str, dict[str, np.ndarray]]:
    """Embedding and, where the blocks have one width, layers of each expert, as `EnsembleHeads` takes them."""
    features = {}
    for name in experts:
        with np.load(study / "vectors" / f"{name}.npz") as stored:
            embedding, layers = stored["embedding"], stored["layers"]
        features[name] = {"embedding": embedding}
        blocks = layers[:, 1:]
        if (
            blocks.shape[1] > 1
            and np.isnan(blocks).all((0, 1)).sum() == 0
            and not np.isnan(blocks[:, :, -1]).all(0).any()
        ):
            features[name]["layers"] = blocks
    return features


def rotations(patients: np.ndarray, size: int | None) -> list[Split]:
    """Training, validation and test rows of each fit."""
    fold = inner_folds(np.arange(len(patients)), patients, N_FOLDS, 0)
    order = np.random.default_rng(1).permutation(np.unique(patients))
    out = []
    for k in range(N_FOLDS):
        allowed = set(patients[fold != k].tolist())
        labelled = [p for p in order.tolist() if p in allowed][:size]
        n_val = max(1, round(VALIDATION_SHARE * len(labelled)))
        parts = (labelled[n_val:], labelled[:n_val])
        train, val = (np.flatnonzero(np.isin(patients, part) & (fold != k)) for part in parts)
        out.append((train, val, np.flatnonzero(fold == k)))
    return out


def read_study(study: Path) -> tuple[np.ndarray, dict[str, np.ndarray], tuple[TaskSpec, ...]]:
    """Patients [n], targets and tasks of a cohort."""
    records = open_records(study / "records.parquet")
    targets = records.attrs["targets"]
    tasks = tuple(TaskSpec(t.name, t.kind, t.classes, t.unit, t.horizons, t.parents) for t in targets.values())
    values = {name: target_array(records, target) for name, target in targets.items()}
    return records["patient_id"].to_numpy().astype(str), values, tasks
