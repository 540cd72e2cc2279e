"""Fit heads and gate for all tasks and folds at once, against a loop of plain torch training, in one run.

    OMP_NUM_THREADS=1 python -P benchmarks/heads.py --records 100000 --reference-epochs 1
    OMP_NUM_THREADS=1 python -P benchmarks/heads.py --records 3000 --width 256 --seeds 3
    OMP_NUM_THREADS=1 python -P benchmarks/heads.py --scaling 100000,200000,400000 --plot docs/heads-scaling.svg

The reference is what one would write: for every task and fold a model (frozen base, LoRA of rank 8 on each expert's
features, a gate over the experts), trained over a shuffling DataLoader. With fewer `--reference-epochs` than the 20
that it is to be trained for, or fewer than all `--reference-models`, its seconds are scaled, and the output says so.
Ours trains LoRA and gate for 20 epochs too, without stopping early; it also fits what the loop does not: seven
penalties of the probe, temperatures, constant weights.

`--seeds` asks whether several seeds should be fitted at once, as folds are: so many fits one after the other, against
one fit of every fold that many times.

`--scaling` writes synthetic float16 stores of each size, fits them with `--memory-gb` of features kept, each in a
process of its own, and draws seconds and peak memory. Seconds are of wall clock and of processor time: with one thread
the two are alike on an idle machine, and the second says what the work costs on a busy one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from stages.heads import EnsembleHeads, TaskSpec
from stages.heads.blockwise.products import add_transposed_, linear
from stages.heads.inputs.lazy_rows import LazyRows
from stages.learning.peak_memory import PeakMemory

EXPERTS, TASKS, FOLDS, EPOCHS, BATCH, RANK = 5, 5, 3, 20, 256, 8
Folds = list[tuple[np.ndarray, ...]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--reference-epochs", type=int, default=1, help=f"measured of {EPOCHS}; the rest is scaled")
    parser.add_argument("--reference-models", type=int, default=TASKS * FOLDS, help="measured; the rest is scaled")
    parser.add_argument("--memory-gb", type=float, default=2.0, help="features kept at a time")
    parser.add_argument("--seeds", type=int, help="compare fits of so many seeds in turn with one of as many folds")
    parser.add_argument("--scaling", help="numbers of records, a,b,c, on disk")
    parser.add_argument("--folder", type=Path, default=Path("heads-benchmark"), help="for the stores of --scaling")
    parser.add_argument("--plot", type=Path, help="SVG of --scaling")
    parser.add_argument("--stored", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stored:
        fit_stored(options.stored, options.memory_gb)
    elif options.seeds:
        compare_seeds(options)
    elif options.scaling:
        scale([int(n) for n in options.scaling.split(",")], options)
    else:
        compare(options)


class Clock:
    """Wall and processor seconds of a block."""

    def __enter__(self) -> Clock:
        self._start = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.wall, self.cpu = time.perf_counter() - self._start[0], time.process_time() - self._start[1]


def compare(options: argparse.Namespace) -> None:
    """Print our time, the loop's, and what share of the machine's rates the two kinds of pass reach."""
    features, targets, folds = make_data(options.records, options.width)
    with PeakMemory() as memory, Clock() as ours:
        heads = fit_ours(features, targets, folds, options.memory_gb)
    models = [(y, train) for y in targets.values() for train, *_ in folds]
    chosen = models[:: max(1, len(models) // options.reference_models)][: options.reference_models]
    with Clock() as loop:
        fit_reference(features, chosen, options.reference_epochs)
    scaled = EPOCHS / options.reference_epochs * len(models) / len(chosen)
    size = f"{options.records} records x {EXPERTS} experts x {options.width}"
    print(f"{size}, {TASKS} tasks, {FOLDS} folds, {EPOCHS} epochs")
    print(f"threads {torch.get_num_threads()}; {describe(heads)}")
    print(f"all at once   {ours.wall:9.1f} s, processor {ours.cpu:9.1f} s, peak {memory.mb or 0:.0f} MB")
    told = f"{options.reference_epochs} of {EPOCHS} epochs of {len(chosen)} of {len(models)} models measured"
    print(f"loop          {loop.wall * scaled:9.1f} s, processor {loop.cpu * scaled:9.1f} s ({told})")
    print(f"ratio         {loop.wall * scaled / ours.wall:9.1f}    processor {loop.cpu * scaled / ours.cpu:9.1f}")
    for line in rates(options.width):
        print(line)


def compare_seeds(options: argparse.Namespace) -> None:
    """Print the time of one fit a seed, and of one fit of all folds once a seed."""
    features, targets, folds = make_data(options.records, options.width)
    with Clock() as in_turn:
        for seed in range(options.seeds):
            fit_ours(features, targets, folds, options.memory_gb, seed)
    with Clock() as at_once:
        fit_ours(features, targets, folds * options.seeds, options.memory_gb)
    print(f"{options.records} records x {EXPERTS} experts x {options.width}, {TASKS} tasks, {FOLDS} folds")
    print(f"{options.seeds} fits in turn   {in_turn.wall:7.1f} s, processor {in_turn.cpu:7.1f} s")
    print(f"all folds at once {at_once.wall:7.1f} s, processor {at_once.cpu:7.1f} s")
    print(f"ratio             {in_turn.wall / at_once.wall:7.2f}    processor {in_turn.cpu / at_once.cpu:7.2f}")


def describe(heads: EnsembleHeads) -> str:
    """Say what was trained."""
    experts = heads.history_["experts"].values()
    epochs, passes = [len(h["lora_loss"]) - 1 for h in experts], [h["passes"] for h in experts]
    return f"LoRA epochs {epochs}, gate {len(heads.history_['gate']['loss']) - 1}, passes of the probe {passes}"


def rates(width: int) -> list[str]:
    """Compare the products of a step, on a block in memory, with the machine's own rates, in processor time."""
    block, columns = 2048, FOLDS * TASKS
    x, w, r = torch.randn(block, width), torch.randn(width, columns), torch.randn(block, columns)
    square, big = torch.randn(width, width), torch.randn(40_000, width)
    out = torch.zeros(columns, width)
    with torch.no_grad():
        peak = 2 * block * width * width / best(lambda: linear(x, square)) / 1e9
        read = big.numel() * 4 / best(big.sum) / 1e9
        flops = 2 * block * width * columns
        plain = flops / best(lambda: x @ w) / 1e9
        rows = [("x W", flops / best(lambda: linear(x, w)) / 1e9)]
        rows.append(("R' x", flops / best(lambda: add_transposed_(out, r, x)) / 1e9))
    lines = [f"machine       {peak:.0f} GFLOP/s ({block} x {width} x {width}), reads {read:.1f} GB/s"]
    for name, rate in rows:
        bytes_read = rate / (2 * columns) * 4
        told = f"{name:13} {rate:.0f} GFLOP/s, {100 * rate / peak:.0f} % of the product rate"
        lines.append(f"{told}; {bytes_read:.1f} GB/s, {100 * bytes_read / read:.0f} % of the reading rate")
    return [*lines, f"plain x @ w   {plain:.0f} GFLOP/s"]


