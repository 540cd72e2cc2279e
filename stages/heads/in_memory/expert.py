"""One expert's heads for all folds and tasks: standardise, rotate, probe, LoRA, calibrate; and the fitted arrays.

Lives here: `fit_expert` (training) and `ExpertHead` (what is kept, and its prediction). Not here: how experts are
weighed (`gate`), the numerical parts (`inputs.scaler`, `in_memory.probe`, `in_memory.lora`, `targets.calibration`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cache.errors import InputError
from stages.heads.crossfit import Masks
from stages.heads.expert_head import GATE_WIDTH, ExpertHead, FoldHead, HeadOptions, half_whitened
from stages.heads.in_memory.lora import LoraFit, fit_lora
from stages.heads.in_memory.probe import FoldSolver, Problem, Rotation, probe_logits
from stages.heads.inputs.scaler import RobustScaler
from stages.heads.targets.calibration import fit_temperatures
from stages.heads.targets.losses import task_losses
from stages.heads.targets.tasks import Block, layout

PATH_RECORDS = 5_000
"""The penalty is chosen on at most this many training and as many judged records."""
ENOUGH_JUDGED, ENOUGH_EVENTS = 600, 50
"""Records, and of each survival task events, by which a penalty is chosen and LoRA tried."""
PATH_TOLERANCE, FINAL_TOLERANCE = 0.1, 0.01
"""Of the summed loss, per 1,000 records: a mean loss is known to 0.0001 while strengths are compared."""
LOSS_RESOLUTION = 1e-4
"""A loss that differs by less does not end the search: on a plateau neither side is the better one."""


def fit_expert(
    name: str,
    matrices: list[np.ndarray],
    present: np.ndarray,
    targets: tuple[Tensor, Tensor],
    masks: Masks,
    rows: Tensor,
    blocks: tuple[Block, ...],
    options: HeadOptions,
) -> ExpertHead:
    """Fit one expert's heads on its feature matrices (one per fold, [n, d] each; the same object where folds share it).

    Parameters
    ----------
    present
        bool [n]: records that this expert saw; the others teach it nothing.
    targets
        y and weight, [F, n, C].
    rows
        Records that judge, whose logits and coordinates are kept.
    """
    seen = torch.from_numpy(present.astype(np.float32))
    local = Masks(masks.train * seen, torch.where(seen > 0, masks.judge, -1))
    fits = [
        _fit_fold(name, f, x, (targets[0][f : f + 1], targets[1][f : f + 1]), local.fold(f), rows, blocks, options)
        for f, x in enumerate(matrices)
    ]
    width = max(fit.coordinates.shape[1] for fit in fits)  # a fold with fewer records may have a lower rank
    return ExpertHead(
        [_projecting_to(width, fit.head) for fit in fits],
        [fit.strengths for fit in fits],
        [fit.lora_epochs for fit in fits],
        _side_by_side([fit.history for fit in fits]),
        torch.stack([fit.logits for fit in fits]),
        torch.stack([torch.nn.functional.pad(fit.coordinates, (0, width - fit.coordinates.shape[1])) for fit in fits]),
    )


def _projecting_to(width: int, head: FoldHead) -> FoldHead:
    """Give the gate as many coordinates of this fold as of the others, zeros where it has fewer."""
    missing = width - head.projection.shape[1]
    return replace(head, projection=np.pad(head.projection, ((0, 0), (0, missing)))) if missing else head


def _side_by_side(histories: list[list[list[float]]]) -> list[list[list[float]]]:
    """Folds' losses per epoch and task -> per epoch, fold and task; a fold that stopped earlier keeps its last."""
    return [[h[min(e, len(h) - 1)] for h in histories if h] for e in range(max(map(len, histories)))]


@dataclass(frozen=True)
class _Fold:
    """One fold's head, and of the records that judge: logits [rows, C], the gate's coordinates [rows, G]."""

    head: FoldHead
    strengths: list[float]
    lora_epochs: list[int]
    history: list[list[float]]
    logits: Tensor
    coordinates: Tensor


