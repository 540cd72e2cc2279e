"""Which method is best: gate, stacking, mean, concatenation and single experts over many cohorts, tasks and sizes.

    python -P benchmarks/verdict.py FOLDER --data DATA        ingest, embed, fit, print the table; goes on where it was
    python -P benchmarks/verdict.py FOLDER --data DATA --only embed
    python -P benchmarks/verdict.py FOLDER --data DATA --only table --label before

DATA holds `ptbxl-all`, `quality`, `ludb` and `challenge2021` (those that are not there are left out); three generated
cohorts are made. An instance is a cohort, a set of experts, a number of labelled patients and a task. Patients are
rotated: every record is tested once, by a fit that has seen none of its patient's records; labelled patients are
drawn from the others, smaller draws inside larger ones; a quarter of them validates. All methods see the same rows.
`best_single` is the expert with the lowest out-of-sample loss in that fit, never the one that tests best. Intervals are
95 %, from a bootstrap of patients, paired.

Vectors lie in FOLDER/COHORT/vectors, predictions in FOLDER/predictions/LABEL: give a new label to a new version of the
code, and nothing is embedded again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache.records import Target, open_records, target_array
from cache.signals import open_signals
from stages.experts import load_expert
from stages.experts.run import Signal, embed_records
from stages.heads import EnsembleHeads, TaskSpec
from stages.heads.baselines.methods import METHODS
from stages.heads.crossfit import inner_folds
from stages.heads.targets.calibration import rate_shift
from stages.heads.targets.losses import task_losses
from stages.heads.targets.tasks import Block as TaskBlock
from stages.scoring.bootstrap import Bootstrap, bootstrap, paired_difference, patient_index
from stages.scoring.metrics import HEADLINE, METRICS, make_scorer
from stages.scoring.predictions import PredictionBlock

OWN, RANDOM = ("rocket", "morphology", "seed"), ("ecgfounder", "mantis", "ttm")
EXPERT_SETS = {"default": ("rocket", "morphology"), "three": OWN, "six": (*OWN, *RANDOM)}
N_FOLDS, BATCH = 5, 64
RIVALS = ("stacking", "mean", "concat", "best_single")
RATED = ("stacking", "mean")
"""Rivals that are judged once more with the base rates that the gate counts (`rate_shift`): METHOD+rates."""
VALIDATION_SHARE = 0.25


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


def data_folder() -> Path | None:
    """Return the folder that ENSEMBLE_TEST_DATA names, if it is there."""
    named = os.environ.get("ENSEMBLE_TEST_DATA")
    return Path(named) if named and Path(named).is_dir() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path(".ensemble/verdict"))
    parser.add_argument("--data", type=Path, help="folder of the unpacked collections; ENSEMBLE_TEST_DATA if not given")
    parser.add_argument("--only", choices=("embed", "fit", "table"))
    parser.add_argument("--cohorts", default=",".join(COHORTS))
    parser.add_argument("--label", default="now", help="of this version of the code")
    parser.add_argument("--generated-records", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=1000, help="of the patients")
    parser.add_argument("--rotations", type=int, default=N_FOLDS, help="of five, so many are fitted and tested")
    options = parser.parse_args()
    options.data = options.data or data_folder()
    if options.data is None:
        print(
            "needs --data FOLDER, or ENSEMBLE_TEST_DATA, with ptbxl-all, quality, ludb and challenge2021: nothing done"
        )
        return
    chosen = {name: COHORTS[name] for name in options.cohorts.split(",") if is_there(COHORTS[name], options.data)}
    if options.only in (None, "embed"):
        for name, cohort in chosen.items():
            ingest(name, cohort, options)
            for expert in dict.fromkeys(e for key, _ in cohort.settings for e in EXPERT_SETS[key]):
                embed(options.folder / name, expert)
    results = options.folder / "predictions" / options.label
    if options.only in (None, "fit"):
        for name, cohort in chosen.items():
            for key, size in cohort.settings:
                fit(options.folder / name, key, size, results, options.rotations)
    if options.only in (None, "table"):
        print_table(list(instances(results, tuple(chosen), options.resamples)))


def is_there(cohort: Cohort, data: Path) -> bool:
    return cohort.generated_seed is not None or (data / cohort.path).is_dir()


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


def rotations(patients: np.ndarray, size: int | None) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
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
    tasks = tuple(TaskSpec(t.name, t.kind, t.classes, t.unit, t.horizons) for t in targets.values())
    values = {name: target_array(records, target) for name, target in targets.items()}
    return records["patient_id"].to_numpy().astype(str), values, tasks


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
    from stages.heads.targets.standardised import read_targets
    from stages.heads.targets.tasks import layout

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


@dataclass(frozen=True)
class Instance:
    """One row of the table.

    Attributes
    ----------
    values
        Method -> metric, higher is better (an error with its sign turned).
    differences
        Rival -> gate minus rival with its interval, in the same sense.
    """

    name: str
    metric: str
    values: dict[str, float]
    differences: dict[str, tuple[float, float, float]]
    calibration: dict[str, dict[str, float]]


def instances(results: Path, cohorts: tuple[str, ...], resamples: int) -> Iterator[Instance]:
    """Score every task of every finished setting; scores are kept beside the predictions."""
    for path in sorted(results.glob("*--*.npz")):
        if path.stem.split("--")[0] not in cohorts or path.stem.endswith(".writing"):
            continue
        kept = path.with_suffix(".json")
        if not kept.is_file() or kept.stat().st_mtime < path.stat().st_mtime:
            rows = score_file(path, resamples)
            kept.write_text(json.dumps([vars(row) for row in rows]))
        yield from (Instance(**row) for row in json.loads(kept.read_text()))


def score_file(path: Path, resamples: int) -> list[Instance]:
    with np.load(path) as stored:
        arrays = dict(stored)
    tasks = json.loads(str(arrays["about"]))["tasks"]
    scored = (score_task(path.stem, arrays, TaskSpec(**task), resamples) for task in tasks.values())
    return [row for row in scored if row is not None]


def score_task(setting: str, arrays: dict[str, np.ndarray], task: TaskSpec, resamples: int) -> Instance | None:
    """Score all methods on the records that all of them have a prediction for."""
    metric = HEADLINE[task.kind][0]
    sign = 1.0 if METRICS[metric].higher_is_better else -1.0
    said = {k.split("/", 1)[1]: v for k, v in arrays.items() if k.split("/", 1)[0] == task.name}
    truth = said.pop("truth")
    rows = np.all([np.isfinite(p.reshape(len(p), -1)).all(1) for p in said.values()], axis=0)
    if task.kind in ("binary", "multilabel"):
        size = setting.split("--")[2]
        for rival in RATED:
            p = with_base_rates(said[rival], truth, arrays["patients"], None if size == "all" else int(size))
            said[f"{rival}+rates"] = p
    compared = [m for m in (*RIVALS, *(f"{rival}+rates" for rival in RATED)) if m in said]
    names = arrays["patients"][rows]
    index, n_patients = patient_index(names)
    target = Target(task.name, task.kind, unit=task.unit, classes=task.classes)
    found: dict[str, Bootstrap] = {}
    for method in ("gate", *compared):
        p = said[method]
        block = PredictionBlock(names, names, names, np.zeros(len(names), int), truth[rows], p[rows])
        found[method] = bootstrap(make_scorer(target, block), index, n_patients, resamples)
    if not np.isfinite(found["gate"].values[metric]):
        return None
    differences = {}
    for rival in compared:
        d = paired_difference(found["gate"], found[rival], metric)
        bounds = (d.low, d.high) if sign > 0 else (-d.high, -d.low)
        differences[rival] = (sign * d.value, *bounds)
    calibration: dict[str, dict[str, float]] = {
        name: {m: b.values[name] for m, b in found.items()} for name in ("ece", "brier") if name in found["gate"].values
    }
    values = {m: sign * b.values[metric] for m, b in found.items()}
    return Instance(f"{setting}--{task.name}", metric, values, differences, calibration)


def with_base_rates(p: np.ndarray, truth: np.ndarray, patients: np.ndarray, size: int | None) -> np.ndarray:
    """Raise probabilities as the gate raises its own: by one or two records more of either class in a fold's labels."""
    raised = np.array(p, np.float64)
    for train, val, test in rotations(patients, size):
        y = torch.from_numpy(truth[np.concatenate([train, val])].reshape(len(train) + len(val), -1)).float()
        known = (~y.isnan()).float()
        block = TaskBlock(TaskSpec("any", "multilabel", tuple(map(str, range(y.shape[1])))), 0, y.shape[1])
        shift = rate_shift(y.nan_to_num()[None], known[None], (block,))[0].numpy()
        odds = np.log(np.clip(p[test], 1e-7, 1 - 1e-7)) - np.log1p(-np.clip(p[test], 1e-7, 1 - 1e-7))
        raised[test] = 1 / (1 + np.exp(-(odds + (shift if p.ndim > 1 else shift[0]))))
    return raised


