"""Experts of other packages for tests: the worked example of docs/adding-an-expert.md, installed as pip would."""

import re
import sys
from pathlib import Path

import pytest

DOC = Path(__file__).parents[2] / "docs/adding-an-expert.md"


def example_files() -> dict[str, str]:
    """Return the files that the page shows: a code block behind each `FILE:` line."""
    return dict(re.findall(r"^`([\w./-]+)`:\n+```\w+\n(.*?)^```", DOC.read_text(), re.MULTILINE | re.DOTALL))


def example_code(**changes: str) -> str:
    """Return the page's expert, after `changes`: name of a part in `PARTS` -> what stands in its place."""
    code = example_files()["ensemble_band_power.py"]
    for part, replacement in changes.items():
        assert PARTS[part] in code, f"the page no longer holds {PARTS[part]!r}"
        code = code.replace(PARTS[part], replacement)
    return code


PARTS = {
    "prepare": "        signals = np.nan_to_num(np.asarray(signals_mv, dtype=np.float64))\n",
    "encode": "        features = x.flatten(1).to(self.device)\n",
    "bands": "BANDS_HZ = ((0.5, 5.0), (5.0, 15.0), (15.0, 40.0), (40.0, 100.0))\n",
    "widths": "            layer_dims=(WIDTH,),\n            embedding_dim=WIDTH,\n",
}
"""Parts of the page's code that tests put something else in the place of."""


def install(site: Path, code: str, monkeypatch: pytest.MonkeyPatch, *, name: str = "band-power") -> None:
    """Put a package with one expert where this process finds it; the module goes with the test."""
    module = f"installed_{name.replace('-', '_')}"
    facts = site / f"{module}-1.0.dist-info"
    facts.mkdir(parents=True, exist_ok=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    [cls] = re.findall(r"^class (\w+)\(", code, re.MULTILINE)
    (facts / "entry_points.txt").write_text(f"[ensemble.experts]\n{name} = {module}:{cls}\n")
    (site / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, module, raising=False)


FOLDER_EXPERT = """
import json
import torch
from safetensors.torch import load_file
from stages.experts import Encoding, Expert, ExpertSpec, WeightsSource
from stages.experts.checkpoints import load_strict

class Folder(Expert):
    @classmethod
    def published_spec(cls, variant=None):
        return ExpertSpec(
            name="folder", title="A linear map", version="1", source="a test", sampling_rate_hz=500.0, seconds=10.0,
            leads=("I",), normalisation="none", layer_names=("map",), layer_dims=(4,), embedding_dim=4, licence="MIT",
            parameters=0, weights=WeightsSource("lab/folder", "model.safetensors", "main", companions=("config.json",)),
        )

    @classmethod
    def build(cls, config, state, *, variant=None, preprocessing=None):
        expert = cls(preprocessing=preprocessing)
        expert.module = torch.nn.Linear(config["n_in"], 4)
        load_strict(expert.module, state, expert="folder")
        expert.spec = cls.published_spec(variant)
        return expert

    @classmethod
    def build_from_path(cls, path, config, *, variant=None, preprocessing=None):
        options = json.loads((path.parent / "config.json").read_text())
        return cls.build(options, load_file(path), variant=variant, preprocessing=preprocessing)

    def prepare(self, signals_mv, rate_hz):
        n = self.module.in_features
        return torch.nan_to_num(torch.as_tensor(signals_mv)[:, 0, :n].float())[:, None]

    def encode(self, x, mask=None):
        y = self.module(x)
        return Encoding(y[:, None], y)
"""
"""An expert whose network is described by a second file of its hub repository."""
