"""Making a study's folder: params.yaml, dvc.yaml, .gitignore, and DVC's own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from cache.errors import EnsembleError, UsageError
from cache.files import write_text
from cache.storage.locations import location_of
from cache.storage.objects import ObjectPath
from pipeline.study.params import EMBEDDINGS

TEMPLATES = {
    "params.yaml": "params.yaml.txt",
    "dvc.yaml": "dvc.yaml.txt",
    ".gitignore": "gitignore.txt",
    ".dvcignore": "dvcignore.txt",
    "weights/default": "weights-default.txt",
    "external/README.md": "external-readme.txt",
}
KEPT = "embeddings/${key}.zarr:\n            persist: true"
MARKED = "embeddings/${key}.json  # stands for the objects: DVC watches files of this machine alone"
"""What DVC takes for a store: the folder itself, which a killed run goes on with, or the marker of one behind a URL."""


def make_study(
    folder: Path,
    source: str,
    path: Path,
    labels: Path | None = None,
    embeddings: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[str]:
    """Write a study's files and run `dvc init` there; refuses to overwrite any.

    Parameters
    ----------
    embeddings
        Where the embedding stores lie, such as s3://bucket/study/embeddings; None: in the study.
    options
        Of the source, as `cohort.options` holds them.

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
    from stages.cohorts import open_cohort

    path = path.expanduser().resolve()
    chosen = {**(options or {}), **({"labels": str(labels.expanduser().resolve())} if labels else {})}
    cohort = open_cohort(source, path, chosen)
    if embeddings is not None and not isinstance(location_of(embeddings), ObjectPath):
        raise UsageError(f"--embeddings {embeddings}: expected a URL such as s3://bucket/study/embeddings")
    present = [name for name in TEMPLATES if (folder / name).exists()]
    if present:
        raise UsageError(f"{folder} holds {present[0]} already; choose another folder or remove it")
    named = [Path(value) if Path(value).is_absolute() else path / value for value in map(str, chosen.values())]
    deps = [str(path / name) for name in cohort.manifests if (path / name).exists()]
    deps += [str(file) for file in named if file.is_file()]
    for name, template in TEMPLATES.items():
        text = files("pipeline.study").joinpath("templates", template).read_text(encoding="utf-8")
        write_text(folder / name, _filled(text, source, str(path), chosen, deps, embeddings))
    _dvc_init(folder)
    return [*TEMPLATES, ".dvc/"]


def _filled(
    text: str, source: str, path: str, options: Mapping[str, Any], deps: list[str], embeddings: str | None
) -> str:
    def inline(value: object) -> str:
        return (
            yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
            .removesuffix("...\n")
            .strip()
        )

    listed = "".join(f"\n      - {inline(dep)}" for dep in deps)
    values = {
        "@SOURCE@": inline(source),
        "@PATH@": inline(path),
        "@OPTIONS@": inline(dict(options)),
        "@SHARD@": "1024",
        "@EMBEDDINGS@": inline(embeddings or EMBEDDINGS),
        "@EMBEDDED@": MARKED if embeddings else KEPT,
        "@EMBED_PARAMS@": "\n        - embeddings" if embeddings else "",
        "@INGEST_DEPS@": f"\n    deps:{listed}" if deps else "",
    }
    for mark, value in values.items():
        text = text.replace(mark, value)
    return text


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
