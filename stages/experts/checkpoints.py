"""Where an expert's weights come from, and the strict match of their keys against a module.

Not here: reading the files (`checkpoint_files`), what the keys mean (each expert's own file), why weights do not fit
(`mismatch`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from cache.errors import MissingFileError, WeightsError
from stages.experts.checkpoint_files import PACKAGE_FOLDER, SUFFIXES
from stages.experts.contract import ExpertSpec, WeightsSource
from stages.experts.versions import is_trained_version, is_version, unknown_version, version_folder


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def weights_digest(spec: ExpertSpec, path: Path) -> str:
    """Return the sha256 of weights: of the file, or of all its files' digests where it has companions.

    Raises
    ------
    WeightsError
        A companion is not beside the file.
    """
    names = spec.weights.companions if spec.weights else ()
    if not names:
        return sha256_of(path)
    lost = [name for name in names if not (path.parent / name).is_file()]
    if lost:
        raise WeightsError(
            f"expert '{spec.name}': {path.parent} lacks {', '.join(lost)}; the weights are {path.name} and "
            f"{', '.join(names)}, in one folder"
        )
    lines = [f"{name}\t{sha256_of(path.parent / name)}" for name in sorted({path.name, *names})]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def find_weights(spec: ExpertSpec, weights: str | Path | None) -> Path:
    """Return the checkpoint file that `weights` (a file, a folder, or None for the model hub) means."""
    if weights is None and is_version(spec.name):
        if not is_trained_version(spec.name):
            raise unknown_version(spec.name)
        weights = version_folder(spec.name)
    if weights is None and spec.weights is not None and spec.weights.packaged:
        return _packaged(spec.name, spec.weights)
    if weights is None:
        from stages.experts.hub import fetch

        return fetch(spec)
    path = Path(weights)
    if path.is_dir():
        names = [spec.weights.filename] if spec.weights else []
        candidates = [path / n for n in names if (path / n).is_file()] or [
            p for p in sorted(path.iterdir()) if p.suffix in SUFFIXES
        ]
        if len(candidates) != 1:
            raise WeightsError(
                f"expert '{spec.name}': folder {path} holds {len(candidates)} checkpoint files; name one file instead"
            )
        return candidates[0]
    if not path.is_file():
        raise MissingFileError(
            f"expert '{spec.name}': no weights at {path}; `ensemble experts {spec.name}` says how to get them"
        )
    return path


def _packaged(expert: str, source: WeightsSource) -> Path:
    folder = package_folder(source)
    if folder is None:
        raise WeightsError(
            f"expert '{expert}': its weights come with the package {source.package}, which is not installed; "
            f"pip install 'ecg-ensemble[{source.package}]'"
        )
    path = folder / source.filename
    digest = sha256_of(path) if path.is_file() else ""
    if digest != source.sha256:
        found = f"has sha256 {digest[:16]}..." if digest else "is missing"
        package = f"{source.package} again, in the version that constraints.txt names" if source.package else "again"
        raise WeightsError(f"expert '{expert}': {path} {found}; install the package {package}")
    return path


def package_folder(source: WeightsSource) -> Path | None:
    """Return the folder that packaged weights lie in; None where the package that brings them is not installed."""
    if not source.package:
        return PACKAGE_FOLDER
    found = importlib.util.find_spec(source.package)
    return Path(found.origin).parent if found is not None and found.origin else None


def origin_of(spec: ExpertSpec, weights: str | Path | None, path: Path | None, digest: str) -> dict[str, str]:
    """Tell where weights come from, for a store's reader: a repository and its commit, or a file of the user's own.

    Parameters
    ----------
    weights, path
        What was asked for, and the file that `find_weights` made of it.
    digest
        Its sha256: a file of the user's own may be the published one.
    """
    source = spec.weights
    if path is None or source is None or (weights is None and is_version(spec.name)):
        return {"weights_source": source.repo_id if source else "", "weights_revision": ""}
    if source.packaged and digest == source.sha256:
        return {"weights_source": source.package or "the package", "weights_revision": spec.version}
    if weights is not None and digest != source.sha256:
        return {"weights_source": f"file {path.name}", "weights_revision": ""}
    from stages.experts.hub import commit_of

    commit = commit_of(path) if weights is None else ""
    return {"weights_source": source.repo_id, "weights_revision": commit or source.revision}


def load_strict(
    module: nn.Module, state: Mapping[str, Tensor], *, expert: str, unused_keys: Iterable[str] = ()
) -> None:
    """Load a state dict; every key must match, but for those that `unused_keys` (regular expressions) name.

    Raises
    ------
    WeightsError
        Listing missing and unexpected keys, or the shapes that differ.
    """
    unused = [re.compile(pattern) for pattern in unused_keys]
    expected = module.state_dict()
    kept = {k: v for k, v in state.items() if k in expected or not any(p.match(k) for p in unused)}
    missing = sorted(expected.keys() - kept.keys())
    unexpected = sorted(kept.keys() - expected.keys())
    shapes = [
        f"{k} {list(kept[k].shape)} instead of {list(expected[k].shape)}"
        for k in sorted(expected.keys() & kept.keys())
        if kept[k].shape != expected[k].shape
    ]
    if missing or unexpected or shapes:
        parts = [
            f"{title} {len(keys)}: {', '.join(keys[:8])}{' ...' if len(keys) > 8 else ''}"
            for title, keys in (("missing", missing), ("unexpected", unexpected), ("other shape", shapes))
            if keys
        ]
        raise WeightsError(f"expert '{expert}': the weights do not match; " + "; ".join(parts))
    module.load_state_dict(kept)
