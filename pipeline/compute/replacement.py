"""Asking before vectors are replaced that may have cost days."""

from __future__ import annotations

import sys

import typer

from cache.errors import UsageError
from stages.embed import Embedder


def confirm_replacement(embedder: Embedder, *, agreed: bool) -> None:
    """Say what a run would replace, and ask on a terminal whether it shall.

    Parameters
    ----------
    agreed
        `--replace` was given: say it and go on.

    Raises
    ------
    UsageError
        No terminal to ask on and no `--replace`, or the answer is no. Nothing was changed.
    """
    found = embedder.replaced()
    if found is None:
        return
    what = f"{found.store} holds vectors of {found.n_records} records that were made otherwise ({found.why})"
    if found.kept is None:
        kept = "they cannot be kept, they are of the same fingerprint"
    else:
        kept = f"they are kept as {found.kept.name} until `ensemble cache gc --delete`"
    back = "; those that are asked for were kept, and come back" if found.brings_back else ""
    if agreed:
        typer.echo(f"{what}: replaced; {kept}{back}", err=True)
    elif not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(f"{what}; say --replace to embed again: {kept}{back}")
    elif not typer.confirm(f"{what}. Embed again? {kept[0].upper()}{kept[1:]}{back}", err=True):
        raise UsageError(f"{what}; nothing was changed")
