"""Cox's partial likelihood with Efron's ties, for many folds and models at once.

Lives here: each record's share of the negative log partial likelihood (Cox 1972; Efron 1977), its gradient and
curvature. Not here: what minimises it (`in_memory.probe`, `blockwise`, `in_memory.lora`, `gate`), the baseline hazard
(`survival.baseline`).

Records are sorted by time once; a risk set is then a running sum, so that n records cost n log n. All is in double
precision: sums over risk sets differ from one another in their last bits only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LEAST = 1e-300
"""Stands for a risk set's sum where nobody is at risk; no event is counted there."""


@dataclass(frozen=True)
class _Order:
    """Times from the latest to the earliest, [..., n]: positions, and the first and last position of equal times."""

    order: Tensor
    first: Tensor
    last: Tensor
    events: Tensor

    @classmethod
    def of(cls, times: Tensor, like: Tensor) -> _Order:
        """Sort signed times, and spread the result over the batch of `like` [..., n]."""
        signed = torch.where(times == 0, -torch.inf, times.double())  # unknown: its weight is 0
        order = signed.abs().argsort(dim=-1, descending=True, stable=True)
        signed = signed.gather(-1, order)
        time, n = signed.abs(), signed.shape[-1]
        position = torch.arange(n, device=times.device).expand_as(order)
        differs = time[..., 1:] != time[..., :-1]
        edge = torch.ones_like(time[..., :1], dtype=torch.bool)
        starts, ends = torch.cat([edge, differs], -1), torch.cat([differs, edge], -1)
        first = torch.where(starts, position, 0).cummax(-1).values
        last = torch.where(ends, position, n).flip(-1).cummin(-1).values.flip(-1)
        return cls(*(x.expand(like.shape) for x in (order, first, last, signed > 0)))


class EfronTerms:
    """Terms of the partial likelihood of log-hazards.

    Parameters
    ----------
    logits
        Log-hazards [..., n].
    times
        Signed times (`cache.follow_up`), broadcast to [..., n]; 0 where unknown.
    counted
        [..., n]: records with a weight above 0 are in the risk sets; the others have no part in anything.

    Examples
    --------
    >>> terms = EfronTerms(torch.zeros(3), torch.tensor([2.0, -3.0, 1.0]), torch.ones(3))
    >>> torch.allclose(terms.losses(), torch.tensor([2.0, 1.0, 3.0]).log() * torch.tensor([1.0, 0.0, 1.0]))
    True
    """

    def __init__(self, logits: Tensor, times: Tensor, counted: Tensor) -> None:
        self.dtype = logits.dtype
        self.sorted = _Order.of(times, logits)
        eta = logits.double().gather(-1, self.sorted.order)
        is_counted = (counted > 0).expand_as(logits).gather(-1, self.sorted.order)
        self.event = (self.sorted.events & is_counted).double()
        shown = torch.where(is_counted, eta, -torch.inf)
        self.top = shown.detach().amax(-1, keepdim=True).nan_to_num(0.0, 0.0, 0.0)
        self.eta, self.risk = eta, (shown - self.top).exp()
        at_risk = self.risk.cumsum(-1).gather(-1, self.sorted.last)
        tied = self._in_group(self.event)
        rank = self.event.cumsum(-1) - self.event
        rank = rank - rank.gather(-1, self.sorted.first)
        self.share = self.event * rank / tied.clamp_min(1)
        """Of the tied records' risk that an event's denominator leaves out: l / m for the l-th of m."""
        self.denominator = (at_risk - self.share * self._in_group(self.event * self.risk)).clamp_min(LEAST)

    def _in_group(self, values: Tensor) -> Tensor:
        """Sum over the records of the same time."""
        until = values.cumsum(-1)
        return until.gather(-1, self.sorted.last) - (until - values).gather(-1, self.sorted.first)

    def losses(self) -> Tensor:
        """Return each event's negative log share of its risk set, [..., n]; 0 for the censored. Differentiable."""
        loss = self.event * (self.denominator.log() + self.top - self.eta)
        return self._back(loss)

    def slopes(self) -> tuple[Tensor, Tensor]:
        """Return the gradient of the summed losses by the log-hazards, and a bound of its diagonal second derivative.

        The gradient is minus the martingale residual: expected events, at the baseline of these very log-hazards, less
        observed ones.
        """
        per_event = self.event / self.denominator
        until = per_event.cumsum(-1)
        since = until[..., -1:] - (until - per_event).gather(-1, self.sorted.first)
        of_ties = self.event * self._in_group(self.share * per_event)
        expected = self.risk * (since - of_ties)
        return self._back(expected - self.event), self._back(expected)

    def _back(self, values: Tensor) -> Tensor:
        """Undo the sorting."""
        return torch.zeros_like(values).scatter(-1, self.sorted.order, values).to(self.dtype)


def terms_along(logits: Tensor, times: Tensor, counted: Tensor | None, axis: int) -> EfronTerms:
    """Return the terms of arrays whose records lie along `axis`; the results have them last.

    Times are sorted as they come: where they are the same for many models (length 1 there), they are sorted once.
    """
    inside = torch.ones_like(logits) if counted is None else counted
    logits, inside = torch.broadcast_tensors(logits, inside)
    return EfronTerms(*(x.movedim(axis, -1) for x in (logits, times, inside)))
