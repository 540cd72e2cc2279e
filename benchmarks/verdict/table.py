"""The verdict's table: every instance, mean ranks, wins, losses and mean differences."""

from __future__ import annotations

import numpy as np

from benchmarks.verdict.scoring import BESIDE, RIVALS, Instance


def print_table(rows: list[Instance]) -> None:
    """Print every instance, then mean rank, wins, losses and mean differences."""
    for row in rows:
        rivals = "  ".join(
            f"{r} {d[0]:+.4f} ({d[1]:+.4f} to {d[2]:+.4f})" for r, d in row.differences.items() if r in RIVALS
        )
        print(f"{row.name:48} {row.metric:12} {row.values['gate']:8.4f}  {rivals}")
    print_summary("all instances", rows)
    for cohort in sorted({row.name.split("--")[0].rstrip("0123456789") for row in rows}):
        print_summary(cohort, [row for row in rows if row.name.startswith(cohort)])
    for size in ("50", "100", "300", "1000", "all"):
        print_summary(f"{size} patients", [row for row in rows if row.name.split("--")[2] == size])


def print_summary(title: str, rows: list[Instance]) -> None:
    if not rows:
        return
    methods = ("gate", *RIVALS)
    values = np.array([[row.values[m] for m in methods] for row in rows])
    ranks = (
        (values[:, None, :] > values[:, :, None]).sum(2) + (values[:, None, :] == values[:, :, None]).sum(2) / 2 + 0.5
    )
    print(
        f"\n{title}: {len(rows)} instances; mean rank "
        + ", ".join(f"{m} {r:.2f}" for m, r in zip(methods, ranks.mean(0), strict=True))
    )
    scored = [row for row in rows if row.metric != "mae"]
    for rival in RIVALS:
        wins = np.mean([row.differences[rival][1] > 0 for row in rows])
        losses = np.mean([row.differences[rival][2] < 0 for row in rows])
        mean = np.mean([row.differences[rival][0] for row in scored]) if scored else np.nan
        errors = [row.differences[rival][0] / -row.values[rival] for row in rows if row.metric == "mae"]
        error = f", error {-100 * np.mean(errors):+.1f} %" if errors else ""
        print(f"  gate minus {rival:12} better {wins:4.0%}  worse {losses:4.0%}  mean {mean:+.4f} AUROC{error}")
    for rival in BESIDE:
        if rated := [row for row in rows if rival in row.differences]:
            wins, losses = (
                np.mean([sign * r.differences[rival][k] > 0 for r in rated]) for sign, k in ((1, 1), (-1, 2))
            )
            mean = np.mean([row.differences[rival][0] for row in rated])
            words = f"better {wins:4.0%}  worse {losses:4.0%}  mean {mean:+.4f} AUROC ({len(rated)} instances)"
            print(f"  gate minus {rival:14} {words}")
    for name in ("ece", "brier"):
        of = [row.calibration[name] for row in rows if name in row.calibration]
        if of:
            print(f"  {name:6}" + ", ".join(f"{m} {np.mean([c[m] for c in of]):.4f}" for m in methods))
