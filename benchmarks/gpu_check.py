"""One command for a machine with a GPU: does everything here run on it, how fast, and to the same numbers.

    PYTHONPATH=. python benchmarks/gpu_check.py                     # or: make gpu-check
    PYTHONPATH=. python benchmarks/gpu_check.py --device cpu --small --records 8 --parts parity,heads

Nothing has to be installed but torch 2.6 or later, transformers, safetensors, scipy and pandas, which machines with
GPUs have. Some parts need a few pure or small wheels more (pip install --target DIR, then PYTHONPATH=.:DIR):
    heads      pydantic pydantic-core annotated-types typing-inspection peft scikit-learn pyarrow
    pretrain   the same, xxhash zarr numcodecs google-crc32c donfig
    embed      the same
    tests      pytest hypothesis
A part whose packages are missing is left out, and its row says which one. Each part is a process with a time limit of
its own; all together take at most nine minutes. Results go to --out as JSON, and a table to the terminal.

Published rates to stand beside (A100, records of ten seconds a second): ECGFounder 2256, HuBERT-ECG 786, ECG-FM 275,
ST-MEM 224, ECG-JEPA 185.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXPERTS = ("ecgfm", "ecgfounder", "stmem", "hubert-base")
PUBLISHED_A100 = {"ecgfounder": 2256, "hubert-base": 786, "ecgfm": 275, "stmem": 224, "jepa": 185}
ROOT = Path(__file__).resolve().parents[1]
RESULT = "RESULT "


def main() -> int:
    options = parsed()
    if options.part:
        print(RESULT + json.dumps(PARTS[options.part][0](options)), flush=True)
        return 0
    started, results = time.perf_counter(), {"machine": machine(options)}
    for name in options.parts.split(",") if options.parts else PARTS:
        limit = min(PARTS[name][1], options.limit_s - (time.perf_counter() - started))
        results[name] = in_process(name, options, limit)
        print(f"{name:>9}  {spoken(results[name])}", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{table(results)}\nall of it: {options.out}")
    return int(any("failed" in part for part in results.values()))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:i or cpu")
    parser.add_argument("--records", type=int, default=1024, help="records of a rate")
    parser.add_argument("--small", action="store_true", help="small networks instead of the published sizes")
    parser.add_argument("--parts", default="", help="some of them, separated by commas")
    parser.add_argument("--limit-s", type=float, default=540, help="seconds for everything")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu_check.json")
    parser.add_argument("--part", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def in_process(name: str, options: argparse.Namespace, limit_s: float) -> dict[str, Any]:
    """Run one part in a process of its own, so that a crash, a hang or full memory stops no other part."""
    if limit_s < 5:
        return {"skipped": "no time left"}
    asked = [f"--device={options.device}", f"--records={options.records}", *(["--small"] if options.small else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, __file__, f"--part={name}", *asked]
    started = time.perf_counter()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=limit_s, env=environment, cwd=ROOT
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"took longer than {limit_s:.0f} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    if done.returncode or not lines:
        return lacking(done.stderr) or {"failed": (done.stderr.strip().splitlines() or ["no output"])[-1][:300]}
    return {**json.loads(lines[-1].removeprefix(RESULT)), "seconds": round(time.perf_counter() - started, 1)}


def lacking(stderr: str) -> dict[str, Any] | None:
    """Tell a package that is not there from a failure."""
    last = (stderr.strip().splitlines() or [""])[-1]
    return {"skipped": last.partition(": ")[2]} if last.startswith("ModuleNotFoundError") else None


def machine(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    on_gpu = options.device != "cpu"
    if on_gpu and not torch.cuda.is_available():
        raise SystemExit("error: torch sees no GPU; --device cpu is a dry run")
    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }
    if on_gpu:
        facts |= {"gpu": torch.cuda.get_device_name(), "memory_gb": torch.cuda.mem_get_info()[1] / 1e9}
    return facts


# Parts


def loaded(name: str, options: argparse.Namespace) -> Any:
    """Return an expert with random weights, in its published size or a small one."""
    import torch

    from stages.experts import expert_class, load_expert

    torch.manual_seed(0)
    cls, variant = expert_class(name)
    config = dict(cls.small_config(variant)) if options.small else None
    return load_expert(name, config=config, random_weights=True, device=options.device)


def ecgs(n: int) -> Any:
    from stages.experts.signals.reference_ecgs import reference_signals

    return reference_signals(n, 5000, 500.0, seed=3)


def wait(options: argparse.Namespace) -> None:
    import torch

    if options.device != "cpu":
        torch.cuda.synchronize()


def best_of(rounds: int, options: argparse.Namespace, work: Callable[[], Any]) -> float:
    """Seconds of the fastest of some rounds, after one that warms up."""
    work()
    times = []
    for _ in range(rounds):
        wait(options)
        started = time.perf_counter()
        work()
        wait(options)
        times.append(time.perf_counter() - started)
    return min(times)


def matrix(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the rate of a large product in each number format: what a forward pass can reach at most."""
    import torch

    n = 256 if options.small else 8192
    found = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a, b = (torch.randn(n, n, device=options.device, dtype=dtype) for _ in range(2))
        found[f"{name}_tflops"] = 2 * n**3 / best_of(5, options, lambda a=a, b=b: a @ b) / 1e12
    return found


