"""Views of an expert's tokens that can be stored beside the means: what attention over time, spread and peaks need.

Lives here: their names, shapes and how they are computed. Not here: where tokens lie (`token_times`), storing them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cache.errors import UsageError
from stages.experts.contract import ExpertSpec
from stages.experts.token_times import second_weights, window_starts_s

SECONDS = 10
"""Seconds of the record that `segments` holds, from its start."""
VIEWS = ("segments", "std", "max", "last")


def checked_views(spec: ExpertSpec, views: Sequence[str]) -> tuple[str, ...]:
    """Return the views asked for in the order of `VIEWS`.

    Raises
    ------
    UsageError
        One that the expert does not offer.
    """
    for name in views:
        if name not in spec.views:
            offered = ", ".join(spec.views) or "none: it has no tokens"
            raise UsageError(f"expert '{spec.name}' has no view '{name}'; it offers {offered}")
    return tuple(name for name in VIEWS if name in views)


def view_shapes(spec: ExpertSpec, views: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each view of one record.

    Examples
    --------
    >>> from stages.experts import expert_class
    >>> view_shapes(expert_class("ecgfm")[0].published_spec(), ["segments", "std"])
    {'segments': (10, 768), 'std': (768,)}
    """
    names = checked_views(spec, views)
    dim = spec.tokens.dim if spec.tokens else 0
    return {name: (SECONDS, dim) if name == "segments" else (dim,) for name in names}


def token_views(
    tokens: Tensor, windows: int, spec: ExpertSpec, views: Sequence[str], record_s: float
) -> dict[str, np.ndarray]:
    """Compute views of some records.

    Parameters
    ----------
    tokens
        [record * windows, token, dim], as `Encoding.tokens` of the records' windows one after the other.
    record_s
        Length of the records in seconds.

    Returns
    -------
    float32 arrays. `segments` [record, 10, dim]: mean over each second, NaN where no token lies; `std` and `max` over
    all tokens of all windows, [record, dim]; `last`: the windows' last tokens, averaged.
    """
    whole = tokens.float().unflatten(0, (-1, windows))
    makers = {
        "segments": lambda: _segments(whole, _weights(spec, windows, tokens.shape[1], record_s)),
        "std": lambda: whole.flatten(1, 2).std(dim=1, correction=0),
        "max": lambda: whole.flatten(1, 2).amax(dim=1),
        "last": lambda: whole[:, :, -1].mean(dim=1),
    }
    return {name: makers[name]().cpu().numpy() for name in views}


def _weights(spec: ExpertSpec, windows: int, n_tokens: int, record_s: float) -> np.ndarray:
    """Return what each token of a record gives to each second, [second, windows * token]."""
    assert spec.tokens is not None
    stretch = record_s / spec.seconds if spec.placement == "whole" else 1.0
    starts, ends = (edge * stretch for edge in spec.tokens.spans_s(n_tokens))
    at = window_starts_s(spec.placement, windows, spec.seconds, record_s)[:, None]
    ends = np.minimum(at + ends, record_s)
    return second_weights((at + starts).ravel(), ends.ravel(), SECONDS)


def _segments(whole: Tensor, weights: np.ndarray) -> Tensor:
    """Weigh [record, windows, token, dim] by seconds, record by record: a product's last bits depend on its size."""
    covered = torch.from_numpy(np.isfinite(weights).all(axis=1)).to(whole.device)
    factor = torch.from_numpy(np.nan_to_num(weights)).to(whole)
    rows = [factor @ record for record in whole.flatten(1, 2)]
    segments = torch.stack(rows) if rows else whole.new_empty((0, len(weights), whole.shape[-1]))
    return segments.masked_fill(~covered[:, None], torch.nan)
