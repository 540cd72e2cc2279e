"""A gate of some experts in the places of all, and a gate of nobody's evidence: constant, by given odds.

Not here: why some experts are left out of a fit (`gate.seen`).
"""

from __future__ import annotations

import numpy as np
import torch

from stages.heads.gate.reader import FoldReader, ReaderFit
from stages.heads.gate.training import GateData, GateFit
from stages.heads.gate.weights import FoldGate


def renamed(start: str, others: np.ndarray) -> str:
    """Count experts as all of them are counted: "single:1" of the others -> "single:2"."""
    kind, _, number = start.partition(":")
    return f"{kind}:{others[int(number)]}" if number else start


def mixture_alone(n_folds: int, n_columns: int, n_experts: int, n_tasks: int) -> ReaderFit:
    """Return readers that read nothing: the mixture counts alone."""
    weight, nothing = np.zeros((n_experts * n_columns, n_columns), np.float32), np.zeros(n_columns, np.float32)
    fold = FoldReader(weight, nothing, np.ones(n_columns, np.float32))
    return ReaderFit([fold] * n_folds, torch.empty(0), [[(1.0, 0.0, 0.0)] * n_tasks] * n_folds)


def equal_gate(data: GateData, log_odds: np.ndarray, top_k: int) -> GateFit:
    """Return the gate of held experts alone: constant, by their odds."""
    n_folds, n_tasks, n_experts = log_odds.shape
    n_shared, n_per_task = data.shared.shape[-1], data.per_task.shape[-1]
    shapes = {
        "constant": (n_experts,),
        "w_shared": (n_shared, 1),
        "w_own": (n_per_task, 1),
        "b": (1,),
        "out": (1, n_experts),
        "skip": (n_shared, n_experts),
        "skip_own": (n_per_task, n_experts),
    }
    arrays = {name: np.zeros((n_tasks, *shape), np.float32) for name, shape in shapes.items()}
    folds = [FoldGate({**arrays, "held": odds}, np.zeros(n_tasks, bool), top_k) for odds in log_odds]
    start = [["uniform"] * n_tasks for _ in range(n_folds)]
    return GateFit(folds, torch.empty(0), torch.zeros(n_folds, n_tasks, dtype=torch.long), start)


class Places:
    """Where the inputs and outputs of a gate of some experts lie in that of all: zeros elsewhere.

    Parameters
    ----------
    coordinates
        Of each expert, in the part and in the whole.
    """

    def __init__(self, others: np.ndarray, n_experts: int, coordinates: tuple[int, int], whole: GateData) -> None:
        self.others, self.n_experts = others, n_experts
        self.n_shared, self.n_per_task = whole.shared.shape[-1], whole.per_task.shape[-1]
        in_part, in_whole = coordinates
        # flags of absent experts, coordinates of each expert, a summary of the signal: as `gate.inputs` lays them out
        of_experts = [n_experts + e * in_whole + g for e in others for g in range(in_part)]
        self.shared = np.array([*others, *of_experts, *range(n_experts * (1 + in_whole), self.n_shared)])
        self.of_task = np.array([*others, *(n_experts + others)]) if self.n_per_task else np.zeros(0, int)

    def arrays(self, part: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays of a `FoldGate`."""
        shared = {"w_shared": (self.shared, self.n_shared), "skip": (self.shared, self.n_shared)}
        per_task = {"w_own": (self.of_task, self.n_per_task), "skip_own": (self.of_task, self.n_per_task)}
        found = {}
        for name, array in part.items():
            wide = array
            if name in (places := shared | per_task):
                index, size = places[name]
                wide = np.zeros((len(array), size, *array.shape[2:]), array.dtype)
                wide[:, index] = array
            if name in ("constant", "out", "skip", "skip_own"):
                narrow, wide = wide, np.zeros((*wide.shape[:-1], self.n_experts), array.dtype)
                wide[..., self.others] = narrow
            found[name] = wide
        return found
