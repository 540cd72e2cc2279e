"""Commands that train a backbone, giving a named expert version: pretrain, posttrain."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cache.errors import UsageError
from pipeline.progress import progress
from pipeline.study.folder import Study

if TYPE_CHECKING:
    from pathlib import Path

    from cache.storage.locations import Location
    from stages.posttrain import PosttrainSettings
    from stages.pretrain import PretrainSettings


def add_to(app: typer.Typer) -> None:
    """Register this group's commands."""
    app.command()(pretrain)
    app.command()(posttrain)


def pretrain(
    expert: Annotated[str | None, typer.Option(help="One that `ensemble experts NAME` says can be pretrained.")] = None,
    variant: Annotated[str | None, typer.Option(help="stmem, seed: stmem or ipastmem.")] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the version, EXPERT+TAG; under `pretrain` in params.yaml.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="stmem: tiny, small or base.")] = None,
    leads: Annotated[str | None, typer.Option(help="timesnet, dlinear: each lead a series, or joint.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Times through the training records.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Records a step.")] = None,
    micro_batch: Annotated[int | None, typer.Option(min=1, help="Records a forward pass; gradients add up.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0, help="At its peak.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:i.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16.")] = None,
    seed: Annotated[int | None, typer.Option(help="params.yaml's if not given.")] = None,
) -> None:
    """Make weights from the training patients' signals alone; goes on where a killed run stopped.

    Example: `ensemble pretrain --expert stmem --variant ipastmem --size tiny`
    """
    from pipeline.study.runs import write_run
    from stages.pretrain import PretrainPaths
    from stages.pretrain import run as run_pretrain

    study = Study()
    chosen: dict[str, Any] = {"variant": variant, "size": size, "leads": leads, "epochs": epochs}
    chosen |= {"batch_size": batch_size, "micro_batch": micro_batch, "learning_rate": learning_rate}
    chosen |= {"precision": precision, "seed": seed}
    settings = pretrain_settings(study, expert, name, chosen, device=device)
    with _steps(f"pretrain {settings.name}") as tell:
        summary = run_pretrain(settings, PretrainPaths(study.records, study.signals, study.state), tell)
    if not summary.folder:
        return
    write_run(study.state, f"pretrain-{settings.name}", {"settings": asdict(settings), **asdict(summary)})
    last = summary.history.epochs[-1]
    more = f", validation {last['validation_loss']:.4f}" if "validation_loss" in last else ""
    typer.echo(
        f"{summary.name}: {summary.parameters:,} parameters, {summary.n_records} training series, "
        f"loss {last['loss']:.4f}{more} -> {summary.folder}"
    )
    typer.echo(
        f"next: name '{summary.name}' under `experts` in params.yaml, then `ensemble embed --expert {summary.name}`"
    )


def pretrain_settings(
    study: Study, expert: str | None, name: str | None, options: dict[str, Any], *, device: str | None = None
) -> PretrainSettings:
    """Join params.yaml and the options into the settings of one run, checked."""
    from pipeline.study.params import overridden
    from stages.pretrain import PretrainSettings
    from stages.pretrain.objectives import pretrainable
    from stages.pretrain.settings import PretrainSection

    expert = expert or (study.params.pretrain[name].expert if name in study.params.pretrain else None)
    if expert is None:
        raise UsageError(
            f"--expert: which one? {', '.join(pretrainable())}; or --name of an entry under `pretrain` in params.yaml"
        )
    name = name or f"{expert}+{options['variant'] or 'pretrained'}"
    params = overridden(PretrainSection, study.params.pretrain.get(name), {**options, "expert": expert})
    return PretrainSettings(
        name=name,
        expert=params.expert,
        loop=params.loop(study.params.seed, _local_device(study, device)),
        variant=params.variant,
        size=params.size,
        preprocessing=params.preprocessing,
        leads=params.leads,
        config=params.config,
        gradient_checkpointing=params.gradient_checkpointing,
    )


def posttrain(
    expert: Annotated[str | None, typer.Option(help="An expert with residual blocks, or a version of one.")] = None,
    task: Annotated[str | None, typer.Option(help="Target column to adapt to.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the version; EXPERT+TASK if not given.")] = None,
    weights: Annotated[str | None, typer.Option(help="Checkpoint to start from, instead of params.yaml's.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Baseline: neither probing nor stochastic depth.")] = False,
    no_probing: Annotated[bool, typer.Option("--no-probing", help="Start from a fresh head.")] = False,
    no_drop_path: Annotated[bool, typer.Option("--no-drop-path", help="Without stochastic depth.")] = False,
    drop_path: Annotated[float | None, typer.Option(help="Rate of stochastic depth.")] = None,
    fractions: Annotated[str | None, typer.Option(help="Shares of the training patients, 0.1,0.3,1.")] = None,
    seeds: Annotated[str | None, typer.Option(help="One run each, 0,1,2; the first makes the version.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Of fine-tuning.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Records a step.")] = None,
    micro_batch: Annotated[int | None, typer.Option(min=1, help="Records a forward pass; gradients add up.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0, help="At its peak.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:i.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16.")] = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", "--accept-license", help="Accept a non-commercial licence.")
    ] = False,
) -> None:
    """Adapt a backbone to a task: preview linear probing, then fine-tuning with stochastic depth.

    Example: `ensemble posttrain --expert ecgfm --task superclass --fractions 0.3,1 --seeds 0,1,2`
    """
    from pipeline.study.runs import write_run
    from stages.posttrain import PosttrainPaths
    from stages.posttrain import run as run_posttrain
    from stages.posttrain.stage import summary_lines

    study = Study()
    chosen: dict[str, Any] = {"task": task, "weights": weights, "drop_path": drop_path, "epochs": epochs}
    chosen |= {"batch_size": batch_size, "micro_batch": micro_batch, "learning_rate": learning_rate}
    chosen |= {"precision": precision}
    chosen |= {"fractions": _numbers("--fractions", fractions), "seeds": _numbers("--seeds", seeds)}
    chosen |= {"probing": False} if plain or no_probing else {}
    chosen |= {"drop_path": 0.0} if plain or no_drop_path else {}
    settings = posttrain_settings(study, expert, name, chosen, accept_licence=accept_licence, device=device)
    paths = PosttrainPaths(study.records, study.signals, study.state, current_store(study, settings))
    if _leads():
        typer.echo(f"stage 1 on {paths.features or 'features computed now'}")
    with _steps(f"posttrain {settings.name}") as tell:
        summary = run_posttrain(settings, paths, tell)
    if not summary.folder:
        return
    settings_json = {**asdict(settings), "weights": str(settings.weights or "")}
    write_run(study.state, f"posttrain-{settings.name}", {"settings": settings_json, "runs": summary.runs})
    for line in summary_lines(summary):
        typer.echo(line)
    typer.echo(
        f"-> {summary.folder}; next: name '{summary.name}' under `experts` in params.yaml, then `ensemble embed "
        f"--expert {summary.name}`"
    )


def posttrain_settings(
    study: Study,
    expert: str | None,
    name: str | None,
    options: dict[str, Any],
    *,
    accept_licence: bool = False,
    device: str | None = None,
) -> PosttrainSettings:
    """Join params.yaml and the options into the settings of one run, checked."""
    from dataclasses import replace

    from cache.record_rows import RecordRows
    from pipeline.compute.embedding import embed_settings
    from pipeline.study.params import overridden
    from stages.embed.amplitude import check_amplitude
    from stages.posttrain import PosttrainSettings
    from stages.posttrain.settings import PosttrainSection

    entry = study.params.posttrain.get(name or f"{expert}+{options['task']}")
    params = overridden(PosttrainSection, entry, {**options, "expert": expert})
    if not params.expert or not params.task:
        raise UsageError("give --expert and --task, or the --name of an entry under `posttrain` in params.yaml")
    of_expert = embed_settings(study, params.expert, device="cpu", accept_licence=accept_licence)
    preprocessing = params.preprocessing or of_expert.preprocessing
    check_amplitude(replace(of_expert, preprocessing=preprocessing), RecordRows(study.records))
    seeds = params.seeds or [study.params.seed if params.seed is None else params.seed]
    return PosttrainSettings(
        name=name or f"{params.expert}+{params.task}",
        expert=params.expert,
        task=params.task,
        loop=params.loop(seeds[0], _local_device(study, device)),
        weights=_starting_weights(study, params.weights) or of_expert.weights,
        config={**(of_expert.config or {}), **params.config},
        preprocessing=preprocessing,
        probing=params.probing,
        drop_path=params.drop_path,
        drop_path_schedule=params.drop_path_schedule,
        layer_decay=params.layer_decay,
        dropout=params.dropout,
        gradient_checkpointing=params.gradient_checkpointing,
        select=params.select,
        fractions=tuple(params.fractions),
        seeds=tuple(seeds),
        start=params.start,
        head=params.head,
        head_dropout=params.head_dropout,
        augment=params.augment.model_dump(),
        mixup=params.mixup,
        teacher=None if params.teacher is None else str(study.folder / params.teacher),
        teacher_share=params.teacher_share,
        store=params.store,
        crop_s=params.crop_s,
        test_crops=params.test_crops,
        half_decay=params.half_decay,
        absolute_error=params.absolute_error,
    )


def _starting_weights(study: Study, weights: str | None) -> Path | None:
    from pathlib import Path

    from stages.embed.settings import DEFAULT_WEIGHTS

    return None if weights in (None, DEFAULT_WEIGHTS) else study.folder / Path(str(weights)).expanduser()


def current_store(study: Study, settings: PosttrainSettings) -> Location | None:
    """Return the expert's store, if it was made from these weights and records."""
    from dataclasses import replace

    from cache import open_embeddings, open_signals
    from cache.errors import MissingFileError
    from cache.record_rows import RecordRows
    from pipeline.compute.embedding import embed_settings
    from stages.embed import identity_of

    if settings.head != "probe" or settings.crop_s is not None:  # it reads no frozen features of whole records
        return None
    path = study.embedding(settings.expert)
    of_expert = embed_settings(study, settings.expert, device="cpu", accept_licence=True)
    asked = replace(of_expert, weights=settings.weights, config=dict(settings.config) or None)
    try:
        store = open_embeddings(path)
    except MissingFileError:
        return None
    rows = RecordRows(study.records).digest()
    identity = identity_of(
        replace(asked, preprocessing=settings.preprocessing), open_signals(study.signals).content_digest(), rows
    )
    return path if store.fingerprint == identity.fingerprint and not store.pending() else None


def _numbers(option: str, text: str | None) -> list[str] | None:
    """Split a,b; what the parts mean is checked with the rest."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UsageError(f"{option} {text!r}: expected numbers separated by commas")
    return parts


def _local_device(study: Study, device: str | None) -> str:
    """Return the device of this process: of several that torchrun has started, each has its GPU."""
    from stages.devices import choose_device
    from stages.training.distributed import local_device

    return local_device(choose_device(study.machine(device=device).device))


def _leads() -> bool:
    """Whether this process speaks, of those that torchrun has started."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _steps(title: str) -> Iterator[Callable[[int, int, float], None]]:
    """Give a callback that tells steps, loss and time left."""
    if not _leads():
        yield lambda done, total, loss: None  # noqa: ARG005
        return
    with progress(title, "steps") as update:
        yield lambda done, total, loss: update(done, total, note=f"loss {loss:.4f}")
