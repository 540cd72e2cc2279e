"""The strategy: preview probing, full fine-tuning with stochastic depth, judged on the test split, over seeds.

Lives here: the order of the steps and what a run leaves behind. Not here: the steps (`cohort`, `probing`, `drop_path`,
`tuned`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cache.embeddings import open_embeddings
from cache.errors import InputError, UsageError
from cache.fingerprint import fingerprint
from stages.experts import Expert, load_expert
from stages.experts.versions import is_trained_version, read_version
from stages.posttrain.cohort import LabelledCohort
from stages.posttrain.drop_path import StochasticDepth, residual_blocks
from stages.posttrain.inputs import inputs_of, mean_of_records
from stages.posttrain.joint import JointHead
from stages.posttrain.probing import Head, Labelled, fit_probe
from stages.posttrain.settings import PosttrainPaths, PosttrainSettings, PosttrainSummary, refused_crop
from stages.posttrain.teacher import taught
from stages.posttrain.tuned import TaskBatches, Tuned, rate_groups, set_dropout
from stages.scoring.metrics import HEADLINE, METRICS
from stages.training.distributed import Group, training_group
from stages.training.inputs import input_identity
from stages.training.loop import Training
from stages.training.memory import checkpoint_blocks
from stages.training.settings import Augmentation, settings_of_result
from stages.training.versions import cohort_facts, write_version

RESULTS_FILE = "results.json"
NOT_HASHED = ("weights", "seeds", "fractions", "teacher", "store")


Say = Callable[[int, int, float], None]


def run(settings: PosttrainSettings, paths: PosttrainPaths, progress: Say | None = None) -> PosttrainSummary:
    """Run every fraction and seed, and write the version.

    Raises
    ------
    UsageError
        An expert without residual branches, a task that does not exist, or an option that is not allowed.
    InputError
        Training records that cannot teach the task.
    """
    with training_group(torch.device(settings.loop.device)) as group:
        summary = _all_runs(settings, paths, group, progress)
        if group.leads:
            _write_results(settings, summary)
        group.wait()
    return summary


def _all_runs(s: PosttrainSettings, paths: PosttrainPaths, group: Group, progress: Say | None) -> PosttrainSummary:
    expert = _load(s)
    residual_blocks(expert)
    with group.leader_first():
        read = (paths.records, paths.signals), paths.state, s.crop_s, s.test_crops
        data = LabelledCohort.read(expert, s.tasks, *read)
    summary = PosttrainSummary(s.name, test_rows=data.rows[data.of("test")])
    for fraction in sorted(s.fractions, reverse=True):
        for seed in s.seeds:
            run = _Run(s, data, paths, group, (fraction, seed))
            tuned, entry = run.execute(progress)
            if not summary.runs and group.leads:
                summary.folder = str(_write(s, data, tuned, run, entry))
            summary.runs.append(entry)
            summary.predictions.append(run.test_predictions)
            if s.head == "probe":
                summary.probe_predictions.append(run.probe_predictions)
    return summary


def _write_results(s: PosttrainSettings, summary: PosttrainSummary) -> None:
    text = json.dumps({"schema_version": 1, "task": s.task, "runs": summary.runs}, indent=1) + "\n"
    (Path(summary.folder) / RESULTS_FILE).write_text(text, encoding="utf-8")


def _load(s: PosttrainSettings) -> Expert:
    random = s.start == "random"
    weights = None if random else s.weights
    expert = load_expert(
        s.expert,
        weights,
        dict(s.config) or None,
        preprocessing=s.preprocessing,
        random_weights=random,
        trainable=True,
    )
    if expert.module is not None:
        set_dropout(expert.module, s.dropout)
    if reason := refused_crop(expert.spec, s.crop_s):
        raise UsageError(f"crop_s {reason}")
    return expert


class _Run:
    """One fraction and seed."""

    def __init__(
        self, s: PosttrainSettings, data: LabelledCohort, paths: PosttrainPaths, group: Group, share: tuple[float, int]
    ) -> None:
        self.s, self.data, self.paths, self.group = s, data, paths, group
        self.fraction, self.seed = fraction, seed = share
        self.train, self.val, self.test = data.training(fraction, seed), data.of("val"), data.of("test")
        self.centre, self.scale = self._units()
        y = data.y if s.teacher is None else taught(data, Path(s.teacher), s.teacher_share)
        self.y = (y - self.centre) / self.scale

    def _units(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation [columns] of regression targets' training labels; logits need none."""
        centre, scale = torch.zeros(self.data.y.shape[1]), torch.ones(self.data.y.shape[1])
        rows = torch.from_numpy(self.train)
        for block in self.data.blocks:
            if block.task.kind == "regression":
                labels = self.data.y[rows, block.start][self.data.known[rows, block.start] > 0]
                centre[block.start] = labels.mean()
                scale[block.start] = labels.std(correction=0).clamp_min(1e-12)
        return centre, scale

    def execute(self, progress: Say | None) -> tuple[Tuned, dict[str, Any]]:
        with torch.random.fork_rng([]):
            torch.manual_seed(self.seed)
            tuned = self._network()
        entry: dict[str, Any] = {"fraction": self.fraction, "seed": self.seed, "n_train": len(self.train)}
        entry |= self._probe(tuned) if self.s.head == "probe" else {}
        training = self._training(tuned, progress)
        result: Any = training.run()
        del tuned
        self.group.share(result)
        entry["tuned"], self.test_predictions = self._judge(result, self._features(result, self._judged))
        entry["epoch"] = training.best["epoch"] if training.best else self.s.loop.epochs
        entry["curve"] = training.history.epochs
        return result, entry

    def _probe(self, tuned: Tuned) -> dict[str, Any]:
        """Fit and judge the preview probe; keep it as the head, unless the run is to start from a fresh one."""
        assert isinstance(tuned.head, Head)
        features = self._frozen(tuned)
        fresh = {k: v.clone() for k, v in tuned.head.state_dict().items()}
        train = self._labelled(features, self.train)
        penalty = fit_probe(tuned.head, train, self._validation(features))
        judged, self.probe_predictions = self._judge(tuned, features)
        if not self.s.probing:
            tuned.head.load_state_dict(fresh)
            tuned.head.standardise(train.x)
        self.group.share(tuned)
        return {"penalty": penalty, "probe": judged}

    def _network(self) -> Tuned:
        s, expert = self.s, _load(self.s)
        if s.gradient_checkpointing:
            paths = [path for path, _ in residual_blocks(expert)]
            checkpoint_blocks(expert.module.get_submodule(path) for path in paths if expert.module is not None)
        depth = StochasticDepth(expert, s.drop_path, s.drop_path_schedule) if s.drop_path else None
        head: Head | JointHead
        if s.head != "joint":
            head = Head(expert.spec.embedding_dim, self.data.blocks, absolute_error=s.absolute_error)
            if s.head == "linear":
                head.linear.reset_parameters()
        else:
            head = JointHead(expert.spec.embedding_dim, self.data.blocks, expert.embedding_parts, s.head_dropout)
        return Tuned(expert, head, depth).to(s.loop.device)

    @property
    def _judged(self) -> np.ndarray:
        return np.concatenate([self.val, self.test])

    def _frozen(self, tuned: Tuned) -> torch.Tensor:
        """Return the frozen backbone's features, from the expert's store if there is one."""
        if self.paths.features is None or self.s.crop_s is not None:
            return self._features(tuned, np.concatenate([self.train, self._judged]))
        stored = open_embeddings(self.paths.features).read_embedding()[self.data.rows].astype(np.float32)
        if not np.isfinite(stored).all():
            raise InputError(f"{self.paths.features}: has no vector for some records; run `ensemble embed` again")
        return torch.from_numpy(stored)

    def _features(self, tuned: Tuned, positions: np.ndarray) -> torch.Tensor:
        """Compute features [input, width] of the records at `positions`; NaN elsewhere."""
        batch = self.s.loop.micro_batch or self.s.loop.batch_size
        inputs = inputs_of(self.data.inputs, positions)
        local_share = self.group.share_of(inputs)
        part = tuned.frozen_features(self.data.inputs, local_share, batch)
        found = part.new_full((len(self.data.inputs.positions), part.shape[1]), torch.nan)
        found[inputs] = self.group.join(part, len(inputs))
        return found.cpu()

    def _labelled(self, features: torch.Tensor, positions: np.ndarray) -> Labelled:
        """Join features [input, width] of the records at `positions` with their labels, on the device."""
        inputs, device = inputs_of(self.data.inputs, positions), self.s.loop.device
        chosen = torch.from_numpy(self.data.inputs.positions[inputs])
        return Labelled(features[inputs].to(device), self.y[chosen].to(device), self.data.known[chosen].to(device))

    def _validation(self, features: torch.Tensor) -> Labelled | None:
        return self._labelled(features, self.val) if len(self.val) else None

    def _training(self, tuned: Tuned, progress: Say | None) -> Training:
        s, tag = self.s, f"{self.s.name}-{self.fraction:g}-{self.seed}"
        return Training(
            tuned,
            TaskBatches(
                self.data.inputs, self.train, self.y, self.data.known, augment=Augmentation(**s.augment), mixup=s.mixup
            ),
            replace(s.loop, seed=self.seed),
            groups=rate_groups(tuned, s.layer_decay, s.half_decay),
            checkpoint=self.paths.state / "training" / f"{tag}.pt",
            identity=self.group.agree(self._identity(tuned)),
            group=self.group,
            progress=progress,
            after_epoch=self._after_epoch if len(self.val) else None,
            keep_best=self._keep_best(),
            judge_start=s.select == "best",  # an untrained head may be lucky on a metric
            some_unused=True,
        )

    def _identity(self, tuned: Tuned) -> str:
        asked = {k: v for k, v in asdict(self.s).items() if k not in (*NOT_HASHED, "loop")}
        asked |= {"taught": self.y.double().sum().item()}
        asked |= {"loop": settings_of_result(self.s.loop)}
        start = float(sum(p.detach().double().abs().sum() for p in tuned.parameters()))
        cohort = cohort_facts(self.data.records, self.data.rows[self.train], self.data.signals_digest)
        asked |= {"gradient_checkpointing": None, "seed": self.seed, "fraction": self.fraction}
        inputs = input_identity(tuned.expert)
        return fingerprint({"asked": asked, "inputs": inputs, "cohort": cohort, "start": start})

    def _after_epoch(self, model: Any, _: int) -> dict[str, float]:
        features = self._features(model, self.val)
        judged = self._labelled(features, self.val)
        with torch.no_grad():
            entry = {"validation_loss": float(model.head.loss(model.head(judged.x), judged.y, judged.known))}
        if self._keep_best() == "validation_cost":
            entry["validation_cost"] = self._cost(self._predicted(model, features))
        return entry

    def _keep_best(self) -> str:
        """Name what chooses the epoch; the loss where validation labels define no metric."""
        if not len(self.val) or self.s.select == "last":
            return ""
        anything = np.full(self.data.y.shape, 0.5, np.float32)
        by_metric = self.s.select == "metric" and np.isfinite(self._cost(anything))
        return "validation_cost" if by_metric else "validation_loss"

    def _cost(self, predicted: np.ndarray) -> float:
        """Return the headline metric on validation records, negative where higher is better."""
        name = HEADLINE[self.data.targets[0].kind][0]
        sign = -1.0 if METRICS[name].higher_is_better else 1.0
        return sign * self.data.metrics(predicted, self.val).get(name, np.nan)

    def _predicted(self, tuned: Tuned, features: torch.Tensor) -> np.ndarray:
        """Return what is said of each record [position, columns]: the mean over its inputs [input, width]."""
        of_records = mean_of_records(self.data.inputs, tuned.probabilities(features))
        return (of_records * self.scale + self.centre).numpy()

    def _judge(self, tuned: Tuned, features: torch.Tensor) -> tuple[dict[str, dict[str, float]], np.ndarray]:
        """Return the metrics on validation and test records, and the test predictions."""
        predicted = self._predicted(tuned, features)
        found = {name: self.data.metrics(predicted, part) for name, part in (("val", self.val), ("test", self.test))}
        return found, predicted[self.test]


