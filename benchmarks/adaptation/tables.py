"""The tables of pretraining and post-training in Markdown: values over seeds, differences with their intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd

from benchmarks.adaptation.over_seeds import Measured, difference_text, print_table
from benchmarks.adaptation.runs import ARMS, MIXES, RANDOM, VARIANTS, Bench, Cohort
from cache.records import Target, open_records, target_array
from stages.scoring.blocks import PredictionBlock
from stages.scoring.bootstrap import bootstrap, patient_index
from stages.scoring.metrics import make_scorer

METRICS = {"auroc_macro": "AUROC", "auprc_macro": "AUPRC"}
PROBE = "probe alone (stage 1)"


def measure(cohort: Cohort, runs: list[dict[str, np.ndarray]], what: str, seeds: list[int]) -> Measured:
    """Score one kind of predictions of every seed, resampling the patients that any seed tests."""
    tables = [open_records(cohort.records(seed)) for seed in seeds]
    target = tables[0].attrs["targets"][cohort.task]
    parts = [table.iloc[run["rows"]]["patient_id"].to_numpy(str) for table, run in zip(tables, runs, strict=True)]
    index, n_patients = patient_index(np.concatenate(parts))
    patients = np.split(index, np.cumsum([len(part) for part in parts])[:-1])
    joined = zip(tables, runs, patients, strict=True)
    scored = ((make_scorer(target, block_of(table, run, what, target)), rows) for table, run, rows in joined)
    return Measured([bootstrap(scorer, rows, n_patients) for scorer, rows in scored])


def block_of(records: pd.DataFrame, run: dict[str, np.ndarray], what: str, target: Target) -> PredictionBlock:
    """Join predictions with the truth."""
    frame = records.iloc[run["rows"]]
    record_id, patient_id, split, fold = (frame[c].to_numpy() for c in ("record_id", "patient_id", "split", "fold"))
    return PredictionBlock.of(record_id, patient_id, split, fold, target_array(records, target)[run["rows"]], run[what])


def print_losses(bench: Bench, seeds: list[int]) -> None:
    """Print what pretraining came to."""
    for variant, title in VARIANTS.items():
        losses = [np.load(bench.backbone(variant, seed).parent / "losses.npy") for seed in seeds]
        train, validation = np.mean(losses, axis=0)
        print(f"{title}: pretraining loss {train:.3f}, validation {validation:.3f} (mean of {len(seeds)} seeds)")


def print_arms(bench: Bench, cohort: Cohort, names: list[str], seeds: list[int]) -> None:
    """Print the table of post-training."""
    arms = {arm: [bench.tuned(cohort, arm, seed) for seed in seeds] for arm in names}
    n_train = np.mean([int(run["n_train"]) for run in arms["plain"]])
    n_test = np.mean([len(run["rows"]) for run in arms["plain"]])
    print(f"\n### {cohort.title}: {cohort.task}, {n_train:.0f} training and {n_test:.0f} test records a seed")
    found = {PROBE: measure(cohort, arms["plain"], "probe", seeds)}
    found |= {cohort.arms[arm].title: measure(cohort, runs, "tuned", seeds) for arm, runs in arms.items()}
    print_table(found, [ARMS["plain"].title, PROBE], METRICS)


def print_mixes(bench: Bench, cohort: Cohort, seeds: list[int]) -> None:
    """Print the table of layer mixes."""
    mixes = {
        f"{title}, {words}": measure(cohort, [bench.mixes(cohort, variant, s) for s in seeds], kind, seeds)
        for variant, title in {**VARIANTS, RANDOM: "random weights"}.items()
        for kind, words in MIXES.items()
    }
    print_table(mixes, [f"ST-MEM, {MIXES['last']}"], METRICS)
    print()
    for words in MIXES.values():
        a, b = mixes[f"IPASTMEM, {words}"], mixes[f"ST-MEM, {words}"]
        differences = "; ".join(f"{title} {difference_text(*a.minus(b, metric))}" for metric, title in METRICS.items())
        print(f"- IPASTMEM minus ST-MEM, {words}: {differences}")
