"""Reference methods on a study's data: constructed, fitted once, their predictions remembered until anything changes.

Lives here: what `evaluate --compare` resumes from, and what each method cost. Not here: the methods
(`stages.heads.baselines.methods`), metrics (`stages.scoring`).
"""

from __future__ import annotations

import inspect
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import stages.heads
from cache.errors import InputError
from cache.files import replacing
from cache.fingerprint import file_digest, fingerprint
from cache.storage.locations import Location
from stages.heads import EnsembleHeads
from stages.heads.baselines.methods import METHODS
from stages.heads.decisions.answers import DECISION_FILES
from stages.heads.fold_model import spread_rows
from stages.heads.inputs.expert_features import choose_rows, parse_mix
from stages.heads.published.enecg_preset import EnecgHeads
from stages.learning.data import Data, RecordIds, read_outputs
from stages.learning.folds import Split
from stages.learning.gate_signal import read_enecg_lead
from stages.learning.peak_memory import PeakMemory
from stages.learning.saved_fit import ENECG_FOLDER

ENECG = "enecg"
COMPARED = (*(name for name in METHODS if name != "gate"), ENECG)
"""Every method there is beside the gate and the single experts, in the order of fitting."""

ON_THE_FIT = ("mean", "stacking")
"""Methods that ask the fitted heads, which remember their answers."""

CODE = ("learning/*.py", "evaluate/methods.py", "evaluate/learning_curve.py")
"""Beside `heads`: what decides how a method is fitted."""

Costs = dict[str, float | None]
Skipped = dict[str, str]
"""Task -> why a method does not predict it."""
FoldPredictions = list[dict[str, np.ndarray]]
"""Fold -> task -> predictions [n, ...]; NaN of records that the fold neither judges nor is judged by."""


@dataclass(frozen=True)
class Setting:
    """What every method is fitted on: the same data, folds and gate signal."""

    data: Data
    heads: EnsembleHeads
    splits: list[Split]
    signal: np.ndarray | None
    stores: Mapping[str, Location]
    signals_path: Location
    heads_folder: Path

    @property
    def judged(self) -> list[np.ndarray]:
        """Of each fold, bool [n]: the records of which predictions are written."""
        everything = np.zeros((len(self.splits), len(self.data.membership)), bool)
        for mask, (_, val, test) in zip(everything, self.splits, strict=True):
            mask[val] = mask[test] = True
        return list(everything)

    @cached_property
    def ids(self) -> RecordIds:
        """Ids of the records that validate or test in some fold."""
        return RecordIds(self.data.rows, (rows for _, *judging in self.splits for rows in judging))


