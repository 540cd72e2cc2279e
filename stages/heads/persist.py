"""The files of a fit: config.json, heads.safetensors, out_of_sample.safetensors, decisions, adapter/ (peft).

Lives here: writing and reading them, and the torch module that the adapter belongs to. Nothing is pickled; base weights
are in heads.safetensors beside the adapters, so that loading needs no random state and no peft.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from cache.errors import MissingFileError, StoreError, UsageError
from stages.heads.decisions.answers import Decisions
from stages.heads.expert_head import FoldHead
from stages.heads.fold_model import FoldModel
from stages.heads.gate.hierarchy import FoldHierarchy
from stages.heads.gate.inputs import InputScale
from stages.heads.gate.reader import FoldReader
from stages.heads.gate.weights import FoldGate
from stages.heads.inputs.scaler import RobustScaler
from stages.heads.predictor import FittedHeads
from stages.heads.targets.tasks import TaskSpec, layout

E = TypeVar("E", bound=FittedHeads)
FORMAT = "ensemble-heads"
SCHEMA = 1
HEAD_ARRAYS = ("centre", "weight", "bias", "lora_a", "lora_b", "temperature", "projection")
WHERE = ("device", "memory_gb")
"""Parameters that say where a fit was computed, and nothing of what it is."""
READER_ARRAYS = ("weight", "bias", "share")
HIERARCHY_ARRAYS = ("weight", "bias")
MODEL_ARRAYS = ("temperature", "target_centre", "target_scale", "interval")


def save(heads: FittedHeads, folder: Path) -> Path:
    """Write a fit into `folder` (made if need be; an earlier fit in it is replaced)."""
    models = heads._fitted()  # noqa: SLF001
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "adapter", ignore_errors=True)
    arrays: dict[str, np.ndarray] = {}
    for f, model in enumerate(models):
        arrays |= {f"fold{f}/{k}": v for k, v in _model_arrays(model).items()}
    for name, mixers in heads.mixers_.items():
        for f, mixer in enumerate(mixers):
            arrays |= {f"fold{f}/mixer/{name}/{k}": v.numpy() for k, v in mixer.state_dict().items()}
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, folder / "heads.safetensors")
    heads.out_of_sample_.save(folder)
    heads.decisions_.save(folder)
    if heads.lora:
        _save_adapter(heads, folder / "adapter")
    (folder / "config.json").write_text(json.dumps(_config(heads), indent=2, sort_keys=True) + "\n")
    for path in folder.rglob("*.safetensors"):  # safetensors makes them readable by the owner alone
        path.chmod((folder / "config.json").stat().st_mode)
    return folder


def _config(heads: FittedHeads) -> dict[str, Any]:
    kept = {k: v for k, v in heads.get_params().items() if k not in WHERE}
    params = {k: list(v) if isinstance(v, tuple) else v for k, v in kept.items()}
    return {
        "format": FORMAT,
        "schema": SCHEMA,
        "params": params,
        "tasks": [t.to_dict() for t in heads.tasks_],
        "experts": list(heads.experts_),
        "skipped": heads.skipped_,
        "n_folds": len(heads.models_),
        "scaling": heads.alpha / heads.rank,
        "history": heads.history_,
        "provenance": heads.provenance_,
    }


def _model_arrays(model: FoldModel) -> dict[str, np.ndarray]:
    arrays = {f"model/{k}": getattr(model, k) for k in MODEL_ARRAYS}
    for name, head in model.heads.items():
        arrays |= {f"expert/{name}/{k}": getattr(head, k) for k in HEAD_ARRAYS}
        arrays |= {f"expert/{name}/scaler/{k}": v for k, v in head.scaler.state().items()}
    arrays |= {f"gate/{k}": v for k, v in model.gate.arrays.items()}
    arrays["gate_active"] = model.gate.active
    if model.reader is not None:
        arrays |= {f"reader/{k}": getattr(model.reader, k) for k in READER_ARRAYS}
    if model.hierarchy is not None:
        arrays |= {f"hierarchy/{k}": getattr(model.hierarchy, k) for k in HIERARCHY_ARRAYS}
    if model.hazards is not None:
        arrays["model/hazards"] = model.hazards
    if model.signal_scale is not None:
        arrays |= {"signal/mean": model.signal_scale.mean, "signal/sd": model.signal_scale.sd}
    return arrays


def load(cls: type[E], folder: Path) -> E:
    """Read a fit from `folder`."""
    config, arrays = _read(folder)
    params = dict(config["params"])
    for key in ("strengths", "gate_input"):
        if isinstance(params[key], list):
            params[key] = tuple(params[key])
    heads = cls(**params)
    heads.tasks_ = tuple(TaskSpec(**t) for t in config["tasks"])
    heads.blocks_ = layout(heads.tasks_)
    heads.experts_ = tuple(config["experts"])
    heads.skipped_, heads.history_ = config["skipped"], config["history"]
    heads.provenance_, heads.mixers_ = config["provenance"], {}
    heads._out_of_sample, heads._folder = None, folder
    heads.decisions_ = Decisions.load(folder)
    try:
        heads.models_ = [
            _model(_below(arrays, f"fold{f}/"), heads.experts_, float(config["scaling"]), heads.top_k)
            for f in range(config["n_folds"])
        ]
        if any("/mixer/" in k for k in arrays):
            from stages.heads.layers.trained_mix import TrainedMix

            heads.mixers_ = {
                name: [
                    TrainedMix.from_arrays(_below(arrays, f"fold{f}/mixer/{name}/")) for f in range(config["n_folds"])
                ]
                for name in heads.experts_
                if any(k.startswith(f"fold0/mixer/{name}/") for k in arrays)
            }
    except KeyError as error:
        raise StoreError(f"{folder}/heads.safetensors: no array {error}; fit the heads again") from error
    return heads


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    for name in ("config.json", "heads.safetensors"):
        if not (folder / name).is_file():
            raise MissingFileError(f"{folder}: no {name}, so this is no saved fit; run `ensemble fit-heads` first")
    try:
        config = json.loads((folder / "config.json").read_text())
        arrays = load_file(folder / "heads.safetensors")
    except (json.JSONDecodeError, SafetensorError) as error:
        raise StoreError(f"{folder}: damaged fit ({str(error).splitlines()[0]}); fit the heads again") from error
    if config.get("format") != FORMAT or config.get("schema") != SCHEMA:
        found = f"{config.get('format')} {config.get('schema')}"
        raise StoreError(f"{folder}/config.json: format {found}, expected {FORMAT} {SCHEMA}; fit the heads again")
    return config, arrays


def _below(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def _model(arrays: dict[str, np.ndarray], experts: tuple[str, ...], scaling: float, top_k: int) -> FoldModel:
    heads = {}
    for name in experts:
        of_expert = _below(arrays, f"expert/{name}/")
        scaler = RobustScaler(**_below(of_expert, "scaler/"))
        heads[name] = FoldHead(scaler=scaler, scaling=scaling, **{k: of_expert[k] for k in HEAD_ARRAYS})
    signal, reader, hierarchy = (_below(arrays, f"{part}/") for part in ("signal", "reader", "hierarchy"))
    return FoldModel(
        heads,
        FoldGate(_below(arrays, "gate/"), arrays["gate_active"], top_k),
        InputScale(**signal) if signal else None,
        **{k: arrays[f"model/{k}"] for k in MODEL_ARRAYS},
        reader=FoldReader(**reader) if reader else None,
        hazards=arrays.get("model/hazards"),
        hierarchy=FoldHierarchy(**hierarchy) if hierarchy else None,
    )


class HeadModule(nn.Module):
    """The frozen probes as one torch module: what `adapter/` is an adapter of.

    `heads[fold][expert][task]` is Linear(d, outputs) on that expert's standardised features (`FoldHead.standardise`);
    dots in names are written as "_". `peft.PeftModel.from_pretrained(HeadModule.of(fit), folder / "adapter")` loads it.
    """

    def __init__(self, heads: nn.ModuleDict) -> None:
        super().__init__()
        self.heads = heads

    @classmethod
    def of(cls, fit: FittedHeads) -> HeadModule:
        """Build from a fit, base weights in place."""
        folds = nn.ModuleDict()
        for f, model in enumerate(fit._fitted()):  # noqa: SLF001
            experts = nn.ModuleDict()
            for name, head in model.heads.items():
                experts[module_name(name)] = nn.ModuleDict(
                    {
                        module_name(b.task.name): _linear(head.weight[b.columns], head.bias[b.columns])
                        for b in fit.blocks_
                    }
                )
            folds[f"fold{f}"] = experts
        return cls(folds)

    def forward(self, features: dict[str, Tensor], fold: int = 0) -> dict[str, dict[str, Tensor]]:
        """Uncalibrated logits, expert -> task -> [n, outputs], of standardised features [n, d] per expert."""
        experts = self.heads[f"fold{fold}"]
        assert isinstance(experts, nn.ModuleDict)
        out: dict[str, dict[str, Tensor]] = {}
        for name, x in features.items():
            tasks = experts[module_name(name)]
            assert isinstance(tasks, nn.ModuleDict)
            out[name] = {task: linear(x) for task, linear in tasks.items()}
        return out


def module_name(name: str) -> str:
    """Name of an expert or task as a torch module's."""
    return f"m_{name.replace('.', '_')}"


