"""One method's metrics over several seeds: means, spreads, and paired differences with intervals over patients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stages.scoring.bootstrap import Bootstrap, Estimate, estimate


@dataclass(frozen=True)
class Measured:
    """One method's metrics over seeds, on common resamples of the patients."""

    seeds: list[Bootstrap]

    def value(self, metric: str) -> tuple[float, float]:
        """Return mean and standard deviation over seeds."""
        values = [seed.values[metric] for seed in self.seeds]
        return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else np.nan

    def minus(self, other: Measured, metric: str) -> tuple[Estimate, float]:
        """Return the mean difference with its interval over patients, and its standard deviation over seeds."""
        pairs = list(zip(self.seeds, other.seeds, strict=True))
        values = [a.values[metric] - b.values[metric] for a, b in pairs]
        replicates = np.mean([a.replicates[metric] - b.replicates[metric] for a, b in pairs], axis=0)
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else np.nan
        return estimate(float(np.mean(values)), replicates), spread


def difference_text(difference: Estimate, spread: float) -> str:
    """Write a difference, its 95 % interval over patients and its standard deviation over seeds."""
    return f"{difference.value:+.3f} ({difference.low:+.3f} to {difference.high:+.3f}) ± {spread:.3f}"


def print_table(found: dict[str, Measured], references: list[str], metrics: dict[str, str]) -> None:
    """Print values with their spread over seeds, and differences from the references with patient intervals."""
    pairs = [(reference, metric) for reference in references for metric in metrics]
    head = [*metrics.values(), *(f"{metrics[metric]} minus {reference}" for reference, metric in pairs)]
    print(f"\n| | {' | '.join(head)} |\n|---|{'---|' * len(head)}")
    for title, method in found.items():
        cells = ["{:.3f} ± {:.3f}".format(*method.value(metric)) for metric in metrics]
        for reference, metric in pairs:
            cells.append(difference_text(*method.minus(found[reference], metric)) if title != reference else "")
        print(f"| {title} | {' | '.join(cells)} |")