class FinishedMethods:
    """Predictions of finished methods on disk, so that a killed comparison goes on where it stopped.

    Parameters
    ----------
    folder
        Kept for one state of fit, labels and program; what belongs to another state is removed.
    key
        Digest of that state, from `state_key`.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder / key[:16]
        for stale in folder.glob("*") if folder.is_dir() else ():
            if stale != self.folder:
                shutil.rmtree(stale, ignore_errors=True)

    def get(self, name: str) -> tuple[FoldPredictions, Costs, Skipped] | None:
        """Return a method's predictions, costs and skipped tasks, or None where it has not finished."""
        path = self.folder / f"{name}.npz"
        if not path.is_file():
            return None
        with np.load(path, allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            found = [{task: stored[f"{f}/{task}"] for task in about["tasks"]} for f in range(about["folds"])]
            return found, about["costs"], about["skipped"]

    def put(self, name: str, predictions: FoldPredictions, costs: Costs, skipped: Skipped) -> None:
        """Keep a finished method."""
        shape = {"tasks": list(predictions[0]), "folds": len(predictions)}
        about = json.dumps({**shape, "costs": costs, "skipped": skipped})
        arrays: dict[str, Any] = {
            f"{f}/{task}": values for f, found in enumerate(predictions) for task, values in found.items()
        }
        with replacing(self.folder / f"{name}.npz") as temporary, temporary.open("wb") as file:
            np.savez(file, about=np.array(about), **arrays)


def state_key(heads_folder: Path, records_path: Location, fingerprints: Mapping[str, str]) -> str:
    """Digest of everything that changes a method's predictions: the fit, the vectors, the labels, the code.

    Parameters
    ----------
    fingerprints
        Expert -> that of its store.
    """
    heads = Path(stages.heads.__path__[0])
    code = sorted(path for pattern in ("heads/**/*.py", *CODE) for path in heads.parent.glob(pattern))
    # thresholds and limits are chosen after the fit: no method learns from them
    fit = [path for path in sorted(heads_folder.rglob("*")) if path.is_file() and path.name not in DECISION_FILES]
    return fingerprint(
        {
            "fit": {str(path.relative_to(heads_folder)): file_digest(path) for path in fit},
            "vectors": dict(fingerprints),
            "records": file_digest(records_path),
            "code": {str(path.relative_to(heads.parent)): file_digest(path) for path in code},
        }
    )


def fitted_method(
    name: str, setting: Setting, finished: FinishedMethods, on_fit: Callable[[str], None]
) -> tuple[FoldPredictions, Costs, Skipped]:
    """Fit a method and predict with it, or remember both.

    Parameters
    ----------
    on_fit
        Called with the name where it has to be fitted.

    Raises
    ------
    InputError
        The method cannot be fitted on these data; the message says why.
    """
    remembered = finished.get(name)
    if remembered is not None:
        return remembered
    on_fit(name)
    with PeakMemory() as peak:
        started = time.perf_counter()
        predict, costs, skipped = (_enecg if name == ENECG else _reference)(name, setting)
        costs["seconds"] = costs.get("seconds", time.perf_counter() - started)
    predictions = [predict(fold) for fold in range(len(setting.splits))]
    costs["peak_memory_mb"] = peak.mb
    finished.put(name, predictions, costs, skipped)
    return predictions, costs, skipped


Fit = tuple[Callable[[int], dict[str, np.ndarray]], Costs, Skipped]


def _reference(name: str, setting: Setting) -> Fit:
    data, signal = setting.data, setting.signal
    method = make_method(name, setting.heads)
    method.fit(
        data.features,
        data.targets,
        setting.heads.tasks_,
        splits=setting.splits,
        groups=data.membership.patient.codes,
        gate_signal=signal,
        **({"seen": data.seen} if isinstance(method, EnsembleHeads) else {}),
    )
    costs: Costs = {"parameters": method.n_trainable_}

    def predict(fold: int) -> dict[str, np.ndarray]:
        if name in ON_THE_FIT:
            return dict(method.predict_proba(data.features, gate_signal=signal, fold=fold))
        judged = setting.judged[fold]
        rows = np.flatnonzero(judged)
        chosen = choose_rows(data.features, rows)
        found = method.predict_proba(chosen, gate_signal=None if signal is None else signal[rows], fold=fold)
        return {task: spread_rows(values, rows, len(judged)) for task, values in found.items()}

    return predict, costs, {}


def make_method(name: str, heads: EnsembleHeads) -> Any:
    """Construct a reference method with what it shares with the heads: the fit itself, or each option that it has too.

    `concat` and `full_rank` train no mixing: where the heads' is (PMA, attention), they read the plain mean.
    """
    factory = METHODS[name]
    if name in ON_THE_FIT:
        return factory(heads=heads)
    if name in ("ppa", "pma", "attention"):
        return factory(**heads.get_params())
    accepted = inspect.signature(factory).parameters
    shared = {option: value for option, value in heads.get_params().items() if option in accepted}
    if "layer_mix" in shared:
        plain = {"pma": "ppa", "attention": "embedding"}
        parts = [plain.get(part, part) for part in parse_mix(shared["layer_mix"])]
        shared["layer_mix"] = "+".join(dict.fromkeys(parts))
    return factory(**shared)


def _enecg(name: str, setting: Setting) -> Fit:  # noqa: ARG001
    """Load the preset's fit where `fit-heads` has made one, else fit it here."""
    data, folder = setting.data, setting.heads_folder / ENECG_FOLDER
    outputs, lead = read_outputs(setting.stores), read_enecg_lead(setting.signals_path)
    costs: Costs = {}
    embeddings = {expert: parts["embedding"] for expert, parts in data.features.items()}
    if folder.is_dir():
        fit, costs["seconds"] = EnecgHeads.load(folder), None  # that of `fit-heads`, not of loading
    else:
        tasks, patients = setting.heads.tasks_, data.membership.patient.codes
        fit = EnecgHeads().fit(outputs, embeddings, lead, data.targets, tasks, setting.splits, patients)
        costs["seconds"] = fit.seconds_
    if not fit.tasks_:
        raise InputError("; ".join(f"{task}: {reason}" for task, reason in fit.skipped_.items()))
    costs["parameters"] = fit.n_trainable_
    return lambda fold: fit.predict_proba(outputs, embeddings, lead, fold=fold), costs, fit.skipped_
