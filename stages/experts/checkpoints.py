"""Where an expert's weights come from, and reading them safely (never unpickling more than tensors).

Lives here: locating, checking and reading checkpoint files; the strict match against a module. Not here: what the keys
mean (each expert's own file).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cache.errors import MissingFileError, WeightsError
from stages.experts.contract import ExpertSpec, WeightsSource
from stages.experts.versions import is_version, version_folder

PACKAGE_FOLDER = Path(__file__).parent / "weights"
"""Where weights lie that come with the package."""
SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
FRAMEWORKS = ("fairseq", "fairseq_signals", "omegaconf", "hydra", "pytorch_lightning", "lightning", "typing")
"""Packages whose objects official checkpoints hold beside the weights; none of them is imported or needed."""
WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state", "encoder", "module")
PREFIXES = ("module.", "_orig_mod.")
"""Of DataParallel and torch.compile; no official key begins so."""


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def find_weights(spec: ExpertSpec, weights: str | Path | None) -> Path:
    """Return the checkpoint file that `weights` (a file, a folder, or None for the model hub) means."""
    if weights is None and is_version(spec.name):
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
        raise WeightsError(
            f"expert '{expert}': {path} {found}; install the package {source.package or 'ecg-ensemble'} again, in the "
            "version that constraints.txt names"
        )
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
    if path is None or source is None or is_version(spec.name):
        return {"weights_source": source.repo_id if source else "", "weights_revision": ""}
    if source.packaged and digest == source.sha256:
        return {"weights_source": source.package or "the package", "weights_revision": spec.version}
    if weights is not None and digest != source.sha256:
        return {"weights_source": f"file {path.name}", "weights_revision": ""}
    from stages.experts.hub import commit_of

    commit = commit_of(path) if weights is None else ""
    return {"weights_source": source.repo_id, "weights_revision": commit or source.revision}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint as tensors and plain containers; refuses a file that would need to run code."""
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with torch.serialization.safe_globals(_harmless_globals(path)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols; what cannot be read is an error anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: refused, it is no checkpoint or holds more than tensors ({_reason(error)}); convert it to "
            ".safetensors on a machine you trust"
        ) from error
    except Exception as error:  # whatever a damaged or hostile file provokes
        raise WeightsError(f"{path}: not a readable checkpoint ({_reason(error)}); get it again") from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, not a state dict")
    return dict(content)


def _harmless_globals(path: Path) -> list[Any]:
    """Name what may stand beside the tensors: options, numpy scalars, and settings of training frameworks, unread.

    torch's restricted unpickler still refuses everything else; nothing of this runs code of the file's choosing.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (ValueError, RuntimeError, OSError, pickle.UnpicklingError):  # older torch wrote no zip archive
        names = []
    unread = [(_Unread, name) for name in names if name.partition(".")[0] in FRAMEWORKS]
    return [argparse.Namespace, np.dtype, *_NUMPY_DTYPES, *_NUMPY_SCALARS, *unread]


_NUMPY_DTYPES = tuple(type(np.dtype(name)) for name in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u8", "?"))
_NUMPY_SCALARS = tuple((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core"))


class _Unread:
    """Stands for an object of a training framework in a checkpoint: takes whatever it was made from, keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Unread:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _reason(error: Exception) -> str:
    """Say in few words what was wrong; torch's own message begins with advice to switch the check off."""
    if asked := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it asks for {asked[1].rstrip('.')}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines and len(lines[0]) > 5 else type(error).__name__


def unwrap(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, from under `model`, `state_dict` ... where the authors wrapped them.

    Tensors beside such a wrapper (a loss, an epoch) are no weights. A prefix that parallel or compiled training put
    before every key is taken off.
    """
    current: Mapping[str, Any] = content
    for _ in WRAPPERS:
        inner = (current[k] for k in WRAPPERS if isinstance(current.get(k), Mapping) and current[k])
        current = next(inner, current)
    state = {k: v for k, v in current.items() if isinstance(v, Tensor)}
    while prefix := next((p for p in PREFIXES if state and all(k.startswith(p) for k in state)), None):
        state = {k.removeprefix(prefix): v for k, v in state.items()}
    return state


def read_state(spec: ExpertSpec, weights: str | Path | None) -> dict[str, Tensor]:
    """Locate, check and read the state dict of an expert."""
    path = find_weights(spec, weights)
    state = unwrap(read_checkpoint(path))
    if not state:
        raise WeightsError(f"{path}: holds no tensors under {', '.join(WRAPPERS)}")
    return state


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
    own = module.state_dict()
    kept = {k: v for k, v in state.items() if k in own or not any(p.match(k) for p in unused)}
    missing = sorted(own.keys() - kept.keys())
    unexpected = sorted(kept.keys() - own.keys())
    shapes = [
        f"{k} {list(kept[k].shape)} instead of {list(own[k].shape)}"
        for k in sorted(own.keys() & kept.keys())
        if kept[k].shape != own[k].shape
    ]
    if missing or unexpected or shapes:
        parts = [
            f"{title} {len(keys)}: {', '.join(keys[:8])}{' ...' if len(keys) > 8 else ''}"
            for title, keys in (("missing", missing), ("unexpected", unexpected), ("other shape", shapes))
            if keys
        ]
        raise WeightsError(f"expert '{expert}': the weights do not match; " + "; ".join(parts))
    module.load_state_dict(kept)
