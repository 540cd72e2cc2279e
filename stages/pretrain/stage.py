"""Stage `pretrain`: make an expert's weights from the training patients' signals alone, as a named version.

A run that was killed goes on where its checkpoint stands, to the same loss curve on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cache.fingerprint import fingerprint
from cache.record_members import RecordMembers
from cache.signals import open_signals
from stages.experts import expert_class
from stages.pretrain.objectives import Objective, make_objective
from stages.pretrain.settings import PretrainPaths, PretrainSettings, PretrainSummary
from stages.training.distributed import Group, training_group
from stages.training.inputs import prepared_inputs
from stages.training.loop import Training
from stages.training.memory import checkpoint_blocks, in_batches
from stages.training.settings import History, settings_of_result
from stages.training.versions import cohort_facts, write_version

"""Settings that a resumed run may change."""
MAX_VALIDATION = 512


def run(
    settings: PretrainSettings,
    paths: PretrainPaths,
    progress: Callable[[int, int, float], None] | None = None,
) -> PretrainSummary:
    """Train on the readable records of the training split, and write the version.

    Raises
    ------
    UsageError
        An expert or option that does not exist.
    InputError
        No training records, or a loss that is not finite.
    """
    s = settings
    objective = make_objective(
        s.expert,
        variant=s.variant,
        size=s.size,
        preprocessing=s.preprocessing,
        leads=s.leads,
        config=s.config,
        seed=s.loop.seed,
    )
    if s.gradient_checkpointing:
        checkpoint_blocks(objective.blocks)
    with training_group(torch.device(s.loop.device)) as group:
        training = _training(s, paths, objective, group, progress)
        trained = training.run()
        folder = str(_write(s, paths, objective, trained, training.history)) if group.leads else ""
        group.wait()
    n_parameters = sum(p.numel() for p in objective.model.parameters())
    history = training.history
    return PretrainSummary(s.name, folder, len(training.batches), n_parameters, history.resumed_at, history)


def _training(
    s: PretrainSettings,
    paths: PretrainPaths,
    objective: Objective,
    group: Group,
    progress: Callable[[int, int, float], None] | None,
) -> Training:
    records, signals = RecordMembers.read(paths.records), open_signals(paths.signals)
    parts = {}
    for split in ("train", "val"):
        if split == "train" or records.split.equal(split).any():
            rows = records.training_rows(split)[: None if split == "train" else MAX_VALIDATION]
            folder = paths.state / "inputs"
            with group.leader_first():
                parts[split] = prepared_inputs(folder, objective.identity, objective.prepare, signals, rows).x
    return Training(
        objective.model,
        objective.batches(parts["train"]),
        s.loop,
        checkpoint=paths.state / "training" / f"{s.name}.pt",
        identity=_identity(s, objective, signals.content_digest(), parts["train"].shape, records),
        group=group,
        progress=progress,
        after_epoch=_validation(objective, parts["val"], s.loop.batch_size) if "val" in parts else None,
    )


def _identity(
    s: PretrainSettings, objective: Objective, signals_digest: str, shape: tuple[int, ...], records: RecordMembers
) -> str:
    loop = settings_of_result(s.loop)
    split = cohort_facts(records, records.training_rows(), signals_digest)
    asked = {**asdict(s), "loop": loop, "gradient_checkpointing": None}
    return fingerprint({"asked": asked, "inputs": objective.identity, "cohort": split, "shape": list(shape)})


def _validation(objective: Objective, inputs: np.ndarray, batch: int) -> Callable[[nn.Module, int], dict[str, float]]:
    """Give the loss on validation records, under the same noise after every epoch."""
    batches = objective.batches(inputs)

    def measure(model: nn.Module, _: int) -> dict[str, float]:
        device = next(model.parameters()).device
        generator = np.random.default_rng(0)
        was_training = model.training

        def loss_of(part: slice) -> float:
            rows = np.arange(part.start, part.stop)
            return float(model(*(each.to(device) for each in batches.fetch(rows, generator)))) * len(rows)

        model.eval()
        with torch.inference_mode():
            losses = in_batches(len(batches), batch, loss_of)
        model.train(was_training)
        return {"validation_loss": sum(losses) / len(batches)}

    return measure


def _write(
    s: PretrainSettings, paths: PretrainPaths, objective: Objective, trained: nn.Module, history: History
) -> Path:
    records, signals = RecordMembers.read(paths.records), open_signals(paths.signals)
    rows = records.training_rows()
    cls, variant = expert_class(s.expert)
    state = objective.state(trained)
    spec = cls.build(objective.config, state, variant=variant, preprocessing=objective.preprocessing).spec
    loop = settings_of_result(s.loop)
    facts = {
        "made_by": "pretrain",
        "parent": None,
        "licence": "of its training records",
        "non_commercial": False,
        "pretrained_on": [],
        "cohort": cohort_facts(records, rows, signals.content_digest()),
        "parameters": {
            "variant": s.variant,
            "size": s.size,
            "leads": s.leads,
            "config": dict(s.config),
            **loop,
        },
        "curve": history.epochs,
    }
    return write_version(
        s.name,
        base=s.expert,
        spec=spec,
        config=objective.config,
        preprocessing=objective.preprocessing,
        state=state,
        seen=records.people.take(rows),
        facts=facts,
    )
