"""Stage `fit-heads`: fit heads and gates of all tasks on cached embeddings, saved so that they reload exactly."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import UsageError
from cache.storage.locations import Place
from stages.heads import EnsembleHeads
from stages.heads.options import check_options
from stages.heads.published.enecg_preset import EnecgHeads
from stages.learning.data import Data, read_data, read_outputs, task_specs
from stages.learning.folds import Split, make_splits
from stages.learning.gate_signal import GATE_LEADS, check_gate_leads, read_enecg_lead, read_gate_signal, reads_signal
from stages.learning.peak_memory import PeakMemory
from stages.learning.saved_fit import ENECG_FOLDER


@dataclass(frozen=True)
class FitSummary:
    """What a fit did."""

    tasks: tuple[str, ...]
    skipped: dict[str, str]
    """Task -> why it could not be learnt."""
    experts: tuple[str, ...]
    n_folds: int
    n_trainable: int
    seconds: float
    expert_seconds: dict[str, float]
    peak_memory_mb: float | None
    enecg: dict[str, Any] | None = None
    """Of the enecg preset: parameters, seconds, peak_memory_mb, skipped, metrics (mean and std over folds)."""


def fit_heads(
    records_path: Path,
    stores: Mapping[str, Place],
    heads_folder: Path,
    *,
    signals_path: Place,
    tasks: Sequence[str] | None = None,
    preset: str = "default",
    folds: str | int = "split",
    options: Mapping[str, Any] | None = None,
    device: str | None = None,
    seed: int = 0,
) -> FitSummary:
    """Fit all tasks and folds at once, and write the folder `heads_folder`, all or nothing.

    Parameters
    ----------
    stores
        Expert -> its store.
    tasks
        Target columns; None: all that records.parquet has, leaving out (with the reason) those that cannot be learnt.
    preset
        "enecg": fit the published recipe as well, on the same folds, into the folder's `enecg/`.
    options
        Of `stages.heads.EnsembleHeads`, and `gate_leads`: the leads that a gate with `gate_input` "signal" reads.
    device
        auto, cpu, cuda or cuda:i, before that of `options`.

    Raises
    ------
    UsageError
        An option that the heads do not have, or a named task that cannot be learnt.
    """
    chosen = {**(options or {}), **({} if device is None else {"device": device})}
    asked = chosen.pop("gate_leads", None)
    leads = GATE_LEADS if asked is None else check_gate_leads(asked)
    heads = make_heads(chosen, seed, skip=tasks is None)
    if asked is not None and not reads_signal(heads):
        raise UsageError("fit_heads.options.gate_leads: the gate reads no signal; let gate_input name it, too")
    data = read_data(records_path, stores, tasks, heads.memory_gb)
    splits = make_splits(data, folds)
    with PeakMemory() as memory:
        heads.fit(
            data.features,
            data.targets,
            task_specs(data.tasks),
            splits=splits,
            groups=data.patients,
            gate_signal=read_gate_signal(heads, signals_path, leads),
            provenance={
                **({"gate_leads": list(leads)} if reads_signal(heads) else {}),
                "fingerprints": data.fingerprints,
                "identities": data.identities,
                "dtypes": data.dtypes,
                "rows": data.records.attrs["row_options"],
                "folds": folds,
            },
        )
    enecg, costs = None, None
    if preset == "enecg":
        enecg, costs = _fit_enecg(data, heads, stores, signals_path, splits)
    _save(heads, enecg, heads_folder)
    return FitSummary(
        tuple(task.name for task in heads.tasks_),
        heads.skipped_,
        heads.experts_,
        len(splits),
        heads.n_trainable_,
        heads.seconds_,
        heads.expert_seconds_,
        memory.mb,
        costs,
    )


def _fit_enecg(
    data: Data, heads: EnsembleHeads, stores: Mapping[str, Place], signals_path: Place, splits: list[Split]
) -> tuple[EnecgHeads, dict[str, Any]]:
    """Fit the published recipe on the default fit's tasks and folds."""
    embeddings = {name: np.asarray(parts["embedding"]) for name, parts in data.features.items()}
    with PeakMemory() as memory:
        enecg = EnecgHeads().fit(
            read_outputs(stores),
            embeddings,
            read_enecg_lead(signals_path),
            data.targets,
            heads.tasks_,
            splits,
            data.patients,
        )
    costs = {"parameters": enecg.n_trainable_, "seconds": enecg.seconds_, "peak_memory_mb": memory.mb}
    return enecg, {**costs, "skipped": enecg.skipped_, "metrics": enecg.metrics_}


def make_heads(options: Mapping[str, Any], seed: int, *, skip: bool) -> EnsembleHeads:
    """Construct the estimator; an unknown option is refused by name."""
    known = set(EnsembleHeads().get_params()) - {"seed", "on_unusable"}
    unknown = sorted(set(options) - known)
    if unknown:
        listed = ", ".join(sorted({*known, "gate_leads"}))
        raise UsageError(f"fit_heads.options has no '{unknown[0]}'; it has: {listed}")
    check_options(options, "fit_heads.options.")
    return EnsembleHeads(**options, seed=seed, on_unusable="skip" if skip else "error")


def _save(heads: EnsembleHeads, enecg: EnecgHeads | None, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent) as temporary:
        fresh = Path(temporary) / folder.name
        heads.save(fresh)
        if enecg is not None:
            enecg.save(fresh / ENECG_FOLDER)
        if folder.exists():
            shutil.rmtree(folder)
        fresh.rename(folder)
