"""Making a study's folder: params.yaml, dvc.yaml, .gitignore, and DVC's own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from cache.errors import EnsembleError, UsageError
from cache.files import write_text
from cache.storage.locations import location_of, require_writable
from cache.storage.objects import ObjectPath
from pipeline.study.params import EMBEDDINGS, INGESTED, RECORDS, SIGNALS

TEMPLATES = {
    "params.yaml": "params.yaml.txt",
    "dvc.yaml": "dvc.yaml.txt",
    ".gitignore": "gitignore.txt",
    ".dvcignore": "dvcignore.txt",
    "weights/default": "weights-default.txt",
    "external/README.md": "external-readme.txt",
    "robustness/README.md": "robustness-readme.txt",
    "leaderboard/README.md": "leaderboard-readme.txt",
}
KEPT = "embeddings/${key}.zarr:\n            persist: true"
MARKED = "embeddings/${key}.json  # stands for the objects: DVC watches files of this machine alone"
"""What DVC takes for a store: the folder itself, which a killed run goes on with, or the marker of one behind a URL."""


@dataclass(frozen=True)
class StoreUrls:
    """What of a study lies in a bucket, and where; None: in the study's folder."""

    embeddings: str | None = None
    signals: str | None = None
    records: str | None = None

    @property
    def ingested(self) -> dict[str, str]:
        """Name in a study -> URL, of what `ingest` writes elsewhere."""
        urls = {RECORDS: self.records, SIGNALS: self.signals}
        return {name: url for name, url in urls.items() if url is not None}


IN_THE_STUDY = StoreUrls()
PARAM_OF = {RECORDS: "records", SIGNALS: "signals"}
OF_OPTION = {"embeddings": EMBEDDINGS, "signals": SIGNALS, "records": RECORDS}


def make_study(
    folder: Path,
    source: str,
    path: Path,
    labels: Path | None = None,
    options: Mapping[str, Any] | None = None,
    more: Sequence[tuple[str, Path]] = (),
    urls: StoreUrls = IN_THE_STUDY,
) -> list[str]:
    """Write a study's files and run `dvc init` there; refuses to overwrite any.

    Parameters
    ----------
    options
        Of the source, as `cohort.options` holds them.
    more
        Kinds and folders of further sources: then params.yaml has `cohorts`, one section a source.
    urls
        What lies in a bucket.

    Returns
    -------
    The names of the files made.

    Raises
    ------
    UsageError
        An unknown source, a study that is there already, or a URL that cannot be used.
    MissingFileError
        No such records folder.
    """
    path = path.expanduser().resolve()
    chosen = {**(options or {}), **({"labels": str(labels.expanduser().resolve())} if labels else {})}
    sources = [(source, path, chosen), *((kind, place.expanduser().resolve(), {}) for kind, place in more)]
    deps = [dep for one in sources for dep in _watched(*one)]
    for option, url in asdict(urls).items():
        if url is None:
            continue
        require_writable(location_of(url))
        if not isinstance(location_of(url), ObjectPath):
            raise UsageError(f"--{option} {url}: expected a URL such as s3://bucket/study/{OF_OPTION[option]}")
    present = [name for name in TEMPLATES if (folder / name).exists()]
    if present:
        raise UsageError(
            f"{folder} holds {present[0]} already; choose another folder, or bring the study there up to date with "
            "`ensemble upgrade`"
        )
    for name, template in TEMPLATES.items():
        text = files("pipeline.study").joinpath("templates", template).read_text(encoding="utf-8")
        write_text(folder / name, filled(text, sources, deps, urls))
    _dvc_init(folder)
    return [*TEMPLATES, ".dvc/"]


def _watched(source: str, path: Path, options: Mapping[str, Any]) -> list[str]:
    """Return the lists and labels of a source that DVC watches."""
    from stages.cohorts import open_cohort

    cohort = open_cohort(source, path, options)
    named = [Path(value) if Path(value).is_absolute() else path / value for value in map(str, options.values())]
    deps = [str(path / name) for name in cohort.manifests if (path / name).exists()]
    return deps + [str(file) for file in named if file.is_file()]


