"""What views of the tokens cost beside embedding itself, at published sizes with random weights.

    python -m benchmarks.views --experts merl,merl-vit,ecgcpc --records 4

One row an expert: processor milliseconds a record of preparing and of the forward pass (the smallest of `--rounds`),
and of each view that the expert offers, computed from the tokens of that pass (the smallest of 15), as a share of both.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from stages.experts import load_expert
from stages.experts.run import run_expert
from stages.experts.signals.reference_ecgs import reference_signals
from stages.experts.views import VIEWS, token_views

RATE_HZ, SECONDS = 500.0, 10.0
VIEW_ROUNDS = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", default="merl,merl-vit,ecgcpc,clef,dbeta,melp", help="names, separated by commas")
    parser.add_argument("--records", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    signals_mv = reference_signals(options.records, round(SECONDS * RATE_HZ), RATE_HZ, seed=7)
    row("expert", "tokens", "dim", "prepare ms", "forward ms", *(f"{view} %" for view in VIEWS))
    for name in options.experts.split(","):
        row(name, *costs(name, signals_mv, options.records, options.rounds))


def row(*cells: str) -> None:
    print("| " + " | ".join(f"{cell:>10}" for cell in cells) + " |", flush=True)


def costs(name: str, signals_mv: Any, n_records: int, rounds: int) -> Sequence[str]:
    expert = load_expert(name, random_weights=True)
    x = expert.prepare(signals_mv, RATE_HZ)
    prepare = least(lambda: expert.prepare(signals_mv, RATE_HZ), rounds) / n_records
    forward = least(lambda: run_expert(expert, x), rounds) / n_records
    with torch.inference_mode():
        tokens = expert.encode(x.flatten(0, 1)[: x.shape[1]]).tokens  # one record's windows
        if tokens is None:
            return ["-"] * 8
        shares = [
            100
            * least(lambda view=view: token_views(tokens, x.shape[1], expert.spec, [view], SECONDS), VIEW_ROUNDS)  # type: ignore[misc]
            / (prepare + forward)
            if view in expert.spec.views
            else None
            for view in VIEWS
        ]
    shown = ["-" if share is None else f"{share:.2g}" for share in shares]
    return [
        str(tokens.shape[0] * tokens.shape[1]),
        str(tokens.shape[2]),
        f"{1e3 * prepare:.3g}",
        f"{1e3 * forward:.3g}",
        *shown,
    ]


def least(call: Callable[[], object], rounds: int) -> float:
    """Return the smallest processor seconds of some calls."""
    found = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
    return min(found)


if __name__ == "__main__":
    main()