def _fit_fold(
    name: str,
    f: int,
    x: np.ndarray,
    targets: tuple[Tensor, Tensor],
    masks: Masks,
    rows: Tensor,
    blocks: tuple[Block, ...],
    options: HeadOptions,
) -> _Fold:
    """Fit one fold; targets and masks are of that fold alone, with a leading axis of length 1.

    Test records are neither standardised nor rotated: nothing is asked of them here.
    """
    train = torch.nonzero(masks.train[0, 0]).ravel().numpy()
    if len(train) < 2:
        raise InputError(f"expert '{name}': fold {f} has {len(train)} training records with its features")
    scaler = RobustScaler.fit(x[train])
    used = torch.nonzero((masks.train[0, 0] > 0) | (masks.judge[0] >= 0)).ravel()
    standard = scaler.transform(x[used.numpy()])
    position = torch.full((len(x),), -1).index_put((used,), torch.arange(len(used)))
    rotation = Rotation.fit(standard[position[torch.from_numpy(train)].numpy()], options.seed)
    z = torch.from_numpy(rotation.transform(standard))[None]
    problem = Problem(z, targets[0][:, used], targets[1][:, used], masks.train[:, :, used], blocks)
    masks = masks.take(used)
    weights, chosen = choose_strength(problem, masks, options)
    base = probe_logits(problem.z, weights)
    fit = _low_rank(problem, base, masks, options)
    known = (problem.weight > 0).float() * masks.judged[..., None]
    temperature = torch.ones(1, base.shape[-1])
    if options.calibrate:
        temperature = fit_temperatures(fit.logits, problem.y, known, blocks)
    coordinates, scales = _gate_coordinates(problem)
    scaling = options.lora.scaling if options.lora else 1.0
    head = _fold_head(scaler, rotation, weights, fit, temperature, scales, scaling, options.lora is not None)
    # a record that judges in another fold alone has neither here
    kept = (position[rows] >= 0).float()[:, None]
    at = position[rows].clamp_min(0)
    logits = (fit.logits / temperature[:, None])[0, at] * kept
    history = [[float(v) for v in epoch[0]] for epoch in fit.history]
    return _Fold(head, chosen[0].tolist(), fit.epoch[0].tolist(), history, logits, coordinates[0, at] * kept)


def choose_strength(problem: Problem, masks: Masks, options: HeadOptions) -> tuple[Tensor, Tensor]:
    """Fit probes whose strength, per fold and task, has the lowest out-of-sample loss found.

    The strengths are searched from the middle one outwards, for each task until its loss rises, by as few inner models
    as judge `ENOUGH_JUDGED` records (and `ENOUGH_EVENTS` events). With more than twice `PATH_RECORDS` records this is
    done on random subsets of that many training and judged ones (a strength is the precision of a prior, which does not
    change with their number). The chosen ones are then fitted by every model, on all records.

    Returns
    -------
    weights [F, M, r + 1, C], strengths [F, T].
    """
    n_folds = len(problem.train)
    strengths = torch.tensor(sorted(options.strengths, reverse=True))
    large = problem.z.shape[1] > 2 * PATH_RECORDS
    rows = _subset(masks, options.seed) if large else torch.arange(problem.z.shape[1])
    subset, subset_masks = (problem.take(rows), masks.take(rows)) if large else (problem, masks)
    sizes = torch.tensor([b.stop - b.start for b in problem.blocks])
    weights, chosen = [], []
    for f in range(n_folds):
        best, start = _Search(subset, subset_masks, f, strengths).run()
        solver = FoldSolver(problem, f, tolerance=FINAL_TOLERANCE)
        weights.append(solver.solve(strengths[best].repeat_interleave(sizes), start))
        chosen.append(strengths[best])
    return torch.stack(weights), torch.stack(chosen)


