"""A study's predictions, made up: every kind of task, good and bad methods, several ECGs a patient, missing labels."""

import numpy as np
import pandas as pd

from cache.records import Target, write_records
from stages.scoring.gate_weights import writing_gate_weights
from stages.scoring.predictions import open_predictions, writing_predictions
from stages.scoring.summary import summarise, write_metrics

TARGETS = {
    "age": Target("age", "regression", unit="years"),
    "gender": Target("gender", "binary", classes=("male", "female")),
    "report_label": Target("report_label", "multiclass", classes=("sinus rhythm", "AF", "paced", "other")),
    "superclass": Target("superclass", "multilabel", classes=("NORM", "MI", "STTC", "CD", "HYP")),
}
SKILLS = {"expert:morphology": 0.7, "expert:rocket": 1.3, "expert:ecgfm": 1.6, "mean": 1.5, "concat": 1.7, "gate": 2.0}
EXPERTS = ("morphology", "rocket", "ecgfm")


def truths(rng, n):
    """Truths of every task, with some labels missing."""
    y = {
        "age": rng.uniform(20, 90, n).round(),
        "gender": (rng.random(n) < 0.45).astype(float),
        "report_label": rng.choice(4, n, p=[0.6, 0.2, 0.05, 0.15]),
        "superclass": (rng.random((n, 5)) < [0.4, 0.25, 0.2, 0.2, 0.1]).astype(float),
    }
    y["age"][rng.random(n) < 0.05] = np.nan
    y["report_label"][rng.random(n) < 0.1] = -1
    y["superclass"][rng.random((n, 5)) < 0.03] = np.nan
    return y


def guess(rng, kind, y, skill):
    """A method's prediction: the truth seen through noise, less of it the more skilled."""
    if kind == "regression":
        return np.where(np.isnan(y), 55, y * 0.8 + 11) + rng.normal(0, 14 / (0.3 + skill), len(y))
    if kind == "multiclass":
        logits = skill * (y[:, None] == np.arange(4)) * 1.7 + rng.normal(0, 1, (len(y), 4)) + [1, 0, -1, 0]
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)
    logits = skill * (np.nan_to_num(y) * 2 - 1.2) + rng.normal(0, 1.2, y.shape)
    return np.round(1 / (1 + np.exp(-logits)), 2)


def write_study(folder, n=400, seed=0, folds=1):
    """Write predictions.parquet and gate_weights.parquet; return the records frame."""
    rng = np.random.default_rng(seed)
    record_ids = np.array([f"rec{i:05d}" for i in range(n)], dtype=object)
    patient_ids = np.array([f"pat{i:05d}" for i in rng.integers(0, n // 2, n)], dtype=object)
    y = truths(rng, n)
    fold = pd.factorize(patient_ids)[0] % folds
    with writing_predictions(folder / "predictions.parquet", TARGETS) as table:
        for name, target in TARGETS.items():
            for method, skill in {**SKILLS, "trivial": None}.items():
                p = _trivial(target.kind, y[name]) if skill is None else guess(rng, target.kind, y[name], skill)
                for k in range(folds):
                    rows = fold == k
                    table.add(
                        name,
                        method,
                        "test",
                        k,
                        record_ids=record_ids[rows],
                        patient_ids=patient_ids[rows],
                        y_true=y[name][rows],
                        y_pred=p[rows],
                    )
    with writing_gate_weights(folder / "gate_weights.parquet") as table:
        for name in TARGETS:
            weights = rng.dirichlet((1, 2, 4), n)
            for k in range(folds):
                rows = fold == k
                table.add(name, "test", k, record_ids=record_ids[rows], experts=EXPERTS, weights=weights[rows])
    return _records(rng, record_ids, patient_ids, y)


def _trivial(kind, y):
    if kind == "multiclass":
        return np.tile([0.6, 0.2, 0.05, 0.15], (len(y), 1))
    return np.broadcast_to(np.nanmean(y, axis=0), y.shape)


def _records(rng, record_ids, patient_ids, y):
    n = len(record_ids)
    bad = rng.random(n) < 0.03
    frame = pd.DataFrame({"record_id": record_ids, "patient_id": patient_ids, "source": "synthetic", "split": "test"})
    frame = frame.assign(path=frame["record_id"], sampling_rate_hz=500.0, n_samples=5000, fold=0)
    frame = frame.assign(nan_fraction=rng.random(n) * 0.02, clipped_fraction=0.0)
    frame["flat_leads"] = [["V1"] if flat else [] for flat in rng.random(n) < 0.04]
    frame["missing_leads"] = [["aVF"] if gone else [] for gone in rng.random(n) < 0.02]
    frame["status"] = np.where(bad, "bad", "ok")
    frame["reason"] = np.where(bad, "the signal file is truncated", None)
    frame["age"], frame["gender"] = y["age"], y["gender"]
    frame["report_label"] = pd.array(np.where(y["report_label"] < 0, None, y["report_label"]), dtype="Int16")
    frame["superclass"] = [
        None
        if np.isnan(row).all()
        else [name for name, v in zip(TARGETS["superclass"].classes, row, strict=True) if v == 1]
        for row in y["superclass"]
    ]
    frame.attrs["targets"] = TARGETS  # as `open_records` tells them
    return frame


def write_judged(folder):
    """Write records, predictions and metrics.json of a study of 300 records in two folds; returns the folder."""
    records = write_study(folder, n=300, folds=2)
    write_records(folder / "records.parquet", records, list(TARGETS.values()))
    metrics = summarise(open_predictions(folder / "predictions.parquet"), records, n_resamples=60)
    write_metrics(folder / "metrics.json", metrics, folder / "predictions.parquet")
    return folder
