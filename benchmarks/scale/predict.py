"""The rate of `predict` beside embed's on the same experts, and its memory at any number of records.

    python -m benchmarks.scale.predict [--rate] [--memory] [--million] [--experts a,b] [--records N] [--rounds N]

--rate: `predict` of an ingested study without cached vectors against `embed` of the same experts, in turns, one process
of one thread. --memory: peak memory and rate at 1,000 and at 100,000 records, whose signals are read and go through a
stand-in for an expert (the standard deviation of each lead). --million: a million records whose vectors are cached.
Long cohorts are replicated: their shards are links to the first ones. Starting processes and loading networks is not
counted.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.scale.workers import SPAWN, paths_of, shown, write_cohort
from cache.embeddings import open_embeddings
from cache.records import BASE_COLUMNS, write_records
from cache.signals import SHARD_RECORDS, create_signals
from cache.storage.locations import name_within
from pipeline.compute.allocator import share_one_heap
from stages.embed import Embedder, EmbedSettings, describe
from stages.experts import Encoding, Expert, ExpertSpec
from stages.heads import EnsembleHeads, TaskSpec
from stages.learning.data import expert_identity, expert_parts
from stages.predict import FilePredictor, PredictPaths, PredictSettings, StudyStores

FEW, MANY, MILLION = 1_000, 100_000, 1_000_000
STAND_IN = "stand-in"


class StandIn(Expert):
    """The standard deviation of each lead: reads all of a signal and computes next to nothing."""

    @classmethod
    def published_spec(cls, variant: str | None = None) -> ExpertSpec:  # noqa: ARG003
        """Say that nothing has to be prepared."""
        return ExpertSpec(
            name=STAND_IN,
            title="Standard deviations",
            version="1",
            source="benchmarks/scale/predict.py",
            sampling_rate_hz=500.0,
            seconds=10.0,
            leads=("I",),
            normalisation="none",
            layer_names=("leads",),
            layer_dims=(12,),
            embedding_dim=12,
            licence="Apache-2.0",
            parameters=0,
        )

    @classmethod
    def build(cls, *_: object, **__: object) -> Expert:
        """Return it: there is nothing to load."""
        expert = cls()
        expert.spec = cls.published_spec()
        return expert

    def prepare(self, signals_mv: np.ndarray, rate_hz: float) -> torch.Tensor:  # noqa: ARG002
        """Return the deviations."""
        return torch.as_tensor(np.nan_to_num(np.asarray(signals_mv)).std(axis=-1))[:, None]

    def encode(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> Encoding:  # noqa: ARG002
        """Return what was prepared."""
        return Encoding(x[:, None], x)


def write_fit(folder: Path, features: Mapping[str, object], n: int, identities: Mapping[str, str]) -> Path:
    """Fit two tasks on what these experts gave for `n` records, and save it."""
    rng = np.random.default_rng(0)
    targets = {"sex": rng.integers(0, 2, n).astype(float), "age": rng.uniform(20, 90, n)}
    tasks = [TaskSpec("sex", "binary", ("male", "female")), TaskSpec("age", "regression", unit="years")]
    heads = EnsembleHeads(lora_epochs=1, gate_epochs=1)
    kept = {"identities": dict(identities), "dtypes": dict.fromkeys(features, "float16")}
    return heads.fit(features, targets, tasks, provenance=kept).save(folder / "heads")


# ---- beside embed ----------------------------------------------------------------------------------------------------


def rate(folder: Path, experts: list[str], n_records: int, rounds: int) -> None:
    """Embed a study with each expert, and predict it with all of them: the same forward passes, other outcomes."""
    write_cohort(folder, n_records)
    settings = {name: EmbedSettings(name) for name in experts}
    embedders = {name: Embedder(each, paths_of(folder, name)) for name, each in settings.items()}
    loaded = {name: embedder.expert for name, embedder in embedders.items()}
    for embedder in embedders.values():
        embedder.run()
    features = {name: expert_parts(open_embeddings(paths_of(folder, name).store)) for name in experts}
    identities = {name: expert_identity(describe(each)) for name, each in settings.items()}
    heads = write_fit(folder, features, n_records, identities)
    stores = StudyStores(folder / "records.parquet", folder / "signals.zarr", {})
    asked = PredictSettings(loaded, identities)
    ratios, cpu_ratios, rates = [], [], []
    for _ in range(rounds):
        for name in experts:
            shutil.rmtree(paths_of(folder, name).store)
            embedders[name].prepare_store()
        embedded, embed_cpu = timed(lambda: [embedder.run() for embedder in embedders.values()])
        predictor = FilePredictor(asked, PredictPaths(heads, study=stores, out=folder / "out.parquet"))
        predictor.prepare()
        predicted, predict_cpu = timed(lambda: (predictor.run(), predictor.finish()))  # noqa: B023 - called at once
        ratios.append(embedded / predicted)
        cpu_ratios.append(embed_cpu / predict_cpu)
        rates.append(n_records / predicted)
    print(f"{', '.join(experts)}: {n_records} records, one process of one thread")
    print(f"  predict: {shown(rates, ' records/s')}")
    print(f"  predict over embed, records a second: {shown(ratios)}")
    print(f"  predict over embed, records a CPU second: {shown(cpu_ratios)}")


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return seconds on the clock, and of the processor."""
    started, before = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - before


