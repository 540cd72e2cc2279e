"""What the packaged encoder is worth where it has seen nobody: five encoders, each trained without the fold it judges.

    python -m weights.seed_expert FOLDER encoders --data DATA [--folds 0,1,2,3,4]  train, by weights/seed.yaml
    python -m weights.seed_expert FOLDER judge [--sizes all,300,100,50] [--within]  fit with and without, compare

DATA/ptbxl-all is PTB-XL in its own layout, or a part of it. Patients are rotated as in benchmarks/verdict.py. Encoder k
learns from PTB-XL's folds 1 to 8 but for the patients of rotation k, and so does its teacher: what it says of rotation
j comes from a fit that has seen neither k nor j. Every record is then judged once, by heads that have not seen its
patient on vectors of an encoder that has not seen it either. With `--within`, heads learn from patients that the
encoder has not seen: the rest of its fold, in three parts.

Everything is kept in FOLDER/encoders and FOLDER/judged: a run that was killed goes on.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from benchmarks.verdict import COHORTS, embed, ingest, read_study, rotations
from cache.records import open_records, target_array, write_records
from cache.signals import open_signals
from stages.experts import load_expert
from stages.experts.run import run_expert
from stages.heads import EnsembleHeads, TaskSpec
from stages.heads.crossfit import inner_folds
from stages.scoring.bootstrap import Bootstrap, bootstrap, paired_difference, patient_index
from stages.scoring.metrics import HEADLINE, make_scorer
from stages.scoring.predictions import PredictionBlock, writing_predictions

RECIPE = Path(__file__).with_name("seed.yaml")
NAME = "seed+ptbxl"
DEFAULT = ("rocket", "morphology")
JUDGED = ("superclass", "subclass", "sex", "age")
N_FOLDS, LEARNT_FOLDS = 5, range(8)
WITHIN_PARTS = 3
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Study:
    """The records, their patients, labels and rotations."""

    folder: Path

    @cached_property
    def patients(self) -> np.ndarray:
        """Patient of each record."""
        return read_study(self.folder)[0]

    @cached_property
    def fold(self) -> np.ndarray:
        """Rotation that judges each record."""
        return inner_folds(np.arange(len(self.patients)), self.patients, N_FOLDS, 0)

    @cached_property
    def features(self) -> dict[str, np.ndarray]:
        """Return the vectors of the default experts."""
        found = {}
        for name in DEFAULT:
            with np.load(self.folder / "vectors" / f"{name}.npz") as stored:
                found[name] = stored["embedding"]
        return found

    def learnt(self, k: int) -> np.ndarray:
        """Rows that encoder k learns from."""
        records = open_records(self.folder / "records.parquet")
        return np.flatnonzero((self.fold != k) & np.isin(records["fold"], LEARNT_FOLDS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("what", choices=("encoders", "judge"))
    parser.add_argument("--data", type=Path, help="folder of the unpacked collections; needed the first time")
    parser.add_argument("--folds", default="0,1,2,3,4")
    parser.add_argument("--members", type=int, default=1, help="networks side by side in each encoder")
    parser.add_argument("--sizes", default="all", help="of patients that heads learn from: all,300,100,50")
    parser.add_argument("--within", action="store_true", help="heads learn from the encoder's unseen patients alone")
    parser.add_argument("--resamples", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(options.folder / "ptbxl")
    if options.data is not None:
        ingest("ptbxl", COHORTS["ptbxl"], options)
        for name in DEFAULT:
            embed(study.folder, name)
    folds = [int(k) for k in options.folds.split(",")]
    if options.what == "encoders":
        for member, k in itertools.product(range(options.members), folds):
            encoder(options.folder, study, k, member)
        return
    for size in options.sizes.split(","):
        judge(options.folder, study, None if size == "all" else int(size), folds, options)


def encoder(folder: Path, study: Study, k: int, member: int) -> None:
    """Train a network of encoder k by the recipe and embed all records; a finished step is not done again."""
    home = home_of(folder, k, member)
    if (home / "seed.npz").is_file():
        return
    home.mkdir(parents=True, exist_ok=True)
    (home / "params.yaml").write_text(yaml.safe_dump({**yaml.safe_load(RECIPE.read_text()), "seed": member}))
    if not (home / "records.parquet").is_file():
        records = open_records(study.folder / "records.parquet")
        records["split"] = "test"
        records.loc[study.learnt(k), "split"] = "train"
        (home / "signals.zarr").symlink_to((study.folder / "signals.zarr").resolve())
        write_records(home / "records.parquet", records, list(records.attrs["targets"].values()))
    if not (teacher := folder / "teachers" / f"{k}.parquet").is_file():
        teach(teacher.parent, study)
    shutil.copy(teacher, home / "predictions.parquet")
    if not (home / "weights" / "versions" / NAME / "version.json").is_file():
        subprocess.run(["ensemble", "posttrain", "--name", NAME], check=True, cwd=home)
    expert = load_expert("seed", home / "weights" / "versions" / NAME / "model.safetensors", {"members": 1})
    signals, parts = open_signals(study.folder / "signals.zarr"), []
    for start in range(0, len(signals), 64):
        x = expert.prepare(signals.read_mv(slice(start, min(start + 64, len(signals)))), 500)
        parts.append(run_expert(expert, x).embedding)
    np.savez(home / "seed.npz", embedding=np.concatenate(parts))


def home_of(folder: Path, k: int, member: int) -> Path:
    """Return the folder of one network."""
    return folder / "encoders" / (f"{k}-{member}" if member else str(k))


def teach(folder: Path, study: Study) -> None:
    """Write FOLDER/teachers/K.parquet: what default ensembles that have seen neither K nor a patient say of him."""
    records, names = open_records(study.folder / "records.parquet"), yaml.safe_load(RECIPE.read_text())["tasks"]
    targets = {name: records.attrs["targets"][name] for name in names}
    values = {name: target_array(records, target) for name, target in targets.items()}
    tasks = tuple(TaskSpec(t.name, t.kind, t.classes, t.unit) for t in targets.values())
    allowed, pairs = np.isin(records["fold"], LEARNT_FOLDS), list(itertools.combinations(range(N_FOLDS), 2))
    parts = [np.isin(study.fold, pair) for pair in pairs]
    splits = [_split(np.flatnonzero(allowed & ~out), np.flatnonzero(allowed & out), study.patients) for out in parts]
    heads = EnsembleHeads(on_unusable="skip", device="cpu")
    features = {name: {"embedding": x} for name, x in study.features.items()}
    heads.fit(features, values, tasks, splits=splits, groups=study.patients)
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(N_FOLDS):
        with writing_predictions(folder / f"{k}.parquet", targets) as writer:
            for f, pair in enumerate(pairs):
                rows = splits[f][2][study.fold[splits[f][2]] != k] if k in pair else np.empty(0, np.int64)
                if len(rows):
                    held = {name: {"embedding": x[rows]} for name, x in study.features.items()}
                    for task, said in heads.predict_proba(held, fold=f).items():
                        frame = records.iloc[rows]
                        ids = {name: frame[name[:-1]].to_numpy() for name in ("record_ids", "patient_ids")}
                        writer.add(task, "gate", "test", f, **ids, y_true=values[task][rows], y_pred=np.asarray(said))


def _split(known: np.ndarray, test: np.ndarray, patients: np.ndarray) -> Rows:
    """Divide `known` into training and validation rows by patient."""
    order = np.random.default_rng(1).permutation(np.unique(patients[known]))
    validating = np.isin(patients[known], order[: len(order) // 5])
    return known[~validating], known[validating], test


def judge(folder: Path, study: Study, size: int | None, folds: list[int], options: Any) -> None:
    """Fit the default experts with and without `seed` on the same rows, and print paired differences."""
    how = "within" if options.within else "across"
    kept = folder / "judged" / f"{how}-{size or 'all'}-{len(folds)}-{options.members}.npz"
    if not kept.is_file():
        said = dict(predictions(folder, study, size, folds, options))
        kept.parent.mkdir(exist_ok=True)
        np.savez(kept, **said)
    with np.load(kept) as stored:
        said = dict(stored)
    print(f"\n{how}, {size or 'all'} patients, encoders {folds} of {options.members} network(s)")
    for task in _tasks(study):
        compare(task, study, said, options.resamples)


def predictions(
    folder: Path, study: Study, size: int | None, folds: list[int], options: Any
) -> Iterator[tuple[str, np.ndarray]]:
    """Give TASK/METHOD -> predictions of all records, NaN where a record was not judged."""
    tasks, targets = _tasks(study), read_study(study.folder)[1]
    found: dict[str, np.ndarray] = {}
    for k in folds:
        members = [np.load(home_of(folder, k, member) / "seed.npz")["embedding"] for member in range(options.members)]
        seed = np.concatenate(members, axis=1)
        splits = list(_within(study, k, size)) if options.within else [rotations(study.patients, size)[k]]
        for arm, experts in {"without": DEFAULT, "with": (*DEFAULT, "seed")}.items():
            features = {n: {"embedding": seed if n == "seed" else study.features[n]} for n in experts}
            heads = EnsembleHeads(on_unusable="skip", device="cpu")
            heads.fit(features, {t.name: targets[t.name] for t in tasks}, tasks, splits=splits, groups=study.patients)
            for f, (_, _, test) in enumerate(splits):
                held = {name: {"embedding": x["embedding"][test]} for name, x in features.items()}
                of = {arm: heads.predict_proba(held, fold=f)}
                if arm == "with":
                    of |= heads.expert_predictions(held, fold=f)
                for method, of_tasks in of.items():
                    for task, p in of_tasks.items():
                        empty = np.full((len(study.patients), *p.shape[1:]), np.nan, np.float32)
                        found.setdefault(f"{task}/{method}", empty)[test] = p
    yield from found.items()


def _within(study: Study, k: int, size: int | None) -> Iterator[Rows]:
    rows = np.flatnonzero(study.fold == k)
    part = inner_folds(rows, study.patients, WITHIN_PARTS, 2)
    for f in range(WITHIN_PARTS):
        known = rows[part != f]
        if size is not None:
            order = np.random.default_rng(3).permutation(np.unique(study.patients[known]))[:size]
            known = known[np.isin(study.patients[known], order)]
        yield _split(known, rows[part == f], study.patients)


def _tasks(study: Study) -> tuple[TaskSpec, ...]:
    return tuple(task for task in read_study(study.folder)[2] if task.name in JUDGED)


def compare(task: TaskSpec, study: Study, said: dict[str, np.ndarray], resamples: int) -> None:
    """Print each method's value and the differences with their 95 % intervals, patients resampled."""
    metric = HEADLINE[task.kind][0]
    methods = [key.split("/")[1] for key in said if key.split("/")[0] == task.name]
    rows = np.all([np.isfinite(said[f"{task.name}/{m}"].reshape(len(study.patients), -1)).all(1) for m in methods], 0)
    names = study.patients[rows]
    index, n_patients = patient_index(names)
    truth = read_study(study.folder)[1][task.name][rows]
    scored: dict[str, Bootstrap] = {}
    for method in methods:
        p = said[f"{task.name}/{method}"][rows]
        block = PredictionBlock(names, names, names, np.zeros(len(names), int), truth, p)
        scored[method] = bootstrap(make_scorer(task, block), index, n_patients, resamples)
    print(
        f"{task.name} ({metric}, {rows.sum()} records): "
        + ", ".join(f"{m} {b.values[metric]:.4f}" for m, b in scored.items())
    )
    for a, b in (("with", "without"), ("seed", "rocket")):
        d = paired_difference(scored[a], scored[b], metric)
        print(f"    {a} minus {b}: {d.value:+.4f} ({d.low:+.4f} to {d.high:+.4f})")


if __name__ == "__main__":
    main()
