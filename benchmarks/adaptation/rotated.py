"""The tables of pretraining methods on one's own PTB-XL records, each judged by networks that never saw its patient.

    python -m benchmarks.adaptation.rotated --records PTBXL_FOLDER [--seeds 0,1,2,3,4] [--epochs 40,8] [--folder FOLDER]

Patients are dealt to five parts, alike in their superclasses. Seed k tests part k mod 5 and validates on the next one;
the backbone of seed k is pretrained on the signals of the other three parts alone, its probes and post-training learn
from the same patients. `--epochs P,F` are the epochs of pretraining and of fine-tuning, the same for all methods.

Every cell, a method and a seed, is a file in FOLDER: a killed run goes on, several may share the seeds, and the tables
hold the methods that all seeds have.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.adaptation.runs import ARMS, LONG_ARMS, RANDOM, ROTATIONS, VARIANTS, Arm, Bench, Cohort, Sizes, take
from benchmarks.adaptation.tables import print_arms, print_losses, print_mixes
from cache.records import open_records, write_records
from stages.ingest.folds import assign_folds, split_names, strata_of

TASKS = ("superclass", "subclass", "rhythm")
FURTHER_ARMS = {
    "random": Arm("plain fine-tuning of random weights", ARMS["plain"].change, backbone=RANDOM),
    "mild-30": Arm(f"{ARMS['mild'].title}, 30 % of the patients, as many steps", ARMS["mild"].change, 10 / 3, 0.3),
    "full-30": Arm(f"{ARMS['full'].title}, 30 % of the patients, as many steps", ARMS["full"].change, 10 / 3, 0.3),
    "ipastmem": Arm("probing, no stochastic depth, of IPASTMEM", ARMS["probing"].change, backbone="ipastmem"),
    "plain-long": LONG_ARMS["plain-long"],
    "full-long": LONG_ARMS["full-long"],
}


@dataclass(frozen=True)
class RotatedCohort(Cohort):
    """A cohort whose patients take turns, with arms that a small cohort does not need."""

    @property
    def arms(self) -> dict[str, Arm]:
        """What is tried on it."""
        return ARMS | FURTHER_ARMS


class RotatedBench(Bench):
    """Pretrains each seed's backbone on the training patients of its own turn."""

    def pretraining_records(self, seed: int) -> Path:
        """Return the table of the seed's turn."""
        return self.folder / "ptbxl" / f"records-{seed % ROTATIONS}.parquet"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=Path, help="folder of PTB-XL; ptbxl in ENSEMBLE_TEST_DATA if not given")
    parser.add_argument("--folder", type=Path, default=Path(".ensemble/rotated"), help="where cells are kept")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--epochs", default="40,8", help="of pretraining and of fine-tuning")
    parser.add_argument("--arms", default="", help="further arms: " + ", ".join(FURTHER_ARMS))
    options = parser.parse_args()
    options.records = options.records or Path(os.environ.get("ENSEMBLE_TEST_DATA", "nowhere"), "ptbxl")
    if not options.records.is_dir():
        print("needs --records FOLDER of PTB-XL, or ENSEMBLE_TEST_DATA with ptbxl: nothing done")
        return
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    sizes = sizes_of(options.epochs)
    folder = options.folder.resolve()
    cohort = prepare(folder, options.records)
    arms = [*ARMS, *(name for name in options.arms.split(",") if name)]
    bench = RotatedBench(folder, sizes)
    fit_mixes(bench, cohort, TASKS[:1], seeds)
    for arm in arms:
        for seed in seeds:
            bench.tuned(cohort, arm, seed)
    fit_mixes(bench, cohort, TASKS[1:], seeds)
    print_losses(bench, seeds)
    print_arms(bench, cohort, arms, seeds)
    for task in TASKS:
        print(f"\n#### Frozen layers: {task}")
        print_mixes(bench, probed(cohort, task), seeds)


def fit_mixes(bench: RotatedBench, cohort: RotatedCohort, tasks: tuple[str, ...], seeds: list[int]) -> None:
    """Fit the frozen layers' heads of every seed and variant."""
    for seed in seeds:
        for variant in (*VARIANTS, RANDOM):
            for task in tasks:
                bench.mixes(probed(cohort, task), variant, seed)


def sizes_of(epochs: str) -> Sizes:
    """Return the sizes of the other tables with `P,F` epochs."""
    pretraining, finetuning = (int(each) for each in epochs.split(","))
    plain = Sizes()
    return replace(
        plain,
        pretraining=replace(plain.pretraining, epochs=pretraining),
        finetuning=replace(plain.finetuning, epochs=finetuning),
    )


def prepare(folder: Path, source: Path) -> RotatedCohort:
    """Ingest the records, and write a table for each turn."""
    cohort = RotatedCohort(
        "ptbxl", "PTB-XL, each fifth of its patients in turn", folder / "ptbxl", "superclass", 1, True
    )
    whole = cohort.folder / "records.parquet"
    if not whole.is_file():
        take(replace(cohort, rotated=False), "ptbxl", source)
    for turn in range(ROTATIONS):
        if not cohort.records(turn).is_file():
            deal(whole, cohort.records(turn), turn)
    return cohort


def deal(records: Path, out: Path, turn: int) -> None:
    """Write the same records with the `turn`-th part of the patients as test, the next as validation split."""
    frame = open_records(records)
    targets = frame.attrs["targets"]
    strata = strata_of(frame, [targets["superclass"]])
    frame["fold"] = assign_folds(frame["patient_id"].tolist(), strata, n_folds=ROTATIONS, seed=0)
    frame["split"] = split_names(frame["fold"].to_numpy(), test=turn, val=(turn + 1) % ROTATIONS)
    write_records(out, frame, list(targets.values()))


def probed(cohort: RotatedCohort, task: str) -> RotatedCohort:
    """Return the cohort with another task for the frozen layers."""
    return replace(cohort, task=task, name=f"ptbxl-{task}")


if __name__ == "__main__":
    main()