# ---- many records ----------------------------------------------------------------------------------------------------


def write_replicated(folder: Path, n_records: int, *, signals: bool) -> None:
    """Write a cohort whose shards are links to the first one."""
    folder.mkdir()
    frame = pd.DataFrame({name: [None] * n_records for name in BASE_COLUMNS})
    frame["record_id"] = frame["patient_id"] = [f"files/p{i // 1000:04d}/s{i:08d}" for i in range(n_records)]
    frame["status"], frame["fold"], frame["split"] = "ok", 0, "train"
    frame["sampling_rate_hz"], frame["n_samples"] = 500.0, 5000
    write_records(folder / "records.parquet", frame, [])
    if signals:
        write_cohort(folder / "first", SHARD_RECORDS)
        store = create_signals(folder / "signals.zarr", n_records)
        first = folder / "first" / "signals.zarr"
        for shard in range(store.n_shards):
            for array in ("signals", "valid", "rate_hz", "digest"):
                for file in (first / array / "c" / "0").rglob("*") if (first / array / "c" / "0").is_dir() else ():
                    link(file, store.path / array / "c" / str(shard) / file.relative_to(first / array / "c" / "0"))
                if (first / array / "c" / "0").is_file():
                    link(first / array / "c" / "0", store.path / array / "c" / str(shard))


def link(file: Path, target: Path) -> None:
    if file.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(file, target)


def write_cached(folder: Path, n_records: int, width: int = 768) -> None:
    """Write the stand-in's store of vectors, of which all shards but the last are links to the first."""
    from cache.embeddings import Identity, Layout, Shard
    from cache.record_rows import RecordRows
    from cache.upkeep.resume import resume_or_create

    digest = RecordRows(folder / "records.parquet").digest()
    layout = Layout(n_records, ("leads",), (width,), width)
    path = folder / "embeddings" / f"{STAND_IN}.zarr"
    identity = Identity({"expert": STAND_IN}, "", digest)
    store, _ = resume_or_create(path, layout, identity, lambda _: ("", digest), lambda: None)
    rng = np.random.default_rng(0)
    last = store.n_shards - 1
    for shard in {0, last}:
        rows = store.rows_of(shard)
        vectors = rng.normal(size=(rows.stop - rows.start, width)).astype(np.float16)
        store.write(shard, Shard(vectors[:, None], vectors))
    for shard in range(1, last):
        for file, target in zip(store.shard_files(0), store.shard_files(shard), strict=True):
            link(folder / "embeddings" / path.name / name_within(path, file), Path(str(target)))


