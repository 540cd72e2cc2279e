"""What a packaged encoder is worth to heads: paired comparisons of the default experts with and without it.

    python -m weights.judge_seed FOLDER across --members 3      heads learn from the four other fifths of the patients
    python -m weights.judge_seed FOLDER within --members 3      heads learn from patients that the encoder has not seen
    python -m weights.judge_seed FOLDER packaged                  PTB-XL's folds 9 and 10, by the weights of the package
    python -m weights.judge_seed FOLDER elsewhere --data DATA     other collections, by the weights of the package

FOLDER is that of `weights.seed_expert`, which trains the encoders. Across: rotation k is judged by encoder k, which has
not seen it, but has learnt from the patients that heads learn from; the heads are told who those are. Within: each
fifth in three parts, two teach heads and one is judged; the encoder has seen none of them. With `--unlabelled` the
package's `seed-ssl` judges every rotation: signals of the patients of four have taught it, labels of none. Packaged:
heads learn from PTB-XL's folds 1 to 8, as the encoder has, and the records of folds 9 and 10 are judged. Elsewhere:
five rotations of patients of LUDB, of the quality collection and of generated ECGs. Predictions are kept in
FOLDER/judged: a run that was killed goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.verdict.cohorts import COHORTS, embed, ingest, is_there, read_study, rotations
from stages.heads import EnsembleHeads, TaskSpec
from stages.heads.crossfit import inner_folds
from stages.scoring.blocks import PredictionBlock
from stages.scoring.bootstrap import Bootstrap, bootstrap, paired_difference, patient_index
from stages.scoring.metrics import HEADLINE, make_scorer
from weights.seed_expert import ALL, DEFAULT, Rows, Study, split_rows, vectors

JUDGED = ("superclass", "subclass", "sex", "age")
WITHIN_PARTS = 3
"""Parts of a fifth."""
PAIRS = (("with", "without"), ("alone", "rocket"))


@dataclass(frozen=True)
class Arms:
    """What is compared on one set of splits: vectors of the default experts and of the encoder, labels, patients.

    Attributes
    ----------
    encoder
        [record, width].
    seen
        Which records have taught the encoder their labels [record]; none where None.
    """

    patients: np.ndarray
    targets: dict[str, np.ndarray]
    tasks: tuple[TaskSpec, ...]
    features: dict[str, np.ndarray]
    encoder: np.ndarray
    seen: np.ndarray | None = None


def main() -> None:
    """Fit what is not fitted yet, and print the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("how", choices=("across", "within", "packaged", "elsewhere"))
    parser.add_argument("--expert", choices=("seed", "seed-ssl"), default="seed")
    parser.add_argument("--folds", default="0,1,2,3,4")
    parser.add_argument("--members", type=int, default=1, help="networks side by side in each encoder")
    parser.add_argument("--unlabelled", action="store_true", help="of seed-ssl: the packaged weights in every rotation")
    parser.add_argument("--no-logits", action="store_true", help="nested: what seed sees, without what it says")
    parser.add_argument("--sizes", default="all", help="of patients that heads learn from: all,300,100,50")
    parser.add_argument("--subgroups", action="store_true", help="compare by sex and age, too")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--data", type=Path, help="folder of the unpacked collections (elsewhere)")
    parser.add_argument("--cohorts", default="ludb,quality,generated11,generated12", help="of elsewhere")
    parser.add_argument("--generated-records", type=int, default=1000)
    options = parser.parse_args()
    if options.unlabelled and options.expert != "seed-ssl":
        parser.error("--unlabelled is for --expert seed-ssl: labels of the judged patients have taught seed's weights")
    torch.set_num_threads(1)
    if options.how == "elsewhere":
        for name in options.cohorts.split(","):
            elsewhere(name, options)
        return
    if options.how == "packaged":
        packaged(options)
        return
    for size in options.sizes.split(","):
        nested(None if size == "all" else int(size), options)