def forward(options: argparse.Namespace) -> dict[str, Any]:
    """Measure records a second of the forward pass alone, per expert and precision; with torch.compile besides."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from stages.experts.run import run_expert, set_precision

    peak, found = matrix(options)["bf16_tflops"], {}
    for name in EXPERTS:
        expert = loaded(name, options)
        x = expert.prepare(ecgs(min(options.records, 64)), 500.0)
        x = x.repeat(-(-options.records // len(x)), *[1] * (x.ndim - 1))[: options.records]
        with FlopCounterMode(display=False) as counter:
            run_expert(expert, x[:1])
        for precision in ("fp32", "bf16"):
            set_precision(expert, precision)
            rate = len(x) / best_of(2, options, lambda e=expert, x=x: run_expert(e, x))
            entry = {"records_s": rate, "share_of_bf16": counter.get_total_flops() * rate / peak / 1e12}
            if options.device != "cpu":
                entry["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
                torch.cuda.reset_peak_memory_stats()
            found[f"{name} {precision}"] = entry
        found[f"{name} bf16 compiled"] = compiled(expert, x, options)
        del expert
    return found


def compiled(expert: Any, x: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Measure the same pass through torch.compile: this row decides whether it pays."""
    import torch

    from stages.experts.run import run_expert

    if options.device == "cpu":
        return {"skipped": "on GPUs only"}
    plain = expert.module
    try:
        expert.module = torch.compile(plain)
        return {"records_s": len(x) / best_of(2, options, lambda: run_expert(expert, x))}
    except Exception as error:  # noqa: BLE001 - a compiler that fails is a result
        return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"}
    finally:
        expert.module = plain


def parity(options: argparse.Namespace) -> dict[str, Any]:
    """Measure how far the device's vectors lie from the CPU's, relative to the spread between records."""
    import numpy as np

    from stages.experts import list_experts
    from stages.experts.run import run_expert

    found = {}
    cpu = argparse.Namespace(**{**vars(options), "device": "cpu", "small": True})
    for name in list_experts() if options.device != "cpu" else EXPERTS:
        try:
            expert = loaded(name, cpu)
        except Exception as error:  # noqa: BLE001 - a package that the expert needs may be missing
            found[name] = {"skipped": str(error).splitlines()[0][:120]}
            continue
        if expert.module is None:
            continue
        x = expert.prepare(ecgs(6), 500.0)
        exact = run_expert(expert, x).embedding
        other = loaded(name, argparse.Namespace(**{**vars(options), "small": True}))
        other.module.load_state_dict(expert.module.state_dict())
        difference = np.abs(run_expert(other, x).embedding - exact).max()
        found[name] = {"of_the_spread": float(difference / max(exact.std(axis=0).max(), 1e-12))}
    return found


def full_memory(options: argparse.Namespace) -> dict[str, Any]:
    """Check that a batch that does not fit is halved until it does, and gives the same vectors."""
    import numpy as np
    import torch

    from stages.experts.run import run_expert

    if options.device == "cpu":
        return {"skipped": "on GPUs only"}
    expert = loaded("ecgfm", options)
    x = expert.prepare(ecgs(64), 500.0).repeat(4, *[1] * 3)[:256]
    expected = run_expert(expert, x, 8).embedding
    torch.cuda.empty_cache()
    used, total = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((used + 3e9) / total)
    got = run_expert(expert, x).embedding
    return {"largest_difference": float(np.abs(got - expected).max()), "of": float(np.abs(expected).max())}


