"""Embed at published sizes, through the real stage, against a plain loop that does one record after the other.

    python benchmarks/embed.py --experts ecgfm,stmem --records 16
    python benchmarks/embed.py --experts ecgfm,stmem,ecgfounder --records 4096 --device cuda --precision bf16

One row an expert, random weights: records a second from int16 signals on disk to vectors on disk; the seconds that
reading, preparing, the forward pass and writing were busy (they run side by side); the forward's share of the whole;
the loop's rate and ours over it, whole, in CPU seconds of the whole process, and forward alone; on CUDA the share of
the chip's measured matrix product rate (bf16) and the share of time in which the GPU had nothing to do. Embed and loop
take turns for `--rounds` rounds, every cell is the median of them. Loading the network and reading its file for the
digest, once a run, come before. `--precisions` measures instead how far other precisions lie from fp32. `--rounding
FOLDER` measures what float16 stores cost on the WFDB records there: rounding error (root mean square) over the spread
between records (mean standard deviation); above 0.5 % an expert's spec asks for float32. `--passes` measures what
forward passes of other sizes than an expert's own cost: CPU milliseconds a record, and of one record alone.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cache.records import BASE_COLUMNS, write_records
from cache.signals import RATE_HZ, create_signals, open_signals, to_microvolts
from stages.embed import Embedder, EmbedPaths, EmbedSettings, load_for
from stages.experts import Expert, expert_class, list_experts, load_expert
from stages.experts.contract import PRECISION_DTYPES
from stages.experts.run import RunSettings, Signal, embed_records, run_expert, set_precision
from stages.experts.signals.reference_ecgs import reference_signals
from stages.readers.files import find_ecgs, read_ecg

SHARD = 256
LOOP_RECORDS, LOOP_S = 8, 3.0
"""The loop takes so many records at least, and goes on for so many seconds while there are records."""
MATRIX = 8192
PASSES = (1, 4, 8, 16, 32)
"""Windows a forward pass."""
BUSY = ("read_s", "prepare_s", "forward_s", "write_s")
COLUMNS = ("expert", "records/s", *BUSY, "forward%", "loop/s", "x_loop", "x_cpu", "x_forward")


@dataclass
class Clock:
    """Counts the seconds in which a function was busy."""

    seconds: float = 0.0
    events: list[tuple[Any, Any]] = field(default_factory=list)

    def around(self, function: Callable[..., Any], on_gpu: bool = False) -> Callable[..., Any]:
        """Return the function, timed; `on_gpu` also by events on the stream."""

        def timed(*arguments: Any, **options: Any) -> Any:
            pair = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) if on_gpu else None
            started = time.perf_counter()
            if pair:
                pair[0].record()
            result = function(*arguments, **options)
            if pair:
                pair[1].record()
                self.events.append(pair)
            self.seconds += time.perf_counter() - started
            return result

        return timed

    def gpu_seconds(self) -> float:
        """Seconds between the events of each call, once the GPU is done."""
        torch.cuda.synchronize()
        return sum(first.elapsed_time(last) for first, last in self.events) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", default=",".join(list_experts()), help="names, separated by commas")
    parser.add_argument("--records", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--precision", choices=list(PRECISION_DTYPES), default="fp32")
    parser.add_argument("--batch-size", type=int, default=None)
    parser.add_argument("--threads", type=int, default=1, help="of the forward pass, for embed and loop alike")
    parser.add_argument("--precisions", action="store_true", help="measure the deviation from fp32 instead")
    parser.add_argument("--rounding", type=Path, default=None, help="folder of records; what float16 costs, instead")
    parser.add_argument("--passes", action="store_true", help="measure forward passes of other sizes instead")
    options = parser.parse_args()
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(options.threads)
    names = options.experts.split(",")
    if options.rounding is not None:
        roundings(names, options.rounding, options.device, options.records)
    elif options.passes:
        passes(names, options)
    elif options.precisions:
        deviations(names, options.device, min(options.records, LOOP_RECORDS))
    else:
        with tempfile.TemporaryDirectory() as folder:
            throughput(names, Path(folder), options)


def throughput(names: list[str], folder: Path, options: argparse.Namespace) -> None:
    write_cohort(folder, options.records)
    peak = matrix_rate(options.device) if options.device == "cuda" else 0.0
    where = torch.cuda.get_device_name() if peak else f"{len(os.sched_getaffinity(0))}-core CPU"
    print(
        f"{where}, {options.threads} thread(s), {options.precision}, {options.records} records, {options.rounds} rounds"
    )
    if peak:
        print(f"matrix products in bf16: {peak / 1e12:.0f} TFLOP/s")
    row([*COLUMNS, *(["share%", "idle%"] if peak else [])])
    for name in names:
        row([name, *measure(name, folder, options, peak)])


def row(cells: list[str]) -> None:
    print("| " + " | ".join(f"{cell:>9}" for cell in cells) + " |", flush=True)


def measure(name: str, folder: Path, options: argparse.Namespace, peak: float) -> list[str]:
    """Run the stage and the loop in turns, and return the row's cells: medians over the rounds."""
    settings = settings_for(name, folder, options)
    expert = load_for(settings)
    signals = open_signals(folder / "signals.zarr")
    first = expert.prepare(signals.read_mv(slice(0, min(LOOP_RECORDS, len(signals)))), RATE_HZ)
    run_expert(expert, first)  # what is made at first use is no embedding
    run_expert(expert, first[:1])
    rounds = [one_round(expert, settings, paths_for(name, folder, k), options, peak) for k in range(options.rounds)]
    cells = list(np.median(rounds, axis=0))
    if peak:
        rate, idle = cells[0], cells.pop()
        cells += [100 * flops_per_record(expert, first) * rate / peak, idle]
    return [f"{cell:.4g}" for cell in cells]


