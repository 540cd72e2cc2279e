"""Stage `leaderboard`: linear, attention-pooled and fine-tuned heads of every expert and task, on one board.

Lives here: the order of the work. Not here: crops (`crops`), heads (`protocol`, `fits`), the board (`board`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from cache.embeddings import EmbeddingStore, open_embeddings
from cache.errors import InputError, UsageError
from cache.files import staged, write_text
from cache.fingerprint import fingerprint
from cache.record_members import RecordMembers
from cache.records import Target
from cache.signals import open_signals
from stages.leaderboard.board import BoardRow, as_csv, costs_of, make_board
from stages.leaderboard.crops import CROP_S, LONG_CROP_S, RATE_HZ, crop_facts, embed_crops
from stages.leaderboard.fits import FinishedFit, TaskRows, fit_head, read_finetuned
from stages.leaderboard.inputs import ExpertInputs, crop_inputs, native_inputs
from stages.leaderboard.settings import ExpertRun, LeaderboardPaths, LeaderboardSettings, LeaderboardSummary, Source
from stages.scoring.comparison import Draws
from stages.scoring.predictions import PredictionWriter, open_predictions, writing_predictions
from stages.scoring.summary import write_json, write_metrics

Progress = Callable[[str], None]
SOURCE = "AI4HealthUOL/ecg-fm-benchmarking 6367295"


def run(settings: LeaderboardSettings, paths: LeaderboardPaths, progress: Progress | None = None) -> LeaderboardSummary:
    """Judge every expert on every task, and write the predictions, leaderboard.json, its costs and the table.

    Crops that are embedded and heads that are trained stay in the state folder: a killed run goes on where it stopped,
    to the same bytes.

    Parameters
    ----------
    progress
        Called with what is done next, in words.

    Raises
    ------
    UsageError
        No expert, or a task that records.parquet has no target for.
    InputError
        No task that can be judged.
    """
    work = _Work.open(settings, paths, progress or (lambda words: None))  # noqa: ARG005
    outputs = (paths.predictions, paths.costs, paths.table, paths.board)
    with staged(outputs) as drafts:
        targets = {task.target.name: task.target for task in work.tasks}
        with writing_predictions(drafts[paths.predictions], targets) as table:
            for name in paths.experts:
                work.judge_expert(name, table)
        found = LeaderboardSummary(costs=costs_of(paths.experts))
        found.board = make_board(
            open_predictions(drafts[paths.predictions]), work.rows, paths.experts,
            Draws(settings.bootstrap, settings.seed), protocol_facts(settings), work.left_out,
        )  # fmt: skip
        write_json(drafts[paths.costs], found.costs)
        write_text(drafts[paths.table], as_csv(found.board, found.costs))
        write_metrics(drafts[paths.board], found.board, drafts[paths.predictions])
    return found


def protocol_facts(settings: LeaderboardSettings) -> dict[str, Any]:
    """Return what the board says of the protocol."""
    crops = {"rate_hz": RATE_HZ, "crop_s": CROP_S, "long_crop_s": LONG_CROP_S}
    return {"preset": "fm-benchmark", "source": SOURCE, "optimiser": "AdamW", **settings.recipe(), **crops}


@dataclass
class _Work:
    """What is read once, and what grows while experts are judged."""

    settings: LeaderboardSettings
    paths: LeaderboardPaths
    records: RecordMembers
    tasks: list[TaskRows]
    left_out: dict[str, str]
    tell: Progress
    rows: list[BoardRow] = field(default_factory=list)

    @classmethod
    def open(cls, settings: LeaderboardSettings, paths: LeaderboardPaths, tell: Progress) -> _Work:
        if not paths.experts:
            raise UsageError("no experts: name at least one under `experts` in params.yaml")
        records = RecordMembers.read(paths.records)
        chosen = list(_targets(records.table.targets, settings.tasks))
        tasks, left_out = [], {}
        for target in chosen:
            try:
                tasks.append(TaskRows.read(records, target))
            except InputError as error:
                left_out[target.name] = str(error)
        if not tasks:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
            raise InputError(f"{paths.records}: no task can be judged: {reasons or 'there is no target column'}")
        return cls(settings, paths, records, tasks, left_out, tell)

    @cached_property
    def digest(self) -> str:
        """That of the records, which a store must be of."""
        return self.records.table.digest()

    def judge_expert(self, name: str, table: PredictionWriter) -> None:
        """Fit, predict and note one expert in every way that it allows."""
        expert = self.paths.experts[name]
        store = open_embeddings(expert.store)
        store.require_records(self.digest)
        store.require_complete()
        for source in self.settings.inputs:
            inputs = self._inputs(name, expert, store, source)
            if inputs is not None:
                self._judge_inputs(name, store, source, inputs, table)
        self._judge_finetuned(name, expert, table)

    def _inputs(self, name: str, expert: ExpertRun, store: EmbeddingStore, source: Source) -> ExpertInputs | None:
        if source == "native":
            return native_inputs(store, self.paths.state / "native" / fingerprint(_origin(store, source))[:32])
        if expert.load is None:
            self.left_out[f"{name}/crops"] = "its vectors were made by another tool, which cannot be run on crops"
            return None
        self.tell(f"{name}: crops")
        folder = self.paths.state / "crops" / fingerprint(_origin(store, source))[:32]
        try:
            found = embed_crops(expert.load, open_signals(self.paths.signals), folder, self.settings.threads)
        except InputError as error:
            self.left_out[f"{name}/crops"] = str(error)
            return None
        inputs = crop_inputs(found)
        if not inputs.vectors.present.any():
            self.left_out[f"{name}/crops"] = f"it has no vector of a record of {found.crop_s:g} s"
            return None
        return inputs

    def _judge_inputs(
        self, name: str, store: EmbeddingStore, source: Source, inputs: ExpertInputs, table: PredictionWriter
    ) -> None:
        """Judge the linear head on the mean vector, and attention over the tokens; without tokens the former twice."""
        over = "tokens" if source == "crops" else "seconds"
        pooled = f"attention over {over}" if inputs.tokens else f"mean: {inputs.without_tokens}"
        for mode, pooling, read in (
            ("linear", "mean", inputs.vectors),
            ("frozen", pooled, inputs.tokens or inputs.vectors),
        ):
            row = BoardRow(name, mode, source, pooling, inputs.crop_s)
            self.rows.append(row)
            made_from = {**_origin(store, source), "tokens": read is inputs.tokens}
            for task in self.tasks:
                self.tell(f"{row.method}: {task.target.name}")
                try:
                    fit = fit_head(read, task, self.settings, self.paths.state / "heads", made_from)
                except InputError as error:
                    self.left_out[f"{row.method} on {task.target.name}"] = str(error)
                    continue
                _note(row, task, fit, table)

    def _judge_finetuned(self, name: str, expert: ExpertRun, table: PredictionWriter) -> None:
        crop_s = expert.finetuned_crop_s
        row = BoardRow(name, "finetuned", "native" if crop_s is None else "crops", "mean", crop_s)
        self.left_out |= {f"{row.method} on {task}": why for task, why in expert.not_finetuned.items()}
        for task in self.tasks:
            if task.target.name in expert.finetuned:
                _note(row, task, read_finetuned(expert.finetuned[task.target.name], task), table)
        if row.kept_epochs:
            self.rows.append(row)


def _origin(store: EmbeddingStore, source: Source) -> dict[str, Any]:
    """Return what a head's inputs are made from."""
    return {"store": store.fingerprint, "inputs": source, **(crop_facts() if source == "crops" else {})}


def _targets(known: Mapping[str, Target], names: tuple[str, ...] | None) -> Iterator[Target]:
    for name in known if names is None else names:
        if name not in known:
            raise UsageError(f"task '{name}' is no target of records.parquet; it has: {', '.join(known) or 'none'}")
        yield known[name]


def _note(row: BoardRow, task: TaskRows, fit: FinishedFit, table: PredictionWriter) -> None:
    """Write a fit's test predictions, and its facts on the row."""
    name = task.target.name
    row.trained_parameters[name], row.kept_epochs[name] = fit.parameters, fit.epoch
    row.validation[name] = fit.validation
    table.add(
        name, row.method, "test", 0,
        record_ids=task.records.ids(fit.rows), patient_ids=task.records.patients(fit.rows),
        y_true=task.truth(fit.rows), y_pred=fit.predictions,
    )  # fmt: skip
