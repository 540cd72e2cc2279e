"""`ensemble evaluate --preset fm-benchmark`: the study's experts, loaded and fine-tuned as the published protocol says.

Lives here: joining params.yaml, stores, run records and post-training. Not here: the protocol (`stages.leaderboard`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cache.errors import InputError, UsageError
from pipeline.compute.embedding import embed_settings, is_imported
from pipeline.study.folder import Study

if TYPE_CHECKING:
    from stages.embed import EmbedSettings
    from stages.leaderboard import ExpertRun, LeaderboardSettings, LeaderboardSummary
    from stages.posttrain import PosttrainSettings, PosttrainSummary

PRESET = "fm-benchmark"
Tell = Callable[[str], None]
HALF_DECAY = 0.1
"""The benchmark's factor of the learning rate for each of two groups of layers below the head."""


def check_preset(preset: str, *, fine_tune: bool) -> bool:
    """Return whether the published protocol is asked for.

    Raises
    ------
    UsageError
        Another preset, or fine-tuning without it.
    """
    if preset not in ("", PRESET):
        raise UsageError(f"--preset {preset}: expected {PRESET}")
    if fine_tune and not preset:
        raise UsageError(f"--fine-tune: belongs to --preset {PRESET}; add it")
    return bool(preset)


def judge_leaderboard(device: str | None, name: str | None = None, *, fine_tune: bool) -> None:
    """Judge every expert of the study by the published protocol, and print the board.

    Parameters
    ----------
    name
        Of an entry of `leaderboard` in params.yaml; None: `fm-benchmark`, by the defaults where there is no such entry.
    """
    from pipeline.views.leaderboard import leaderboard_table
    from pipeline.views.report_facts import overlap_warnings
    from stages.leaderboard import LeaderboardPaths, run

    study = Study()
    settings = leaderboard_settings(study, name, fine_tune=fine_tune)
    tell = partial(typer.echo, err=True)
    experts = {expert: _expert_run(study, expert, device) for expert in study.params.experts}
    for each in filter(settings.fine_tunes, experts):
        experts[each] = _finetuned(study, each, experts[each], settings, device, tell)
    folder = study.leaderboard / (name or PRESET)
    paths = LeaderboardPaths.of(folder, study.records, study.signals, experts, study.state / "leaderboard")
    found = run(settings, paths, tell)
    _print_board(found, leaderboard_table)
    for warning in overlap_warnings(study, list(experts)):
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"-> {folder}; `ensemble report` shows it beside a fit")


def _print_board(found: LeaderboardSummary, table: Callable[..., Any]) -> None:
    from rich.console import Console

    drawn = table(found.board, found.costs)
    console = Console()
    Console(width=console.width if console.is_terminal else 160).print(drawn)
    for what, reason in found.board["left_out"].items():
        typer.echo(f"left out: {what}: {reason}")


def leaderboard_settings(study: Study, name: str | None = None, *, fine_tune: bool = False) -> LeaderboardSettings:
    """Return what params.yaml says of a board; `fine_tune` adds fine-tuned copies.

    Raises
    ------
    UsageError
        A name that params.yaml does not have, of a board or of an expert to fine-tune.
    """
    from stages.leaderboard import LeaderboardSettings
    from stages.leaderboard.settings import LeaderboardSection

    boards, asked = study.params.leaderboard, study.params.tasks
    if name is not None and name not in boards:
        listed = ", ".join(boards) or "none"
        raise UsageError(f"--name {name}: leaderboard in params.yaml has no such entry; it has {listed}")
    section = boards.get(name or PRESET, LeaderboardSection())
    unknown = [] if isinstance(section.fine_tune, bool) else [*set(section.fine_tune) - set(study.params.experts)]
    if unknown:
        board = f"leaderboard.{name or PRESET}.fine_tune"
        raise UsageError(f"{board} names {unknown[0]}, which is not under `experts` in params.yaml; add it there")
    return LeaderboardSettings(
        **{**section.model_dump(), "fine_tune": fine_tune or section.fine_tune},
        tasks=None if asked == "all" else tuple(asked),
        bootstrap=study.params.evaluate.bootstrap,
        seed=study.params.seed,
        threads=study.machine().threads,
    )


def _expert_run(study: Study, name: str, device: str | None) -> ExpertRun:
    """Describe one expert: its store, how it is loaded, its size and its speed.

    Raises
    ------
    InputError
        A store that was not made as params.yaml says now: crops would come from another expert.
    """
    from stages.embed import load_for
    from stages.experts import expert_class
    from stages.leaderboard import ExpertRun

    store, speed = study.embedding(name), _records_per_s(study, name)
    if is_imported(study, name):
        return ExpertRun(store, None, None, speed)
    settings = embed_settings(study, name, device=device)
    _require_current(study, settings)
    cls, variant = expert_class(name)
    spec = cls.published_spec(variant)
    return ExpertRun(store, partial(load_for, settings), spec.published_parameters or spec.parameters, speed)