def nested(size: int | None, options: argparse.Namespace) -> None:
    """Judge encoders on patients of PTB-XL that they have not seen."""
    study, folds = Study(options.folder / "ptbxl"), [int(k) for k in options.folds.split(",")]
    encoder = "package" if options.unlabelled else options.members
    name = f"{options.how}-{options.expert}-{size or 'all'}-{options.folds.replace(',', '')}-{encoder}"
    name += "-no-logits" if options.no_logits else ""
    found = _encoders(study, folds, options)
    within = options.how == "within"
    parts = ((_arms(study, k, options, found[k]), list(_splits(study, k, size, within=within))) for k in folds)
    said = kept(options.folder / "judged" / f"{name}.npz", parts)
    print(f"\n{name}: heads learn from {size or 'all'} patients")
    _, targets, tasks = read_study(study.folder)
    for task in (task for task in tasks if task.name in JUDGED):
        for group, rows in _groups(targets, subgroups=options.subgroups).items():
            compare(task, targets[task.name], study.patients, said, options, rows, group)


def _encoders(study: Study, folds: list[int], options: argparse.Namespace) -> dict[int, np.ndarray]:
    """Return the vectors that judge each rotation, rotation -> [record, width]."""
    if not options.unlabelled:
        logits = options.expert == "seed" and not options.no_logits
        return {k: vectors(options.folder, options.expert, k, options.members, logits=logits) for k in folds}
    embed(study.folder, options.expert)
    return dict.fromkeys(folds, _embedding(study.folder, options.expert))


def packaged(options: argparse.Namespace) -> None:
    """Judge the weights of the package on the records of PTB-XL's folds 9 and 10, which taught them nothing."""
    study = Study(options.folder / "ptbxl")
    embed(study.folder, options.expert)
    arms = _arms(study, ALL, options, _embedding(study.folder, options.expert))
    known = study.learnt(ALL)
    test = np.setdiff1d(np.arange(len(study.patients)), known)
    parts = [(arms, [split_rows(known, test, study.patients)])]
    said = kept(options.folder / "judged" / f"packaged-{options.expert}.npz", parts)
    print(f"\npackaged-{options.expert}: heads learn from all patients")
    for task in arms.tasks:
        compare(task, arms.targets[task.name], study.patients, said, options)


def elsewhere(name: str, options: argparse.Namespace) -> None:
    """Judge the weights of the package on a collection that taught them nothing."""
    if not is_there(COHORTS[name], options.data):
        print(f"{name}: is not in {options.data}")
        return
    folder = options.folder / name
    ingest(name, COHORTS[name], options)
    for expert in (*DEFAULT, options.expert):
        embed(folder, expert)
    patients, targets, tasks = read_study(folder)
    tasks = tuple(task for task in tasks if task.kind != "survival")  # rotations know no horizons
    found = {expert: _embedding(folder, expert) for expert in (*DEFAULT, options.expert)}
    encoder = found.pop(options.expert)
    arms = Arms(patients, targets, tasks, found, encoder)
    said = kept(options.folder / "judged" / f"{name}-{options.expert}.npz", [(arms, rotations(patients, None))])
    print(f"\n{name}, {options.expert}: {len(np.unique(patients))} patients")
    for task in tasks:
        if f"{task.name}/with" in said:
            compare(task, targets[task.name], patients, said, options)


def _embedding(folder: Path, expert: str) -> np.ndarray:
    with np.load(folder / "vectors" / f"{expert}.npz") as stored:
        return np.asarray(stored["embedding"])


def _arms(study: Study, k: int, options: argparse.Namespace, encoder: np.ndarray) -> Arms:
    _, targets, tasks = read_study(study.folder)
    tasks = tuple(task for task in tasks if task.name in JUDGED)
    seen = np.zeros(len(study.patients), bool)
    if options.expert == "seed":
        seen[study.learnt(k)] = True
    return Arms(study.patients, targets, tasks, study.features, encoder, seen)


def _splits(study: Study, k: int, size: int | None, *, within: bool) -> Iterator[Rows]:
    """Give training, validation and test rows."""
    if not within:
        yield rotations(study.patients, size)[k]
        return
    rows = np.flatnonzero(study.fold == k)
    part = inner_folds(rows, study.patients, WITHIN_PARTS, 2)
    for f in range(WITHIN_PARTS):
        known = rows[part != f]
        if size is not None:
            order = np.random.default_rng(3).permutation(np.unique(study.patients[known]))[:size]
            known = known[np.isin(study.patients[known], order)]
        yield split_rows(known, rows[part == f], study.patients)


