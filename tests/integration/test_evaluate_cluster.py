"""`ensemble evaluate --scheduler`: whoever resamples, and whoever dies at it, metrics.json has the same bytes."""

import json
import os
import pickle
import shutil
import signal
import threading
import time
from functools import partial

import pytest

from cache.records import open_records
from pipeline.compute.evaluation import _on_cluster
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