def best(work: Callable[[], object], repeats: int = 15) -> float:
    """Lowest processor time, in seconds."""
    work()
    found = []
    for _ in range(repeats):
        with Clock() as clock:
            for _ in range(5):
                work()
        found.append(clock.cpu / 5)
    return min(found)


def make_targets(n: int) -> tuple[np.ndarray, dict[str, np.ndarray], Folds]:
    """Hidden causes [n, 16], five tasks of them, three folds."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(n, 16)).astype(np.float32)
    targets = {f"task{t}": (hidden[:, t] + rng.normal(size=n) > 0).astype(float) for t in range(TASKS)}
    fold, rows = rng.integers(0, FOLDS, n), np.arange(n)
    val = rows % 10 == 0
    return hidden, targets, [(rows[(fold != f) & ~val], rows[(fold != f) & val], rows[fold == f]) for f in range(FOLDS)]


def make_expert(hidden: np.ndarray, width: int, expert: int, out: np.ndarray) -> None:
    """Write one expert's features into `out`, in pieces."""
    rng = np.random.default_rng(1 + expert)
    mixing = rng.normal(size=(hidden.shape[1], width)).astype(np.float32)
    for start in range(0, len(hidden), 20_000):
        part = hidden[start : start + 20_000]
        noise = rng.standard_normal((len(part), width), dtype=np.float32)
        out[start : start + len(part)] = part @ mixing + 2 * noise


def make_data(n: int, width: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], Folds]:
    hidden, targets, folds = make_targets(n)
    features = {f"expert{e}": np.empty((n, width), np.float16) for e in range(EXPERTS)}
    for e, out in enumerate(features.values()):
        make_expert(hidden, width, e, out)
    return features, targets, folds


def fit_ours(
    features: dict, targets: dict[str, np.ndarray], folds: Folds, memory_gb: float, seed: int = 42
) -> EnsembleHeads:
    tasks = [TaskSpec(name, "binary") for name in targets]
    heads = EnsembleHeads(
        lora_epochs=EPOCHS,
        gate_epochs=EPOCHS,
        lora_patience=EPOCHS,
        gate_patience=EPOCHS,
        memory_gb=memory_gb,
        seed=seed,
    )
    return heads.fit(features, targets, tasks, splits=folds)