def _groups(targets: dict[str, np.ndarray], *, subgroups: bool) -> dict[str, np.ndarray | None]:
    """Return which records belong to each group, by name; of all records None."""
    found: dict[str, np.ndarray | None] = {"": None}
    if subgroups:
        sex, age = targets["sex"], targets["age"]
        found |= {"men": sex == 0, "women": sex == 1}
        found |= {"under 50": age < 50, "50 to 70": (age >= 50) & (age < 70), "70 or older": age >= 70}
    return found


def kept(path: Path, parts: Iterable[tuple[Arms, list[Rows]]]) -> dict[str, np.ndarray]:
    """Read TASK/METHOD -> predictions of all records (NaN: not judged) from `path`, or fit, and write it."""
    if not path.is_file():
        found: dict[str, np.ndarray] = {}
        for arms, splits in parts:
            fit(arms, splits, found)
        path.parent.mkdir(exist_ok=True)
        np.savez(path.with_suffix(".writing.npz"), **found)
        path.with_suffix(".writing.npz").rename(path)
    with np.load(path) as stored:
        return dict(stored)


def fit(arms: Arms, splits: list[Rows], found: dict[str, np.ndarray]) -> None:
    """Fit the default experts with and without the encoder, and put what both say of test rows into `found`."""
    for arm, experts in {"without": DEFAULT, "with": (*DEFAULT, "alone")}.items():
        features = {n: {"embedding": arms.encoder if n == "alone" else arms.features[n]} for n in experts}
        heads = EnsembleHeads(on_unusable="skip", device="cpu")
        targets = {task.name: arms.targets[task.name] for task in arms.tasks}
        seen = {"alone": np.flatnonzero(arms.seen)} if arm == "with" and arms.seen is not None else None
        heads.fit(features, targets, arms.tasks, splits=splits, groups=arms.patients, seen=seen)
        for f, (_, _, test) in enumerate(splits):
            held = {name: {"embedding": x["embedding"][test]} for name, x in features.items()}
            of = {arm: heads.predict_proba(held, fold=f)}
            if arm == "with":
                of |= heads.expert_predictions(held, fold=f)
            for method, of_tasks in of.items():
                for task, p in of_tasks.items():
                    empty = np.full((len(arms.patients), *p.shape[1:]), np.nan, np.float32)
                    found.setdefault(f"{task}/{method}", empty)[test] = p


def compare(
    task: TaskSpec,
    truth: np.ndarray,
    patients: np.ndarray,
    said: dict[str, np.ndarray],
    options: argparse.Namespace,
    group: np.ndarray | None = None,
    title: str = "",
) -> None:
    """Print each method's value and the differences with their 95 % intervals, patients resampled."""
    metric = HEADLINE[task.kind][0]
    methods = [key.split("/")[1] for key in said if key.split("/")[0] == task.name]
    rows = np.all([np.isfinite(said[f"{task.name}/{m}"].reshape(len(patients), -1)).all(1) for m in methods], 0)
    if group is not None:
        rows &= group
    names = patients[rows]
    index, n_patients = patient_index(names)
    scored: dict[str, Bootstrap] = {}
    for method in methods:
        p = said[f"{task.name}/{method}"][rows]
        block = PredictionBlock.of(names, names, names, np.zeros(len(names), int), truth[rows], p)
        scored[method] = bootstrap(make_scorer(task, block), index, n_patients, options.resamples)
    if not np.isfinite(scored["with"].values[metric]):
        return
    of = f" of {title}" if title else ""
    values = ", ".join(f"{m} {b.values[metric]:.4f}" for m, b in scored.items())
    print(f"{task.name}{of} ({metric}, {rows.sum()} records): {values}")
    for a, b in PAIRS:
        d = paired_difference(scored[a], scored[b], metric)
        print(f"    {a} minus {b}: {d.value:+.4f} ({d.low:+.4f} to {d.high:+.4f})")


if __name__ == "__main__":
    main()