def _write(s: PosttrainSettings, data: LabelledCohort, tuned: Tuned, run: _Run, entry: dict[str, Any]) -> Path:
    expert = tuned.expert
    version = read_version(s.expert) if is_trained_version(s.expert) else None
    seen = data.rows[np.concatenate([run.train, run.val])]
    loop = settings_of_result(s.loop)
    strategy = ("probing", "drop_path", "drop_path_schedule", "layer_decay", "dropout", "select")
    joint = ("head", "head_dropout", "augment", "mixup", "teacher_share", "store")
    linear = ("head", "half_decay", "absolute_error", "augment", "mixup", "store")
    cropped = ("crop_s", "test_crops")
    facts = {
        "made_by": "posttrain",
        "parent": s.expert,
        "task": s.task,
        "licence": expert.spec.licence,
        "non_commercial": expert.spec.non_commercial,
        "pretrained_on": [] if s.start == "random" else list(expert.spec.pretrained_on),
        "cohort": cohort_facts(data.records, data.rows[run.train], data.signals_digest),
        "parameters": {
            **{name: getattr(s, name) for name in strategy},
            **({name: getattr(s, name) for name in joint} if s.head == "joint" else {}),
            **({name: getattr(s, name) for name in linear} if s.head == "linear" else {}),
            **({name: getattr(s, name) for name in cropped} if s.crop_s is not None else {}),
            "seed": run.seed,
            **loop,
        },
        "kept_epoch": entry["epoch"],
        "curve": entry["curve"],
    }
    return write_version(
        s.name,
        base=version.base if version else s.expert.partition("+")[0],
        spec=expert.spec,
        config={**(version.config if version else {}), **s.config},
        preprocessing=expert.preprocessing,
        state=_stored(expert, s.store),
        seen=data.records.people.take(seen),
        facts=facts,
        fill=lambda folder: _save_head(tuned, folder / "head.safetensors"),
    )


