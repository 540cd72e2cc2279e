"""The benchmark's crops of each record, embedded once by a frozen expert and kept block by block.

Lives here: cutting, the forward pass that keeps tokens, files that a killed run goes on from. Not here: training heads
on them (`protocol`).

A block of 64 records is two files; its vectors are written last and say that it is whole. The same block is always
embedded in the same passes, so that a run that was killed leaves, when it is repeated, the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cache.errors import InputError
from cache.files import replacing, write_text
from cache.signals import SignalStore
from stages.experts import Expert
from stages.experts.contract import PRECISION_DTYPES, ExpertSpec
from stages.experts.faults import SAME_FAULTS, Faults, encode_checked
from stages.experts.run import SignalGroup, prepare_group, torch_threads
from stages.experts.signals.dsp import resample_rate
from stages.experts.token_times import window_starts_s
from stages.leaderboard.row_files import NumberedRows, write_rows

RATE_HZ = 500
CROP_S, LONG_CROP_S = 2.5, 5.0
"""Of the benchmark's crops: 5 s for encoders made for windows of 5 s (run.sh: hubert_ecg_base, ecg_fm), else 2.5 s."""
OTHER_CROPS_S = {"jepa": 10.0, "stmem": 2.4}
"""Of experts for which run.sh has another `--input-size` (ecg_jepa_multiblock, st_mem)."""
WHOLE_S = 10.0
BLOCK = 64
"""Records embedded and stored at once."""
Count = Callable[[int, int], None]


def crop_seconds(expert: Expert) -> float:
    """Return how long an expert's crops are: as published, or 5 s where its window is or where it refuses 2.5 s.

    Raises
    ------
    InputError
        It takes nothing as short as these, or as 5 s.
    """
    spec = expert.spec
    short = spec.seconds != LONG_CROP_S and not spec.too_short(round(CROP_S * RATE_HZ), RATE_HZ)
    seconds = OTHER_CROPS_S.get(spec.name.partition("+")[0], CROP_S if short else LONG_CROP_S)
    if reason := spec.too_short(round(seconds * RATE_HZ), RATE_HZ):
        raise InputError(f"{reason}; its crops would have {seconds:g} s")
    return seconds


def _silence(seconds: float) -> np.ndarray:
    return np.zeros((1, 12, round(seconds * RATE_HZ)), np.float32)


