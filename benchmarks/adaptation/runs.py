"""Arms of pretraining and post-training, and their runs, each done once and kept in a file."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import chdir
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache.fingerprint import fingerprint
from cache.records import open_records, target_array
from cache.signals import open_signals
from stages import ingest
from stages.experts import Expert, load_expert
from stages.experts.models.ecg.stmem import OPTION_NAMES as ENCODER_OPTIONS
from stages.experts.models.ecg.stmem import SOUP_GEOMETRY
from stages.heads import EnsembleHeads, TaskSpec
from stages.ingest import IngestSettings
from stages.posttrain import PosttrainPaths, PosttrainSettings
from stages.posttrain import run as posttrain
from stages.posttrain.cohort import share_of_patients
from stages.pretrain import PretrainPaths, PretrainSettings
from stages.pretrain import run as pretrain
from stages.training.settings import LoopSettings

VARIANTS = {"stmem": "ST-MEM", "ipastmem": "IPASTMEM"}
RANDOM = "random"
ROTATIONS = 5
PRETRAINING = LoopSettings(
    epochs=8, batch_size=16, learning_rate=2e-3, weight_decay=0.01, betas=(0.9, 0.95), warmup_epochs=0.5,
    clip_norm=1.0, checkpoint_seconds=20,
)  # fmt: skip
FINETUNING = LoopSettings(
    epochs=12, batch_size=32, learning_rate=5e-4, min_learning_rate=1e-5, weight_decay=0.05, checkpoint_seconds=1e9
)


@dataclass(frozen=True)
class Sizes:
    """How small everything is."""

    records: int = 4000
    fraction: float = 0.1
    """Share of the generated cohort's training patients that post-training sees labels of."""
    network: tuple[tuple[str, Any], ...] = (
        *(("width", 64), ("depth", 4), ("heads", 1), ("dim_head", 32), ("mlp_dim", 128), ("patch_size", 100)),
        *(("decoder_embed_dim", 32), ("decoder_depth", 1), ("decoder_num_heads", 1), ("decoder_dim_head", 32)),
        *(("mlp_ratio", 2.0), ("mask_ratio", 0.5)),
    )
    pretraining: LoopSettings = PRETRAINING
    finetuning: LoopSettings = FINETUNING

    @property
    def config(self) -> dict[str, Any]:
        """The network under the official names."""
        return dict(self.network)

    @property
    def encoder(self) -> dict[str, Any]:
        """What loading needs; the rest follows from the weights."""
        return {key: self.config[key] for key in ("heads", "dim_head")}


@dataclass(frozen=True)
class Arm:
    """One way to adapt; `change` is laid over the post-training settings."""

    title: str
    change: tuple[tuple[str, Any], ...]
    longer: float = 1
    fraction: float = 1
    """Share of the training patients that the cohort allows."""
    backbone: str = "stmem"


ARMS = {
    "plain": Arm("plain fine-tuning", (("probing", False), ("drop_path", 0.0))),
    "probing": Arm("probing, no stochastic depth", (("drop_path", 0.0),)),
    "depth": Arm("stochastic depth 0.5, no probing", (("probing", False), ("drop_path", 0.5))),
    "full": Arm("full strategy: probing, stochastic depth 0.5", (("drop_path", 0.5),)),
    "mild": Arm("probing, stochastic depth 0 to 0.2, linear", (("drop_path", 0.2), ("drop_path_schedule", "linear"))),
}
LONG_ARMS = {
    f"{arm}-long": replace(ARMS[arm], title=f"{ARMS[arm].title}, 40 epochs", longer=10 / 3) for arm in ("plain", "full")
}
"""On the rotated folds alone."""
MIXES = {"last": "last layer", "ppa": "PPA", "pma": "PMA"}


@dataclass(frozen=True)
class Cohort:
    """A cohort's folder, and its table of records for a seed: rotated tables differ in their splits alone."""

    name: str
    title: str
    folder: Path
    task: str
    fraction: float
    rotated: bool = False

    @property
    def arms(self) -> dict[str, Arm]:
        """What is tried on it."""
        return {**ARMS, **LONG_ARMS} if self.rotated else ARMS

    def records(self, seed: int) -> Path:
        """Return the table of a seed."""
        return self.folder / (f"records-{seed % ROTATIONS}.parquet" if self.rotated else "records.parquet")


def take(cohort: Cohort, source: str, path: Path) -> None:
    """Ingest a cohort into its folder."""
    cohort.folder.mkdir(parents=True, exist_ok=True)
    settings = IngestSettings(source=source, path=str(path))
    ingest.run(settings, ingest.IngestPaths(cohort.records(0), cohort.folder / "signals.zarr"))


