"""Seconds of Cox heads: one gradient, the unpenalised fit beside lifelines', and a whole fit with gate and LoRA.

Run `python -m benchmarks.survival [--records 10000] [--features 768]`; needs lifelines (extra `test`) for the second.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from cache.follow_up import follow_up, times_and_events
from stages.heads import EnsembleHeads, TaskSpec
from stages.heads.in_memory.probe import Problem, Rotation, fit_path
from stages.heads.survival.partial_likelihood import EfronTerms
from stages.heads.targets.tasks import layout
from stages.scoring.survival.concordance import Pairs

TASK = TaskSpec("death", "survival", unit="days", horizons=(30.0, 180.0, 365.0))
SOME_FEATURES = 20
"""Of the fit that lifelines makes as well: its Newton steps cost the square of the features."""


def study(n: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw features [n, d] and signed times with a fifth of events, rounded to days: many are tied."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)).astype(np.float32)
    log_hazard = x[:, :10] @ np.linspace(0.5, -0.5, 10)
    died, left = rng.exponential(900 * np.exp(-log_hazard)), rng.uniform(200, 400, n)
    return x, follow_up(np.ceil(np.minimum(died, left)), died <= left)


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that something took, and what it gave."""
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def unpenalised(x: np.ndarray, signed: np.ndarray) -> np.ndarray:
    """Return Cox's coefficients by the probe's solver."""
    rotation, y = Rotation.fit(x), torch.from_numpy(signed.astype(np.float32))[None, :, None]
    z = torch.from_numpy(rotation.transform(x))[None]
    problem = Problem(z, y, torch.ones_like(y), torch.ones(1, 1, len(x)), layout([TASK]))
    w = fit_path(problem, torch.tensor([1e-6]), tolerance=1e-4)[0, 0, 0, :-1, 0]
    return (torch.from_numpy(rotation.axes) @ w).numpy()


def by_lifelines(x: np.ndarray, signed: np.ndarray) -> np.ndarray:
    """Return lifelines' coefficients."""
    import pandas as pd
    from lifelines import CoxPHFitter

    times, events = times_and_events(signed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = CoxPHFitter().fit(pd.DataFrame(x).assign(time=times, event=events), "time", "event")
    return fitted.params_.to_numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--features", type=int, default=768)
    asked = parser.parse_args()
    x, signed = study(asked.records, asked.features)
    n = len(x)
    print(f"{n} records, {x.shape[1]} features, {int((signed > 0).sum())} events, {torch.get_num_threads()} thread(s)")
    eta, times = torch.randn(6, n), torch.from_numpy(signed)[None]
    taken, _ = seconds(lambda: EfronTerms(eta, times, torch.ones(6, n)).slopes())
    print(f"gradient of six models' log-hazards: {1e3 * taken:.1f} ms")
    some = np.ascontiguousarray(x[:, :SOME_FEATURES])
    (ours, found), (theirs, expected) = (
        seconds(lambda: unpenalised(some, signed)),
        seconds(lambda: by_lifelines(some, signed)),
    )
    print(
        f"unpenalised, {SOME_FEATURES} features: {ours:.2f} s, lifelines {theirs:.2f} s, "
        f"largest difference {abs(found - expected).max():.1e}"
    )
    taken, _ = seconds(lambda: unpenalised(x, signed))
    print(f"unpenalised, {x.shape[1]} features: {taken:.2f} s")
    rows = np.arange(n)
    split = [(rows[: int(0.8 * n)], rows[int(0.8 * n) : int(0.9 * n)], rows[int(0.9 * n) :])]
    for lora in (False, True):
        heads = EnsembleHeads(lora=lora)
        taken, _ = seconds(lambda heads=heads: heads.fit({"a": x}, {"death": signed}, [TASK], splits=split))
        print(f"heads and gate, {'with' if lora else 'without'} LoRA: {taken:.1f} s")
    weights = np.random.default_rng(0).integers(0, 3, (n, 100)).astype(float)
    pairs = Pairs(signed, x[:, 0])
    taken, _ = seconds(lambda: pairs([weights * (signed > 0)[:, None]], weights))
    print(f"Harrell's C of 100 resamples: {taken:.2f} s")


if __name__ == "__main__":
    main()
