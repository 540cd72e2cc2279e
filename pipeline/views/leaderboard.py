"""What `ensemble evaluate --preset fm-benchmark` prints: one line a row of the board."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from stages.scoring.metrics import METRICS
from stages.scoring.table import DASH, number


def leaderboard_table(board: dict[str, Any], costs: dict[str, Any]) -> Table:
    """Return the board as a table: rows by mean rank, a column a task, then parameters and speed."""
    table = Table(title="Leaderboard, test records; in brackets the 95 % interval over patients")
    for head in ("expert", "mode", "inputs"):
        table.add_column(head)
    for task, found in board["tasks"].items():
        table.add_column(f"{task}\n{METRICS[found['metric']].title}", justify="right")
    for head in ("mean rank", "parameters", "records/s"):
        table.add_column(head, justify="right")
    for row in board["rows"]:
        scores = [_interval(row["scores"].get(task), found["metric"]) for task, found in board["tasks"].items()]
        rank = DASH if row["mean_rank"] is None else number(row["mean_rank"]["value"], 1)
        speed, size = costs["records_per_s"].get(row["expert"]), row["expert_parameters"]
        spent = (DASH if size is None else f"{size:,}", DASH if speed is None else number(speed, 1))
        mode = f"{row['mode']}*" if row["pooling"].startswith("mean:") else row["mode"]
        table.add_row(row["expert"], mode, row["inputs"], *scores, rank, *spent)
    if any(row["pooling"].startswith("mean:") for row in board["rows"]):
        table.caption = "* no tokens to attend over: the linear head on the mean vector"
    return table


def _interval(score: dict[str, Any] | None, metric: str) -> str:
    if score is None:
        return DASH
    places = 2 if METRICS[metric].has_unit else 3
    low, high = score["low"], score["high"]
    if low is None or low != low:  # noqa: PLR0124 - not a number is not itself
        return number(score["value"], places)
    return f"{number(score['value'], places)} ({number(low, places)}{DASH}{number(high, places)})"
