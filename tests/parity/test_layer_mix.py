"""LayerMix and the probe head against the official ECG-Soup code."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cache.errors import UsageError
from stages.heads import LayerMix, ProbeHead

TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}


def _norm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"norm.weight": state["state/norm.weight"], "norm.bias": state["state/norm.bias"]}


def _gate(state: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = "state/gating.net."
    return {f"gate.{k.removeprefix(prefix)}": v for k, v in state.items() if k.startswith(prefix)}


def _probe_logits(state: dict[str, Tensor], z: Tensor) -> Tensor:
    head = ProbeHead(z.shape[1], 5)
    prefix = "state_probe/head."
    head.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    return head.eval()(z)


@pytest.mark.parametrize("name", ["soup-ppa-a", "soup-pma-a"])
def test_last_is_the_official_baseline(parity_dir: Path, name: str) -> None:
    t = load_file(parity_dir / f"{name}.safetensors")
    mix = LayerMix("last", *t["out/u"].shape[1:])
    mix.load_state_dict(_norm(t))
    torch.testing.assert_close(mix(t["out/u"]), t["out/baseline_z"], **TOLERANCE)


def test_ppa_reproduces_the_official_output(parity_dir: Path) -> None:
    t = load_file(parity_dir / "soup-ppa-a.safetensors")
    mix = LayerMix("ppa", *t["out/u"].shape[1:])
    mix.load_state_dict(_norm(t))
    torch.testing.assert_close(mix.pool(t["out/u"]), t["out/z_pre_norm"], **TOLERANCE)
    z = mix(t["out/u"])
    torch.testing.assert_close(z, t["out/z"], **TOLERANCE)
    torch.testing.assert_close(_probe_logits(t, z), t["out/logits_probe_head"], **TOLERANCE)


def test_pma_reproduces_official_weights_and_output(parity_dir: Path) -> None:
    t = load_file(parity_dir / "soup-pma-a.safetensors")
    mix = LayerMix("pma", *t["out/u"].shape[1:]).eval()
    mix.load_state_dict(_gate(t) | _norm(t))
    torch.testing.assert_close(mix.weights(t["out/gate_input"]), t["out/gate_weights"], **TOLERANCE)
    z = mix(t["out/u"], t["out/gate_input"])
    torch.testing.assert_close(z, t["out/z"], **TOLERANCE)
    logits = z @ t["state/head.weight"].T + t["state/head.bias"]
    torch.testing.assert_close(logits, t["out/logits"], **TOLERANCE)
    torch.testing.assert_close(_probe_logits(t, z), t["out/logits_probe_head"], **TOLERANCE)


def test_the_published_gate_has_232844_parameters() -> None:
    gate = LayerMix("pma", n_layers=12, dim=768).gate
    assert gate is not None
    assert sum(p.numel() for p in gate.parameters()) == 232_844


def test_ppa_and_last_have_no_parameters_but_the_norm() -> None:
    for kind in ("last", "ppa"):
        assert {n for n, _ in LayerMix(kind, 4, 8).named_parameters()} == {"norm.weight", "norm.bias"}


def test_fixed_weights_are_what_the_mixture_uses() -> None:
    layers, embed = torch.randn(3, 4, 8), torch.randn(3, 8)
    for kind in ("last", "ppa", "pma"):
        mix = LayerMix(kind, 4, 8).eval()
        expected = mix.norm((mix.weights(embed)[..., None] * layers).sum(1))
        torch.testing.assert_close(mix(layers, embed), expected)


def test_wrong_shapes_and_kinds_are_named() -> None:
    with pytest.raises(UsageError, match="'mean' is none of last, ppa, pma"):
        LayerMix("mean", 4, 8)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"\[3, 5, 8\], expected \[batch, 4, 8\]"):
        LayerMix("ppa", 4, 8)(torch.randn(3, 5, 8))
    with pytest.raises(UsageError, match="needs embed"):
        LayerMix("pma", 4, 8)(torch.randn(3, 4, 8))
