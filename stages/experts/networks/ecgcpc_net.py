"""ECG-CPC's network: four convolutions and state-space layers (S4, normal plus low rank), under the official key names.

Lives here: options, what a state dict says about them, the network. Not here: signals and the published facts
(`models.ecg.ecgcpc`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.onednn import convolution_pays, linear_as_convolution

ENCODER, PREDICTOR = "ts_encoder.encoder.layers", "ts_encoder.predictor.predictor"


@dataclass(frozen=True)
class EcgCpcOptions:
    """Architecture under the official names (of `base`, `enc` and `pred`); the defaults are the published ones."""

    input_channels: int = 12
    features: tuple[int, ...] = (512, 512, 512, 512)
    kss: tuple[int, ...] = (3, 1, 1, 1)
    strides: tuple[int, ...] = (2, 1, 1, 1)
    model_dim: int = 512
    causal: bool = True
    """Whether tokens see what lies before them alone; else a second kernel runs backwards."""
    state_dim: int = 8
    layers: int = 4
    l_max: int = 1200
    """Tokens that the kernels are saved for. They hold at any length up to it, and at no other one."""

    @property
    def stride(self) -> int:
        """Samples from one token to the next."""
        return math.prod(self.strides)


def options_from_state(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read off the shapes of an official state dict every option that they determine (all but `strides`)."""
    found: dict[str, Any] = {}
    convolutions: list[tuple[int, ...]] = []
    while (weight := state.get(f"{ENCODER}.{len(convolutions)}.0.weight")) is not None:
        convolutions.append(tuple(weight.shape))
    if convolutions:
        found = {"input_channels": convolutions[0][1]}
        found |= {name: tuple(shape[k] for shape in convolutions) for k, name in ((0, "features"), (2, "kss"))}
    kernel = f"{PREDICTOR}.s4_layers.0.kernel.kernel"
    if f"{kernel}.C" in state:
        channels, found["model_dim"], pairs, _ = state[f"{kernel}.C"].shape
        found |= {"causal": channels == 1, "state_dim": 2 * pairs}
    if f"{kernel}.omega" in state:
        found["l_max"] = 2 * (len(state[f"{kernel}.omega"]) - 1)
    layers = {match[1] for key in state if (match := re.match(rf"{re.escape(PREDICTOR)}\.s4_layers\.(\d+)\.", key))}
    return found | ({"layers": len(layers)} if layers else {})


class EcgCpcStates(NamedTuple):
    """What the network gives for [batch, lead, time]: the convolutions' tokens, and those after each layer.

    Attributes
    ----------
    entering
        [batch, token, features].
    layers
        One [batch, token, model_dim] a layer.
    """

    entering: Tensor
    layers: list[Tensor]