def predicted(folder: Path, width: int, pipe: object) -> None:
    """Predict a replicated cohort; tells seconds, CPU seconds and peak memory in MB."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    cached = folder / "embeddings" / f"{STAND_IN}.zarr"
    identity = expert_identity(open_embeddings(cached).attributes) if cached.exists() else "stand-in"
    heads = write_fit(folder, {STAND_IN: rng.normal(size=(200, width))}, 200, {STAND_IN: identity})
    stores = StudyStores(folder / "records.parquet", folder / "signals.zarr", {STAND_IN: cached})
    experts = {} if cached.exists() else {STAND_IN: StandIn.build()}
    predictor = FilePredictor(
        PredictSettings(experts, {STAND_IN: identity}), PredictPaths(heads, study=stores, out=folder / "out.parquet")
    )

    def work() -> None:
        predictor.prepare()
        predictor.run()
        assert predictor.finish().n_unreadable == 0

    seconds, cpu = timed(work)
    # Not getrusage: a new process begins with the peak of the one that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    pipe.send((seconds, cpu, peak))


def measured(folder: Path, width: int) -> tuple[float, float, float]:
    receiving, sending = SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=predicted, args=(folder, width, sending))
    process.start()
    sending.close()
    found = receiving.recv()
    process.join()
    return found


def report(what: str, place: Path, n_records: int, seconds: float, cpu: float, peak: float) -> None:
    size = (place / "out.parquet").stat().st_size / n_records
    print(f"{n_records:,} records from {what}: {n_records / seconds:.0f}/s, {1e6 * cpu / n_records:.0f} us of CPU each")
    print(f"  {peak:.0f} MB at most, {size:.0f} bytes a record written", flush=True)


def memory(folder: Path, sizes: tuple[int, ...]) -> None:
    """Predict a small and a large study from their signals, each in a process of its own."""
    peaks = []
    for n_records in sizes:
        place = folder / str(n_records)
        write_replicated(place, n_records, signals=True)
        seconds, cpu, peak = measured(place, 12)
        print(
            f"{n_records:,} records from signals: {n_records / seconds:.0f}/s, {1e6 * cpu / n_records:.0f} us of CPU "
            f"a record, {peak:.0f} MB at most, {(place / 'out.parquet').stat().st_size / n_records:.0f} bytes a record"
        )
        peaks.append(peak)
        shutil.rmtree(place)
    print(f"  memory at {sizes[-1]:,} over that at {sizes[0]:,}: {peaks[-1] / peaks[0]:.3f}")


def million(folder: Path, sizes: tuple[int, ...]) -> None:
    """Predict studies whose vectors of one expert (768 numbers) are cached."""
    peaks = []
    for n_records in sizes:
        place = folder / str(n_records)
        write_replicated(place, n_records, signals=False)
        write_cached(place, n_records)
        seconds, cpu, peak = measured(place, 768)
        print(
            f"{n_records:,} records from vectors: {n_records / seconds:.0f}/s, {1e6 * cpu / n_records:.0f} us of CPU "
            f"a record, {peak:.0f} MB at most, {(place / 'out.parquet').stat().st_size / n_records:.0f} bytes a record"
        )
        peaks.append(peak)
        shutil.rmtree(place)
    print(f"  memory at {sizes[-1]:,} over that at {sizes[0]:,}: {peaks[-1] / peaks[0]:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", action="store_true", help="only the rate beside embed's")
    parser.add_argument("--memory", action="store_true", help="only 1,000 and 100,000 records from signals")
    parser.add_argument("--million", action="store_true", help="only a million records from cached vectors")
    parser.add_argument("--experts", default="rocket,morphology", help="for --rate; without weights files")
    parser.add_argument("--records", type=int, default=512, help="for --rate")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--many", type=int, default=MANY, help="for --memory")
    parser.add_argument("--most", type=int, default=MILLION, help="for --million")
    options = parser.parse_args()
    everything = not (options.rate or options.memory or options.million)
    torch.set_num_threads(1)
    share_one_heap()  # of the processes that are measured, as `ensemble predict` does
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f} at the start")
    with tempfile.TemporaryDirectory() as name:
        if options.rate or everything:
            rate(Path(name) / "rate", options.experts.split(","), options.records, options.rounds)
        if options.memory or everything:
            (Path(name) / "memory").mkdir()
            memory(Path(name) / "memory", (FEW, options.many))
        if options.million or everything:
            (Path(name) / "million").mkdir()
            million(Path(name) / "million", (FEW, options.most))


if __name__ == "__main__":
    main()
