"""Reading a checkpoint file as tensors and plain containers, never running what it holds.

Lives here: the file alone. Not here: where it comes from and whether it fits an expert (`checkpoints`, `mismatch`).
"""

from __future__ import annotations

import argparse
import collections
import pickle
import pickletools
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from cache.errors import WeightsError

PACKAGE_FOLDER = Path(__file__).parent / "weights"
"""Where weights lie that come with the package."""
SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
FRAMEWORKS = (
    "clef",
    "clinical_ts",
    "fairseq",
    "fairseq_signals",
    "hubert_ecg",
    "hydra",
    "lightning",
    "lightning_fabric",
    "melp",
    "omegaconf",
    "pathlib",
    "pytorch_lightning",
    "transformers",
    "typing",
)
"""Packages (training frameworks, and authors' own) whose objects official checkpoints hold beside the weights.

None of them is imported or needed.
"""
WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state", "encoder", "module")
PREFIXES = ("module.", "_orig_mod.")
"""Of DataParallel and torch.compile; no official key begins so."""
_LFS = b"version https://git-lfs.github.com/spec/"
_PLAIN = (dict, list, tuple, set, frozenset, int, float, complex, str, bool, collections.defaultdict)
"""Types of which settings objects are made up; making one runs nothing."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint as tensors and plain containers.

    Settings objects of training frameworks beside the weights are passed over unread.

    Raises
    ------
    WeightsError
        No checkpoint, or one that would need to run code; the message says what the file is instead.
    """
    path = Path(path)
    _refuse_other_files(path)
    try:
        content = dict(load_file(path)) if path.suffix == ".safetensors" else _load_pickled(path)
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


def _refuse_other_files(path: Path) -> None:
    """Tell what stands in the place of weights after a download that went wrong.

    Raises
    ------
    WeightsError
        A pointer of Git LFS or git-annex, or a web page.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from error
    text = head.lstrip().lower()
    if head.startswith(_LFS):
        size = re.search(rb"\nsize (\d+)", head)
        of = f" to {int(size[1]):,} bytes" if size else ""
        raise WeightsError(
            f"{path}: is a Git LFS pointer{of}, not the weights; run `git lfs pull` in its repository, or download the "
            "file itself"
        )
    if head.startswith((b"/annex/objects/", b"../.git/annex/", b".git/annex/")):
        raise WeightsError(
            f"{path}: is a git-annex pointer, not the weights; run `git annex get` or `datalad get` on it"
        )
    if text.startswith((b"<!doctype html", b"<html", b"<?xml")):
        raise WeightsError(
            f"{path}: is a web page, not the weights (a download link that asks for a login or a click); download the "
            "file itself"
        )


def _load_pickled(path: Path) -> Any:
    """Load with torch's restricted unpickler; it calls nothing but what `_harmless_globals` and torch itself allow.

    The unpickler sets items of plain dictionaries alone, so that settings that are dictionaries (Lightning's
    AttributeDict) need a second reading, in which all settings objects stand in as dictionaries.
    """
    for stand_in in (_Unread, _UnreadDict):
        try:
            with torch.serialization.safe_globals(_harmless_globals(path, stand_in)), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of pickle protocols; what cannot be read is an error anyway
                return torch.load(path, map_location="cpu", weights_only=True)
        # torch 2.6 sets items of anything, and fails as the object does.
        except (pickle.UnpicklingError, TypeError) as error:
            if stand_in is _UnreadDict or not _ITEMS_REFUSED.search(str(error)):
                raise
    raise AssertionError("unreachable")


def _harmless_globals(path: Path, stand_in: type) -> list[Any]:
    """Name what may stand beside the tensors: options, plain types, numpy scalars, and settings, unread."""
    unread = [(stand_in, name) for name in _globals_in(path) if name.partition(".")[0] in FRAMEWORKS]
    return [argparse.Namespace, np.dtype, *_PLAIN, *_NUMPY_DTYPES, *_NUMPY_SCALARS, *unread]


def _globals_in(path: Path) -> set[str]:
    """Return the names that the pickles in a checkpoint refer to, without loading them."""
    try:
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (ValueError, RuntimeError, OSError, pickle.UnpicklingError):
        return _globals_of_pickles(path)


def _globals_of_pickles(path: Path) -> set[str]:
    """Do the same for files of older torch, which are no zip archive but a few pickles one behind another."""
    names = set()
    with path.open("rb") as file:
        for _ in range(LEGACY_PICKLES):
            try:
                for operation, argument, _position in pickletools.genops(file):
                    if operation.name == "GLOBAL":
                        names.add(str(argument).replace(" ", "."))
            except (ValueError, IndexError, UnicodeDecodeError):  # the tensors' bytes, or no pickle at all
                break
    return names


LEGACY_PICKLES = 4
"""Magic number, protocol, system, and the content; raw tensors follow."""
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


class _UnreadDict:
    """Stands for a settings object that is a dictionary; what is made is a plain one."""

    def __new__(cls, *_: Any, **__: Any) -> collections.OrderedDict[Any, Any]:  # type: ignore[misc]
        return collections.OrderedDict()


def _reason(error: Exception) -> str:
    """Say in few words what was wrong; torch's own message begins with advice to switch the check off."""
    if asked := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it asks for {asked[1].rstrip('.')}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    detail = next((line for line in lines if not _ADVICE.search(line)), "")
    return detail[:200] if len(detail) > 5 else type(error).__name__


_ITEMS_REFUSED = re.compile(r"Can only SETITEMS? for dict|'_Unread' object does not support item assignment")
_ADVICE = re.compile(r"weights_only|pickle file|arbitrary code|trust|documentation|docs/")


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
