"""Every registered expert that the official fixtures know reproduces them, without a line of its own here."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from stages.experts import list_experts, load_expert

EMBEDDING_TOLERANCE, FORECAST = 1e-5, "out/y"


def read(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    with safe_open(path, "pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def model_input(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Channels before time; decomposed parts stacked as channels."""
    x = tensors["in/x"]
    if {"in/trend", "in/season", "in/noise"} <= tensors.keys():
        return torch.stack([tensors[f"in/{part}"].squeeze(-1) for part in ("x", "trend", "season", "noise")], dim=1)
    return x.transpose(1, 2) if x.ndim == 3 and x.shape[1] > x.shape[2] else x


@pytest.mark.parametrize("name", list_experts())
def test_an_expert_gives_the_official_embedding(name, parity_dir, tmp_path):
    path = parity_dir / f"{name}-a.safetensors"
    if not path.is_file():
        pytest.skip(f"no official fixture {path.name}")
    metadata, tensors = read(path)
    state = {key.removeprefix("state/"): value for key, value in tensors.items() if key.startswith("state/")}
    save_file(state, tmp_path / "weights.safetensors")
    expert = load_expert(name, tmp_path / "weights.safetensors", json.loads(metadata["config"]))
    mask = next((tensors[key] for key in ("in/input_mask", "in/attention_mask") if key in tensors), None)
    with torch.inference_mode():
        encoding = expert.encode(model_input(tensors), mask=mask)
    expected = tensors.get("out/embedding", tensors.get(FORECAST))
    assert expected is not None
    torch.testing.assert_close(encoding.embedding, expected.flatten(1), rtol=0, atol=EMBEDDING_TOLERANCE)
    assert len(expert.spec.layer_names) == len(
        encoding.layers if isinstance(encoding.layers, list) else encoding.layers[0]
    )
