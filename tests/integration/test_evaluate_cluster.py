"""`ensemble evaluate --scheduler`: whoever resamples, and whoever dies at it, metrics.json has the same bytes."""

import json
import os
import pickle
import shutil
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cache.embeddings import Identity, Layout, Shard
from cache.record_rows import RecordRows
from cache.records import BASE_COLUMNS, Target, open_records, write_records
from cache.upkeep.resume import create_embeddings
from pipeline.compute.evaluation import _on_cluster, run_evaluate
from stages import fit_heads
from stages.evaluate import EvaluatePaths, EvaluateSettings
from stages.evaluate.learning_curve import learning_curve
from stages.external import ExternalFit, ExternalPaths, ExternalSettings
from stages.external import stage as external
from stages.scoring.comparison import Draws, one_by_one
from stages.scoring.predictions import open_predictions
from stages.scoring.summary import summarise, write_metrics
from tests.stages.synthetic_predictions import write_judged

RESAMPLES = 60


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Predictions of two folds with subgroups, judged in one process."""
    return write_judged(tmp_path_factory.mktemp("judged"))


def judged_by(study, resample, name, n=RESAMPLES) -> bytes:
    predictions, records = study / "predictions.parquet", open_records(study / "records.parquet", without=("notes",))
    found = summarise(open_predictions(predictions), records, n_resamples=n, resample=resample)
    write_metrics(study / name, found, predictions)
    return (study / name).read_bytes()


def test_resamplings_may_travel_and_end_in_any_order(study):
    """As tasks do: pickled, each by itself, the last one first."""
    asked_at_once = []

    def elsewhere(asked):
        asked_at_once.append(len(asked))
        sent = [pickle.dumps(each) for each in asked]
        done = [pickle.dumps(pickle.loads(each)()) for each in reversed(sent)]
        return (pickle.loads(each) for each in reversed(done))

    assert judged_by(study, elsewhere, "elsewhere.json") == (study / "metrics.json").read_bytes()
    assert max(asked_at_once) >= 4, "all methods of a task are asked for at once"


class Elsewhere:
    """Resamples what travelled, and counts it."""

    n_asked = 0

    def __call__(self, asked):
        self.n_asked += len(asked)
        return iter([pickle.loads(pickle.dumps(each))() for each in asked])


def test_a_learning_curve_is_resampled_elsewhere_too(study, tmp_path):
    name, elsewhere = "fraction-0.5-seed-0", Elsewhere()
    shutil.copy(study / "predictions.parquet", tmp_path / f"{name}.parquet")
    (tmp_path / f"{name}.json").write_text("{}")
    metrics = json.loads((study / "metrics.json").read_text())
    here = learning_curve(None, tmp_path, (0.5, 1.0), metrics, Draws(10, 0), print)
    assert learning_curve(None, tmp_path, (0.5, 1.0), metrics, Draws(10, 0), print, elsewhere) == here
    assert elsewhere.n_asked >= 4, "the methods of the share"


def test_another_studys_fit_is_resampled_elsewhere_too(study):
    fit = ExternalFit(study=".", recalibrated_on=())
    settings = ExternalSettings(name="a", fit=fit, seed=0).model_copy(update={"bootstrap": 10})
    paths = ExternalPaths(study, study, {}, study, study / "predictions.parquet", study, study)
    predictions = open_predictions(study / "predictions.parquet")
    predictions.tasks = {"gender": predictions.tasks["gender"]}

    def judged(resample):
        return json.dumps(external._metrics(settings, paths, predictions, None, print, resample))

    elsewhere = Elsewhere()
    assert judged(elsewhere) == judged(one_by_one)
    assert elsewhere.n_asked >= 6, "each method, and two for what is lost"


@pytest.mark.slow
def test_workers_may_die_and_join(study):
    from distributed import Client, LocalCluster

    whole = judged_by(study, one_by_one, "here.json", n=2000)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        killed = []

        def kill():
            time.sleep(0.5)
            killed.append(next(iter(cluster.workers.values())).pid)
            os.kill(killed[0], signal.SIGKILL)
            cluster.scale(3)

        other = threading.Thread(target=kill)
        other.start()
        resample = partial(_on_cluster, client, cluster.scheduler_address)
        assert judged_by(study, resample, "cluster.json", n=2000) == whole
        assert not other.is_alive(), "the worker died while the others were at work"
        other.join()


def write_fitted(folder: Path) -> Callable[[str], EvaluatePaths]:
    """Write a study of vectors that are given, and its fit; gives where an evaluation of a name reads and writes."""
    n, rng = 600, np.random.default_rng(0)
    x = rng.normal(size=(n, 4)).astype(np.float16)
    frame = pd.DataFrame({name: [None] * n for name in BASE_COLUMNS})
    frame["record_id"], frame["patient_id"] = [f"r{k}" for k in range(n)], [f"p{k // 2}" for k in range(n)]
    frame["source"], frame["status"], frame["fold"] = "one", "ok", np.arange(n) // 2 % 4
    frame["split"] = np.select([frame["fold"] == 3, frame["fold"] == 2], ["test", "val"], "train")
    frame["sex"] = (x[:, 0] + rng.normal(size=n) > 0).astype(int)
    write_records(folder / "records.parquet", frame, [Target("sex", "binary", classes=("f", "m"))])
    digest = RecordRows(folder / "records.parquet").digest()
    store = create_embeddings(folder / "a.zarr", Layout(n, ("x",), (4,), 4), Identity({"expert": "a"}, "", digest))
    store.write(0, Shard(x[:, None], x))
    common = folder / "records.parquet", folder / "signals.zarr", {"a": store.path}, folder / "heads"
    options = {"lora": False, "gate_epochs": 0, "share_tasks": False, "strengths": (1.0,)}
    fit_heads.run(fit_heads.FitHeadsSettings(options=options), fit_heads.FitHeadsPaths(*common))

    def paths(name: str) -> EvaluatePaths:
        out = folder / name
        out.mkdir()
        files = ("predictions.parquet", "gate_weights.parquet", "metrics.json", "headline.json", "evaluation.json")
        return EvaluatePaths(
            *common, *(out / file for file in files), out / "finished", decisions=out / "decisions.json"
        )

    return paths


@pytest.mark.slow
def test_a_worker_may_die_while_it_resamples_a_learning_curve(tmp_path):
    from distributed import LocalCluster

    paths_of, settings = write_fitted(tmp_path), EvaluateSettings(bootstrap=20_000, fractions=(0.5, 1.0))
    run_evaluate(settings, paths_of("here"), None)
    killed, fitted = [], threading.Event()
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:

        def kill_the_first_at_work():
            fitted.wait()
            while not killed:
                for worker in list(cluster.scheduler.workers.values()):
                    if any("resampled" in str(task.key) for task in list(worker.processing)):
                        pid = next(
                            nanny.pid for nanny in cluster.workers.values() if nanny.worker_address == worker.address
                        )
                        os.kill(pid, signal.SIGKILL)
                        killed.append(pid)
                        break
                time.sleep(0.01)

        def told(name):
            if name.startswith("gate on 50%"):
                fitted.set()

        other = threading.Thread(target=kill_the_first_at_work, daemon=True)
        other.start()
        run_evaluate(settings, paths_of("there"), cluster.scheduler_address, told)
        assert killed, "no worker died"
    files = sorted(path.name for path in (tmp_path / "here").iterdir() if path.is_file())
    assert len(files) == 6
    assert [(tmp_path / "there" / name).read_bytes() for name in files] == [
        (tmp_path / "here" / name).read_bytes() for name in files
    ]
    assert len(json.loads((tmp_path / "here" / "evaluation.json").read_text())["learning_curve"]["sex"]) == 6
