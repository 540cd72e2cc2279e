"""Put trained versions into the package: `python -m weights.pack_seed [--expert seed-ssl] VERSION ... --records FILE`.

Each VERSION is a folder such as build/seed/encoders/0/weights/versions/seed+ptbxl; they stand side by side. Writes
the weights (float16) and the keyed hashes of the patients that they have seen beside the experts' code, and prints what
the expert's `Release` has to say of them.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file

from cache.fingerprint import canonical_json, file_digest
from cache.patients import patient_digests
from cache.records import open_records
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
        for key, value in load_file(folder / "model.safetensors").items():
            tensors[key.replace("members.0.", f"members.{member}.", 1)] = (
                value.half() if value.is_floating_point() else value
            )
        facts.append(json.loads((folder / "version.json").read_text()))
    joined = {**facts[0], "curves": [each["curve"] for each in facts], "members": len(facts)}
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / release.weights_file
    save_file(tensors, path, metadata={"ensemble": canonical_json(joined)})
    path.chmod(0o644)
    records = open_records(options.records)
    seen = patient_digests(records[records["split"] == "train"], release.patients_key)
    np.save(options.out / release.patients_file, seen, allow_pickle=False)
    learnt = sum(v.numel() for k, v in tensors.items() if not k.endswith(("running_mean", "running_var", "tracked")))
    print(f'sha256="{file_digest(path)}"\nparameters={learnt:_}\nmembers: {len(facts)}; {len(seen)} patients')


if __name__ == "__main__":
    main()