def _stored(expert: Expert, precision: str) -> dict[str, torch.Tensor]:
    """Return the network's tensors as the version's file holds them."""
    state = expert.module.state_dict() if expert.module is not None else {}
    half = precision == "float16"
    return {key: value.half() if half and value.is_floating_point() else value for key, value in state.items()}


def _save_head(tuned: Tuned, path: Path) -> None:
    from safetensors.torch import save_file

    save_file({key: value.cpu().contiguous() for key, value in tuned.head.state_dict().items()}, path)
    path.chmod(0o644)  # safetensors writes for the owner alone


def summary_lines(summary: PosttrainSummary) -> Iterator[str]:
    """Tell each fraction's main metric, probe and tuned network, mean over seeds."""
    frame = pd.DataFrame(
        {
            "fraction": r["fraction"],
            **(_main(r["probe"]["test"], "probe") if "probe" in r else {}),
            **_main(r["tuned"]["test"], "tuned"),
            "epoch": r["epoch"],
        }
        for r in summary.runs
    )
    for fraction, part in frame.groupby("fraction", sort=False):
        figures = ", ".join(f"{name} {part[name].mean():.3f}" for name in part.columns[1:-1])
        kept = ", ".join(str(int(epoch)) for epoch in part["epoch"])
        yield f"{fraction:.0%} of the training patients, {len(part)} seed(s): {figures}; kept epoch {kept}"


def _main(metrics: Mapping[str, float], part: str) -> dict[str, float]:
    wanted = ("auroc_macro", "auroc", "auprc_macro", "auprc", "mae")
    names = sorted((n for n in metrics if n.split()[-1] in wanted), key=lambda n: wanted.index(n.split()[-1]))
    return {f"{part} {name}": metrics[name] for name in names}
