"""The metrics of a survival task again, record by record and pair by pair, as their papers write them.

Shares no code with `stages`: it reads predictions.parquet with pandas and knows its columns from docs/outputs.md.
"""

from pathlib import Path

import numpy as np
import pandas as pd


def read_method(path: Path, task: str, method: str) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Signed times [n], answer -> predictions [n], patients [n], of labelled test records."""
    table = pd.read_parquet(path)
    table = table[(table["task"] == task) & (table["method"] == method) & (table["split"] == "test")]
    wide = table.pivot(index=["record_id", "patient_id", "fold"], columns="class", values="y_pred").reset_index()
    truth = table[table["class"] == "log_hazard"].set_index(["record_id", "fold"])["y_true"]
    signed = truth.loc[list(zip(wide["record_id"], wide["fold"], strict=True))].to_numpy()
    known = ~np.isnan(signed)
    answers = {name: wide[name].to_numpy()[known] for name in wide if name.startswith(("log_", "survival_"))}
    return signed[known], answers, wide["patient_id"].to_numpy()[known]


def c_index(signed: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None) -> float:
    wins = total = 0.0
    for i in range(len(signed)):
        for j in range(len(signed)):
            t, u = signed[i], abs(signed[j])
            if t > 0 and (t < u or (t == u and signed[j] < 0)):
                w = 1.0 if weight is None else weight[i]
                total += w
                wins += w * (1.0 if score[i] > score[j] else 0.5 if score[i] == score[j] else 0.0)
    return wins / total


def free_of_censoring(signed: np.ndarray, moment: float, *, before: bool) -> float:
    """Kaplan-Meier of the censoring; events leave before censored records of the same time."""
    chance = 1.0
    for t in sorted({abs(s) for s in signed}):
        if t < moment or (t == moment and not before):
            at_risk = sum(abs(s) >= t for s in signed) - sum(s == t for s in signed)
            lost = sum(s == -t for s in signed)
            chance *= 1 - lost / at_risk if at_risk else 1.0
    return chance


def uno(signed: np.ndarray, score: np.ndarray, last: float) -> float:
    weight = np.array([free_of_censoring(signed, s, before=True) ** -2 if 0 < s <= last else 0.0 for s in signed])
    return c_index(signed, score, weight)


def auc_at(signed: np.ndarray, alive: np.ndarray, horizon: float) -> float:
    wins = total = 0.0
    for i, s in enumerate(signed):
        if 0 < s <= horizon:
            w = 1 / free_of_censoring(signed, s, before=True)
            for j, u in enumerate(np.abs(signed)):
                if u > horizon:
                    total += w
                    wins += w * (1.0 if alive[i] < alive[j] else 0.5 if alive[i] == alive[j] else 0.0)
    return wins / total


def brier_at(signed: np.ndarray, alive: np.ndarray, horizon: float) -> float:
    total = 0.0
    for s, p in zip(signed, alive, strict=True):
        if 0 < s <= horizon:
            total += p**2 / free_of_censoring(signed, s, before=True)
        elif abs(s) > horizon:
            total += (1 - p) ** 2 / free_of_censoring(signed, horizon, before=False)
    return total / len(signed)


def alive_at(signed: np.ndarray, horizon: float) -> float:
    chance = 1.0
    for t in sorted({s for s in signed if 0 < s <= horizon}):
        chance *= 1 - sum(s == t for s in signed) / sum(abs(s) >= t for s in signed)
    return chance


def calibration_error(signed: np.ndarray, alive: np.ndarray, horizon: float) -> float:
    order = sorted(range(len(alive)), key=lambda i: alive[i])
    parts = np.array_split(order, 5)
    gaps = [len(rows) * abs(alive[rows].mean() - alive_at(signed[rows], horizon)) for rows in parts]
    return sum(gaps) / len(signed)


def trapezoid(values: list[float], at: list[float]) -> float:
    areas = [(values[k] + values[k + 1]) / 2 * (at[k + 1] - at[k]) for k in range(len(at) - 1)]
    return sum(areas) / (at[-1] - at[0])