def print_table(rows: list[Instance]) -> None:
    """Print every instance, then mean rank, wins, losses and mean differences."""
    for row in rows:
        rivals = "  ".join(
            f"{r} {d[0]:+.4f} ({d[1]:+.4f} to {d[2]:+.4f})" for r, d in row.differences.items() if r in RIVALS
        )
        print(f"{row.name:48} {row.metric:12} {row.values['gate']:8.4f}  {rivals}")
    print_summary("all instances", rows)
    for cohort in sorted({row.name.split("--")[0].rstrip("0123456789") for row in rows}):
        print_summary(cohort, [row for row in rows if row.name.startswith(cohort)])
    for size in ("50", "100", "300", "1000", "all"):
        print_summary(f"{size} patients", [row for row in rows if row.name.split("--")[2] == size])


def print_summary(title: str, rows: list[Instance]) -> None:
    if not rows:
        return
    methods = ("gate", *RIVALS)
    values = np.array([[row.values[m] for m in methods] for row in rows])
    ranks = (
        (values[:, None, :] > values[:, :, None]).sum(2) + (values[:, None, :] == values[:, :, None]).sum(2) / 2 + 0.5
    )
    print(
        f"\n{title}: {len(rows)} instances; mean rank "
        + ", ".join(f"{m} {r:.2f}" for m, r in zip(methods, ranks.mean(0), strict=True))
    )
    scored = [row for row in rows if row.metric != "mae"]
    for rival in RIVALS:
        wins = np.mean([row.differences[rival][1] > 0 for row in rows])
        losses = np.mean([row.differences[rival][2] < 0 for row in rows])
        mean = np.mean([row.differences[rival][0] for row in scored]) if scored else np.nan
        errors = [row.differences[rival][0] / -row.values[rival] for row in rows if row.metric == "mae"]
        error = f", error {-100 * np.mean(errors):+.1f} %" if errors else ""
        print(f"  gate minus {rival:12} better {wins:4.0%}  worse {losses:4.0%}  mean {mean:+.4f} AUROC{error}")
    for rival in (f"{name}+rates" for name in RATED):
        if rated := [row for row in rows if rival in row.differences]:
            wins, losses = (
                np.mean([sign * r.differences[rival][k] > 0 for r in rated]) for sign, k in ((1, 1), (-1, 2))
            )
            mean = np.mean([row.differences[rival][0] for row in rated])
            words = f"better {wins:4.0%}  worse {losses:4.0%}  mean {mean:+.4f} AUROC ({len(rated)} instances)"
            print(f"  gate minus {rival:14} {words}")
    for name in ("ece", "brier"):
        of = [row.calibration[name] for row in rows if name in row.calibration]
        if of:
            print(f"  {name:6}" + ", ".join(f"{m} {np.mean([c[m] for c in of]):.4f}" for m in methods))


if __name__ == "__main__":
    main()
