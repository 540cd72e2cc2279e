"""Commands that say what is here: experts, doctor, cache."""

from __future__ import annotations

from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    """Register this group's commands."""
    app.command()(experts)
    app.command()(doctor)
    app.add_typer(cache_app, name="cache")
    app.add_typer(weights_app, name="weights")


cache_app = typer.Typer(help="What the embedding stores hold.", no_args_is_help=True)
weights_app = typer.Typer(help="The experts' published weights.", no_args_is_help=True)


def experts(name: Annotated[str | None, typer.Argument(help="One expert, in full.")] = None) -> None:
    """List the experts, or say everything about one.

    Example: `ensemble experts ecgfm`
    """
    from pipeline.catalogue import expert_details, experts_table

    if name is None:
        _print(experts_table())
    else:
        typer.echo(expert_details(name))


def doctor(offline: Annotated[bool, typer.Option("--offline", help="Do not ask the model hub.")] = False) -> None:
    """Check this machine and this study: PASS, WARN or FAIL, and the fix, line by line.

    Example: `ensemble doctor --offline`
    """
    from pipeline.doctor import FAIL, examine

    findings = list(examine(offline=offline))
    for finding in findings:
        typer.echo(str(finding))
    if any(finding.verdict == FAIL for finding in findings):
        raise typer.Exit(1)


@weights_app.command("fetch")
def weights_fetch(name: Annotated[str, typer.Argument(help="Which expert.")]) -> None:
    """Download an expert's published weights at the pinned revision, and check them.

    Example: `ensemble weights fetch ecgfm`
    """
    from pipeline.catalogue import spec_of
    from stages.experts._hub import fetch

    typer.echo(str(fetch(spec_of(name))))


@cache_app.command("ls")
def cache_ls() -> None:
    """List the stores: expert, rows done, bytes, fingerprint, current or stale.

    Example: `ensemble cache ls`
    """
    from pipeline.inventory import stores_table
    from pipeline.study import Study

    _print(stores_table(Study()))


@cache_app.command("verify")
def cache_verify() -> None:
    """Read every shard of every store against its checksums; exit 1 and a list if something is wrong.

    Example: `ensemble cache verify`
    """
    from pipeline.inventory import verify
    from pipeline.study import Study

    wrong = list(verify(Study()))
    for line in wrong:
        typer.echo(line)
    if wrong:
        raise typer.Exit(1)
    typer.echo("every shard reads as it was written")


def _print(table: object) -> None:
    from rich.console import Console

    console = Console()
    Console(width=None if console.is_terminal else 200).print(table)
