"""What points can be coloured by: labels, answers, source, split, gate weights, quality; each one byte a record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from cache.records import Target, target_array
from stages.scoring.comparison import main_method
from stages.scoring.predictions import Predictions

MISSING = 255
LEVELS = 254
MAX_CLASSES = 8
"""Colours that stay apart; of more classes the most frequent have one, the others share the last."""
MAX_CLASS_PROBABILITIES = 30
OTHER, SEVERAL, NONE = "other", "several", "none of them"


@dataclass(frozen=True)
class Colouring:
    """One way to colour the points.

    Attributes
    ----------
    group
        Under which heading it is offered.
    codes
        uint8 [n]: class, or level 0 ... 254 between `low` and `high`; 255: no value.
    classes
        Names; empty: the codes are levels.
    """

    group: str
    name: str
    codes: np.ndarray
    classes: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0
    unit: str = ""
    counts: tuple[int, ...] = field(default=())


def of_classes(group: str, name: str, codes: np.ndarray, classes: Sequence[str]) -> Colouring:
    """Colour by class; `codes` int [n], below 0 = no value.

    Examples
    --------
    >>> of_classes("record", "source", np.array([0, 1, 1, -1]), ["a", "b"]).counts
    (1, 2)
    """
    counts = np.bincount(codes[codes >= 0], minlength=len(classes))
    kept, listed = np.flatnonzero(counts), np.array([str(name) for name in classes], dtype=object)
    names = listed[kept].tolist()
    place = np.full(len(classes) + 1, MISSING)
    place[kept] = np.arange(len(kept))
    if len(kept) > MAX_CLASSES:
        frequent = np.sort(kept[np.argsort(-counts[kept], kind="stable")[: MAX_CLASSES - 1]])
        place[kept] = MAX_CLASSES - 1
        place[frequent] = np.arange(len(frequent))
        names = [*listed[frequent], OTHER]
    found = place[np.where(codes < 0, len(classes), codes)].astype(np.uint8)
    shown = np.bincount(found[found != MISSING], minlength=len(names))
    return Colouring(group, name, found, tuple(names), counts=tuple(map(int, shown)))


def of_values(group: str, name: str, values: np.ndarray, unit: str = "") -> Colouring:
    """Colour by a number, float [n], NaN = no value; of a value's range the outer 1 % on each side share a colour."""
    known = np.isfinite(values)
    if not known.any():
        return Colouring(group, name, np.full(len(values), MISSING, np.uint8), unit=unit)
    low, high = (float(x) for x in np.quantile(values[known], (0.01, 0.99)))
    share = (np.where(known, values, low) - low) / (high - low if high > low else 1.0)
    codes = np.where(known, np.rint(np.clip(share, 0, 1) * LEVELS), MISSING).astype(np.uint8)
    return Colouring(group, name, codes, (), low, high, unit)


def of_shares(group: str, name: str, values: np.ndarray) -> Colouring:
    """Colour by a probability or a weight, float [n] from 0 to 1."""
    codes = np.where(np.isfinite(values), np.rint(np.clip(np.nan_to_num(values), 0, 1) * LEVELS), MISSING)
    return Colouring(group, name, codes.astype(np.uint8))


def colourings(
    records: pd.DataFrame, targets: dict[str, Target], predictions: Predictions | None, weights: pd.DataFrame | None
) -> list[Colouring]:
    """Return every colouring that has a value for some record, labels first."""
    found = [*_of_tasks(records, targets, predictions), *_of_weights(records, weights), *_of_records(records)]
    return [one for one in found if (one.codes != MISSING).any()]


def _of_tasks(
    records: pd.DataFrame, targets: dict[str, Target], predictions: Predictions | None
) -> Iterator[Colouring]:
    ids = records["record_id"].astype(str).to_numpy()
    for name, target in targets.items():
        yield from _label(target, target_array(records, target))
        if predictions is not None and name in predictions.tasks:
            yield from _answer(predictions.tasks[name], predictions, ids)


def _label(target: Target, truth: np.ndarray) -> Iterator[Colouring]:
    group = f"task {target.name}"
    if target.kind == "regression":
        yield of_values(group, "label", truth, target.unit)
    elif target.kind == "survival":
        observed = np.where(np.isnan(truth), -1, truth > 0).astype(np.int64)
        yield of_classes(group, "event", observed, ("not observed", "observed"))
        yield of_values(group, "time to event or end", np.abs(truth), target.unit)
    elif target.kind == "multilabel":
        yield of_classes(group, "label", _findings(truth), (*target.classes, SEVERAL, NONE))
    else:
        codes = np.where(np.isnan(truth), -1, truth).astype(np.int64)
        yield of_classes(group, "label", codes, target.classes or ("0", "1"))


