"""Train encoders of all patients, for the package, and five that have each not seen a fifth of them, which judge.

    python -m weights.seed_expert FOLDER encoders --data DATA [--folds all,0,1,2,3,4] [--members 3]     of `seed`
    python -m weights.seed_expert FOLDER signals --data DATA [--folds all,0,1,2,3,4]                    of `seed-ssl`

DATA/ptbxl-all is PTB-XL in its own layout, or a part of it. Patients are rotated as in benchmarks/verdict. Encoder k
learns from PTB-XL's folds 1 to 8 but for the patients of rotation k, by the recipe weights/seed.yaml, and so does its
teacher: what it says of rotation j comes from a fit that has seen neither k nor j. Encoder `all` learns from all
patients of these folds; its teacher has not seen the rotation that it speaks of. `seed-ssl` learns from signals
alone, by weights/seed_ssl.yaml. Each network is a folder, FOLDER/encoders/K (or K-MEMBER) or FOLDER/signals/K; a run
that was killed goes on.

`weights.judge_seed` says what they are worth, `weights.pack_seed` puts them into the package.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from safetensors.torch import load_file

from benchmarks.verdict.cohorts import COHORTS, embed, ingest, read_study
from cache.records import Target, open_records, target_array, write_records
from cache.signals import open_signals
from stages.experts import load_expert
from stages.experts.run import run_expert
from stages.heads import EnsembleHeads, TaskSpec
from stages.heads.crossfit import inner_folds
from stages.scoring.predictions import writing_predictions
from weights.pack_seed import readout
from weights.signal_targets import signal_targets

RECIPE = Path(__file__).with_name("seed.yaml")
EXPERTS = {"encoders": "seed", "signals": "seed-ssl"}
VERSIONS = {"seed": "seed+ptbxl", "seed-ssl": "seed+signals"}
"""Expert of the package -> the version that a recipe makes of it."""
RECIPES = {"seed": RECIPE, "seed-ssl": RECIPE.with_name("seed_ssl.yaml")}
DEFAULT = ("rocket", "morphology")
N_FOLDS, LEARNT_FOLDS = 5, range(8)
ALL = -1
"""The rotation that nobody is in: `all` on the command line and in names of files."""
BATCH = 64
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

    def records_without(self, k: int) -> pd.DataFrame:
        """Return the table of records, in which rows that encoder k learns from are the training split."""
        records = open_records(self.folder / "records.parquet")
        records["split"] = "test"
        records.loc[self.learnt(k), "split"] = "train"
        return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("what", choices=tuple(EXPERTS))
    parser.add_argument("--data", type=Path, help="folder of the unpacked collections; needed the first time")
    parser.add_argument("--folds", default="0,1,2,3,4", help="rotations that the encoders have not seen; all: none")
    parser.add_argument("--members", type=int, default=1, help="networks side by side in each encoder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(options.folder / "ptbxl")
    if options.data is not None:
        ingest("ptbxl", COHORTS["ptbxl"], options)
        for name in DEFAULT:
            embed(study.folder, name)
    folds = [ALL if k == _name(ALL) else int(k) for k in options.folds.split(",")]
    for member, k in itertools.product(range(options.members), folds):
        train(options.folder, study, k, member, EXPERTS[options.what])


def train(folder: Path, study: Study, k: int, member: int, expert: str) -> None:
    """Train a network of encoder k by the recipe and embed all records; a finished step is not done again."""
    home = home_of(folder, expert, k, member)
    if (final := home / f"{expert}.npz").is_file():
        return
    home.mkdir(parents=True, exist_ok=True)
    recipe = {**yaml.safe_load(RECIPES[expert].read_text()), "seed": member}
    if not (home / "signals.zarr").is_symlink():
        (home / "signals.zarr").symlink_to((study.folder / "signals.zarr").resolve())
    prepare = with_labels if expert == "seed" else with_components
    prepare(home, study, k, recipe)
    (home / "params.yaml").write_text(yaml.safe_dump(recipe))
    version = home / "weights" / "versions" / VERSIONS[expert]
    if not (version / "version.json").is_file():
        subprocess.run(["ensemble", "posttrain", "--name", VERSIONS[expert]], check=True, cwd=home)
    np.savez(home / "writing.npz", embedding=embedded(study, version / "model.safetensors"))
    (home / "writing.npz").rename(final)


def with_labels(home: Path, study: Study, k: int, recipe: dict[str, Any]) -> None:
    """Write the records, of which rotation k does not teach, and what their teacher says."""
    if not (teacher := home.parents[1] / "teachers" / f"{_name(k)}.parquet").is_file():
        teach(teacher.parent, study)
    shutil.copy(teacher, home / recipe["posttrain"][VERSIONS["seed"]]["teacher"])
    if not (home / "records.parquet").is_file():
        records = study.records_without(k)
        write_records(home / "records.parquet", records, list(records.attrs["targets"].values()))


def with_components(home: Path, study: Study, k: int, recipe: dict[str, Any]) -> None:
    """Write the records with components of the default experts' vectors as their only targets."""
    found = signal_targets(study.features, study.learnt(k))
    recipe["posttrain"][VERSIONS["seed-ssl"]]["task"] = ",".join(found)
    if not (home / "records.parquet").is_file():
        table = study.records_without(k)
        records = pd.concat([table, pd.DataFrame(found, index=table.index)], axis=1)
        write_records(home / "records.parquet", records, [Target(name, "regression", unit="1") for name in found])