class Plain(nn.Module):
    """One task's heads and gate, as one would write them for one fold."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.base = nn.ModuleList(nn.Linear(width, 1).requires_grad_(False) for _ in range(EXPERTS))
        self.down = nn.ModuleList(nn.Linear(width, RANK, bias=False) for _ in range(EXPERTS))
        self.up = nn.ModuleList(nn.Linear(RANK, 1, bias=False) for _ in range(EXPERTS))
        self.gate = nn.Sequential(nn.Linear(EXPERTS * width, 16), nn.ReLU(), nn.Linear(16, EXPERTS))

    def forward(self, *experts: Tensor) -> Tensor:
        """Mixed logit [batch]."""
        parts = zip(self.base, self.down, self.up, experts, strict=True)
        outputs = torch.cat([base(x) + 4 * up(down(x)) for base, down, up, x in parts], 1)
        return (self.gate(torch.cat(experts, 1)).softmax(1) * outputs).sum(1)


def fit_reference(features: dict[str, np.ndarray], models: list[tuple[np.ndarray, np.ndarray]], epochs: int) -> None:
    arrays = [torch.from_numpy(x).float() for x in features.values()]
    for y, train in models:
        labels, rows = torch.from_numpy(y).float(), torch.from_numpy(train)
        loader = DataLoader(TensorDataset(*(x[rows] for x in arrays), labels[rows]), BATCH, shuffle=True)
        train_plain(Plain(arrays[0].shape[1]), loader, epochs)


def train_plain(model: Plain, loader: DataLoader, epochs: int) -> None:
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(epochs):
        for *experts, label in loader:
            loss = nn.functional.binary_cross_entropy_with_logits(model(*experts), label)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def scale(sizes: list[int], options: argparse.Namespace) -> None:
    """Fit stores of several sizes, each in a process of its own."""
    found = []
    for n in sizes:
        write_stores(options.folder, n, options.width)
        command = [
            sys.executable,
            "-P",
            __file__,
            "--stored",
            str(options.folder),
            "--memory-gb",
            str(options.memory_gb),
        ]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append({"records": n, **json.loads(done.stdout.splitlines()[-1])})
        print(json.dumps(found[-1]), flush=True)
        shutil.rmtree(options.folder)
    if options.plot:
        draw(found, options.plot, options.width)


def write_stores(folder: Path, n: int, width: int) -> None:
    """Write what `ensemble embed` would leave, the embedding alone."""
    from cache.embeddings import Identity, Layout, Shard
    from cache.upkeep.resume import create_embeddings

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    hidden, _, _ = make_targets(n)
    for e in range(EXPERTS):
        values = np.empty((n, width), np.float16)
        make_expert(hidden, width, e, values)
        layout = Layout(n, ("embed",), (1,), width)
        identity = Identity({"expert": f"expert{e}"}, "synthetic", "synthetic")
        store = create_embeddings(folder / f"expert{e}.zarr", layout, identity)
        for shard in range(store.n_shards):
            rows = store.rows_of(shard)
            store.write(shard, Shard(np.zeros((rows.stop - rows.start, 1, 1), np.float16), values[rows]))


def fit_stored(folder: Path, memory_gb: float) -> None:
    """Fit the stores of a folder; prints seconds and memory as JSON."""
    from cache.embeddings import open_embeddings
    from stages.learning.data import expert_parts

    features: dict[str, LazyRows] = {}
    for path in sorted(folder.glob("*.zarr")):
        features[path.stem] = expert_parts(open_embeddings(path), lazy=True)["embedding"]
    targets, folds = make_targets(len(features["expert0"]))[1:]
    with PeakMemory() as memory, Clock() as clock:
        heads = fit_ours(features, targets, folds, memory_gb)
    print(json.dumps({"wall_s": clock.wall, "cpu_s": clock.cpu, "peak_mb": memory.mb, "did": describe(heads)}))


def draw(found: list[dict], path: Path, width: int) -> None:
    """Plot processor time and peak memory over the number of records."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "heads"
    from matplotlib import pyplot as plt

    thousands = [row["records"] / 1000 for row in found]
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    seconds = [row["cpu_s"] for row in found]
    axes[0].plot(thousands, seconds, "o-", label="fit")
    slope = seconds[0] / thousands[0]
    axes[0].plot(thousands, [slope * n for n in thousands], "--", color="grey", label="proportional to the first")
    axes[0].set(xlabel="thousand records", ylabel="processor time, s", ylim=(0, None), xlim=(0, None))
    axes[0].legend()
    axes[1].plot(thousands, [row["peak_mb"] / 1000 for row in found], "o-", label="peak, whole process")
    size = [row["records"] * EXPERTS * width * 2 / 1e9 for row in found]
    axes[1].plot(thousands, size, "--", color="grey", label="the features")
    axes[1].set(xlabel="thousand records", ylabel="GB", ylim=(0, None), xlim=(0, None))
    axes[1].legend()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
