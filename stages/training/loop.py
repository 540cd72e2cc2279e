"""The training loop: accumulation, mixed precision, cosine schedule, moving average, resume.

Everything random is a function of the seed and the step (order of records, masks, dropout), so that a run that was
killed goes on to the identical curve on a CPU, whatever the step it was killed at.

Lives here: the loop. Not here: objectives, data, files (`checkpoint`).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from cache.errors import InputError, UsageError
from stages.training.checkpoint import read_checkpoint, write_checkpoint
from stages.training.distributed import Group, without_exchange
from stages.training.memory import smaller_batch
from stages.training.settings import History, LoopSettings

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Batches(Protocol):
    """What the loop asks of an objective's data."""

    def __len__(self) -> int:
        """Return the number of training records."""

    def fetch(self, rows: np.ndarray, generator: np.random.Generator) -> tuple[Tensor, ...]:
        """Return the model's inputs for records `rows`, on the CPU, each with the records as its first axis."""


AfterEpoch = Callable[[nn.Module, int], dict[str, float]]


def learning_rate_factor(step: int, steps: int, warmup: int, floor: float) -> float:
    """Linear warm-up, then half a cosine from 1 to `floor`; a function of the step alone."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Training:
    """One run of the loop.

    Parameters
    ----------
    model
        Takes what `batches.fetch` gives, returns the mean loss over these records.
    groups
        Parameter groups for AdamW, each with its own `scale` of the learning rate; None: one of all parameters.
    keep_best
        Entry of `after_epoch` whose lowest value chooses the result, the weights before the first step included if
        `judge_start`; empty: the last epoch's.
    some_unused
        Whether parameters may be left without a gradient, which a group of processes has to know.
    checkpoint
        File to resume from and write to; None: neither. `identity` says what a checkpoint must have been made from.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        settings: LoopSettings,
        *,
        groups: Sequence[dict[str, Any]] | None = None,
        checkpoint: Path | None = None,
        identity: str = "",
        group: Group | None = None,
        progress: Callable[[int, int, float], None] | None = None,
        after_epoch: AfterEpoch | None = None,
        keep_best: str = "",
        judge_start: bool = True,
        some_unused: bool = False,
    ) -> None:
        self.settings, self.batches, self.model = settings, batches, model
        self.group = group or Group()
        self.device = torch.device(settings.device)
        self.checkpoint, self.identity = checkpoint, identity
        self.progress, self.after_epoch, self.keep_best = progress, after_epoch, keep_best
        self.judge_start = judge_start
        self.best: dict[str, Any] | None = None
        self.history = History()
        self.batch = self._batch_size()
        self.steps_per_epoch = max(1, len(batches) // self.batch)
        self.steps = settings.epochs * self.steps_per_epoch
        self.micro = min(settings.micro_batch or self.batch, self.batch // self.group.size)
        model.to(self.device)
        self.optimizer = self._optimizer(groups)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "fp16")
        self.average = copy.deepcopy(model) if settings.ema else None
        self.step = self._resume()
        self.wrapped = self.group.wrap(model, self.device, some_unused=some_unused)

    def _batch_size(self) -> int:
        size = self.group.size
        batch = min(self.settings.batch_size, len(self.batches) // size * size)
        if batch == 0:
            raise InputError(f"{len(self.batches)} training records are too few for {size} process(es)")
        if batch % size:
            raise UsageError(f"batch_size {batch} is no multiple of the {size} processes; choose one that is")
        return batch

    def _optimizer(self, groups: Sequence[dict[str, Any]] | None) -> torch.optim.AdamW:
        learnt = [p for p in self.model.parameters() if p.requires_grad]
        chosen = list(groups) if groups is not None else [{"params": learnt, "scale": 1.0}]
        s = self.settings
        return torch.optim.AdamW(chosen, lr=s.learning_rate, betas=s.betas, weight_decay=s.weight_decay)

    def run(self) -> nn.Module:
        """Train to the end, and return the result: the model, or its moving average. Both are left in eval mode."""
        devices = [self.device] if self.device.type == "cuda" else []
        written = time.monotonic()
        if self.step == 0 and self.keep_best and self.judge_start:
            self._measure({"epoch": 0})
        with torch.random.fork_rng(devices):
            while self.step < self.steps:
                self._one_step()
                self.step += 1
                if self.step % self.steps_per_epoch == 0:
                    self._end_epoch()
                if time.monotonic() - written >= self.settings.checkpoint_seconds:
                    self._write()
                    written = time.monotonic()
        self._write()
        result = self.result()
        if self.best is not None:
            result.load_state_dict(self.best["state"])
        return result

    def result(self) -> nn.Module:
        """Return what was trained so far, in eval mode."""
        self.model.eval()
        return self.average.eval() if self.average is not None else self.model

    def _one_step(self) -> None:
        s, epoch = self.settings, self.step // self.steps_per_epoch
        inputs = self._inputs(epoch)
        lr = s.learning_rate * self._factor()
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("scale", 1.0)
        loss = self._gradients(inputs)
        self.scaler.unscale_(self.optimizer)
        if s.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), s.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._follow()
        self._record(loss)

    def _factor(self) -> float:
        s = self.settings
        floor = s.min_learning_rate / s.learning_rate
        return learning_rate_factor(self.step, self.steps, round(s.warmup_epochs * self.steps_per_epoch), floor)

    def _inputs(self, epoch: int) -> tuple[Tensor, ...]:
        """Fetch this process's share of the step's records, in the order that seed and epoch say."""
        order = np.random.default_rng([self.settings.seed, 1, epoch]).permutation(len(self.batches))
        start = self.step % self.steps_per_epoch * self.batch
        rows = self.group.share_of(order[start : start + self.batch])
        generator = np.random.default_rng([self.settings.seed, 2, self.step, self.group.rank])
        return self.batches.fetch(rows, generator)

    def _gradients(self, inputs: tuple[Tensor, ...]) -> float:
        """Sum the gradients of one step, in parts that fit into memory; return the mean loss."""
        while True:
            try:
                return self._accumulate(inputs)
            except torch.OutOfMemoryError as error:
                # The others of a group would wait for gradients that this one repeats.
                self.micro = smaller_batch(self.micro, error, may=self.group.size == 1)

    def _accumulate(self, inputs: tuple[Tensor, ...]) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        self.wrapped.train()
        seed = np.random.default_rng([self.settings.seed, 3, self.step, self.group.rank]).integers(2**62)
        torch.manual_seed(int(seed))
        n, total = len(inputs[0]), torch.zeros((), device=self.device)
        dtype = DTYPES.get(self.settings.precision)
        for start in range(0, n, self.micro):
            part = [each[start : start + self.micro].to(self.device, non_blocking=True) for each in inputs]
            share = len(part[0]) / n
            with without_exchange(self.wrapped, last=start + self.micro >= n):
                with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
                    loss = self.wrapped(*part) * share
                self.scaler.scale(loss).backward()
            total += loss.detach()
        return float(self.group.mean(total))

    def _follow(self) -> None:
        if self.average is None:
            return
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for slow, fast in zip(self.average.parameters(), self.model.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
            for kept, current in zip(self.average.buffers(), self.model.buffers(), strict=True):
                kept.copy_(current)

    def _record(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise InputError(
                f"the loss became {loss} at step {self.step}; lower learning_rate, or use precision fp32 or bf16"
            )
        self.history.losses.append(loss)
        if self.progress is not None and self.group.leads:
            self.progress(self.step + 1, self.steps, loss)

    def _end_epoch(self) -> None:
        epoch = self.step // self.steps_per_epoch
        entry = {"epoch": epoch, "loss": float(np.mean(self.history.losses[-self.steps_per_epoch :]))}
        self._measure(entry)

    def _measure(self, entry: dict[str, float]) -> None:
        """Let `after_epoch` judge the weights, and keep them if they are the best so far."""
        result = self.result()
        if self.after_epoch is not None:
            self.group.share(result)
            entry |= self.group.agree(self.after_epoch(result, int(entry["epoch"])))
        if self.keep_best and (self.best is None or entry[self.keep_best] < self.best["value"]):
            state = {key: value.detach().cpu().clone() for key, value in result.state_dict().items()}
            self.best = {"value": entry[self.keep_best], "epoch": entry["epoch"], "state": state}
        self.history.epochs.append(entry)

    def _write(self) -> None:
        self.history.micro_batch = self.micro
        if self.checkpoint is not None and self.group.leads:
            write_checkpoint(self.checkpoint, self.identity, self._state())

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best": self.best,
            "history": asdict(self.history),
        }

    def _resume(self) -> int:
        state = read_checkpoint(self.checkpoint, self.identity) if self.checkpoint is not None else None
        if state is None:
            return 0
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.best = state["best"]
        self.history = History(**state["history"])
        self.history.resumed_at = state["step"]
        return int(state["step"])