def _linear(weight: np.ndarray, bias: np.ndarray) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight.data = torch.from_numpy(weight.copy())
    linear.bias.data = torch.from_numpy(bias.copy())
    return linear


def _save_adapter(heads: FittedHeads, folder: Path) -> None:
    """Put the trained A and B into a peft model of the same base, and let peft write them."""
    import peft

    base = HeadModule.of(heads)
    names = [n for n, m in base.named_modules() if isinstance(m, nn.Linear)]
    if len(set(names)) != len(heads.models_) * len(heads.experts_) * len(heads.tasks_):
        raise UsageError("two experts or tasks have names that differ only by '.' and '_'; rename one")
    config = peft.LoraConfig(r=heads.rank, lora_alpha=heads.alpha, target_modules=names, lora_dropout=0.0, bias="none")
    model = peft.get_peft_model(base, config)
    for f, fold in enumerate(heads.models_):
        for name, head in fold.heads.items():
            for t, block in enumerate(heads.blocks_):
                path = f"heads.fold{f}.{module_name(name)}.{module_name(block.task.name)}"
                layer: Any = base.get_submodule(path)
                layer.lora_A["default"].weight.data = torch.from_numpy(head.lora_a[t].copy())
                layer.lora_B["default"].weight.data = torch.from_numpy(head.lora_b[block.columns].copy())
    model.save_pretrained(str(folder))
    tidy_adapter(folder)


def tidy_adapter(folder: Path) -> None:
    """Make a folder that peft wrote the same for the same adapter."""
    (folder / "README.md").unlink(missing_ok=True)
    # peft writes a set in the order of this process's string hashes
    written = folder / "adapter_config.json"
    content = json.loads(written.read_text())
    content["target_modules"] = sorted(content["target_modules"])
    written.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