def one_round(
    expert: Expert, settings: EmbedSettings, paths: EmbedPaths, options: argparse.Namespace, peak: float
) -> list[float]:
    """Embed into a new store, then loop."""
    embedder = Embedder(settings, paths)
    embedder.__dict__["expert"] = expert  # the network is loaded once, and its file digested before the clock starts
    assert embedder.identity
    prepare, encode = Clock(), Clock()
    plain = expert.prepare, expert.encode
    expert.prepare = prepare.around(expert.prepare)  # type: ignore[method-assign]
    expert.encode = encode.around(expert.encode, bool(peak))  # type: ignore[method-assign]
    cpu = time.process_time()
    summary = embedder.run()
    cpu = (time.process_time() - cpu) / options.records
    expert.prepare, expert.encode = plain  # type: ignore[method-assign]
    seconds, n = summary.seconds, options.records
    loop, loop_cpu, loop_forward = per_record_loop(expert, embedder.signals, options)
    rate = n / seconds["total"]
    cells = [rate, seconds["read"] - prepare.seconds, prepare.seconds, seconds["compute"], seconds["write"]]
    cells += [100 * seconds["compute"] / seconds["total"], 1 / loop, rate * loop, loop_cpu / cpu]
    cells += [loop_forward * n / seconds["compute"]]
    return [*cells, 100 * (1 - encode.gpu_seconds() / seconds["total"])] if peak else cells


def per_record_loop(expert: Expert, signals: Any, options: argparse.Namespace) -> tuple[float, float, float]:
    """Read, prepare and encode one record after the other; seconds a record, of the CPU, and of the forward pass.

    A record is one pass of its windows here: filled-up passes, as the stage has them, would slow the loop down.
    """
    n, forward = 0, 0.0
    started, cpu = time.perf_counter(), time.process_time()
    for i in range(options.records):
        if i >= LOOP_RECORDS and time.perf_counter() - started > LOOP_S:
            break
        n += 1
        x = expert.prepare(signals.read_mv(slice(i, i + 1)), RATE_HZ)
        before = time.perf_counter()
        run_by(expert, x, x.shape[1])
        forward += time.perf_counter() - before
    return (time.perf_counter() - started) / n, (time.process_time() - cpu) / n, forward / n


def flops_per_record(expert: Expert, x: Tensor) -> float:
    with FlopCounterMode(display=False) as counter:
        run_expert(expert, x)
    return counter.get_total_flops() / len(x)


def matrix_rate(device: str) -> float:
    """Measure the rate of a large bf16 matrix product, in FLOP/s."""
    a, b = (torch.randn(MATRIX, MATRIX, device=device, dtype=torch.bfloat16) for _ in range(2))
    rates = []
    for _ in range(8):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(10):
            a @ b
        stop.record()
        torch.cuda.synchronize()
        rates.append(10 * 2 * MATRIX**3 / (start.elapsed_time(stop) / 1e3))
    return max(rates)


def deviations(names: list[str], device: str, n: int) -> None:
    """Print, per expert and precision, the worst cosine and relative error of the embedding against fp32."""
    precisions = ["bf16", "fp16"] if device == "cuda" else ["bf16"]
    print(f"{n} records, published size, random weights, {device}; embedding against fp32")
    row(["expert", "precision", "cosine", "rel_error", "layers"])
    for name in names:
        torch.manual_seed(0)
        expert = load_expert(name, random_weights=True, device=device)
        if expert.module is None:
            continue
        x = expert.prepare(waves(n), RATE_HZ)
        exact = run_expert(expert, x)
        for precision in precisions:
            set_precision(expert, precision)  # type: ignore[arg-type]
            other = run_expert(expert, x)
            cosine, error = compare(other.embedding, exact.embedding)
            _, layers = compare(other.layers.reshape(n, -1), exact.layers.reshape(n, -1))
            row([name, precision, f"{cosine:.6f}", f"{error:.2e}", f"{layers:.2e}"])


