"""The gate: per task, softmax weights over experts for every record; all folds and tasks trained at once.

Lives here: constant weights, the record-dependent gate on top of them, and the rule that decides between them. Not
here: what the gate reads (`gate.inputs`), the experts' heads (`in_memory.expert`).

y_hat = sum_e W_e(record) * y_hat_e on logits (regression: standardised values), as EnECG mixes them. An absent expert's
weight is masked and the others' renormalised. The gate is trained on OUT-OF-SAMPLE expert outputs only: a probe is
overconfident on its own training rows, and a gate that sees those learns to trust whichever expert memorises best.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from stages.heads.adamw import AdamW
from stages.heads.crossfit import Masks, paired_gain
from stages.heads.gate.weights import FoldGate, gate_scores, mask_softmax, masked_scores, mix
from stages.heads.targets.losses import HUBER_DELTA, column_losses, slopes, task_losses
from stages.heads.targets.tasks import Block

ONE_HOT = 8.0
"""Log-weight by which a single expert leads where it is kept alone (the others keep 0.03 %)."""
RANKING = 1e-4
"""Of fitted log-weights: enough to say which experts equal weights keep, too little to make them unequal. Where one is
kept whatever its lead, a lead of 1,000 times that does, and the gate that starts there can still turn to others."""
CONSTANT_RECORDS, CONSTANT_STEPS = 5_000, 12
"""A handful of constants per task needs no more records or steps than these."""
HELD_OUT_ROWS = 4096
"""Records whose mixtures are computed at a time when an epoch is judged."""


@dataclass(frozen=True)
class GateOptions:
    """Settings of the gate."""

    hidden: int = 16
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    epochs: int = 60
    patience: int = 10
    batch_size: int = 0
    top_k: int = 0
    """Experts kept per record; 0, or as many as there are, keeps all (dense, as published)."""
    expert_dropout: float = 0.1
    """Chance that an expert is hidden from a training record, so that an absent one at prediction does no harm."""
    entropy: float = 0.0
    """Reward for spread weights (negative: for sharp ones), in nats of loss per nat of entropy before `top_k`."""
    load_balance: float = 0.0
    """Penalty E * sum_e (mean weight_e)^2 - 1 (Shazeer et al. 2017, the differentiable part)."""
    sparsity: float = 1.0
    """Group lasso on the gate's inputs: few of some hundred coordinates tell which expert is right."""
    prior_strength: float = 3.0
    """Gaussian prior on the constant log-weights around uniform, in records that lose what equal weights lose."""
    huber: bool = True


@dataclass(frozen=True)
class GateData:
    """What the gate is trained on.

    Attributes
    ----------
    outputs
        [F, n, E, C] out-of-sample logits.
    present
        [n, E], 1 where the expert saw the record.
    shared, own
        [F, n, G] inputs common to the tasks; [F, n, T, Q] inputs of each task.
    y, weight
        [F, n, C].
    """

    outputs: Tensor
    present: Tensor
    shared: Tensor
    per_task: Tensor
    y: Tensor
    weight: Tensor
    blocks: tuple[Block, ...]


def _training_softmax(scores: Tensor, present: Tensor, top_k: int = 0) -> Tensor:
    """As `mask_softmax`, up to 60 times faster; its last bits depend on how many records there are."""
    return masked_scores(scores, present, top_k).movedim(-1, 0).contiguous().softmax(0).movedim(0, -1)


