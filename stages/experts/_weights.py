"""Where an expert's weights come from, and reading them safely (never unpickling more than tensors).

Lives here: locating, checking and reading checkpoint files; the strict match against a module. Not here: what the keys
mean (each expert's own file).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cache.errors import MissingFileError, WeightsError
from stages.experts._base import ExpertSpec

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
WRAPPERS = ("model", "state_dict", "model_state_dict", "encoder", "module")


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def find_weights(spec: ExpertSpec, weights: str | Path | None) -> Path:
    """Return the checkpoint file that `weights` (a file, a folder, or None for the model hub) means."""
    if weights is None:
        from stages.experts._hub import fetch

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


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint as tensors and plain containers; refuses a file that would need to run code."""
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise WeightsError(f"{path}: not a readable checkpoint ({str(error).splitlines()[0]})") from error
    except Exception as error:  # pickle.UnpicklingError and whatever a hostile file provokes
        raise WeightsError(
            f"{path}: refused, it holds more than tensors; convert it to .safetensors on a machine you trust"
        ) from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, not a state dict")
    return dict(content)


def unwrap(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, from under `model`, `state_dict` ... where the authors wrapped them."""
    current: Mapping[str, Any] = content
    while not any(isinstance(v, Tensor) for v in current.values()):
        inner = next((current[k] for k in WRAPPERS if isinstance(current.get(k), Mapping)), None)
        if inner is None:
            break
        current = inner
    return {k: v for k, v in current.items() if isinstance(v, Tensor)}


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
