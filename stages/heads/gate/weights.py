"""From inputs to weights over experts, and the weighted sum of their logits.

Not here: training (`training`), the inputs (`inputs`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.heads.targets.tasks import Block


@dataclass
class FoldGate:
    """The gates of one fold. `active[t]` is False where the constant weights were kept for task t."""

    arrays: dict[str, np.ndarray]
    """constant [T, E], w_shared [T, G, H], w_own [T, Q, H], b [T, H], out [T, H, E], skip(_own) [T, G or Q, E]; and, of
    experts that have seen the records that would weigh them (`gate.seen`), held [T, E]: the log of their weight over an
    equal share, NaN for the others."""
    active: np.ndarray
    top_k: int = 0

    @property
    def held(self) -> np.ndarray | None:
        """Which experts have weights that do not depend on the record, bool [E]; None: nobody."""
        return ~np.isnan(self.arrays["held"][0]) if "held" in self.arrays else None

    def weights(self, shared: np.ndarray, per_task: np.ndarray, present: np.ndarray) -> np.ndarray:
        """Weights [n, T, E] of inputs [n, G], [n, T, Q] and presence [n, E]."""
        # In double: the last bits of a single-precision product depend on threads and on the other rows.
        tensors = {k: torch.from_numpy(v).double()[None, None] for k, v in self.arrays.items()}
        inputs = [torch.from_numpy(x).double()[None] for x in (shared, per_task)]
        with torch.no_grad():
            scores = gate_scores(tensors, inputs[0], inputs[1])[0, 0].float()
            constant = torch.from_numpy(self.arrays["constant"]).expand_as(scores)
            scores = torch.where(torch.from_numpy(self.active)[:, None], scores, constant)
            if self.held is not None:
                odds = torch.from_numpy(self.arrays["held"])
                scores = hold(scores, torch.from_numpy(present)[:, None], odds, self.top_k)
                return mask_softmax(scores, torch.from_numpy(present)[:, None]).numpy()
            return mask_softmax(scores, torch.from_numpy(present)[:, None], self.top_k).numpy()


def gate_scores(p: dict[str, Tensor], shared: Tensor, per_task: Tensor) -> Tensor:
    """Log-weights [F, M, n, T, E]: constant + linear + one hidden ReLU layer, of inputs [F, n, G] and [F, n, T, Q]."""
    hidden = torch.einsum("fng,fmtgh->fmnth", shared, p["w_shared"])
    hidden = hidden + torch.einsum("fntq,fmtqh->fmnth", per_task, p["w_own"]) + p["b"][:, :, None]
    scores = torch.einsum("fmnth,fmthe->fmnte", hidden.relu(), p["out"]) + p["constant"][:, :, None]
    scores = scores + torch.einsum("fng,fmtge->fmnte", shared, p["skip"])
    return scores + torch.einsum("fntq,fmtqe->fmnte", per_task, p["skip_own"])


def mask_softmax(scores: Tensor, present: Tensor, top_k: int = 0) -> Tensor:
    """Softmax over present experts; a record without any gets equal weights (its outputs are NaN, not its weights)."""
    return masked_scores(scores, present, top_k).softmax(-1)


def hold(scores: Tensor, present: Tensor, odds: Tensor, top_k: int) -> Tensor:
    """Scores [n, T, E] under which held experts count exp(odds) equal shares each, and the others divide the rest.

    Parameters
    ----------
    odds
        [T, E], NaN for experts that are weighed by record.
    top_k
        Experts kept of all; held ones are among them, or left out where it is too small for any other.
    """
    held = ~odds.isnan()
    kept = kept_beside(top_k, int(held[0].sum()))
    others = masked_scores(scores, present * ~held[0], kept).masked_fill(held, -torch.inf)
    n_kept = others.isfinite().sum(-1, keepdim=True)
    others = others - others.logsumexp(-1, keepdim=True) + n_kept.log()
    return torch.where(held, odds.nan_to_num(), torch.where(n_kept > 0, others, -torch.inf)).expand_as(scores)


def kept_beside(top_k: int, n_held: int) -> int:
    """Return how many experts are kept beside held ones; `top_k` itself where held ones have no room."""
    return top_k - n_held if top_k > n_held else top_k


def masked_scores(scores: Tensor, present: Tensor, top_k: int) -> Tensor:
    """Scores with -inf for absent experts and for those beyond the `top_k` best."""
    alive = present.bool() | ~present.bool().any(-1, keepdim=True)
    scores = scores.masked_fill(~alive, -torch.inf)
    if 0 < top_k < scores.shape[-1]:
        # stable: of equal scores the first expert is kept, in training as in prediction
        order = scores.argsort(dim=-1, descending=True, stable=True)
        kept = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order[..., :top_k], True)
        scores = scores.masked_fill(~kept, -torch.inf)
    return scores


def mix(weights: Tensor, outputs: Tensor, blocks: tuple[Block, ...]) -> Tensor:
    """Weighted sum of the experts' logits: weights [..., n, T, E], outputs [..., n, E, C] -> [..., n, C]."""
    parts = [(weights[..., t, :, None] * outputs[..., b.columns]).sum(-2) for t, b in enumerate(blocks)]
    return torch.cat(parts, -1)