def _inline(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("...\n").strip()


COHORT = """cohort:
  source: @SOURCE@        # kind of cohort; docs/cohorts.md lists them
  path: @PATH@
  limit: null             # take only the first N records
  derive_leads: false     # compute limb leads that a file lacks from I and II
  pace_spikes: false      # count pacemaker spikes
  seconds: 10             # kept of each record from its beginning, or all
  options: @OPTIONS@      # what this source lets you choose, see docs/cohorts.md"""
COHORT_PARAMS = "\n".join(
    f"      - cohort.{key}" for key in ("source", "path", "limit", "derive_leads", "pace_spikes", "seconds", "options")
)
COHORTS = """cohorts:                  # name: section, as `cohort` has for one source (docs/cohorts.md)
"""
COHORTS_ENTRY = """  @NAME@:
    source: @SOURCE@
    path: @PATH@
    limit: null           # take only the first N records
    options: {}           # what this source lets you choose
    targets: {}           # where names, classes or units differ, such as {sex: gender}; NAME: null leaves one out"""


def _cohorts(sources: Sequence[tuple[str, Path, Mapping[str, Any]]]) -> str:
    """Return the part of params.yaml that names the sources."""
    if len(sources) == 1:
        source, path, options = sources[0]
        values = {"@SOURCE@": _inline(source), "@PATH@": _inline(str(path)), "@OPTIONS@": _inline(dict(options))}
        return _replaced(COHORT, values)
    kinds = [source for source, _, _ in sources]
    names = [kind if kinds.count(kind) == 1 else f"{kind}-{k + 1}" for k, kind in enumerate(kinds)]
    entries = [
        _replaced(COHORTS_ENTRY, {"@NAME@": name, "@SOURCE@": _inline(source), "@PATH@": _inline(str(path))})
        for name, (source, path, _) in zip(names, sources, strict=True)
    ]
    return COHORTS + "\n".join(entries)


def _replaced(text: str, values: Mapping[str, str]) -> str:
    for mark, value in values.items():
        text = text.replace(mark, value)
    return text


def filled(
    text: str,
    sources: Sequence[tuple[str, Path, Mapping[str, Any]]],
    deps: list[str],
    urls: StoreUrls = IN_THE_STUDY,
) -> str:
    """Return a template with the marks of one study filled in.

    Parameters
    ----------
    sources
        Kind, folder and options of each source.
    deps
        Files that DVC watches for `ingest`.
    urls
        What lies in a bucket.
    """
    listed = "".join(f"\n      - {_inline(dep)}" for dep in deps)
    watched = [f"      - {PARAM_OF[name]}" for name in urls.ingested]
    values = {
        "@COHORT@": _cohorts(sources),
        "@COHORT_PARAMS@": "\n".join([COHORT_PARAMS if len(sources) == 1 else "      - cohorts", *watched]),
        "@SHARD@": "1024",
        "@EMBEDDINGS@": _inline(urls.embeddings or EMBEDDINGS),
        "@ELSEWHERE@": "".join(f"\n{PARAM_OF[name]}: {_inline(url)}" for name, url in urls.ingested.items()),
        "@EMBEDDED@": MARKED if urls.embeddings else KEPT,
        "@EMBED_PARAMS@": "\n        - embeddings" if urls.embeddings else "",
        "@INGEST_DEPS@": f"\n    deps:{listed}" if deps else "",
    }
    return _marked(_replaced(text, values), urls.ingested)


def _marked(text: str, elsewhere: Collection[str]) -> str:
    """Let DVC watch the marker of what `ingest` writes into a bucket, in every stage of dvc.yaml."""
    for name in elsewhere:
        text = text.replace(f"- {name}:\n          persist: true\n", f"- {INGESTED}\n")
        text = text.replace(f"- {name}\n", f"- {INGESTED}\n")
    for indent in ("      ", "        "):
        line = f"{indent}- {INGESTED}\n"
        text = text.replace(line + line, line)
    return text.replace("      - bad_records.csv\n", "") if RECORDS in elsewhere else text


def _dvc_init(folder: Path) -> None:
    """Make the folder a DVC project of its own, inside a git repository or not."""
    if (folder / ".dvc").exists():
        return
    flag = [] if (folder / ".git").exists() else ["--subdir" if _inside_git(folder) else "--no-scm"]
    command = [sys.executable, "-m", "dvc", "init", "-q", *flag]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EnsembleError(f"`dvc init` failed in {folder}: {done.stderr.strip()}")


def _inside_git(folder: Path) -> bool:
    return any((parent / ".git").exists() for parent in (folder.resolve(), *folder.resolve().parents))
