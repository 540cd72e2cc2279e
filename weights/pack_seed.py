"""Put trained versions into the package: `python -m weights.pack_seed [--expert seed-ssl] VERSION ... --records FILE`.

Each VERSION is a folder such as build/seed/encoders/all/weights/versions/seed+ptbxl; they stand side by side. Of a
version that labels taught, the trained head becomes the network's readout, so that it says what it was trained to say.
Writes the weights (float16) and the keyed hashes of the patients that they have seen beside the experts' code, and
prints what the expert's `Release` has to say of them.
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import BatchNorm1d

from cache.fingerprint import canonical_json, file_digest
from cache.patients import patient_digests
from cache.records import Target, open_records
from stages.experts import expert_class
from stages.experts.checkpoints import PACKAGE_FOLDER


def main() -> None:
    """Read the versions named on the command line, and write the package's files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("versions", type=Path, nargs="+")
    parser.add_argument("--records", type=Path, required=True, help="records.parquet that the versions learnt from")
    parser.add_argument("--out", type=Path, default=PACKAGE_FOLDER)
    parser.add_argument("--expert", choices=("seed", "seed-ssl"), default="seed")
    options = parser.parse_args()
    release = expert_class(options.expert)[0].release
    tensors, facts = {}, []
    for member, folder in enumerate(options.versions):
        network = load_file(folder / "model.safetensors")
        if release.options.logits:
            made = readout(load_file(folder / "head.safetensors"))
            network |= {f"readouts.0.{name}": value for name, value in made.items()}
        for key, value in network.items():
            name = key.replace("s.0.", f"s.{member}.", 1)  # members.0., readouts.0.
            tensors[name] = value.half() if value.is_floating_point() else value
        facts.append(json.loads((folder / "version.json").read_text()))
    records = open_records(options.records)
    joined = {**facts[0], "curves": [each["curve"] for each in facts], "members": len(facts)}
    if release.options.logits:
        joined["logits"] = names_of(records.attrs["targets"][name] for name in facts[0]["task"].split(","))
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / release.weights_file
    save_file(tensors, path, metadata={"ensemble": canonical_json(joined)})
    path.chmod(0o644)
    seen = patient_digests(records[records["split"] == "train"], release.patients_key)
    np.save(options.out / release.patients_file, seen, allow_pickle=False)
    learnt = sum(v.numel() for k, v in tensors.items() if not k.endswith(("running_mean", "running_var", "tracked")))
    print(f'sha256="{file_digest(path)}"\nparameters={learnt:_}\nmembers: {len(facts)}; {len(seen)} patients')


def names_of(targets: Iterable[Target]) -> list[str]:
    """Name what a network says, in the order of its logits: of a regression the task, of classes task and class.

    Examples
    --------
    >>> names_of([Target("age", "regression", unit="years"), Target("sex", "binary", classes=("male", "female"))])
    ['age', 'sex female']
    """
    found = []
    for target in targets:
        classes = target.classes[1:] if target.kind == "binary" else target.classes
        found += [f"{target.name} {name}" for name in classes] or [target.name]
    return found


def readout(head: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Make one linear map of a trained `JointHead` of one network, whose batch normalisation stands still.

    Returns
    -------
    float32 `weight` [logits, width] and `bias` [logits].
    """
    weight, bias = (head[f"linears.0.{name}"].double() for name in ("weight", "bias"))
    mean, variance, gain, offset = (
        head[f"norm.{name}"].double() for name in ("running_mean", "running_var", "weight", "bias")
    )
    slope = gain / (variance + BatchNorm1d(1).eps).sqrt()
    return {"weight": (weight * slope).float(), "bias": (bias + weight @ (offset - mean * slope)).float()}


if __name__ == "__main__":
    main()
