"""Vectors of ECGs that lie in memory: no study, no store, nothing written."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from cache.errors import InputError, UsageError
from ensemble.embeddings import ArraysInMemory, Embeddings
from stages.experts import load_expert
from stages.experts.contract import STANDARD_LEADS
from stages.experts.run import RunSettings, Signal, embed_records
from stages.experts.views import checked_views
from stages.readers.files import find_ecgs, read_ecg
from stages.readers.lead_names import lead_columns

_LOG = logging.getLogger(__name__)
LARGEST_MV = 100.0
"""No ECG reaches this; values beyond it are microvolts or a converter's counts."""


def embed(
    signals_mv: np.ndarray | str | Path | Sequence[str | Path],
    rate_hz: float | None = None,
    leads: Sequence[str] | None = None,
    expert: str = "ecgfm",
    weights: str | Path | None = None,
    device: str = "auto",
    record_ids: Sequence[str] | None = None,
    views: Sequence[str] = (),
) -> Embeddings:
    """Run one expert over ECGs in memory or in files. Needs no study and writes nothing.

    Parameters
    ----------
    signals_mv
        [record, lead, time] in mV, or [lead, time] of one record; a missing lead or sample is NaN. Or one path or
        several: files of any format that `ensemble ingest --source files` reads, WFDB records, folders of them.
    rate_hz
        Their sampling rate; files have their own.
    leads
        Name of each row (I, II, III, aVR ... V6), in any order; a lead that is not named is missing. None: the twelve
        standard leads in their order.
    expert
        A name of `ensemble.list_experts()`.
    weights
        An official checkpoint. None: those of the package, of the study's `weights/` or of the model hub.
    device
        auto (a CUDA device where there is one), cpu, cuda or cuda:0.
    record_ids
        Names of the records. None: "0", "1" ...
    views
        What is wanted of the last layer's tokens besides their means, of `ensemble.load_expert(...).spec.views`:
        `segments` (mean over each of the first ten seconds), `std`, `max`, `last`.

    Returns
    -------
    float32 vectors; a row of NaN is a record that the expert could not embed, which a warning names with the reason.

    Raises
    ------
    InputError
        Signals of another shape, or not in mV.
    UsageError
        An expert, lead or device that does not exist.
    WeightsError
        Weights that cannot be had, or do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> ecg_mv = np.random.default_rng(0).normal(size=(2, 1000))
    >>> embed(ecg_mv, rate_hz=100, leads=["II", "V5"], expert="rocket").numpy().shape
    (1, 5040)
    """
    paths = _paths(signals_mv)
    if paths is not None:
        names, signals = _of_files(paths, rate_hz, leads)
    else:
        names, signals = _in_memory(signals_mv, rate_hz, leads)
    ids = np.array(names if record_ids is None else list(record_ids), dtype=str)
    if len(ids) != len(signals):
        raise UsageError(f"record_ids names {len(ids)} records, signals_mv has {len(signals)}; give as many")
    loaded = load_expert(expert, weights, device=_device(device))
    spec = loaded.spec
    settings = RunSettings(dtype="float32", threads=torch.get_num_threads(), views=checked_views(spec, views))
    found = embed_records(loaded, signals, settings)
    for position, reason in found.reasons.items():
        _LOG.warning("record '%s' has no vector: %s", ids[position], reason)
    attributes = {
        "expert": expert,
        "version": spec.version,
        "licence": spec.licence,
        "preprocessing": loaded.preprocessing,
        "precision": "fp32",
        "layer_names": list(spec.layer_names),
        "layer_dims": list(spec.layer_dims),
    }
    return Embeddings(ArraysInMemory(attributes, found.arrays()), ids)


def _paths(given: object) -> list[str | Path] | None:
    """Return the paths that are given instead of signals; None where signals are."""
    if isinstance(given, str | Path):
        return [given]
    if isinstance(given, Sequence) and given and all(isinstance(one, str | Path) for one in given):
        return list(given)
    return None


def _of_files(
    paths: Sequence[str | Path], rate_hz: float | None, leads: Sequence[str] | None
) -> tuple[list[str], list[Signal]]:
    """Read files as `ensemble predict` does."""
    if rate_hz is not None or leads is not None:
        raise UsageError("files have their own rate and leads; give neither rate_hz nor leads with paths")
    notes: list[str] = []
    recorded = [read_ecg(path) for path in find_ecgs(paths, notes=notes)]
    for note in notes:
        _LOG.warning("%s", note)
    for one in recorded:
        for warning in one.warnings:
            _LOG.warning("%s: %s", one.name, warning)
    return [one.name for one in recorded], [Signal(one.signals_mv, one.rate_hz) for one in recorded]


def _in_memory(
    signals_mv: object, rate_hz: float | None, leads: Sequence[str] | None
) -> tuple[list[str], list[Signal]]:
    signals = _standard(np.asarray(signals_mv), leads)
    if rate_hz is None or not rate_hz > 0:
        raise UsageError(f"rate_hz is {rate_hz}; give the sampling rate in Hz")
    return [str(row) for row in range(len(signals))], [Signal(record, float(rate_hz)) for record in signals]


def _standard(signals_mv: np.ndarray, leads: Sequence[str] | None) -> np.ndarray:
    """Put the rows in the standard order, missing leads NaN: [record, 12, time]."""
    signals = np.asarray(signals_mv, dtype=np.float32)
    signals = signals[None] if signals.ndim == 2 else signals
    names = STANDARD_LEADS if leads is None else tuple(leads)
    if signals.ndim != 3 or signals.shape[1] != len(names):
        expected = f"[record, {len(names)}, time]" if leads is not None else "[record, 12, time]; or name the leads"
        raise InputError(f"signals_mv is {list(np.shape(signals_mv))}; expected {expected}")
    if np.nanmax(np.abs(signals), initial=0.0) > LARGEST_MV:
        raise InputError(f"signals_mv reaches beyond {LARGEST_MV:g} mV; give millivolts (microvolts / 1000)")
    standard = np.full((len(signals), len(STANDARD_LEADS), signals.shape[2]), np.nan, dtype=np.float32)
    for row, column in lead_columns(names):
        standard[:, row] = signals[:, column]
    return standard


def _device(wanted: str) -> str:
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise UsageError(f"device '{wanted}': expected auto, cpu, cuda or cuda:0") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device '{wanted}': this machine has {torch.cuda.device_count()} CUDA devices; give cpu")
    return wanted
