"""What `ensemble embed` prints: its plan, and what it did."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from stages.embed import EmbedSummary

MAX_SHOWN = 5


def print_plan(summary: EmbedSummary) -> None:
    """Print what a run would do."""
    reason = f" ({summary.fresh_because})" if summary.fresh_because else ""
    typer.echo(
        f"{summary.expert}: {summary.n_embedded} of {summary.n_records} records to embed, "
        f"{summary.n_resumed} done already -> {summary.store}{reason}"
    )


def print_summary(summary: EmbedSummary) -> None:
    """Print what a run did: counts, seconds, and the first records without a vector."""
    seconds = summary.seconds
    rate = summary.n_embedded / seconds["total"] if seconds["total"] else 0.0
    typer.echo(
        f"{summary.expert}: {summary.n_embedded} records embedded ({rate:.1f}/s), {summary.n_resumed} done already, "
        f"{summary.n_without_vector} without a vector -> {summary.store}"
    )
    if summary.n_short:
        typer.echo(
            f"  {summary.n_short} records are shorter than 10 s: what {summary.expert} makes of them, "
            f"`ensemble experts {summary.expert}` says (windows)"
        )
    typer.echo("  seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in seconds.items()))
    for record, reason in list(summary.bad.items())[:MAX_SHOWN]:
        typer.echo(f"  no vector for {record}: {reason}")
    if len(summary.bad) > MAX_SHOWN:
        typer.echo(f"  ... and {len(summary.bad) - MAX_SHOWN} more, in .ensemble/runs/embed-{summary.expert}.json")
