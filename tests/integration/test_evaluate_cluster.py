"""`ensemble evaluate --scheduler`: whoever resamples, and whoever dies at it, metrics.json has the same bytes."""

import os
import pickle
import signal
import threading
import time
from functools import partial

import pytest

from cache.records import open_records
from pipeline.compute.evaluation import _on_cluster
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


@pytest.mark.slow
def test_workers_may_die_and_join(study):
    from distributed import Client, LocalCluster

    from stages.scoring.comparison import one_by_one

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