def _straight_through(scores: Tensor, present: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Weights to train with, and those of all experts: values of the kept ones, gradient of the softmax over all.

    The softmax over what is kept tells an expert that is left out nothing, and over one expert it is constant.
    """
    dense = _training_softmax(scores, present)
    if not top_k:
        return dense, dense
    kept = _training_softmax(scores.detach(), present, top_k)
    return dense + (kept - dense).detach(), dense


@dataclass
class GateFit:
    """Fitted gates per fold, held-out mixed logits [F, n, C], and how they came about."""

    folds: list[FoldGate]
    logits: Tensor
    epoch: Tensor
    start: list[list[str]]
    """Per fold and task, which constant weights were best: "uniform", "constant" or "single:<number>"."""
    history: list[list[list[float]]] = field(default_factory=list)


def fit_gate(data: GateData, masks: Masks, options: GateOptions, seed: int) -> GateFit:
    """Fit constant weights, then the record-dependent gate from them; keep what is better on held-out records.

    `masks` are the gate's own: model 0 is trained on every record with out-of-sample outputs, models 1..J each leave
    one inner fold of them out and judge it. Fitted constant weights, the uniform mean and the best single expert
    compete first; the trained gate replaces the winner only where its paired improvement exceeds one standard error.
    """
    if options.top_k >= data.outputs.shape[2]:
        options = replace(options, top_k=0)
    constant, start, base = _constant_start(data, masks, options, seed)
    trainer = _Trainer(data, masks, options, constant, base, seed)
    return trainer.run(start)


def _loss(data: GateData, logits: Tensor, judged: Tensor, huber: bool) -> tuple[Tensor, Tensor]:
    weight = data.weight * judged[..., None]
    return task_losses(logits, data.y, weight, data.blocks, huber=huber)


class _ConstantMix:
    """Mixtures with constant weights: records with the same experts present share theirs.

    Parameters
    ----------
    rows
        Records; `order` is the order in which their mixtures come.
    """

    def __init__(self, data: GateData, rows: Tensor) -> None:
        patterns, code = torch.unique(data.present[rows], dim=0, return_inverse=True)
        self.blocks, members = data.blocks, [torch.nonzero(code == k).ravel() for k in range(len(patterns))]
        self.order = rows[torch.cat(members)]
        self.parts = [(p, data.outputs[:, rows[m]]) for p, m in zip(patterns, members, strict=True)]
        self.sizes = torch.tensor([b.stop - b.start for b in data.blocks], device=rows.device)

    def __call__(self, a: Tensor, top_k: int = 0) -> Tensor:
        """Log-weights [F, M, T, E] -> logits [F, M, n, C] of the `top_k` leading experts (0: of all)."""
        mixed = []
        for present, outputs in self.parts:
            w = mask_softmax(a, present, top_k).repeat_interleave(self.sizes, dim=2)
            mixed.append(torch.einsum("fmce,fnec->fmnc", w, outputs))
        return torch.cat(mixed, 2)


def fit_constant(data: GateData, masks: Masks, options: GateOptions, seed: int) -> Tensor:
    """Constant log-weights [F, M, T, E] with a prior around uniform, by Newton steps on at most 5,000 records."""
    n_folds, n_models, n_records = masks.train.shape
    order = torch.randperm(n_records, generator=torch.Generator().manual_seed(seed))
    rows = order[masks.train[:, 0].amax(0).cpu()[order] > 0][:CONSTANT_RECORDS].sort().values.to(data.outputs.device)
    a = data.outputs.new_zeros(n_folds, n_models, len(data.blocks), data.outputs.shape[2])
    for t, block in enumerate(data.blocks):
        problem = _ConstantProblem(data, masks, rows, block, options)
        for _ in range(CONSTANT_STEPS):
            step = problem.step(a[:, :, t])
            a[:, :, t] -= step.clamp(-1, 1)
            if float(step.abs().max()) < 1e-4:
                break
    return a


class _ConstantProblem:
    """One task's penalised loss over constant log-weights, as far as a Gauss-Newton step asks for it."""

    def __init__(self, data: GateData, masks: Masks, rows: Tensor, block: Block, options: GateOptions) -> None:
        c = block.columns
        self.block = replace(block, start=0, stop=block.stop - block.start)
        self.huber = options.huber
        self.outputs, self.present, self.y = data.outputs[:, rows][..., c], data.present[rows], data.y[:, rows][..., c]
        weight = data.weight[:, rows][..., c]
        # a record's loss is the mean over its labelled columns, which a multinomial task counts as one
        several = (weight > 0).sum(-1, keepdim=True).clamp_min(1) if block.task.kind == "multilabel" else 1
        self.weight = (weight / several)[:, None] * masks.train[:, :, rows, None]
        self.prior = options.prior_strength * self._equal_loss()

    def _equal_loss(self) -> Tensor:
        """Mean loss of a record under equal weights, [F, M, 1]: what a record of the prior counts."""
        alive = self.present[..., None]
        equal = (self.outputs * alive).sum(2) / alive.sum(1).clamp_min(1)
        weight = self.weight
        loss = column_losses(equal[:, None], self.y[:, None], self.block, huber=self.huber, weight=weight) * weight
        # without any record the prior alone decides, so it must not vanish
        return (loss.sum((2, 3)) / self.weight.sum((2, 3)).clamp_min(1e-9)).clamp_min(1e-9)[..., None]

    def step(self, a: Tensor) -> Tensor:
        """Return the step [F, M, E] from log-weights of the same shape."""
        w = mask_softmax(a[:, :, None], self.present)
        mixed = torch.einsum("fmne,fnec->fmnc", w, self.outputs)
        residual, curvature = slopes(mixed, self.y[:, None], (self.block,), self.weight)
        if self.huber and self.block.task.kind == "regression":
            residual = residual.clamp(-HUBER_DELTA, HUBER_DELTA)
        # of the mixture by each log-weight
        along = w[..., None] * (self.outputs[:, None] - mixed[:, :, :, None])
        gradient = torch.einsum("fmnc,fmnec->fme", residual * self.weight, along) + self.prior * a
        scaled = along * (curvature * self.weight)[:, :, :, None]
        hessian = torch.einsum("fmnec,fmngc->fmeg", scaled, along)
        damped = hessian + self.prior[..., None] * torch.eye(a.shape[-1]).to(a)
        return torch.linalg.solve(damped, gradient[..., None])[..., 0]


def _constant_start(
    data: GateData, masks: Masks, options: GateOptions, seed: int
) -> tuple[Tensor, list[list[str]], Tensor]:
    """Best constant log-weights [F, M, T, E], their names, and their held-out logits [F, n, C].

    The fitted ones, which the prior holds between uniform and the best expert, give way to uniform weights or to a
    single expert only where those are better by more than one standard error. Each is judged with the `top_k` experts
    that it will predict with; whom uniform weights keep, and who stands in for an absent expert, the fitted ones say.
    """
    fitted = fit_constant(data, masks, options, seed)
    n_experts = fitted.shape[-1]
    equal = fitted * RANKING if options.top_k else torch.zeros_like(fitted)
    candidates = [("constant", fitted), ("uniform", equal)]
    for e in range(n_experts):
        alone = equal.clone()
        alone[..., e] = ONE_HOT if options.top_k != 1 else 1e3 * RANKING
        candidates.append((f"single:{e}", alone))
    gains: list[Tensor] = []
    logits: list[Tensor] = []
    incumbent = torch.zeros(())
    mixture = _ConstantMix(data, torch.arange(data.outputs.shape[1], device=data.outputs.device))
    back = mixture.order.argsort()
    for _, a in candidates:
        mixed = mixture(a, options.top_k)[:, :, back]
        logits.append(masks.out_of_sample(mixed))
        loss, row = _loss(data, logits[-1], masks.judged, options.huber)
        incumbent = loss if len(logits) == 1 else incumbent
        gain = paired_gain(incumbent, loss, row)
        gains.append(torch.where(gain.accepted, gain.mean, 0.0))
    best = torch.stack(gains).argmax(0)
    constant, held_out = torch.empty_like(fitted), torch.empty_like(logits[0])
    for f in range(best.shape[0]):
        for t, block in enumerate(data.blocks):
            constant[f, :, t] = candidates[best[f, t]][1][f, :, t]
            held_out[f, :, block.columns] = logits[best[f, t]][f, :, block.columns]
    return constant, [[candidates[k][0] for k in row] for row in best.tolist()], held_out


class _Trainer:
    """Trains the record-dependent part from zero, judging every epoch on held-out records."""

    def __init__(
        self, data: GateData, masks: Masks, options: GateOptions, constant: Tensor, base: Tensor, seed: int
    ) -> None:
        self.data, self.masks, self.options, self.base = data, masks, options, base
        self.generator = torch.Generator().manual_seed(seed)
        self.p = self._start(constant)
        # the constant stays what the convex fit gave: only the record-dependent part moves
        self.trained = [v.requires_grad_() for k, v in self.p.items() if k != "constant"]
        self.optimiser = AdamW(self.trained, options.learning_rate, options.weight_decay)

    def _start(self, constant: Tensor) -> dict[str, Tensor]:
        n_folds, n_models, n_tasks, n_experts = constant.shape
        n_shared, n_per_task, h = self.data.shared.shape[-1], self.data.per_task.shape[-1], self.options.hidden
        scale = max(1, n_shared + n_per_task) ** -0.5

        def draw(*shape: int) -> Tensor:
            values = torch.randn(1, 1, n_tasks, *shape, generator=self.generator) * scale
            return values.expand(n_folds, n_models, -1, *shape).contiguous()

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(n_folds, n_models, n_tasks, *shape)

        return {
            "constant": constant,
            "w_shared": draw(n_shared, h),
            "w_own": draw(n_per_task, h),
            "b": zeros(h),
            "out": zeros(h, n_experts),
            "skip": zeros(n_shared, n_experts),
            "skip_own": zeros(n_per_task, n_experts),
        }

    def _step(self, rows: Tensor) -> None:
        data, options = self.data, self.options
        scores = gate_scores(self.p, data.shared[:, rows], data.per_task[:, rows])
        present = self._drop_experts(data.present[rows])
        weights, dense = _straight_through(scores, present[:, None], options.top_k)
        logits = mix(weights, data.outputs[:, None, rows], data.blocks)
        weight = data.weight[:, None, rows] * self.masks.train[:, :, rows, None]
        loss, row = task_losses(logits, data.y[:, None, rows], weight, data.blocks, huber=options.huber)
        total = ((loss * row).sum(2) / row.sum(2).clamp_min(1e-9)).sum()
        if options.entropy:
            entropy = -(dense * dense.clamp_min(1e-12).log()).sum(-1)
            total = total - options.entropy * (entropy * (row > 0)).mean(2).sum()
        if options.load_balance:
            load = weights.mean(2)
            total = total + options.load_balance * (load.shape[-1] * (load**2).sum(-1) - 1).sum()
        total.backward()
        self.optimiser.step()
        self._shrink_inputs()

    @torch.no_grad()
    def _shrink_inputs(self) -> None:
        """Proximal step of the group lasso: shrink each input's weights together, to nothing where they are small."""
        threshold = self.options.sparsity * self.options.learning_rate
        if threshold:
            for hidden, skip in (("w_shared", "skip"), ("w_own", "skip_own")):
                norm = (self.p[hidden].pow(2).sum(-1, True) + self.p[skip].pow(2).sum(-1, True)).sqrt()
                factor = (1 - threshold / norm.clamp_min(1e-12)).clamp_min(0)
                self.p[hidden].mul_(factor)
                self.p[skip].mul_(factor)

    def _drop_experts(self, present: Tensor) -> Tensor:
        if not self.options.expert_dropout:
            return present
        kept = torch.rand(present.shape, generator=self.generator) >= self.options.expert_dropout
        reduced = present * kept
        return torch.where(reduced.any(-1, keepdim=True), reduced, present)

    @torch.no_grad()
    def _held_out(self) -> Tensor:
        parts = []
        for rows in torch.arange(self.data.outputs.shape[1], device=self.data.outputs.device).split(HELD_OUT_ROWS):
            scores = gate_scores(self.p, self.data.shared[:, rows], self.data.per_task[:, rows])
            weights = _training_softmax(scores, self.data.present[rows][:, None], self.options.top_k)
            mixed = mix(weights, self.data.outputs[:, None, rows], self.data.blocks)
            parts.append(self.masks.take(rows).out_of_sample(mixed))
        return torch.cat(parts, 1)

    def run(self, start: list[list[str]]) -> GateFit:
        """Train, stop early, and put the better of gate and constant weights together."""
        options, judged = self.options, self.masks.judged
        base_loss, row = _loss(self.data, self.base, judged, options.huber)
        total = row.sum(1).clamp_min(1e-9)
        history = [((base_loss * row).sum(1) / total).tolist()]
        shape = base_loss.shape[0], base_loss.shape[2]
        best, epoch_of = torch.zeros(shape), torch.zeros(shape, dtype=torch.long)
        accepted = torch.zeros(shape, dtype=torch.bool)
        kept = {k: v.detach()[:, 0].clone() for k, v in self.p.items()}
        logits, last = self.base.clone(), 0
        rows = torch.nonzero(self.masks.train[:, 0].amax(0)).ravel()
        batch = options.batch_size or int(min(2048, max(64, len(rows) // 8)))
        for epoch in range(1, options.epochs + 1):
            for part in rows[torch.randperm(len(rows), generator=self.generator)].split(batch):
                self._step(part)
            held_out = self._held_out()
            loss, _ = _loss(self.data, held_out, judged, options.huber)
            history.append(((loss * row).sum(1) / total).tolist())
            gain = paired_gain(base_loss, loss, row)
            better = (gain.mean > best) & gain.accepted
            if bool(better.any()):
                last = epoch
                best, epoch_of = torch.where(better, gain.mean, best), torch.where(better, epoch, epoch_of)
                accepted |= better
                kept = {k: _where_task(better, v.detach()[:, 0], kept[k]) for k, v in self.p.items()}
                for t, block in enumerate(self.data.blocks):
                    c = block.columns
                    logits[..., c] = torch.where(better[:, t, None, None], held_out[..., c], logits[..., c])
            if epoch - last >= options.patience:
                break
        folds = [
            FoldGate({k: v[f].numpy().copy() for k, v in kept.items()}, accepted[f].numpy().copy(), options.top_k)
            for f in range(shape[0])
        ]
        return GateFit(folds, logits, epoch_of, start, history)


def _where_task(better: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Take `new` for the folds and tasks [F, T] that are better."""
    return torch.where(better.reshape(better.shape + (1,) * (new.ndim - 2)), new, old)
