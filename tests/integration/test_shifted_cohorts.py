"""Two generated cohorts of other prevalence, noise and age: in one study by source, and one judged by the other's fit.

Every figure is recomputed from predictions.parquet by other code.
"""

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss, mean_absolute_error, roc_auc_score

pytestmark = pytest.mark.slow
HOME = {"n": 150, "prevalence": 0.3, "ages": (25, 65), "noise": 0.02, "seed": 1}
AWAY = {"n": 130, "prevalence": 0.75, "ages": (50, 90), "noise": 0.25, "seed": 2}


def write_source(folder: Path, n: int, prevalence: float, ages: tuple[int, int], noise: float, seed: int) -> None:
    """Write beats whose rate tells the age and whose height tells who is ill."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    age, ill = rng.uniform(*ages, n).round(1), (rng.random(n) < prevalence).astype(int)
    time = np.arange(5000) / 500
    height = 1 + 0.5 * ill + rng.normal(0, 0.25, n)
    beats = height[:, None] * np.sin(2 * np.pi * (0.6 + age[:, None] / 100) * time) ** 21
    ecgs = beats[:, None] * rng.uniform(0.5, 1.5, (1, 12, 1)) + rng.normal(0, noise, (n, 12, 5000))
    np.save(folder / "ecgs.npy", ecgs.astype(np.float32))
    pd.DataFrame({"patient_id": [f"p{k}" for k in range(n)], "age": age, "ill": ill}).to_csv(
        folder / "labels.csv", index=False
    )


def section(path):
    options = {"file": "ecgs.npy", "rate_hz": 500, "labels": "labels.csv"}
    return {"source": "arrays", "path": str(path), "options": options}


def make_study(folder, tiny, monkeypatch, **params):
    folder.mkdir()
    content = {
        "experts": {"ecgfm": {"weights": str(tiny.weights), "config": tiny.config}},
        "machine": {"device": "cpu", "workers": 1},
        "evaluate": {"bootstrap": 200},
        "tasks": ["age", "ill"],
    }
    (folder / "params.yaml").write_text(yaml.safe_dump({**content, **params}, sort_keys=False))
    monkeypatch.chdir(folder)


def do(ensemble, *commands):
    for command in commands:
        done = ensemble(*command.split())
        assert done.returncode == 0, done.stderr


def rows_of(path, task, method="gate"):
    frame = pd.read_parquet(path)
    frame = frame[(frame["task"] == task) & (frame["method"] == method) & (frame["split"] == "test")]
    return frame[frame["y_true"].notna()].sort_values("record_id")


@pytest.fixture
def sources(tmp_path):
    write_source(tmp_path / "home-data", **HOME)
    write_source(tmp_path / "away-data", **AWAY)
    return tmp_path


def test_leave_source_out_is_judged_by_source(sources, tiny_ecgfm, monkeypatch, ensemble):
    cohorts = {"home": section("../home-data"), "away": section("../away-data")}
    make_study(sources / "both", tiny_ecgfm, monkeypatch, cohorts=cohorts, fit_heads={"folds": "source"})
    do(ensemble, "ingest", "embed --expert ecgfm", "fit-heads", "evaluate", "report")
    metrics = json.loads(Path("metrics.json").read_text())
    for task, metric, score in (("ill", "auroc", roc_auc_score), ("age", "mae", mean_absolute_error)):
        rows = rows_of("predictions.parquet", task)
        groups = metrics["tasks"][task]["subgroups"]["source"]
        for fold, (name, n) in enumerate((("away", AWAY["n"]), ("home", HOME["n"]))):
            part = rows[rows["record_id"].str.startswith(f"{name}/")]
            assert set(part["fold"]) == {fold}
            assert len(part) == groups[name]["n"] == n
            found = groups[name]["methods"]["gate"][metric]["value"]
            assert found == pytest.approx(score(part["y_true"], part["y_pred"]))
    report = Path("report.html").read_text()
    assert f"source away ({AWAY['n']})" in report


def test_a_fit_is_judged_on_other_people(sources, tiny_ecgfm, monkeypatch, ensemble):
    make_study(sources / "home", tiny_ecgfm, monkeypatch, cohort=section("../home-data"))
    do(ensemble, "ingest", "embed --expert ecgfm", "fit-heads", "evaluate")
    fits = {"home": {"study": "../home", "recalibrated_on": [40]}}
    evaluate = {"bootstrap": 200, "fits": fits}
    make_study(sources / "away", tiny_ecgfm, monkeypatch, cohort=section("../away-data"), evaluate=evaluate)
    do(ensemble, "ingest", "embed --expert ecgfm", "evaluate --fit home")
    metrics = json.loads(Path("external/home/metrics.json").read_text())
    rows = rows_of("external/home/predictions.parquet", "ill")
    assert len(rows) == AWAY["n"]
    drop, home = metrics["transfer"]["ill"]["auroc"], rows_of("../home/predictions.parquet", "ill")
    here, there = (roc_auc_score(part["y_true"], part["y_pred"]) for part in (rows, home))
    assert drop["difference"]["value"] == pytest.approx(here - there)
    _check_calibration(metrics["calibration"]["ill"], rows)
    _check_recalibration(metrics["recalibration"]["ill"], rows)
    in_the_large = metrics["calibration"]["ill"]["in_the_large"]
    assert in_the_large["low"] > 0  # more of them are ill than at home, and the fit does not know
    (entry,) = metrics["recalibration"]["ill"]
    assert entry["log_loss"]["intercept"]["value"] < entry["log_loss"]["before"]["value"]


def _line(x, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LogisticRegression(C=1e12, tol=1e-10, max_iter=5000).fit(x[:, None], y)


def _check_calibration(found, rows):
    x, y = logit(np.clip(rows["y_pred"].to_numpy(float), 1e-6, 1 - 1e-6)), rows["y_true"].to_numpy()
    line = _line(x, y)
    assert found["slope"]["value"] == pytest.approx(line.coef_[0, 0], abs=2e-3)
    assert found["intercept"]["value"] == pytest.approx(line.intercept_[0], abs=2e-3)
    # at the maximum of the likelihood as many are predicted as there are
    assert expit(x + found["in_the_large"]["value"]).mean() == pytest.approx(y.mean(), abs=1e-5)


def _check_recalibration(found, rows):
    """Fit the lines of every draw with another package."""
    (entry,) = found
    x, y = logit(np.clip(rows["y_pred"].to_numpy(float), 1e-6, 1 - 1e-6)), rows["y_true"].to_numpy()
    patients = rows["patient_id"].astype(str).to_numpy()
    everybody, rng = np.unique(patients), np.random.default_rng([0, 40])
    parts = []
    for _ in range(entry["draws"]):
        fitted = np.isin(patients, rng.choice(everybody, 40, replace=False))
        line = _line(x[fitted], y[fitted])
        bent = expit(line.intercept_[0] + line.coef_[0, 0] * x)
        parts.append([m(y[~fitted], p[~fitted]) for p in (expit(x), bent) for m in (brier_score_loss, log_loss)])
    wanted = np.mean(parts, axis=0)
    ways = ("before", "intercept_and_slope")
    values = [entry[metric][way]["value"] for way in ways for metric in ("brier", "log_loss")]
    assert values == pytest.approx(wanted, abs=2e-3)
