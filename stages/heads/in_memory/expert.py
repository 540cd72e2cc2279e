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
from stages.heads.crossfit import Gain, Masks, paired_gain
from stages.heads.expert_head import GATE_WIDTH, ExpertHead, FoldHead, HeadOptions, half_whitened
from stages.heads.in_memory.lora import LoraFit, fit_lora
from stages.heads.in_memory.probe import FoldSolver, Problem, Rotation, probe_logits
from stages.heads.in_memory.telling import Telling, find_telling
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
    x = standard - rotation.mean
    weights, chosen, telling = choose_with_telling(problem, masks, options, x)
    base = probe_logits(problem.z, weights)
    if telling is not None:
        base += telling.logits(x)
    fit = _low_rank(problem, base, masks, options)
    known = (problem.weight > 0).float() * masks.judged[..., None]
    temperature = torch.ones(1, base.shape[-1])
    if options.calibrate:
        temperature = fit_temperatures(fit.logits, problem.y, known, blocks)
    coordinates, scales = _gate_coordinates(problem)
    scaling = options.lora.scaling if options.lora else 1.0
    head = _fold_head(scaler, rotation, (weights, telling), fit, temperature, scales, scaling, options.lora is not None)
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
    strengths = torch.tensor(sorted(options.strengths, reverse=True))
    rows = _searched_rows(problem, masks, options.seed)
    subset, subset_masks = (problem, masks) if rows is None else (problem.take(rows), masks.take(rows))
    weights, chosen = [], []
    for f in range(len(problem.train)):
        best, start = _Search(subset, subset_masks, f, strengths).run()
        solver = FoldSolver(problem, f, tolerance=FINAL_TOLERANCE)
        weights.append(solver.solve(strengths[best].repeat_interleave(_widths(problem.blocks)), start))
        chosen.append(strengths[best])
    return torch.stack(weights), torch.stack(chosen)


def choose_with_telling(
    problem: Problem, masks: Masks, options: HeadOptions, x: np.ndarray
) -> tuple[Tensor, Tensor, Telling | None]:
    """Fit one fold's probes as `choose_strength` does, after telling columns where these lower the out-of-sample loss.

    A task's telling columns are kept where the mean improvement exceeds one standard error.

    Parameters
    ----------
    x
        [n, d] centred standardised features, of which `problem.z` are the principal coordinates.

    Returns
    -------
    weights [1, M, r + 1, C], strengths [1, T], and the telling columns whose logits are to be added.
    """
    telling = find_telling(x, problem)
    if telling is None:
        return *choose_strength(problem, masks, options), None
    strengths = torch.tensor(sorted(options.strengths, reverse=True))
    rows = _searched_rows(problem, masks, options.seed)
    subset, subset_masks = (problem, masks) if rows is None else (problem.take(rows), masks.take(rows))
    offset = telling.logits(x if rows is None else x[rows.numpy()])
    without, after = (_Search(subset, subset_masks, 0, strengths, o) for o in (None, offset))
    best, start = without.run()
    best_after, start_after = after.run(telling.tasks)
    accepted = without.gain_of(after, best, best_after).accepted[0]
    tasks = [t for t in telling.tasks if accepted[t]]
    for t in tasks:
        columns = problem.blocks[t].columns
        best[t], start[..., columns] = best_after[t], start_after[..., columns]
    kept = telling.only(tasks, problem.blocks)
    solver = FoldSolver(problem, 0, offset=kept.logits(x) if kept else None, tolerance=FINAL_TOLERANCE)
    weights = solver.solve(strengths[best].repeat_interleave(_widths(problem.blocks)), start)
    return weights[None], strengths[best][None], kept


def _widths(blocks: tuple[Block, ...]) -> Tensor:
    return torch.tensor([b.stop - b.start for b in blocks])