class Bench:
    """Runs, each done once and kept.

    A run gives {what: predictions [test record, class]}, and `rows`, their records.
    """

    def __init__(self, folder: Path, sizes: Sizes) -> None:
        self.folder, self.sizes = folder, sizes
        self._layers: dict[tuple[Path, str, int], tuple[np.ndarray, np.ndarray]] = {}

    def pretraining_records(self, seed: int) -> Path:  # noqa: ARG002
        """Return the table whose training split the backbone of a seed learns from; its signals lie beside it."""
        return self.folder / "generated" / "records.parquet"

    def backbone(self, variant: str, seed: int) -> Path:
        """Pretrain on the training patients of the seed's table; return the weights."""
        digest = fingerprint({"pretraining": asdict(self.sizes.pretraining), "network": self.sizes.config})[:8]
        records, name = self.pretraining_records(seed), f"stmem+{variant}-{seed}-{digest}"
        study = records.parent
        weights = study / "weights" / "versions" / name / "model.safetensors"
        if not weights.is_file():
            print(f"pretraining {name}", flush=True)
            loop = replace(self.sizes.pretraining, seed=seed)
            with chdir(study):
                paths = PretrainPaths(Path(records.name), Path("signals.zarr"), Path(".ensemble"))
                found = pretrain(
                    PretrainSettings(name, "stmem", loop, variant=variant, config=self.sizes.config), paths
                )
            last = found.history.epochs[-1]
            np.save(weights.parent / "losses.npy", [last["loss"], last.get("validation_loss", np.nan)])
        return weights

    def tuned(self, cohort: Cohort, arm: str, seed: int) -> dict[str, np.ndarray]:
        """Post-train one arm: `tuned`, and `probe`, the same in all arms."""
        chosen = cohort.arms[arm]
        fraction = cohort.fraction * chosen.fraction
        loop = replace(self.sizes.finetuning, epochs=round(chosen.longer * self.sizes.finetuning.epochs))

        def run() -> dict[str, np.ndarray]:
            settings = PosttrainSettings(
                f"stmem+{arm}-{cohort.name}-{seed}",
                "stmem",
                cohort.task,
                loop,
                preprocessing="soup",
                select="last",
                fractions=(fraction,),
                seeds=(seed,),
                **self._start(chosen.backbone, seed),
                **dict(chosen.change),
            )
            with chdir(cohort.folder):
                paths = PosttrainPaths(cohort.records(seed), cohort.folder / "signals.zarr", Path(".ensemble"))
                found = posttrain(settings, paths)
            n_train = np.array(found.runs[0]["n_train"])
            predicted = {"tuned": found.predictions[0], "probe": found.probe_predictions[0]}
            return {"rows": found.test_rows, "n_train": n_train, **predicted}

        return self._once(f"{cohort.name}-{arm}-{seed}", [fraction, arm, chosen.change], run)

    def _start(self, variant: str, seed: int) -> dict[str, Any]:
        if variant == RANDOM:
            return {"start": "random", "config": self._random_config()}
        return {"weights": self.backbone(variant, seed), "config": self.sizes.encoder}

    def mixes(self, cohort: Cohort, variant: str, seed: int) -> dict[str, np.ndarray]:
        """Fit the linear head on the frozen backbone's layers, mixed in each way."""

        def run() -> dict[str, np.ndarray]:
            records = open_records(cohort.records(seed))
            target = records.attrs["targets"][cohort.task]
            y = target_array(records, target)
            labelled = np.isfinite(y).all(1) if y.ndim > 1 else y >= 0
            rows = np.flatnonzero((records["status"] == "ok").to_numpy() & labelled)
            chosen = records.iloc[rows]
            split = chosen["split"].to_numpy()
            train, *rest = (np.flatnonzero(split == name) for name in ("train", "val", "test"))
            patients = chosen["patient_id"].to_numpy()
            splits = [(train[share_of_patients(patients[train], cohort.fraction, seed)], *rest)]
            layers = self._pooled(cohort, variant, seed)[rows]
            features = {"stmem": {"layers": layers[:, 1:], "embed": layers[:, 0]}}
            spec = TaskSpec(target.name, target.kind, target.classes)
            found = {"rows": rows[splits[0][2]], "n_train": np.array(len(splits[0][0]))}
            for kind in MIXES:
                heads = EnsembleHeads(layer_mix=kind, lora=False, gate_epochs=0, inner_folds=0, seed=seed)
                heads.fit(features, {target.name: y[rows]}, [spec], splits=splits)
                found[kind] = heads.predict_proba(features)[target.name][splits[0][2]]
            return found

        return self._once(f"{cohort.name}-mixes-{variant}-{seed}", [cohort.fraction, variant], run)

    def _pooled(self, cohort: Cohort, variant: str, seed: int) -> np.ndarray:
        """Layers of every record, [record, layer, width]; layer 0 is the tokens before the first block."""
        path = cohort.folder / "layers" / f"{variant}-{seed}-{fingerprint(asdict(self.sizes))[:8]}.npy"
        if not path.is_file():
            expert = self._expert(variant, seed)
            signals = open_signals(cohort.folder / "signals.zarr")
            parts = []
            for start in range(0, len(signals), 64):
                x = expert.prepare(signals.read_mv(slice(start, min(start + 64, len(signals)))), 500)
                with torch.inference_mode():
                    parts.append(np.asarray(expert.encode(x[:, 0]).layers))
            path.parent.mkdir(exist_ok=True)
            np.save(path, np.concatenate(parts))
        return np.asarray(np.load(path))

    def _expert(self, variant: str, seed: int) -> Expert:
        if variant != RANDOM:
            return load_expert("stmem", self.backbone(variant, seed), self.sizes.encoder, preprocessing="soup")
        torch.manual_seed(seed)
        return load_expert("stmem", config=self._random_config(), preprocessing="soup", random_weights=True)

    def _random_config(self) -> dict[str, Any]:
        return {**SOUP_GEOMETRY, **{k: v for k, v in self.sizes.config.items() if k in ENCODER_OPTIONS}}

    def _once(self, name: str, made_from: Any, run: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        digest = fingerprint({"sizes": asdict(self.sizes), "made_from": repr(made_from)})[:8]
        path = self.folder / "runs" / f"{name}-{digest}.npz"
        if not path.is_file():
            print(f"running {name}", flush=True)
            path.parent.mkdir(exist_ok=True)
            found = run()
            with open(partial := path.with_suffix(".partial"), "wb") as file:
                np.savez(file, allow_pickle=False, **found)
            partial.rename(path)
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