def cut_crops(signals_mv: np.ndarray, rate_hz: float, crop_s: float = CROP_S) -> np.ndarray:
    """Cut [record, lead, time] in mV into [record, crop, lead, sample] at 500 Hz, one after the other from the start.

    As many as make ten seconds; a rest that is shorter than a crop gives none. The record is resampled to 500 Hz
    before; an expert resamples the crop to its own rate afterwards (clinical_ts/data/time_series_dataset.py of the
    benchmark).

    Examples
    --------
    >>> cut_crops(np.zeros((2, 12, 4000)), 500.0).shape
    (2, 3, 12, 1250)
    """
    at_500_hz = resample_rate(signals_mv, rate_hz, RATE_HZ)
    n_samples = round(crop_s * RATE_HZ)
    n_crops = min(int(WHOLE_S / crop_s), at_500_hz.shape[-1] // n_samples)
    whole = at_500_hz[..., : n_crops * n_samples]
    cut = whole.reshape(*whole.shape[:-1], n_crops, n_samples)
    return np.moveaxis(cut, -2, 1)


def tokens_inside(spec: ExpertSpec, windows: int, n_tokens: int, record_s: float) -> np.ndarray:
    """Tell, bool [windows * token], which tokens of a record begin before its end; the rest stand for padding."""
    assert spec.tokens is not None
    stretch = record_s / spec.seconds if spec.placement == "whole" else 1.0
    starts = spec.tokens.spans_s(n_tokens)[0] * stretch
    at = window_starts_s(spec.placement, windows, spec.seconds, record_s)[:, None]
    return np.asarray((at + starts).ravel() < record_s - 1e-9)


@dataclass(frozen=True)
class CropVectors:
    """Embedded crops of one cohort, in the rows' order.

    Attributes
    ----------
    vectors
        float32 [record, crop, dim]; NaN where there is no such crop, or no vector of it.
    token_files
        Of each block, its tokens [record, crop, token, dim]; empty for an expert without tokens.
    crop_s
        Length of a crop in seconds.
    """

    vectors: NumberedRows
    token_files: tuple[Path, ...]
    crop_s: float

    def tokens(self, rows: np.ndarray, crops: np.ndarray) -> np.ndarray:
        """Read float32 [k, token, dim]: of each of `rows` the crop of that number in `crops`."""
        blocks, parts = rows // BLOCK, {}
        for block in np.unique(blocks):
            chosen = np.flatnonzero(blocks == block)
            stored = np.load(self.token_files[block], mmap_mode="r", allow_pickle=False)
            parts[block] = (chosen, np.asarray(stored[rows[chosen] % BLOCK, crops[chosen]], np.float32))
        first = next(iter(parts.values()))[1]
        out = np.empty((len(rows), *first.shape[1:]), np.float32)
        for chosen, values in parts.values():
            out[chosen] = values
        return out


def embed_crops(
    load: Callable[[], Expert], signals: SignalStore, folder: Path, threads: int = 1, progress: Count | None = None
) -> CropVectors:
    """Embed the crops of every record that are not in `folder` yet, and open them.

    Parameters
    ----------
    load
        Gives the expert; called only if a block is missing.
    progress
        Called with records done and records in all.

    Raises
    ------
    ExpertCodeError
        The expert's code fails at several records in a row alike.
    InputError
        The expert refuses records of 5 s.
    """
    n_blocks, expert = -(-len(signals) // BLOCK), None
    for block in range(n_blocks):
        if not _vectors_file(folder, block).is_file():
            expert = expert or load()
            rows = slice(block * BLOCK, min((block + 1) * BLOCK, len(signals)))
            with torch_threads(threads):
                _write_block(expert, signals, rows, folder, block)
        if progress is not None:
            progress(min((block + 1) * BLOCK, len(signals)), len(signals))
    files = tuple(_tokens_file(folder, block) for block in range(n_blocks))
    crop_s = float(_length_file(folder).read_text(encoding="utf-8"))
    return CropVectors(_joined(folder, n_blocks), files if all(file.is_file() for file in files) else (), crop_s)


def _joined(folder: Path, n_blocks: int) -> NumberedRows:
    """Return the vectors of all blocks in one file, which is written when it is first asked for."""
    path = folder / "vectors.npy"
    if path.is_file():
        return NumberedRows.open(path)
    blocks = [NumberedRows.open(_vectors_file(folder, block)) for block in range(n_blocks)]
    shape = (sum(len(block) for block in blocks), *blocks[0].shape[1:])
    return write_rows(path, shape, np.float32, (part for block in blocks for _, part in block.blocks()))


def _length_file(folder: Path) -> Path:
    return folder / "crop_s.txt"


def _vectors_file(folder: Path, block: int) -> Path:
    return folder / f"vectors-{block:06d}.npy"


def _tokens_file(folder: Path, block: int) -> Path:
    return folder / f"tokens-{block:06d}.npy"


def _write_block(expert: Expert, signals: SignalStore, rows: slice, folder: Path, block: int) -> None:
    n, crop_s = rows.stop - rows.start, crop_seconds(expert)
    if not _length_file(folder).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(_length_file(folder), f"{crop_s:g}\n")
    vectors = np.full((n, int(WHOLE_S / crop_s), expert.spec.embedding_dim), np.nan, np.float32)
    tokens = None if expert.spec.tokens is None else _no_tokens(expert, vectors.shape[:2], crop_s)
    faults = Faults(expert.spec.name, SAME_FAULTS)
    for positions, signals_mv, rate_hz in signals.read_groups(rows):
        cut = cut_crops(signals_mv, rate_hz, crop_s)
        records, crops = (part.ravel() for part in np.indices(cut.shape[:2]))
        group = SignalGroup(np.arange(len(records)), cut.reshape(-1, *cut.shape[2:]), float(RATE_HZ))
        names = [f"row {rows.start + positions[r]}, crop {c}" for r, c in zip(records, crops, strict=True)]
        prepared = prepare_group(expert, group, faults, names, {})
        if prepared is None:
            continue
        at = positions[records[prepared.positions]], crops[prepared.positions]
        found, of_tokens = encode_crops(expert, prepared.x, crop_s)
        vectors[at] = found
        if tokens is not None and of_tokens is not None:
            tokens[at] = of_tokens
    finite = np.isfinite(vectors)
    vectors[~(finite.any(-1) if expert.spec.nan_features else finite.all(-1))] = np.nan
    for path, values in ((_tokens_file(folder, block), tokens), (_vectors_file(folder, block), vectors)):
        if values is not None:
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, values, allow_pickle=False)


def _no_tokens(expert: Expert, shape: tuple[int, ...], crop_s: float) -> np.ndarray:
    """Return NaN for the tokens of [record, crop], in the number format of the expert's store."""
    _, of_tokens = encode_crops(expert, expert.prepare(_silence(crop_s), float(RATE_HZ)), crop_s)
    assert of_tokens is not None
    return np.full((*shape, *of_tokens.shape[1:]), np.nan, expert.spec.store_dtype)


def encode_crops(expert: Expert, x: Tensor, crop_s: float) -> tuple[np.ndarray, np.ndarray | None]:
    """Encode prepared crops [crop, windows, ...]: embeddings [crop, dim], and the tokens [crop, token, dim] inside.

    Windows are averaged in the embedding and stand one after the other in the tokens.
    """
    windows, flat = x.shape[1], x.flatten(0, 1)
    at_once = max(1, expert.windows_at_once(flat) // windows) * windows
    vectors: list[Tensor] = []
    tokens: list[Tensor] = []
    with torch.inference_mode():
        for start in range(0, len(flat), at_once):
            part = flat[start : start + at_once].to(expert.device)
            if expert.module is not None:
                part = part.to(PRECISION_DTYPES[expert.precision])
            found = encode_checked(expert, part)
            vectors.append(found.embedding.float().unflatten(0, (-1, windows)).mean(1).cpu())
            if found.tokens is not None:
                inside = torch.from_numpy(tokens_inside(expert.spec, windows, found.tokens.shape[1], crop_s))
                laid = found.tokens.float().cpu().unflatten(0, (-1, windows)).flatten(1, 2)
                tokens.append(laid[:, inside])
    return torch.cat(vectors).numpy(), torch.cat(tokens).numpy() if tokens else None


def crop_facts() -> dict[str, int | float]:
    """Return what crops are, as part of what names their folder."""
    return {"rate_hz": RATE_HZ, "crop_s": CROP_S, "long_crop_s": LONG_CROP_S, "block": BLOCK, "version": 2}