class _Search:
    """Looks for the best strength of every task of one fold, from the middle of a descending list outwards."""

    def __init__(self, problem: Problem, masks: Masks, f: int, strengths: Tensor) -> None:
        self.solver, self.strengths = FoldSolver(problem, f, tolerance=PATH_TOLERANCE), strengths
        self.judge, self.blocks = masks.judge[f], problem.blocks
        self.z, self.y, self.weight = problem.z[f], problem.y[f], problem.weight[f]
        self.models = _judging_models(self.judge, _events(problem, f))
        self.losses = torch.full((len(strengths), len(self.blocks)), torch.inf)
        self.solutions: dict[int, Tensor] = {}

    def run(self) -> tuple[Tensor, Tensor]:
        """Return the best strength's number per task [T], and weights [M, r + 1, C] near each task's solution."""
        middle = (len(self.strengths) - 1) // 2
        everything = list(range(len(self.blocks)))
        self._try(middle, self.solver.intercepts, everything)
        for direction in (1, -1):
            tasks, s = everything, middle + direction
            while tasks and 0 <= s < len(self.strengths):
                self._try(s, self.solutions[s - direction], tasks)
                tasks = [t for t in tasks if self.losses[s, t] < self.losses[s - direction, t] + LOSS_RESOLUTION]
                s += direction
        best = self.losses.argmin(0)
        start = self.solver.intercepts.clone()
        for t, block in enumerate(self.blocks):
            start[..., block.columns] = self.solutions[int(best[t])][..., block.columns]
        # the models that did not judge start from the whole fold's solution or, without that, from a judging one's
        source = start[self.models[0]]
        for m in range(len(start)):
            if m not in self.models:
                start[m] = torch.where(self.solver.frozen[m], self.solver.intercepts[m], source)
        return best, start

    def _try(self, s: int, start: Tensor, tasks: list[int]) -> None:
        strengths = self.strengths[s].expand(self.y.shape[1])
        self.solutions[s] = self.solver.solve(strengths, start, self.models, tasks)
        logits, rows = torch.zeros_like(self.y), torch.zeros(len(self.y), 1)
        for m in self.models:
            judged = self.judge == m
            w = self.solutions[s][m]
            logits[judged] = torch.addmm(w[-1], self.z[judged], w[:-1])
            rows[judged] = 1.0
        loss, weight = task_losses(logits, self.y, self.weight * rows, self.blocks)
        mean = (loss * weight).sum(0) / weight.sum(0).clamp_min(1e-9)
        self.losses[s, tasks] = mean[tasks]


def _judging_models(judge: Tensor, events: Tensor) -> list[int]:
    """Return the first models that together judge `ENOUGH_JUDGED` records, or all that judge any.

    Parameters
    ----------
    judge
        [n].
    events
        bool [n, survival tasks]: of each, `ENOUGH_EVENTS` must be judged, too.
    """
    chosen: list[int] = []
    for m in range(int(judge.max()) + 1):
        judged = torch.isin(judge, torch.tensor(chosen, dtype=judge.dtype))
        enough = int(judged.sum()) >= ENOUGH_JUDGED and bool((events[judged].sum(0) >= ENOUGH_EVENTS).all())
        if bool((judge == m).any()) and not enough:
            chosen.append(m)
    return chosen or [0]


def _events(problem: Problem, f: int) -> Tensor:
    """Find which records have the event, bool [n, survival tasks]."""
    columns = [block.start for block in problem.blocks if block.task.kind == "survival"]
    return (problem.y[f][:, columns] > 0) & (problem.weight[f][:, columns] > 0)


def _subset(masks: Masks, seed: int) -> Tensor:
    """Up to `PATH_RECORDS` training and as many judged records of any fold, in order."""
    order = torch.randperm(masks.judge.shape[1], generator=torch.Generator().manual_seed(seed))
    train = order[masks.train[:, 0].amax(0)[order] > 0][:PATH_RECORDS]
    judged = order[masks.judged.amax(0)[order] > 0][:PATH_RECORDS]
    return torch.cat([train, judged]).unique()


