"""Running `predict` into files: in one process, in several of this machine, or as tasks of a Dask cluster."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cache.errors import StoreError
from pipeline.compute.devices import device_of
from pipeline.compute.processes import Count, share
from pipeline.compute.tasks import connected, has_gpus, results
from pipeline.progress import counting
from stages.devices import choose_device
from stages.embed import EmbedSettings, describe, load_for
from stages.experts import Expert
from stages.experts.run import GPU_BATCH, RunSettings
from stages.learning.data import expert_identity
from stages.predict import FilePredictor, PredictPaths, PredictSettings, PredictSummary
from stages.predict.settings import RECORDS_AT_ONCE, RECORDS_PER_PART

_PREDICTORS: dict[str, FilePredictor] = {}
"""The fit and the experts that this worker process has loaded."""

_ONE_AT_A_TIME = threading.Lock()
"""A worker of several threads still makes one part at a time: claims do not exclude threads from each other."""


class LazyExperts(Mapping[str, Expert]):
    """Experts, each loaded when it is first asked for: where vectors are cached, none is."""

    def __init__(self, settings: Mapping[str, EmbedSettings]) -> None:
        self._settings, self._loaded = settings, dict[str, Expert]()

    def __getitem__(self, name: str) -> Expert:
        if name not in self._loaded:
            self._loaded[name] = load_for(self._settings[name])
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in self._settings

    def __iter__(self) -> Iterator[str]:
        return iter(self._settings)

    def __len__(self) -> int:
        return len(self._settings)


def batch_records(device: str) -> int:
    """Return how many records are answered together: on a GPU as many as a forward pass takes."""
    return GPU_BATCH if device.startswith("cuda") else RECORDS_AT_ONCE


def predict_settings(
    experts: Mapping[str, EmbedSettings],
    *,
    follow_links: bool,
    records_at_once: int,
    records_per_part: int = RECORDS_PER_PART,
) -> PredictSettings:
    """Return what `predict` is asked for, of what `embed` is asked for."""
    first = next(iter(experts.values()), None)
    return PredictSettings(
        LazyExperts(experts),
        {name: expert_identity(describe(each)) for name, each in experts.items()},
        None if first is None else RunSettings(threads=first.threads, batch_size=first.batch_size),
        records_at_once=records_at_once,
        records_per_part=records_per_part,
        follow_links=follow_links,
    )


@dataclass(frozen=True)
class PredictWork:
    """What one process does: predict what is pending and not claimed."""

    experts: Mapping[str, EmbedSettings]
    paths: PredictPaths
    follow_links: bool
    records_at_once: int = RECORDS_AT_ONCE
    records_per_part: int = RECORDS_PER_PART

    def predictor(self, device: str | None = None) -> FilePredictor:
        """Return the fit and its experts, on a device or on that of the settings."""
        experts = {
            name: each if device is None else replace(each, device=device) for name, each in self.experts.items()
        }
        asked = predict_settings(
            experts,
            follow_links=self.follow_links,
            records_at_once=self.records_at_once,
            records_per_part=self.records_per_part,
        )
        return FilePredictor(asked, self.paths)

    def __call__(self, count: Count) -> int:
        """Return how many records this process has predicted."""
        return self.predictor().run(progress=count)


def run_predict(work: PredictWork, *, workers: int, notes: list[str]) -> PredictSummary:
    """Predict into files, on this machine."""
    started, device = time.perf_counter(), next((each.device for each in work.experts.values()), "cpu")
    predictor = work.predictor()
    pending = predictor.prepare(notes)
    n_done, computed = predictor.n_done(), list[int]()
    n_workers = min(workers, len(pending))
    title = f"predict, {n_workers} workers" if n_workers > 1 else "predict"
    with counting(title, n_done, predictor.n_records) as count:
        if n_workers > 1:
            works = [replace(work, experts=_on(work.experts, device_of(device, k))) for k in range(n_workers)]
            exit_codes = share(works, count, computed.append, "part")
            if left := predictor.pending():
                raise StoreError(
                    f"{predictor.out}: every worker died (exit codes {exit_codes}), {len(left)} parts are left; run "
                    "again, with fewer --workers or a smaller --batch-size if memory was short"
                )
        else:
            computed.append(predictor.run(progress=count))
    return _ended(predictor, sum(computed), started)


def predict_on_cluster(work: PredictWork, scheduler: str, device: str, notes: list[str]) -> PredictSummary:
    """Predict into files by tasks of a part each.

    The outcome's folder, the fit and the records must have the same path on every worker.

    Parameters
    ----------
    device
        auto, cpu, cuda or cuda:i, of each worker.
    """
    started, n_computed = time.perf_counter(), 0
    work = replace(work, experts=_with_absolute_weights(work.experts), paths=_absolute(work.paths))
    with connected(scheduler) as client:
        if has_gpus(client) or device.startswith("cuda"):
            work = replace(work, records_at_once=GPU_BATCH)
        predictor = work.predictor()
        pending = predictor.prepare(notes)
        identity = str(predictor.plan["identity"])
        parts = results(client, scheduler, _predict_part, pending, "part", work=work, device=device, identity=identity)
        with counting(f"predict on {scheduler}", predictor.n_done(), predictor.n_records) as count:
            for n in parts:
                n_computed += n
                count(n)
    return _ended(predictor, n_computed, started)


def _ended(predictor: FilePredictor, n_computed: int, started: float) -> PredictSummary:
    summary = predictor.finish()
    summary.n_computed, summary.seconds = n_computed, time.perf_counter() - started
    return summary


def _predict_part(part: int, work: PredictWork, device: str, identity: str) -> int:
    with _ONE_AT_A_TIME:
        key = f"{identity} {device} {work!r}"
        if key not in _PREDICTORS:
            _PREDICTORS.clear()  # one fit's experts at a time: device memory
            _PREDICTORS[key] = work.predictor(choose_device(device))
        return _PREDICTORS[key].run([part])


def _on(experts: Mapping[str, EmbedSettings], device: str) -> dict[str, EmbedSettings]:
    return {name: replace(each, device=device) for name, each in experts.items()}


def _with_absolute_weights(experts: Mapping[str, EmbedSettings]) -> dict[str, EmbedSettings]:
    return {
        name: each if each.weights is None else replace(each, weights=Path(each.weights).absolute())
        for name, each in experts.items()
    }


def _absolute(paths: PredictPaths) -> PredictPaths:
    study = paths.study
    if study is not None:
        stores = {name: store.absolute() for name, store in study.embeddings.items()}
        study = replace(study, records=study.records.absolute(), signals=study.signals.absolute(), embeddings=stores)
    out = None if paths.out is None else paths.out.absolute()
    return replace(paths, heads=paths.heads.absolute(), study=study, out=out)
