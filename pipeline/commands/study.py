"""Commands that make and fill a study: init, upgrade, download, generate."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cache.errors import UsageError
from pipeline.progress import progress

if TYPE_CHECKING:
    from stages.download import Credentials


def add_to(app: typer.Typer) -> None:
    """Register this group's commands."""
    app.command()(init)
    app.command()(upgrade)
    app.command()(download)
    app.command()(generate)


def init(
    folder: Annotated[Path, typer.Argument(help="The study's folder; made if it is not there.")],
    source: Annotated[
        list[str], typer.Option(help="Kind of cohort; docs/cohorts.md lists them. Repeated with --path: several.")
    ],
    path: Annotated[list[Path], typer.Option(help="Folder with the records, of each --source.")],
    labels: Annotated[Path | None, typer.Option(help="Table of labels (sources files, wfdb, arrays).")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="An option of the source, NAME=VALUE, such as file=ecgs.npy; may be repeated."),
    ] = None,
    embeddings: Annotated[
        str | None, typer.Option(help="Where the embeddings go, s3://, gs:// or az://...; into the study if not given.")
    ] = None,
    signals: Annotated[str | None, typer.Option(help="URL that ingest writes the signals to, likewise.")] = None,
    records: Annotated[str | None, typer.Option(help="URL that ingest writes records.parquet to, likewise.")] = None,
) -> None:
    """Make a study of your own: params.yaml, dvc.yaml and .gitignore, ready for `dvc repro`.

    Example: `ensemble init my-study --source ptbxl --path ~/ptb-xl`, or of arrays
    `ensemble init my-study --source arrays --path data --option file=ecgs.npy --option rate_hz=500`
    """
    from pipeline.study.scaffold import StoreUrls, make_study

    if len(source) != len(path):
        raise UsageError(f"--source {source[-1]}: there are {len(source)} --source and {len(path)} --path; give pairs")
    if len(source) > 1 and (labels or option):
        raise UsageError("--labels, --option: with several sources, write them under cohorts in params.yaml")
    (first, folder_of_first), *more = zip(source, path, strict=True)
    urls = StoreUrls(embeddings, signals, records)
    made = make_study(folder, first, folder_of_first, labels, _options(option or []), more, urls)
    typer.echo(f"made {', '.join(made)} in {folder}")
    typer.echo(f"next: cd {folder} && dvc repro && dvc metrics show")


def upgrade(
    folder: Annotated[Path, typer.Argument(help="The study's folder.")] = Path(),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would change.")] = False,
) -> None:
    """Bring the files of a study that an older version made up to date, and say what they lacked.

    Keys of params.yaml that are missing come with their defaults, those that have moved are moved; dvc.yaml gets the
    stages of this version, and stages of your own stay. The files before are kept as params.yaml.old and dvc.yaml.old.

    Example: `ensemble upgrade --dry-run`
    """
    from pipeline.study.upgrade import plan_upgrade, upgrade_study

    found = plan_upgrade(folder) if dry_run else upgrade_study(folder)
    for line in found.changes:
        typer.echo(line)
    if not found.changes:
        typer.echo("nothing to do: the study is up to date")
    elif not dry_run:
        typer.echo("next: dvc status shows what `dvc repro` will run")


def _options(given: list[str]) -> dict[str, object]:
    """Read NAME=VALUE pairs; a value is read as YAML, so that numbers and lists come as such."""
    import yaml

    found: dict[str, object] = {}
    for pair in given:
        name, separator, value = pair.partition("=")
        if not separator or not name.strip():
            raise UsageError(f"--option {pair}: expected NAME=VALUE, such as file=ecgs.npy")
        try:
            found[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"--option {pair}: the value is not readable; quote it") from error
    return found


def download(
    name: Annotated[str, typer.Argument(help="Which collection; docs/cohorts.md lists them.")],
    folder: Annotated[Path | None, typer.Argument(help="Where it goes; data/NAME if not given.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only files whose path begins so; may be repeated.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=32, help="Files at a time.")] = 4,
    verify: Annotated[bool, typer.Option("--verify", help="Also check the files that are there already.")] = False,
    base_url: Annotated[
        str, typer.Option(envvar="ENSEMBLE_PHYSIONET_URL", help="A mirror with PhysioNet's layout.")
    ] = "https://physionet.org/files",
    figshare_url: Annotated[
        str, typer.Option(envvar="ENSEMBLE_FIGSHARE_URL", help="figshare's API, for sph and chapman-csv.")
    ] = "https://api.figshare.com/v2",
) -> None:
    """Bring a published collection, every file checked; goes on where it was stopped.

    Who asks is taken from PHYSIONET_USERNAME and PHYSIONET_PASSWORD, or asked for where the collection needs it.

    Example: `ensemble download ptbxl data/ptbxl --only records500/ --only ptbxl_database.csv --only scp_statements.csv`
    """
    from stages.download import COLLECTIONS, DownloadPaths, DownloadSettings
    from stages.download import run as run_download

    collection = COLLECTIONS.get(name)
    if collection is not None:
        typer.echo(f"{collection.title}, licence {collection.licence}", err=True)
    folder = folder or Path("data", name)
    credentials = _credentials(collection is not None and collection.credentialed)
    with progress(f"download {name}", unit="files") as update:
        settings = DownloadSettings(name, tuple(only or ()), base_url, workers, verify, credentials, figshare_url)
        summary = run_download(settings, DownloadPaths(folder.expanduser()), update)
    megabytes = f"{summary.n_bytes / 1e6:.1f} MB"
    typer.echo(f"{summary.n_files} files ({megabytes}) taken, {summary.n_present} there already -> {folder}")
    if collection is not None and collection.then:
        typer.echo(f"next: {collection.then}")


def _credentials(needed: bool) -> Credentials | None:
    """Take user name and password from the environment, or ask a person; kept in memory only."""
    from stages.download import Credentials

    username, password = (os.environ.get(f"PHYSIONET_{part}") for part in ("USERNAME", "PASSWORD"))
    if not needed and not (username and password):
        return None
    if not (username and password) and not sys.stdin.isatty():
        raise UsageError(
            "this collection needs an account: set PHYSIONET_USERNAME and PHYSIONET_PASSWORD in the environment"
        )
    username = username or typer.prompt("PhysioNet user name", err=True)
    return Credentials(username, password or typer.prompt("Password", hide_input=True, err=True))


def generate(
    folder: Annotated[Path, typer.Argument(help="Where the records go.")] = Path("data/embedded-cohort"),
    records: Annotated[int | None, typer.Option(min=1, help="How many ECGs; params.yaml's if not given.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same bytes.")] = None,
    variety: Annotated[float | None, typer.Option(help="Spread beyond the embedded cohort's: 0 none, 1 wide.")] = None,
) -> None:
    """Generate the embedded cohort: synthetic ECGs in MIMIC-IV-ECG's own layout.

    Example: `ensemble generate data/embedded-cohort --records 600 --seed 0`
    """
    from pipeline.study.folder import Study
    from pipeline.study.params import PARAMS_FILE, overridden
    from stages.synthetic import GeneratePaths, GenerateSettings, run

    given = Study().params.generate if Path(PARAMS_FILE).is_file() else None  # a cohort needs no study
    settings = overridden(GenerateSettings, given, {"records": records, "seed": seed, "variety": variety})
    with progress("generate") as update:
        summary = run(settings, GeneratePaths(folder), update)
    typer.echo(f"{summary.n_records} records -> {folder}")