def _answer(target: Target, predictions: Predictions, ids: np.ndarray) -> Iterator[Colouring]:
    method = main_method(predictions.methods(target.name))
    group, block = f"task {target.name}", predictions.read(target.name, method, "test")
    said = _joined(block.record_ids, block.y_pred, ids)
    if target.kind == "regression":
        yield of_values(group, f"predicted by {method}", said[:, 0], target.unit)
    elif target.kind == "survival":
        yield of_values(group, f"log hazard by {method}", said[:, 0])
    elif target.kind == "binary":
        names = target.classes or ("0", "1")
        yield of_classes(group, f"predicted by {method}", _above_half(said[:, 0]), names)
        yield of_shares(group, f"probability of {names[1]}", said[:, 0])
    else:
        yield from _of_several(target, group, method, said)


def _of_several(target: Target, group: str, method: str, said: np.ndarray) -> Iterator[Colouring]:
    if target.kind == "multilabel":
        codes, names = _findings(np.where(np.isnan(said), np.nan, said >= 0.5)), (*target.classes, SEVERAL, NONE)
    else:
        known = np.isfinite(said).all(axis=1)
        codes, names = np.where(known, np.nan_to_num(said).argmax(axis=1), -1), target.classes
    yield of_classes(group, f"predicted by {method}", codes, names)
    for k, label in enumerate(target.classes[:MAX_CLASS_PROBABILITIES]):
        yield of_shares(group, f"probability of {label}", said[:, k])


def _above_half(values: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(values), -1, values >= 0.5).astype(np.int64)


def _findings(truth: np.ndarray) -> np.ndarray:
    """Return the one finding of a record, or that it has several or none; -1 where nothing is known of it, int [n]."""
    n_found, n_classes = (truth == 1).sum(axis=1), truth.shape[1]
    one = np.where(n_found == 1, (truth == 1).argmax(axis=1), np.where(n_found > 1, n_classes, n_classes + 1))
    return np.where(np.isnan(truth).all(axis=1), -1, one)


def _joined(record_ids: np.ndarray, values: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return values float [n, k] in the order of `ids`; NaN where there is none."""
    table = pd.DataFrame(values.reshape(len(record_ids), -1).astype(np.float64), index=record_ids.astype(str))
    return table[~table.index.duplicated()].reindex(ids).to_numpy()


def _of_weights(records: pd.DataFrame, weights: pd.DataFrame | None) -> Iterator[Colouring]:
    if weights is None:
        return
    ids, tested = records["record_id"].astype(str).to_numpy(), weights[weights["split"] == "test"]
    for (task, expert), rows in tested.groupby(["task", "expert"], observed=True, sort=False):
        found = _joined(rows["record_id"].to_numpy(), rows["weight"].to_numpy(), ids)
        yield of_shares("gate", f"weight of {expert} for {task}", found[:, 0])


def _of_records(records: pd.DataFrame) -> Iterator[Colouring]:
    for name in ("source", "split"):
        codes, classes = pd.factorize(records[name], sort=True)
        yield of_classes("record", name, codes, tuple(map(str, classes)))
    yield of_classes("record", "quality", *_quality(records))
    yield of_values("record", "missing samples, share", records["nan_fraction"].to_numpy(dtype=np.float64))


REMARKS = ("no remark", "leads missing", "flat leads", "limb leads suspected", "clipped", "samples missing")


def _quality(records: pd.DataFrame) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the gravest remark on each record's signal, int [n], and the remarks' names."""
    n = len(records)

    def listed(name: str) -> np.ndarray:
        return np.array([_length(cell) > 0 for cell in records[name]]) if name in records else np.zeros(n, bool)

    def share(name: str, least: float) -> np.ndarray:
        return np.nan_to_num(records[name].to_numpy(dtype=np.float64)) > least

    swapped = records["limb_swap"].notna().to_numpy() if "limb_swap" in records else np.zeros(n, bool)
    tests: list[Any] = [listed("missing_leads"), listed("flat_leads"), swapped]
    tests += [share("clipped_fraction", 0.001), share("nan_fraction", 0.001)]
    return np.select(tests, range(1, len(REMARKS)), 0), REMARKS


def _length(cell: Any) -> int:
    return len(cell) if hasattr(cell, "__len__") else 0
