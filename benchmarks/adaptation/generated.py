"""Do pretraining and post-training help? Tables for docs/methods.md, on the generated cohort and on PTB-XL.

    ENSEMBLE_TEST_DATA=... python -m benchmarks.adaptation.generated [--folder FOLDER] [--seeds 0,1,2,3,4] [--quick]

A small ST-MEM and its IPASTMEM variant are pretrained on the generated cohort's training patients, once per seed and
for the same steps; each is then probed and post-trained, with the same seed, on a share of the generated cohort's
patients and on PTB-XL's (`$ENSEMBLE_TEST_DATA/ptbxl`), by its published folds (1-8, 9, 10) and rotated: seed k tests
the k-th fifth of the folds, so that each record is tested once.

Every run is kept in FOLDER: a killed benchmark goes on where it stopped, several may share the seeds among them, and a
last one over all seeds prints all tables.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.adaptation.runs import (
    FINETUNING,
    PRETRAINING,
    RANDOM,
    ROTATIONS,
    VARIANTS,
    Bench,
    Cohort,
    Sizes,
    take,
)
from benchmarks.adaptation.tables import print_arms, print_losses, print_mixes
from cache.records import open_records, write_records
from stages.synthetic import GeneratePaths, GenerateSettings
from stages.synthetic import run as generate

QUICK = Sizes(
    records=160,
    fraction=1.0,
    pretraining=replace(PRETRAINING, epochs=1, batch_size=64),
    finetuning=replace(FINETUNING, epochs=1),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(".ensemble/adaptation"), help="where runs are kept")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="these alone; empty: only prepare the cohorts")
    parser.add_argument("--quick", action="store_true", help="a check of the program: its figures mean nothing")
    parser.add_argument("--cohorts", default="", help="generated, ptbxl, ptbxl-rotated; all if not given")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = QUICK if options.quick else Sizes()
    folder = options.folder.resolve() / ("quick" if options.quick else "full")
    wanted = [name for name in options.cohorts.split(",") if name]
    cohorts = [c for c in prepare_cohorts(folder, sizes) if not wanted or c.name in wanted]
    seeds = [int(seed) for seed in options.seeds.split(",") if seed]
    bench = Bench(folder, sizes)
    for variant in VARIANTS:
        for seed in seeds:
            bench.backbone(variant, seed)
    for cohort in cohorts:
        for seed in seeds:
            for variant in (*VARIANTS, RANDOM):
                bench.mixes(cohort, variant, seed)
            for arm in cohort.arms:
                bench.tuned(cohort, arm, seed)
    if seeds:
        print_tables(bench, cohorts, seeds)


def prepare_cohorts(folder: Path, sizes: Sizes) -> list[Cohort]:
    """Make what is not there yet; PTB-XL only where $ENSEMBLE_TEST_DATA names it."""
    found = [Cohort("generated", "Generated cohort", folder / "generated", "report_label", sizes.fraction)]
    source = found[0].folder / "source"
    if not found[0].records(0).is_file():
        generate(GenerateSettings(records=sizes.records, seed=7), GeneratePaths(source))
        take(found[0], "mimic-iv-ecg", source)
    if not (data := os.environ.get("ENSEMBLE_TEST_DATA")):
        print("ENSEMBLE_TEST_DATA is not set: without PTB-XL")
        return found
    ptbxl = Cohort("ptbxl", "PTB-XL, folds 1-8 / 9 / 10", folder / "ptbxl", "superclass", 1.0)
    rotated = Cohort("ptbxl-rotated", "PTB-XL, each fifth of its folds in turn", ptbxl.folder, "superclass", 1.0, True)
    if not ptbxl.records(0).is_file():
        take(ptbxl, "ptbxl", Path(data) / "ptbxl")
    for turn in range(ROTATIONS):
        if not rotated.records(turn).is_file():
            rotate(ptbxl.records(0), rotated.records(turn), turn)
    return [*found, ptbxl, rotated]


def rotate(records: Path, out: Path, turn: int) -> None:
    """Write the same records with the `turn`-th fifth of the ten folds as test, the next as validation split."""
    frame = open_records(records)
    targets = list(frame.attrs["targets"].values())
    place = (frame["fold"].to_numpy() // 2 - turn) % ROTATIONS
    frame["split"] = np.where(place == 0, "test", np.where(place == 1, "val", "train"))
    write_records(out, frame, targets)


def print_tables(bench: Bench, cohorts: list[Cohort], seeds: list[int]) -> None:
    """Print everything as Markdown."""
    print_losses(bench, seeds)
    for cohort in cohorts:
        print_arms(bench, cohort, list(cohort.arms), seeds)
        print_mixes(bench, cohort, seeds)


if __name__ == "__main__":
    main()
