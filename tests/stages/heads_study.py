"""A small study of every kind of task, and heads fitted to it."""

from typing import Any

import numpy as np

from stages.heads import EnsembleHeads, TaskSpec

Split = tuple[np.ndarray, np.ndarray, np.ndarray]


TASKS = (
    TaskSpec("rr", "regression", unit="ms"),
    TaskSpec("sex", "binary", ("male", "female")),
    TaskSpec("report", "multiclass", ("a", "b", "c")),
    TaskSpec("super", "multilabel", ("x", "y")),
)


def split(n: int, seed: int = 0) -> Split:
    rows = np.random.default_rng(seed).permutation(n)
    return rows[n // 3 :], rows[n // 4 : n // 3], rows[: n // 4]


def study(n: int = 240, seed: int = 0) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    u = rng.normal(size=(n, 6))
    wide = (u @ rng.normal(size=(6, 400)) + 2 * rng.normal(size=(n, 400))).astype(np.float32)
    narrow = (u @ rng.normal(size=(6, 20)) + rng.normal(size=(n, 20))).astype(np.float32)
    layers = np.stack([narrow + rng.normal(size=narrow.shape) for _ in range(3)], 1).astype(np.float16)
    targets = {
        "rr": 800 + 100 * u[:, 0] + 10 * rng.normal(size=n),
        "sex": (u[:, 1] > 0).astype(float),
        "report": np.argmax(2 * u[:, 2:5] + rng.gumbel(size=(n, 3)), 1).astype(float),
        "super": (u[:, 3:5] > 0.5).astype(float),
    }
    features = {"wide": wide, "layered": {"embedding": narrow, "layers": layers, "embed": layers[:, 0]}}
    return features, targets


def take(features: dict[str, Any], rows: np.ndarray) -> dict[str, Any]:
    return {k: {p: a[rows] for p, a in v.items()} if isinstance(v, dict) else v[rows] for k, v in features.items()}


def fitted_study() -> tuple[EnsembleHeads, dict[str, Any], dict[str, np.ndarray], list[Split]]:
    features, targets = study()
    splits = [split(240, seed) for seed in range(2)]
    heads = EnsembleHeads(lora_epochs=5, gate_epochs=5, gate_input="all")
    signal = np.random.default_rng(1).normal(size=(240, 1000)).astype(np.float32)
    features["signal"] = signal
    heads.fit(
        {k: v for k, v in features.items() if k != "signal"},
        targets,
        TASKS,
        splits=splits,
        gate_signal=signal,
        provenance={"wide": "sha256:1"},
    )
    return heads, features, targets, splits


def arguments(features: dict[str, Any], rows: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    return take({k: v for k, v in features.items() if k != "signal"}, rows), features["signal"][rows]
