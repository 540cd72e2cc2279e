"""Commands that train a backbone, giving a named expert version: pretrain."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cache.errors import UsageError
from pipeline.progress import progress
from pipeline.study import Study

if TYPE_CHECKING:
    from pipeline.params import Pretrain, Training
    from stages.pretrain import PretrainSettings
    from stages.training.loop import LoopSettings

STMEM_RATE = 1.2e-3
"""Published learning rate for a batch of 256; it grows with the batch."""


def add_to(app: typer.Typer) -> None:
    """Register this group's commands."""
    app.command()(pretrain)


def pretrain(
    expert: Annotated[str | None, typer.Option(help="stmem, timesnet or dlinear.")] = None,
    variant: Annotated[str | None, typer.Option(help="stmem: stmem or ipastmem.")] = None,
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
    from pipeline.runs import write_run
    from stages.pretrain import PretrainPaths
    from stages.pretrain import pretrain as run_pretrain

    study = Study()
    chosen: dict[str, Any] = {"variant": variant, "size": size, "leads": leads, "epochs": epochs}
    chosen |= {"batch_size": batch_size, "micro_batch": micro_batch, "learning_rate": learning_rate}
    chosen |= {"device": device, "precision": precision}
    settings = pretrain_settings(study, expert, name, {**chosen, "seed": seed})
    with progress(f"pretrain {settings.name}", "steps") as update:
        summary = run_pretrain(settings, PretrainPaths(study.records, study.signals, study.state), _with_loss(update))
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


def pretrain_settings(study: Study, expert: str | None, name: str | None, options: dict[str, Any]) -> PretrainSettings:
    """Join params.yaml and the options into the settings of one run, checked."""
    from stages.pretrain import PretrainSettings

    expert = expert or (study.params.pretrain[name].expert if name in study.params.pretrain else None)
    if expert is None:
        raise UsageError("--expert: which one? stmem, timesnet or dlinear; or --name of an entry under `pretrain`")
    name = name or f"{expert}+{options['variant'] or 'pretrained'}"
    params = _overridden(study.params.pretrain.get(name), {**options, "expert": expert})
    return PretrainSettings(
        name=name,
        expert=params.expert,
        loop=_pretrain_loop(params, study.params.seed),
        variant=params.variant,
        size=params.size,
        preprocessing=params.preprocessing,
        leads=params.leads,
        config=params.config,
        gradient_checkpointing=params.gradient_checkpointing,
    )


def _overridden(params: Pretrain | None, options: dict[str, Any]) -> Pretrain:
    from pydantic import ValidationError

    from pipeline.params import Pretrain

    given = {key: value for key, value in options.items() if value is not None}
    try:
        return Pretrain.model_validate({**(params.model_dump() if params else {}), **given})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise UsageError(f"{option} {first['input']}: {first['msg'].lower()}") from error


def _pretrain_loop(params: Pretrain, seed: int) -> LoopSettings:
    """Fill in what is not given: the published recipe of ST-MEM, and a common one for the forecasters."""
    masked = params.expert == "stmem"
    epochs = params.epochs or (800 if masked else 10)
    warmup = params.warmup_epochs
    return loop_settings(
        params,
        seed,
        epochs=epochs,
        learning_rate=params.learning_rate or (STMEM_RATE * params.batch_size / 256 if masked else 1e-3),
        weight_decay=params.weight_decay if params.weight_decay is not None else (0.01 if masked else 0.0),
        betas=(0.9, 0.95) if masked else (0.9, 0.999),
        warmup_epochs=warmup if warmup is not None else (epochs / 20 if masked else 0.0),
    )


def loop_settings(params: Training, seed: int, **more: Any) -> LoopSettings:
    """Return the loop's settings; `more` holds what differs between commands."""
    from pipeline.devices import choose_device
    from stages.training.distributed import local_device
    from stages.training.loop import LoopSettings

    return LoopSettings(
        batch_size=params.batch_size,
        seed=seed if params.seed is None else params.seed,
        precision=params.precision,
        micro_batch=params.micro_batch,
        device=local_device(choose_device(params.device)),
        checkpoint_seconds=params.checkpoint_seconds,
        **more,
    )


def _with_loss(update: Any) -> Any:
    """Pass steps on to the bar; the loss goes into its title where there is one."""

    def told(done: int, total: int, loss: float) -> None:
        update(done, total, note=f"loss {loss:.4f}")

    return told