def _require_current(study: Study, settings: EmbedSettings) -> None:
    from cache import open_embeddings, open_signals
    from cache.record_rows import RecordRows
    from stages.embed import identity_of

    rows = RecordRows(study.records).digest()
    identity = identity_of(settings, open_signals(study.signals).content_digest(), rows)
    if open_embeddings(study.embedding(settings.expert)).fingerprint != identity.fingerprint:
        raise InputError(
            f"{study.embedding(settings.expert)}: was not made as params.yaml says now; run `ensemble embed --expert "
            f"{settings.expert}` first"
        )


def _records_per_s(study: Study, name: str) -> float | None:
    """Return the speed of the last `embed` that embedded records; None where no run record says it."""
    path = study.state / "runs" / f"embed-{name}.json"
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    n, seconds = record.get("n_embedded", 0), record.get("seconds", {}).get("total", 0.0)
    return n / seconds if n and seconds else None


def _finetuned(
    study: Study, name: str, expert: ExpertRun, settings: LeaderboardSettings, device: str | None, tell: Tell
) -> ExpertRun:
    """Fine-tune an expert to each task and note where its predictions lie, or why there are none."""
    from stages.leaderboard.crops import crop_seconds

    files, reasons, tasks = {}, {}, list(settings.tasks or _all_tasks(study))
    if expert.load is None:
        reason = "its vectors were made by another tool, which cannot be fine-tuned"
        return replace(expert, not_finetuned=dict.fromkeys(tasks, reason))
    try:
        crop_s = crop_seconds(expert.load())
    except InputError as error:  # made for longer records than the benchmark's crops
        return replace(expert, not_finetuned=dict.fromkeys(tasks, str(error)))
    for task in tasks:
        tell(f"{name}/finetuned: {task}")
        try:
            files[task] = fine_tune_expert(study, name, task, settings, crop_s, device)
        except (UsageError, InputError) as error:
            reasons[task] = str(error)
    return replace(expert, finetuned=files, not_finetuned=reasons, finetuned_crop_s=crop_s)


def _all_tasks(study: Study) -> Iterator[str]:
    from cache.record_rows import RecordRows

    yield from RecordRows(study.records).targets


def fine_tune_expert(
    study: Study, name: str, task: str, settings: LeaderboardSettings, crop_s: float, device: str | None = None
) -> Path:
    """Fine-tune one expert to one task through `posttrain`, unless that was done; return the file of its predictions.

    As published: crops, one linear layer on the mean, a constant rate that falls tenfold in each half of the blocks
    below the head, the epoch of the best metric on validation records, predictions averaged over a record's crops.
    The version is NAME+fmbench-TASK.
    """
    import numpy as np

    from cache import open_embeddings
    from cache.files import replacing
    from cache.fingerprint import file_digest, fingerprint
    from pipeline.commands.train import posttrain_settings
    from stages.posttrain import PosttrainPaths
    from stages.posttrain import run as run_posttrain

    store = open_embeddings(study.embedding(name))
    recipe = {name: value for name, value in settings.recipe().items() if name != "seed"}
    options = {**recipe, "task": task, "min_learning_rate": settings.learning_rate, "seeds": [settings.seed]}
    options |= {"head": "linear", "drop_path": 0.0, "half_decay": HALF_DECAY, "absolute_error": True}
    options |= {"crop_s": crop_s, "test_crops": "mean", "select": "metric"}
    made_from = {"store": store.fingerprint, "options": options, "records": file_digest(study.records)}
    path = study.state / "leaderboard/finetuned" / f"{name}+{task}-{fingerprint(made_from)[:24]}.npz"
    if path.is_file():
        return path
    asked = posttrain_settings(study, name, f"{name}+fmbench-{task}", options, device=device)
    found = run_posttrain(asked, PosttrainPaths(study.records, study.signals, study.state))
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **_as_fit(found, asked, study))
    return path


def _as_fit(found: PosttrainSummary, asked: PosttrainSettings, study: Study) -> dict[str, Any]:
    """Return test predictions and facts of a post-training in the layout of a finished fit."""
    from cache.record_rows import RecordRows
    from stages.experts import expert_class
    from stages.scoring.metrics import HEADLINE

    target = RecordRows(study.records).targets[asked.task]
    cls, variant = expert_class(asked.expert)
    spec, predicted, first = cls.published_spec(variant), found.predictions[0], found.runs[0]
    head = (spec.embedding_dim + 1) * predicted.shape[1]
    return {
        "rows": found.test_rows,
        "predictions": predicted[:, 0] if target.kind in ("regression", "binary") else predicted,
        "epoch": first["epoch"],
        "validation": first["tuned"]["val"].get(HEADLINE[target.kind][0], float("nan")),
        "parameters": spec.parameters + head,
    }
