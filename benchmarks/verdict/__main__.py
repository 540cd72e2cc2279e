"""Which method is best: gate, stacking, mean, concatenation and single experts over many cohorts, tasks and sizes.

    python -m benchmarks.verdict FOLDER --data DATA        ingest, embed, fit, print the table; goes on where it was
    python -m benchmarks.verdict FOLDER --data DATA --only embed
    python -m benchmarks.verdict FOLDER --data DATA --only table --label before

DATA holds `ptbxl-all`, `quality`, `ludb` and `challenge2021` (those that are not there are left out); three generated
cohorts are made. An instance is a cohort, a set of experts, a number of labelled patients and a task. Patients are
rotated: every record is tested once, by a fit that has seen none of its patient's records; labelled patients are
drawn from the others, smaller draws inside larger ones; a quarter of them validates. All methods see the same rows.
`best_single` is the expert with the lowest out-of-sample loss in that fit, never the one that tests best. Intervals are
95 %, from a bootstrap of patients, paired. `flat` is the gate's fit without what classes get of their parents. On
PTB-XL `seed` has learnt the labels: `benchmarks.verdict.parts` says what takes its place.

Vectors lie in FOLDER/COHORT/vectors, predictions in FOLDER/predictions/LABEL: give a new label to a new version of the
code, and nothing is embedded again.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks.verdict.cohorts import COHORTS, N_FOLDS, embed, experts_asked, ingest, is_there
from benchmarks.verdict.fitting import fit
from benchmarks.verdict.parts import Encoders, experts_of
from benchmarks.verdict.scoring import instances
from benchmarks.verdict.table import print_table


def data_folder() -> Path | None:
    """Return the folder that ENSEMBLE_TEST_DATA names, if it is there."""
    named = os.environ.get("ENSEMBLE_TEST_DATA")
    return Path(named) if named and Path(named).is_dir() else None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verdict", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path(".ensemble/verdict"))
    parser.add_argument("--data", type=Path, help="folder of the unpacked collections; ENSEMBLE_TEST_DATA if not given")
    parser.add_argument("--only", choices=("embed", "fit", "table"))
    parser.add_argument("--cohorts", default=",".join(COHORTS))
    parser.add_argument("--label", default="now", help="of this version of the code")
    parser.add_argument("--generated-records", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=1000, help="of the patients")
    parser.add_argument("--rotations", type=int, default=N_FOLDS, help="of five, so many are fitted and tested")
    parser.add_argument("--encoders", type=Path, help="folder of weights.seed_expert: `seed` on PTB-XL; else seed-ssl")
    parser.add_argument("--members", type=int, default=2, help="networks side by side in each of them")
    options = parser.parse_args()
    encoders = None if options.encoders is None else Encoders(options.encoders, options.members)
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
            for expert in experts_of(name, experts_asked(cohort), encoders):
                embed(options.folder / name, expert)
    results = options.folder / "predictions" / options.label
    if options.only in (None, "fit"):
        for name, cohort in chosen.items():
            for key, size in cohort.settings:
                fit(options.folder / name, key, size, results, options.rotations, encoders)
    if options.only in (None, "table"):
        print_table(list(instances(results, tuple(chosen), options.resamples)))


if __name__ == "__main__":
    main()
