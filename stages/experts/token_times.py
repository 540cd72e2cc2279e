"""Where an expert's tokens lie in time: what is needed to take a mean over each second of the record.

Lives here: the facts that a spec declares (`TokenTimes`, `Placement`) and the weights that follow from them. Not here:
the tokens themselves (`contract.Encoding`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Placement = Literal["consecutive", "even", "whole"]
"""How windows lie on the record: one after the other from its start; evenly placed from its start to its end; or one
window into which the whole record is resampled, whatever its length."""

LEAST_COVER_S = 0.01
"""A second of which less than this is covered by tokens counts as not covered: rounding makes such slivers."""


@dataclass(frozen=True)
class TokenTimes:
    """How the tokens of one window lie in time. Token k stands for [first_s + k step_s, first_s + (k + 1) step_s).

    Attributes
    ----------
    dim
        Width of a token.
    per_window
        Tokens of one full window; a shorter window gives fewer, of the same step.
    step_s
        Seconds from one token to the next, counted in the record's own time.
    first_s
        Start of the first token, counted from the window's start.
    turn_s
        Where the leads run through the network one after the other: seconds after which the next lead begins, and time
        starts anew. 0: the tokens are in time order.
    causal
        Whether the last token has seen the whole window and the others only what lies before them.

    Examples
    --------
    >>> starts, ends = TokenTimes(dim=768, per_window=3, step_s=0.5).spans_s(3)
    >>> starts.tolist(), ends.tolist()
    ([0.0, 0.5, 1.0], [0.5, 1.0, 1.5])
    """

    dim: int
    per_window: int
    step_s: float
    first_s: float = 0.0
    turn_s: float = 0.0
    causal: bool = False

    def spans_s(self, n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Return where each token of a window begins and ends, in seconds from the window's start, both [token]."""
        starts = self.first_s + self.step_s * np.arange(n_tokens)
        if not self.turn_s:
            return starts, starts + self.step_s
        starts = starts % self.turn_s
        return starts, np.minimum(starts + self.step_s, self.turn_s)


def convolved_token_times(
    dim: int, n_samples: int, rate_hz: float, convolutions: Iterable[tuple[int, int]], turn_s: float = 0.0
) -> TokenTimes:
    """Declare the tokens that unpadded convolutions make of one window; each lies around the middle of what it sees.

    Parameters
    ----------
    n_samples, rate_hz
        Length of the window and its sampling rate.
    convolutions
        (kernel, stride) of each, the first first.
    turn_s
        See `TokenTimes`.

    Examples
    --------
    >>> convolved_token_times(768, 2500, 500.0, [(2, 2)] * 4)
    TokenTimes(dim=768, per_window=156, step_s=0.032, first_s=0.0, turn_s=0.0, causal=False)
    """
    seen, stride = 1, 1
    for kernel, step in convolutions:
        n_samples = (n_samples - kernel) // step + 1
        seen, stride = seen + (kernel - 1) * stride, stride * step
    return TokenTimes(dim, n_samples, stride / rate_hz, (seen - stride) / 2 / rate_hz, turn_s)


def window_starts_s(placement: Placement, n_windows: int, window_s: float, record_s: float) -> np.ndarray:
    """Return the start of each window on the record's time axis, in seconds, [window].

    Examples
    --------
    >>> window_starts_s("even", 3, 9.0, 10.0).tolist()
    [0.0, 0.5, 1.0]
    """
    if placement == "consecutive":
        return window_s * np.arange(n_windows)
    return np.linspace(0.0, max(0.0, record_s - window_s) if n_windows > 1 else 0.0, n_windows)


def second_weights(starts_s: np.ndarray, ends_s: np.ndarray, n_seconds: int) -> np.ndarray:
    """Return what each token contributes to the mean over each second, [second, token]; rows add up to 1.

    A token that reaches over the edge of a second counts in both, by the time that lies in each. The row of a second
    that no token covers is NaN.

    Parameters
    ----------
    starts_s, ends_s
        Where every token begins and ends on the record's time axis, [token].

    Examples
    --------
    >>> second_weights(np.array([0.0, 0.5, 1.0]), np.array([0.5, 1.0, 1.5]), 3).tolist()
    [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [nan, nan, nan]]
    """
    seconds = np.arange(n_seconds)[:, None]
    overlap = np.clip(np.minimum(ends_s, seconds + 1) - np.maximum(starts_s, seconds), 0.0, None)
    covered = overlap.sum(axis=1, keepdims=True)
    return np.divide(overlap, covered, out=np.full(overlap.shape, np.nan), where=covered >= LEAST_COVER_S)
