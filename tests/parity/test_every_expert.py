"""Every registered expert that the official fixtures know reproduces them, without a line of its own here."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from stages.experts import list_experts, load_expert
from tests.stages.small_experts import RATE_HZ, records, small_expert

EMBEDDING_TOLERANCE, FORECAST = 1e-5, "out/y"
FIXTURES = {"mantis-v2": "mantis2", "merl": "merl-resnet", "clef-medium": "clef", "clef-large": "clef"}
"""Fixtures of another name than the expert's."""


def read(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    with safe_open(path, "pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def model_input(tensors: dict[str, torch.Tensor], *, time_first: bool) -> torch.Tensor:
    """Channels before time where the expert has them so; decomposed parts stacked as channels."""
    x = tensors["in/x"]
    if {"in/trend", "in/season", "in/noise"} <= tensors.keys():
        return torch.stack([tensors[f"in/{part}"].squeeze(-1) for part in ("x", "trend", "season", "noise")], dim=1)
    return x.transpose(1, 2) if x.ndim == 3 and x.shape[1] > x.shape[2] and not time_first else x


def gives_time_first(name: str) -> bool:
    """Whether `prepare` gives [batch, window, time, lead], as xECG's authors do."""
    shape = small_expert(name).prepare(records(1), RATE_HZ).shape
    return len(shape) == 4 and shape[2] > shape[3]


@pytest.mark.parametrize("name", list_experts())
def test_an_expert_gives_the_official_embedding(name, parity_dir, tmp_path):
    path = parity_dir / f"{FIXTURES.get(name, name)}-a.safetensors"
    if not path.is_file():
        pytest.skip(f"no official fixture {path.name}")
    metadata, tensors = read(path)
    state = {key.removeprefix("state/"): value for key, value in tensors.items() if key.startswith("state/")}
    save_file(state, tmp_path / "weights.safetensors")
    expert = load_expert(name, tmp_path / "weights.safetensors", json.loads(metadata["config"]))
    mask = next((tensors[key] for key in ("in/input_mask", "in/attention_mask") if key in tensors), None)
    with torch.inference_mode():
        encoding = expert.encode(model_input(tensors, time_first=gives_time_first(name)), mask=mask)
    expected = tensors.get("out/embedding", tensors.get(FORECAST))
    assert expected is not None
    torch.testing.assert_close(encoding.embedding, expected.flatten(1), rtol=0, atol=EMBEDDING_TOLERANCE)
    assert len(expert.spec.layer_names) == len(
        encoding.layers if isinstance(encoding.layers, list) else encoding.layers[0]
    )