def embedded(study: Study, weights: Path) -> np.ndarray:
    """Embed all records by one network."""
    expert = load_expert("seed", weights, {"members": 1, "logits": 0})
    signals = open_signals(study.folder / "signals.zarr")
    starts = range(0, len(signals), BATCH)
    parts = (signals.read_mv(slice(start, min(start + BATCH, len(signals)))) for start in starts)
    return np.concatenate([run_expert(expert, expert.prepare(part, 500)).embedding for part in parts])


def home_of(folder: Path, expert: str, k: int, member: int) -> Path:
    """Return the folder of one network."""
    name = f"{_name(k)}-{member}" if member else _name(k)
    return folder / ("encoders" if expert == "seed" else "signals") / name


def _name(k: int) -> str:
    return "all" if k == ALL else str(k)


def vectors(folder: Path, expert: str, k: int, members: int, *, logits: bool = True) -> np.ndarray:
    """Return what encoder k gives of all records, its networks side by side as in the package [record, width].

    Parameters
    ----------
    logits
        Whether what each network says follows what it sees.
    """
    parts = []
    for member in range(members):
        home = home_of(folder, expert, k, member)
        with np.load(home / f"{expert}.npz") as stored:
            embedding = stored["embedding"]
        parts.append(embedding)
        if logits:
            made = readout(load_file(home / "weights" / "versions" / VERSIONS[expert] / "head.safetensors"))
            parts.append(embedding.astype(np.float32) @ made["weight"].numpy().T + made["bias"].numpy())
    return np.concatenate(parts, axis=1)


def teach(folder: Path, study: Study) -> None:
    """Write FOLDER/teachers/K.parquet: what default ensembles that have seen neither K nor a patient say of them."""
    records, names = open_records(study.folder / "records.parquet"), yaml.safe_load(RECIPE.read_text())["tasks"]
    targets = {name: records.attrs["targets"][name] for name in names}
    values = {name: target_array(records, target) for name, target in targets.items()}
    tasks = tuple(TaskSpec(t.name, t.kind, t.classes, t.unit) for t in targets.values())
    allowed = np.isin(records["fold"], LEARNT_FOLDS)
    left_out = [pair for count in (2, 1) for pair in itertools.combinations(range(N_FOLDS), count)]
    parts = [np.isin(study.fold, rotations) for rotations in left_out]
    splits = [
        split_rows(np.flatnonzero(allowed & ~out), np.flatnonzero(allowed & out), study.patients) for out in parts
    ]
    heads = EnsembleHeads(on_unusable="skip", device="cpu")
    features = {name: {"embedding": x} for name, x in study.features.items()}
    heads.fit(features, values, tasks, splits=splits, groups=study.patients)
    folder.mkdir(parents=True, exist_ok=True)
    for k in (*range(N_FOLDS), ALL):
        with writing_predictions(folder / f"{_name(k)}.parquet", targets) as writer:
            for f, rotations in enumerate(left_out):
                test = splits[f][2]
                rows = test[study.fold[test] == judged_rotation(rotations, k)]
                if len(rows):
                    held = {name: {"embedding": x[rows]} for name, x in study.features.items()}
                    for task, said in heads.predict_proba(held, fold=f).items():
                        frame = records.iloc[rows]
                        ids = {name: frame[name[:-1]].to_numpy() for name in ("record_ids", "patient_ids")}
                        writer.add(task, "gate", "test", f, **ids, y_true=values[task][rows], y_pred=np.asarray(said))


def judged_rotation(left_out: tuple[int, ...], k: int) -> int | None:
    """Return the rotation of which a fit without `left_out` teaches encoder k, or None where it does not."""
    others = set(left_out) - {k}
    return others.pop() if len(others) == 1 and (k in left_out or k == ALL) else None


def split_rows(known: np.ndarray, test: np.ndarray, patients: np.ndarray) -> Rows:
    """Divide `known` into training and validation rows by patient."""
    order = np.random.default_rng(1).permutation(np.unique(patients[known]))
    validating = np.isin(patients[known], order[: len(order) // 5])
    return known[~validating], known[validating], test


if __name__ == "__main__":
    main()