def heads(options: argparse.Namespace) -> dict[str, Any]:
    """Fit block-wise heads on the device and on the CPU: seconds, and the largest difference between predictions."""
    import numpy as np

    from stages.heads import EnsembleHeads

    n, width = (600, 32) if options.small else (40_000, 768)
    rng = np.random.default_rng(0)
    features = {name: rng.normal(size=(n, width)).astype(np.float32) for name in ("one", "two")}
    shared = features["one"][:, :4].sum(1) + features["two"][:, :4].sum(1)
    labels = {f"y{k}": (shared + rng.normal(0, 2, n) > 0).astype(float) for k in range(4)}
    found, predicted = {}, {}
    for device in dict.fromkeys(("cpu", options.device)):
        started = time.perf_counter()
        fit = EnsembleHeads(device=device, seed=0, lora_epochs=2, gate_epochs=2).fit(features, labels)
        found[f"{device}_s"] = time.perf_counter() - started
        predicted[device] = fit.predict(features)
    pairs = [(predicted["cpu"][task], predicted[options.device][task]) for task in predicted["cpu"]]
    found["largest_difference"] = max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)
    return found


def pretrain(options: argparse.Namespace) -> dict[str, Any]:
    """Measure steps a second of ST-MEM's pretraining."""
    import numpy as np

    from stages.experts import expert_class
    from stages.pretrain.objectives import make_objective
    from stages.training.loop import Training
    from stages.training.settings import LoopSettings

    config = dict(expert_class("stmem")[0].small_config()) if options.small else {}
    objective = make_objective("stmem", variant="", size="", preprocessing="", leads="", config=config, seed=0)
    n, batch = (16, 8) if options.small else (2048, 256)
    inputs = np.concatenate([np.asarray(objective.prepare(ecgs(min(n, 64)), 500.0))] * -(-n // min(n, 64)))[:n]
    loop = LoopSettings(epochs=2, batch_size=batch, learning_rate=1e-4, precision="bf16", device=options.device)
    started = time.perf_counter()
    training = Training(objective.model, objective.batches(inputs), loop)
    training.run()
    seconds = time.perf_counter() - started
    return {"steps_s": training.steps / seconds, "records_s": training.steps * batch / seconds}


def embed(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the whole stage, from signals on disk to vectors on disk (benchmarks/embed.py)."""
    import zarr  # noqa: F401 - names the package that is missing

    command = [sys.executable, str(ROOT / "benchmarks" / "embed.py"), f"--device={options.device.partition(':')[0]}"]
    command += ["--rounds=1", f"--records={options.records}", "--precision=bf16"]
    names = "morphology" if options.small else ",".join(EXPERTS)
    done = subprocess.run([*command, f"--experts={names}"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1])
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in done.stdout.splitlines() if "|" in line]
    return {row[0]: dict(zip(rows[0][1:], map(float, row[1:]), strict=True)) for row in rows[1:]}


def tests(options: argparse.Namespace) -> dict[str, Any]:
    """Run the tests marked `gpu`."""
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401

    if options.device == "cpu":
        return {"skipped": "on GPUs only"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/stages"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    last = (done.stdout.strip().splitlines() or [done.stderr[-200:]])[-1]
    if done.returncode:
        raise SystemExit(last)
    return {"pytest": last}


PARTS: dict[str, tuple[Callable[[argparse.Namespace], dict[str, Any]], float]] = {
    "matrix": (matrix, 60),
    "parity": (parity, 120),
    "full_memory": (full_memory, 60),
    "forward": (forward, 200),
    "heads": (heads, 90),
    "pretrain": (pretrain, 60),
    "embed": (embed, 150),
    "tests": (tests, 150),
}
"""Part -> what it does, and its limit in seconds."""


def spoken(part: dict[str, Any]) -> str:
    for word in ("failed", "skipped"):
        if word in part:
            return f"{word}: {part[word]}"
    return f"done in {part['seconds']} s"


def table(results: dict[str, Any]) -> str:
    """Return the rates beside the published ones."""
    rows = [("expert", "records/s", "of bf16 peak", "A100, published")]
    for name, entry in results.get("forward", {}).items():
        if isinstance(entry, dict) and "records_s" in entry:
            share = f"{100 * entry['share_of_bf16']:.0f} %" if "share_of_bf16" in entry else ""
            rows.append((name, f"{entry['records_s']:.0f}", share, str(PUBLISHED_A100.get(name.split()[0], ""))))
    return "\n".join("| " + " | ".join(f"{cell:>18}" for cell in row) + " |" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
