"""Patients with a known hazard, and their follow-up."""

from dataclasses import dataclass

import numpy as np

from cache.follow_up import follow_up
from stages.heads import TaskSpec

HORIZONS = (30.0, 180.0, 365.0)
DEATH = TaskSpec("death", "survival", unit="days", horizons=HORIZONS)


@dataclass(frozen=True)
class Study:
    """Two experts' features, of which the log-hazard is a sum, and the signed times."""

    features: dict[str, np.ndarray]
    log_hazard: np.ndarray
    signed: np.ndarray


def make_study(n: int = 600, seed: int = 0, *, tied: bool = False) -> Study:
    """Draw exponential times with hazards exp(log_hazard) / 400 days, censored between 100 and 500 days."""
    rng = np.random.default_rng(seed)
    a, b = (rng.normal(size=(n, d)).astype(np.float32) for d in (12, 6))
    log_hazard = 0.9 * a[:, 0] - 0.6 * b[:, 0] + 0.4 * a[:, 1]
    died, left = rng.exponential(400 * np.exp(-log_hazard)), rng.uniform(100, 500, n)
    time = np.minimum(died, left)
    time = np.ceil(time / 30) * 30 if tied else np.maximum(np.float32(time).astype(float), 1e-3)
    return Study({"a": a, "b": b}, log_hazard, follow_up(time, died <= left))


def thirds(n: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    rows = np.arange(n)
    return [(rows[: n // 2], rows[n // 2 : 2 * n // 3], rows[2 * n // 3 :])]