class S4Kernel(nn.Module):
    """The convolution kernel of diagonal plus low-rank state spaces, one a feature, through its generating function.

    Its numbers stay in (at least) float32 whatever the network is cast to: `z` reaches 1e16 at the highest frequency.
    `omega` and `z` are the file's: at that frequency 1 + omega is what rounding left of it.
    """

    def __init__(self, options: EcgCpcOptions) -> None:
        super().__init__()
        width, pairs = options.model_dim, options.state_dim // 2
        self.C = nn.Parameter(torch.randn(1 if options.causal else 2, width, pairs, 2))
        rates = -0.5 + 1j * math.pi * torch.arange(pairs, dtype=torch.float64)
        place = (0.5 * torch.ones(1, width, pairs)).to(torch.complex64)
        steps = torch.arange(options.l_max // 2 + 1, dtype=torch.float64) / options.l_max
        omega = torch.exp(-2j * math.pi * steps)
        self.register_buffer("log_dt", torch.linspace(math.log(1e-3), math.log(1e-1), width))
        self.register_buffer("B", _pairs(2 * place))
        self.register_buffer("P", _pairs(place))
        self.register_buffer("Q", _pairs(place.conj().resolve_conj()))
        self.register_buffer("w", _pairs(rates.repeat(width, 1).to(torch.complex64)))
        self.register_buffer("omega", _pairs(omega.to(torch.complex64)))
        self.register_buffer("z", _pairs((2 * (1 - omega) / (1 + omega)).to(torch.complex64)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> S4Kernel:
        def exact(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            reduced = moved.is_floating_point() and moved.element_size() < tensor.element_size()
            return tensor.to(moved.device) if reduced else moved

        return cast(S4Kernel, super()._apply(exact, recurse))

    def forward(self, n_tokens: int) -> Tensor:
        """Return the kernel's first tokens, [channel, width, token]."""
        names = ("B", "C", "P", "Q", "w", "omega", "z")
        b, c, p, q, w, omega, z = (torch.view_as_complex(self.number(name)) for name in names)
        dt = self.number("log_dt").exp()
        products = torch.cat([b, p])[:, None] * torch.cat([c, q])
        r = resolvent(products, z, w * dt[:, None]) * dt[:, None]
        corrected = r[:1, :-1] - r[:1, -1:] * r[1:, :-1] / (1 + r[1:, -1:])
        return torch.fft.irfft(corrected[0] * (2 / (1 + omega)))[..., :n_tokens]

    def number(self, name: str) -> Tensor:
        """Return a parameter or buffer by its name."""
        return cast(Tensor, getattr(self, name))


def _pairs(values: Tensor) -> Tensor:
    return torch.view_as_real(values).clone()


def resolvent(products: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """Sum v / (z - w) over conjugate pairs: products [row, column, width, pair], z [k], w [width, pair] -> [..., k]."""
    total = torch.einsum("rchn,hnk->rchk", products, 1 / (z - w[..., None]))
    return total + torch.einsum("rchn,hnk->rchk", products.conj(), 1 / (z - w.conj()[..., None]))


class OutputLinear(nn.Module):
    """A linear map over features; the file keeps its bias as a column."""

    def __init__(self, width: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width_out, width) / math.sqrt(width))
        self.bias = nn.Parameter(torch.zeros(width_out, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, token, width] -> [batch, token, width_out]."""
        bias = self.bias[:, 0]
        return linear_as_convolution(x, self.weight, bias) if convolution_pays(x) else F.linear(x, self.weight, bias)


class S4Layer(nn.Module):
    """Convolution with the kernel, a skip, GELU, and a gated linear map."""

    def __init__(self, options: EcgCpcOptions) -> None:
        super().__init__()
        width = options.model_dim
        self.D = nn.Parameter(torch.randn(1, width))
        self.kernel = nn.ModuleDict({"kernel": S4Kernel(options)})
        self.output_linear = nn.Sequential(OutputLinear(width, 2 * width), nn.GLU())

    def forward(self, x: Tensor) -> Tensor:
        """[batch, token, width] -> the same."""
        n_tokens = x.shape[1]
        kernel = self.kernel["kernel"](n_tokens)
        if len(kernel) == 2:
            kernel = F.pad(kernel[0], (0, n_tokens)) + F.pad(kernel[1].flip(-1), (n_tokens, 0))
        else:
            kernel = kernel[0]
        u = x.transpose(1, 2).to(kernel.dtype)
        spectrum = torch.fft.rfft(u, n=2 * n_tokens) * torch.fft.rfft(kernel, n=2 * n_tokens)
        y = torch.fft.irfft(spectrum, n=2 * n_tokens)[..., :n_tokens] + u * self.D[0, :, None].to(u.dtype)
        return self.output_linear(F.gelu(y).transpose(1, 2).to(x.dtype))


class Predictor(nn.Module):
    """State-space layers, each with its residual and a norm behind it."""

    def __init__(self, options: EcgCpcOptions) -> None:
        super().__init__()
        features, width = options.features[-1], options.model_dim
        self.encoder = nn.Linear(features, width) if features != width else nn.Identity()
        self.s4_layers = nn.ModuleList(S4Layer(options) for _ in range(options.layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(options.layers))

    def forward(self, x: Tensor) -> list[Tensor]:
        """[batch, token, features] -> [batch, token, width] after each layer."""
        states, x = [], self.encoder(x)
        for layer, norm in zip(self.s4_layers, self.norms, strict=True):
            x = norm(layer(x) + x)
            states.append(x)
        return states


class EcgCpcNet(nn.Module):
    """ECG-CPC from leads to tokens; its modules lie as in the authors' file."""

    def __init__(self, options: EcgCpcOptions) -> None:
        super().__init__()
        self.options = options
        width, blocks = options.input_channels, []
        for features, kernel, stride in zip(options.features, options.kss, options.strides, strict=True):
            conv = nn.Conv1d(width, features, kernel, stride, padding=(kernel - 1) // 2, bias=False)
            blocks.append(nn.Sequential(conv, nn.BatchNorm1d(features), nn.ReLU()))
            width = features
        encoder, predictor = nn.Module(), nn.Module()
        encoder.layers = nn.Sequential(*blocks)
        predictor.predictor = Predictor(options)
        self.ts_encoder = nn.ModuleDict({"encoder": encoder, "predictor": predictor})

    def forward(self, x: Tensor) -> EcgCpcStates:
        """[batch, lead, time] -> tokens, at most `l_max` of them."""
        entering = self.get_submodule("ts_encoder.encoder.layers")(x).transpose(1, 2)
        return EcgCpcStates(entering, self.get_submodule("ts_encoder.predictor.predictor")(entering))