def _low_rank(problem: Problem, base: Tensor, masks: Masks, options: HeadOptions) -> LoraFit:
    """Train LoRA, or pass the probe on where it is switched off or no task gains.

    With enough records a few inner models try it first: tasks that do not gain there are not trained by all.
    """
    n_folds, n_tasks = base.shape[0], len(problem.blocks)
    nothing = base.new_zeros(n_folds, problem.z.shape[2], 0, 1)
    epoch = torch.zeros(n_folds, n_tasks, dtype=torch.long)
    probe = LoraFit(nothing, base.new_zeros(n_folds, 1, base.shape[-1]), masks.out_of_sample(base), epoch, [])
    if options.lora is None:
        return probe
    models = _judging_models(masks.judge[0], _events(problem, 0))
    if len(models) == base.shape[1]:
        return fit_lora(problem, base, masks, options.lora, options.seed)
    tried = _of_models(problem, masks, models)
    screen = fit_lora(tried[0], base[:, models], tried[1], options.lora, options.seed)
    tasks = torch.nonzero(screen.epoch[0] > 0).ravel().tolist()
    rank = options.lora.rank
    probe.a = base.new_zeros(1, problem.z.shape[2], n_tasks, rank)
    probe.b, probe.history = base.new_zeros(1, rank, base.shape[-1]), screen.history
    if not tasks:
        return probe
    columns = torch.cat([torch.arange(problem.blocks[t].start, problem.blocks[t].stop) for t in tasks])
    part = Problem(
        problem.z,
        problem.y[..., columns],
        problem.weight[..., columns],
        problem.train,
        layout([problem.blocks[t].task for t in tasks]),
    )
    fit = fit_lora(part, base[..., columns], masks, options.lora, options.seed)
    probe.a[:, :, tasks], probe.b[..., columns] = fit.a, fit.b
    probe.logits[..., columns], probe.epoch[:, tasks] = fit.logits, fit.epoch
    return probe


def _of_models(problem: Problem, masks: Masks, models: list[int]) -> tuple[Problem, Masks]:
    """Keep some models, and the records that they judge."""
    judge = torch.full_like(masks.judge, -1)
    for position, m in enumerate(models):
        judge[masks.judge == m] = position
    train = problem.train[:, models]
    return Problem(problem.z, problem.y, problem.weight, train, problem.blocks), Masks(train, judge)


def _gate_coordinates(problem: Problem) -> tuple[Tensor, Tensor]:
    """Leading coordinates [F, n, G], and what they were multiplied by [F, G]."""
    lead = problem.z[..., :GATE_WIDTH]
    train = problem.train[:, 0, :, None]
    scales = half_whitened((lead**2 * train).sum(1) / train.sum(1))
    return lead * scales[:, None], scales


def _fold_head(
    scaler: RobustScaler,
    rotation: Rotation,
    weights: Tensor,
    fit: LoraFit,
    temperature: Tensor,
    scales: Tensor,
    scaling: float,
    with_lora: bool,
) -> FoldHead:
    """Carry one fold from principal coordinates back to standardised features."""
    axes = torch.from_numpy(rotation.axes)
    rank = axes.shape[1]
    w = weights[0, 0]
    empty = np.zeros((0, 1, len(axes)), np.float32)
    a = torch.einsum("dr,rtk->tkd", axes, fit.a[0, :rank]).contiguous().numpy() if with_lora else empty
    width = min(rank, scales.shape[1])
    projection = np.zeros((len(axes), scales.shape[1]), np.float32)
    projection[:, :width] = (axes[:, :width] * scales[0, :width]).numpy()
    return FoldHead(
        scaler=scaler,
        centre=rotation.mean,
        weight=np.ascontiguousarray((axes @ w[:rank]).T.numpy()),
        bias=w[-1].numpy().copy(),
        lora_a=a,
        lora_b=np.ascontiguousarray(fit.b[0].T.numpy()),
        scaling=scaling,
        temperature=temperature[0].numpy().copy(),
        projection=projection,
    )
