"""Commands that say what is here: experts, doctor, cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cache.errors import UsageError


def add_to(app: typer.Typer) -> None:
    """Register this group's commands."""
    app.command()(experts)
    app.command()(doctor)
    app.add_typer(cache_app, name="cache")
    app.add_typer(weights_app, name="weights")


cache_app = typer.Typer(help="What the embedding stores hold.", no_args_is_help=True)
weights_app = typer.Typer(help="The experts' published weights.", no_args_is_help=True)


def experts(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME | 'PATTERN' | check NAME]", help="One expert, in full; some; or check one."),
    ] = None,
    checked: Annotated[str | None, typer.Argument(metavar="", hidden=True)] = None,
    weights: Annotated[
        Path | None, typer.Option(help="check: with this checkpoint, in place of a small network of drawn numbers.")
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option(help="Only those whose licence holds this text; open: those that allow commercial use."),
    ] = None,
    present: Annotated[bool, typer.Option("--present", help="Only those whose weights are at hand.")] = False,
) -> None:
    """List the experts, say everything about one, or check that one keeps the contract, an installed package's too.

    Example: `ensemble experts ecgfm`, `ensemble experts 'ecgfm*' --licence open --present`,
    `ensemble experts check band-power`
    """
    from pipeline.views.catalogue import expert_details, experts_table

    if name == "check":
        _check_expert(checked, weights)
    elif checked is not None or weights is not None:
        raise UsageError(f"ensemble experts {name} {checked or '--weights'}: expected [NAME] or check NAME")
    elif name is None or licence or present or set(name) & set("*?["):
        _print(experts_table(name or "*", licence, present=present))
    else:
        typer.echo(expert_details(name))


def _check_expert(name: str | None, weights: Path | None) -> None:
    """Print one line a check; exit with 1 where one failed."""
    from stages.experts.contract_checks import check_expert

    if name is None:
        raise UsageError("ensemble experts check: which expert? Say its name")
    failed = 0
    for words, wrong in check_expert(name, weights):
        typer.echo(f"{'FAIL' if wrong else 'PASS'}  {words}" + (f": {wrong}" if wrong else ""))
        failed += bool(wrong)
    if failed:
        raise typer.Exit(1)


def doctor(offline: Annotated[bool, typer.Option("--offline", help="Do not ask the model hub.")] = False) -> None:
    """Check this machine and this study: PASS, WARN or FAIL, and the fix, line by line.

    Example: `ensemble doctor --offline`
    """
    from pipeline.views.doctor import FAIL, examine

    findings = list(examine(offline=offline))
    for finding in findings:
        typer.echo(str(finding))
    if any(finding.verdict == FAIL for finding in findings):
        raise typer.Exit(1)


@weights_app.command("fetch")
def weights_fetch(
    name: Annotated[str, typer.Argument(help="Which expert.")],
    repin: Annotated[
        bool, typer.Option("--repin", help="Take what the hub has now, in place of the commit of the first use.")
    ] = False,
) -> None:
    """Download an expert's published weights at the pinned commit, and check them.

    Example: `ensemble weights fetch ecgfm`
    """
    from pipeline.views.catalogue import no_need_to_fetch, spec_of
    from stages.experts.hub import fetch

    spec = spec_of(name)
    typer.echo(no_need_to_fetch(spec) or str(fetch(spec, repin)))


@cache_app.command("ls")
def cache_ls() -> None:
    """List the stores: expert, rows done, bytes, fingerprint, current or stale.

    Example: `ensemble cache ls`
    """
    from pipeline.study.folder import Study
    from pipeline.views.inventory import stores_table

    _print(stores_table(Study()))


@cache_app.command("verify")
def cache_verify() -> None:
    """Read every shard of every store against its checksums and row count; exit 1 and a list if something is wrong.

    Example: `ensemble cache verify`
    """
    from pipeline.study.folder import Study
    from pipeline.views.inventory import verify

    wrong = 0
    for line in verify(Study()):
        typer.echo(line)
        wrong += 1
    if wrong:
        raise typer.Exit(1)
    typer.echo("every shard reads as it was written")


@cache_app.command("repair")
def cache_repair() -> None:
    """Put damaged metadata right and drop exactly the bad shards, so that `embed` or `ingest` makes them again.

    Example: `ensemble cache repair`
    """
    from pipeline.study.folder import Study
    from pipeline.views.inventory import repair, verify

    study = Study()
    done = 0
    for line in repair(study):
        typer.echo(line)
        done += 1
    left = list(verify(study, unwritten=False))
    for line in left:
        typer.echo(f"cannot be repaired: {line}; remove the store and make it again")
    if left:
        raise typer.Exit(1)
    if not done:
        typer.echo("nothing to repair")


@cache_app.command("gc")
def cache_gc(
    delete: Annotated[bool, typer.Option("--delete", help="Delete it; otherwise it is only listed.")] = False,
) -> None:
    """List, or delete, stores that neither params.yaml nor heads/ names, those that others replaced, and leftovers.

    Example: `ensemble cache gc --delete`
    """
    from pipeline.study.folder import Study
    from pipeline.views.inventory import collect, unused

    study = Study()
    for line in collect(study) if delete else unused(study):
        typer.echo(str(line))


@cache_app.command("import")
def cache_import(
    file: Annotated[Path, typer.Argument(help="Vectors: .npy, .npz or .parquet.")],
    expert: Annotated[str, typer.Option(help="Name that the store gets.")],
    ids: Annotated[
        Path | None, typer.Option(help="CSV or Parquet with the record ids, in the order of the vectors.")
    ] = None,
    id_column: Annotated[str, typer.Option(help="Its column with the record ids.")] = "record_id",
    dtype: Annotated[str, typer.Option(help="float16 or float32.")] = "float16",
    layer_names: Annotated[
        str | None,
        typer.Option(help="Names of the layers, a,b,...; `embed` means before the first block. layer_0,... otherwise."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a store of that name.")] = False,
) -> None:
    """Make a store of vectors that another tool has made, joined with records.parquet by record id.

    Example: `ensemble cache import vectors.npy --expert mine --ids records.csv --id-column record_id`
    """
    from pipeline.study.folder import Study
    from pipeline.views.inventory import import_file

    named = None if layer_names is None else [name.strip() for name in layer_names.split(",")]
    typer.echo(import_file(Study(), file, expert, ids, id_column, dtype, replace, named))


@cache_app.command("export")
def cache_export(
    expert: Annotated[str, typer.Argument(help="Which store.")],
    target: Annotated[Path, typer.Argument(help="File to write, .npy or .parquet.")],
    layer: Annotated[
        str, typer.Option(help="embedding, output, layers or segments (.npy only), another view, or a layer's name.")
    ] = "embedding",
) -> None:
    """Write a store's vectors for other tools; rows as in records.parquet.

    Example: `ensemble cache export ecgfm ecgfm.parquet --layer block_6`
    """
    from cache.records import open_records
    from cache.upkeep.exchange import export_vectors
    from pipeline.study.folder import Study

    study = Study()
    export_vectors(
        study.embedding(expert),
        open_records(study.records, columns=["record_id", "patient_id"]),
        target.expanduser(),
        layer,
    )
    typer.echo(f"{layer} of {expert} -> {target}")


def _print(table: object) -> None:
    from rich.console import Console

    console = Console()
    Console(width=None if console.is_terminal else 200).print(table)