class _Search:
    """Looks for the best strength of every task of one fold, from the middle of a descending list outwards."""

    def __init__(self, problem: Problem, masks: Masks, f: int, strengths: Tensor, offset: Tensor | None = None) -> None:
        self.solver = FoldSolver(problem, f, offset=offset, tolerance=PATH_TOLERANCE)
        self.strengths, self.offset = strengths, offset
        self.judge, self.blocks = masks.judge[f], problem.blocks
        self.z, self.y, self.weight = problem.z[f], problem.y[f], problem.weight[f]
        self.models = _judging_models(self.judge, _events(problem, f))
        self.losses = torch.full((len(strengths), len(self.blocks)), torch.inf)
        self.record_losses: dict[int, Tensor] = {}
        self.solutions: dict[int, Tensor] = {}

    def run(self, tasks: list[int] | None = None) -> tuple[Tensor, Tensor]:
        """Return the best strength's number per task [T], and weights [M, r + 1, C] near each task's solution.

        Of tasks that are not asked for, the middle strength and the weights without features.
        """
        middle = (len(self.strengths) - 1) // 2
        everything = list(range(len(self.blocks))) if tasks is None else tasks
        self._try(middle, self.solver.intercepts, everything)
        for direction in (1, -1):
            tasks, s = everything, middle + direction
            while tasks and 0 <= s < len(self.strengths):
                self._try(s, self.solutions[s - direction], tasks)
                tasks = [t for t in tasks if self.losses[s, t] < self.losses[s - direction, t] + LOSS_RESOLUTION]
                s += direction
        best = torch.full((len(self.blocks),), middle)
        best[everything] = self.losses[:, everything].argmin(0)
        start = self.solver.intercepts.clone()
        for t in everything:
            columns = self.blocks[t].columns
            start[..., columns] = self.solutions[int(best[t])][..., columns]
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
            if self.offset is not None:
                logits[judged] += self.offset[m, judged]
            rows[judged] = 1.0
        loss, self.record_weight = task_losses(logits, self.y, self.weight * rows, self.blocks)
        mean = (loss * self.record_weight).sum(0) / self.record_weight.sum(0).clamp_min(1e-9)
        self.losses[s, tasks], self.record_losses[s] = mean[tasks], loss

    def gain_of(self, other: _Search, best: Tensor, others_best: Tensor) -> Gain:
        """Compare another search of the same records with this one, each at its best strengths [T]."""
        incumbent, candidate = self._at(best), other._at(others_best)
        return paired_gain(incumbent, candidate, self.record_weight[None])

    def _at(self, best: Tensor) -> Tensor:
        """Losses of the records at each task's strength, [1, n, T]."""
        return torch.stack([self.record_losses[int(s)][:, t] for t, s in enumerate(best)], 1)[None]


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


def _searched_rows(problem: Problem, masks: Masks, seed: int) -> Tensor | None:
    """Up to `PATH_RECORDS` training and as many judged records of any fold, in order; None: all, they are few."""
    if problem.z.shape[1] <= 2 * PATH_RECORDS:
        return None
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
    probe: tuple[Tensor, Telling | None],
    fit: LoraFit,
    temperature: Tensor,
    scales: Tensor,
    scaling: float,
    with_lora: bool,
) -> FoldHead:
    """Carry one fold from principal coordinates back to standardised features."""
    axes = torch.from_numpy(rotation.axes)
    rank = axes.shape[1]
    w = probe[0][0, 0]
    weight = (axes @ w[:rank]).T.contiguous().numpy()
    if probe[1] is not None:
        weight[:, probe[1].columns] += probe[1].weight[0].T.numpy()
    empty = np.zeros((0, 1, len(axes)), np.float32)
    a = torch.einsum("dr,rtk->tkd", axes, fit.a[0, :rank]).contiguous().numpy() if with_lora else empty
    width = min(rank, scales.shape[1])
    projection = np.zeros((len(axes), scales.shape[1]), np.float32)
    projection[:, :width] = (axes[:, :width] * scales[0, :width]).numpy()
    return FoldHead(
        scaler=scaler,
        centre=rotation.mean,
        weight=weight,
        bias=w[-1].numpy().copy(),
        lora_a=a,
        lora_b=np.ascontiguousarray(fit.b[0].T.numpy()),
        scaling=scaling,
        temperature=temperature[0].numpy().copy(),
        projection=projection,
    )
