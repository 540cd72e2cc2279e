"""Stage `fit-heads`: fit heads and gates of all tasks on cached embeddings, saved so that they reload exactly."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import UsageError
from cache.files import write_text
from cache.storage.locations import Location
from stages.fit_heads.settings import FitHeadsPaths, FitHeadsSettings, FitHeadsSummary
from stages.heads import EnsembleHeads
from stages.heads.decisions.answers import Decisions
from stages.heads.decisions.operating_points import check_rules
from stages.heads.inputs.expert_features import VIEWS
from stages.heads.published.enecg_preset import EnecgHeads
from stages.heads.targets.parents import with_parents
from stages.learning.data import Data, read_data, read_outputs, task_specs
from stages.learning.folds import Split, make_splits
from stages.learning.gate_signal import GATE_LEADS, read_enecg_lead, read_gate_signal, reads_signal
from stages.learning.peak_memory import PeakMemory
from stages.learning.saved_fit import ENECG_FOLDER, seen_notes
from stages.settings import Machine

Progress = Callable[[int, int], None]


def run(
    settings: FitHeadsSettings,
    paths: FitHeadsPaths,
    progress: Progress | None = None,
    *,
    machine: Machine = Machine(),  # noqa: B008 - frozen
) -> FitHeadsSummary:
    """Fit all tasks and folds at once, and write the folder `paths.heads`, all or nothing.

    Parameters
    ----------
    progress
        Not called: a fit has no steps that would tell how long it takes.
    machine
        Device and memory; nothing that the fit depends on.

    Raises
    ------
    UsageError
        A named task that cannot be learnt, or options that do not go together.
    """
    del progress
    leads = settings.options.gate_leads or GATE_LEADS
    heads = make_heads(settings, machine)
    if settings.options.gate_leads is not None and not reads_signal(heads):
        raise UsageError("fit_heads.options.gate_leads: the gate reads no signal; let gate_input name it, too")
    data = read_data(paths.records, paths.stores, settings.tasks, heads.memory_gb)
    tasks = with_parents(task_specs(data.tasks), settings.parents, data.every_target)
    check_rules(settings.operating_points, tasks)
    splits = make_splits(data, settings.folds)
    with PeakMemory() as memory:
        heads.fit(
            data.features,
            data.targets,
            tasks,
            splits=splits,
            groups=data.membership.patient.codes,
            gate_signal=read_gate_signal(heads, paths.signals, leads),
            provenance={
                **({"gate_leads": list(leads)} if reads_signal(heads) else {}),
                "fingerprints": data.fingerprints,
                "identities": data.identities,
                "dtypes": data.dtypes,
                "views": {name: [part for part in VIEWS if part in parts] for name, parts in data.features.items()},
                "rows": data.row_options,
                "folds": settings.folds,
            },
            seen=data.seen,
            taught=data.taught,
        )
    heads.decisions_ = Decisions.choose(heads.held_out_, heads.tasks_, settings.operating_points, settings.conformal)
    enecg, costs = None, None
    if settings.preset == "enecg":
        enecg, costs = _fit_enecg(data, heads, paths.stores, paths.signals, splits)
    _save(heads, enecg, paths.heads)
    summary = FitHeadsSummary(
        tuple(task.name for task in heads.tasks_),
        heads.skipped_,
        heads.experts_,
        len(splits),
        heads.n_trainable_,
        heads.seconds_,
        heads.expert_seconds_,
        memory.mb,
        costs,
        tuple(seen_notes(heads.history_)),
    )
    if paths.costs is not None:
        write_text(paths.costs, json.dumps(costs_of(summary), indent=1, sort_keys=True) + "\n")
    return summary


def costs_of(summary: FitHeadsSummary) -> dict[str, Any]:
    """Return what fit_costs.json holds: seconds and memory of this fit, which differ from run to run."""
    kept = ("seconds", "peak_memory_mb")
    enecg = {key: summary.enecg[key] for key in kept} if summary.enecg else None
    return {**{key: getattr(summary, key) for key in kept}, "expert_seconds": summary.expert_seconds, "enecg": enecg}


def _fit_enecg(
    data: Data, heads: EnsembleHeads, stores: Mapping[str, Location], signals_path: Location, splits: list[Split]
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
            data.membership.patient.codes,
        )
    costs = {"parameters": enecg.n_trainable_, "seconds": enecg.seconds_, "peak_memory_mb": memory.mb}
    return enecg, {**costs, "skipped": enecg.skipped_, "metrics": enecg.metrics_}


def make_heads(settings: FitHeadsSettings, machine: Machine) -> EnsembleHeads:
    """Construct the estimator."""
    options = settings.options.model_dump(exclude={"gate_leads"})
    return EnsembleHeads(
        **options,
        seed=settings.seed,
        on_unusable="skip" if settings.tasks is None else "error",
        device=machine.device,
        memory_gb=machine.memory_gb,
    )


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