def roundings(names: list[str], folder: Path, device: str, n: int) -> None:
    """Print, per expert, what float16 costs its embedding, worst layer and output, in percent of the spread."""
    recorded = [read_ecg(path) for path in find_ecgs([folder])[:n]]
    print(
        f"{len(recorded)} records, published size, random weights, {device}; float16 in % of the spread between records"
    )
    row(["expert", "embedding", "layer", "output"])
    for name in names:
        torch.manual_seed(0)
        expert = load_expert(name, random_weights=True, device=device)
        signals = [Signal(one.signals_mv, one.rate_hz) for one in recorded]
        found = embed_records(expert, signals, RunSettings(dtype="float32", threads=torch.get_num_threads()))
        layers = [found.layers[:, k] for k in range(found.layers.shape[1])]
        cells = [rounding(found.embedding), max(map(rounding, layers))]
        cells += [] if found.output is None else [rounding(found.output)]
        row([name, *(f"{100 * cell:.3g}" for cell in cells)])


def passes(names: list[str], options: argparse.Namespace) -> None:
    """Print, per expert, the CPU milliseconds a record in passes of some sizes and of its own, and of one alone."""
    print(f"{options.records} records, published size, random weights, medians of {options.rounds}; CPU ms a record")
    row(["expert", "own pass", *(f"pass {size}" for size in PASSES), "own", "alone"])
    for name in names:
        torch.manual_seed(0)
        expert = load_expert(name, random_weights=True)
        x = expert.prepare(waves(options.records), RATE_HZ)
        own = expert.windows_at_once(x.flatten(0, 1))
        ways = [partial(run_by, expert, x, size) for size in PASSES]
        ways += [partial(run_expert, expert, x), partial(run_expert, expert, x[:1])]
        times = [[cpu_seconds(way) for way in ways] for _ in range(1 + options.rounds)][1:]
        cells = 1e3 * np.median(times, axis=0) / [*([len(x)] * (len(ways) - 1)), 1]
        row([name, str(own), *(f"{cell:.3g}" for cell in cells)])


def run_by(expert: Expert, x: Tensor, size: int) -> None:
    """Encode records by passes of `size` windows, whatever the expert's own are."""
    with torch.inference_mode():
        for part in x.flatten(0, 1).split(size):
            expert.encode(part.to(expert.device).to(PRECISION_DTYPES[expert.precision]))


def cpu_seconds(way: Callable[[], object]) -> float:
    started = time.process_time()
    way()
    return time.process_time() - started


def rounding(values: np.ndarray) -> float:
    """Return the error of rounding [record, dim] to float16, over the spread between records."""
    values = values[:, np.isfinite(values).any(axis=0)]
    with np.errstate(over="ignore"):
        error = values.astype(np.float16).astype(np.float64) - values
    return float(np.sqrt(np.nanmean(error**2)) / np.nanmean(np.nanstd(values.astype(np.float64), axis=0)))


def compare(values: np.ndarray, exact: np.ndarray) -> tuple[float, float]:
    """Return the worst record's cosine and |difference| / |exact|."""
    values, exact = np.nan_to_num(values), np.nan_to_num(exact)
    norms = np.linalg.norm(values, axis=1) * np.linalg.norm(exact, axis=1)
    cosine = (values * exact).sum(1) / norms
    error = np.linalg.norm(values - exact, axis=1) / np.linalg.norm(exact, axis=1)
    return float(cosine.min()), float(error.max())


def settings_for(name: str, folder: Path, options: argparse.Namespace) -> EmbedSettings:
    """Write random weights of the published size, and ask for them as a user would."""
    torch.manual_seed(0)
    weights = None
    cls, variant = expert_class(name)
    if cls.published_spec(variant).needs_weights:
        module = load_expert(name, random_weights=True).module
        assert module is not None
        weights = folder / "weights.safetensors"
        save_file({key: value.clone().contiguous() for key, value in module.state_dict().items()}, weights)
    return EmbedSettings(
        expert=name,
        weights=weights,
        precision=options.precision,
        device=options.device,
        batch_size=options.batch_size,
        shard_records=SHARD,
        threads=options.threads,
    )


def paths_for(name: str, folder: Path, k: int) -> EmbedPaths:
    store = folder / "embeddings" / f"{name}-{k}.zarr"
    return EmbedPaths(folder / "records.parquet", folder / "signals.zarr", store, folder / "state")


def waves(n: int) -> np.ndarray:
    return reference_signals(n, 5000, RATE_HZ, seed=3)


def write_cohort(folder: Path, n: int) -> None:
    """Write records.parquet and signals.zarr as ingest would, of generated ECGs."""
    frame = pd.DataFrame({name: [None] * n for name in BASE_COLUMNS})
    frame["record_id"] = frame["patient_id"] = [f"r{i:06d}" for i in range(n)]
    frame["fold"], frame["split"], frame["status"] = 0, "train", "ok"
    frame["sampling_rate_hz"], frame["n_samples"] = float(RATE_HZ), 5000
    write_records(folder / "records.parquet", frame, [])
    store = create_signals(folder / "signals.zarr", n, shard_records=SHARD)
    some = to_microvolts(waves(min(n, SHARD)))
    for shard in range(store.n_shards):
        rows = store.rows_of(shard)
        size = rows.stop - rows.start
        store.write_shard(shard, some[:size], np.full(size, 5000))
    open_signals(folder / "signals.zarr")


if __name__ == "__main__":
    main()
