"""The labelled records that a backbone is adapted on: prepared input, targets and split, row for row.

Lives here: reading them, and which patients a fraction takes. Not here: what is done with them (`stage`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import torch

from cache.errors import InputError, UsageError
from cache.record_columns import Texts, as_target_array
from cache.record_members import RecordMembers
from cache.records import SPLITS, Target
from cache.signals import open_signals
from cache.storage.locations import Location
from stages.experts import Expert
from stages.heads.targets.tasks import Block, TaskSpec, encode, layout, unusable
from stages.posttrain.inputs import RecordInputs, TestCrops, WholeRecords, open_crops
from stages.scoring.blocks import PredictionBlock
from stages.scoring.metrics import score
from stages.training.inputs import input_identity, prepared_inputs


@dataclass(frozen=True)
class LabelledCohort:
    """Readable records that have a label of one of the tasks.

    Attributes
    ----------
    rows
        Their rows in records.parquet, ascending; positions count these rows.
    inputs
        What the network reads of the records, mapped into memory.
    y, known
        Targets and label weights, [position, columns], the tasks' columns side by side.
    labels
        Task -> labels [position] as `RecordRows.labels` gives them.
    """

    records: RecordMembers
    rows: np.ndarray
    inputs: RecordInputs
    targets: tuple[Target, ...]
    tasks: tuple[TaskSpec, ...]
    y: torch.Tensor
    known: torch.Tensor
    labels: Mapping[str, np.ndarray]
    signals_digest: str

    @classmethod
    def read(
        cls,
        expert: Expert,
        names: tuple[str, ...],
        paths: tuple[Location, Location],
        state: Path,
        crop_s: float | None = None,
        test_crops: TestCrops = "mean",
    ) -> Self:
        """Read the cohort as `expert` takes it.

        Parameters
        ----------
        names
            Of the tasks.
        paths
            records.parquet and signals.zarr.
        state
            The study's state folder.
        crop_s, test_crops
            As in `PosttrainSettings`.

        Raises
        ------
        UsageError
            A task that does not exist.
        InputError
            Training records that cannot teach it.
        """
        records = RecordMembers.read(paths[0])
        targets, signals = _chosen(records.table.targets, names), open_signals(paths[1])
        tasks = tuple(TaskSpec(target.name, target.kind, target.classes, target.unit) for target in targets)
        labels = {target.name: records.labels(target) for target in targets}
        y, known = _columns(labels, tasks)
        splits = [split for split in SPLITS if records.split.equal(split).any()]
        parts = [records.training_rows(split) for split in splits]
        rows = np.intersect1d(np.concatenate(parts), np.flatnonzero(known.any(1)))
        inputs: RecordInputs
        if crop_s is None:
            x, rows = prepared_inputs(state / "inputs", input_identity(expert), expert.prepare, signals, rows)
            inputs = WholeRecords(x)
        else:
            inputs, rows = open_crops(state / "inputs", signals, rows, crop_s, expert.prepare, test_crops)
        y, known = y[rows], known[rows]
        train = records.split.equal("train")[rows]
        for block in layout(tasks):
            if reason := unusable(block.task, y[train][:, block.columns], known[train][:, block.columns]):
                raise InputError(f"task '{block.task.name}' cannot be learnt: {reason}")
        targets_y, weights = torch.from_numpy(np.asarray(y, np.float32)), torch.from_numpy(known)
        labels = {name: values[rows] for name, values in labels.items()}
        return cls(records, rows, inputs, targets, tasks, targets_y, weights, labels, signals.content_digest())

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Which columns belong to which task."""
        return layout(self.tasks)

    def of(self, split: str) -> np.ndarray:
        """Positions of a split's records."""
        return np.flatnonzero(self.records.split.equal(split)[self.rows])

    def training(self, fraction: float, seed: int) -> np.ndarray:
        """Positions of a share of the training patients; a smaller share is part of a larger one."""
        positions = self.of("train")
        patients = self.records.people.patient.codes[self.rows[positions]]  # in the order of their names
        return positions[share_of_patients(patients, fraction, seed)]

    def metrics(self, predicted: np.ndarray, positions: np.ndarray) -> dict[str, float]:
        """Score predictions [position, columns] on some records; none where there are no records.

        Of several tasks, a metric is named after its task too: `sex auroc`.
        """
        if not len(positions):
            return {}
        found: dict[str, float] = {}
        for block, target in zip(self.blocks, self.targets, strict=True):
            prefix = f"{target.name} " if len(self.tasks) > 1 else ""
            scored = score(target, self._predictions(block, target, positions, predicted))
            found |= {prefix + name: float(values[0]) for name, values in scored.values.items()}
        return found

    @cached_property
    def ids(self) -> Texts:
        """Names of the records."""
        return Texts.of(pa.chunked_array([self.records.ids(self.rows)]))

    def _predictions(
        self, block: Block, target: Target, positions: np.ndarray, predicted: np.ndarray
    ) -> PredictionBlock:
        rows, part = self.rows[positions], predicted[positions][:, block.columns]
        return PredictionBlock(
            self.ids.take(positions),
            self.records.people.patient.take(rows),
            self.records.split.take(rows),
            np.zeros(len(rows), np.int64),
            as_target_array(self.labels[target.name][positions], target),
            part[:, 0] if target.kind in ("regression", "binary") else part,
        )


def _chosen(targets: Mapping[str, Target], names: tuple[str, ...]) -> tuple[Target, ...]:
    if missing := [name for name in names if name not in targets]:
        raise UsageError(f"--task {missing[0]}: records.parquet has the targets {', '.join(targets) or 'none'}")
    if events := [name for name in names if targets[name].kind == "survival"]:
        raise UsageError(
            f"--task {events[0]}: posttrain cannot learn a time to an event, whose loss needs everybody at risk at "
            "once and not a batch; post-train on another task, `ensemble fit-heads` learns this one"
        )
    return tuple(targets[name] for name in names)


def _columns(labels: Mapping[str, np.ndarray], tasks: tuple[TaskSpec, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return targets and label weights of all records, [record, columns]."""
    encoded = [encode(task, labels[task.name], len(labels[task.name])) for task in tasks]
    return np.concatenate([y for y, _ in encoded], axis=1), np.concatenate([known for _, known in encoded], axis=1)


def share_of_patients(patients: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return which records [n] belong to a share of the patients, drawn by the seed; at least one patient is.

    `patients` are names, or numbers in the order of the names.
    """
    names = np.unique(patients)
    order = np.random.default_rng([seed, 4]).permutation(len(names))
    return np.isin(patients, names[order[: max(1, round(fraction * len(names)))]])
