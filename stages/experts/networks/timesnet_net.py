"""TimesNet's forecaster under the official keys, records independent of one another.

Lives here: the network, reused by `pretrain`. Not here: the expert's contract (`models.time_series.timesnet`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.experts.networks.parts.positions import SinePositions

TIME_FEATURES = {"h": 4, "t": 5, "s": 6, "m": 1, "a": 1, "w": 2, "d": 3, "b": 3}
CALENDAR = {"hour": 24, "weekday": 7, "day": 32, "month": 13}


@dataclass(frozen=True)
class TimesNetOptions:
    """Architecture under the official names; the defaults are EnECG's (main.py, `load_model_timesnet`)."""

    seq_len: int = 500
    pred_len: int = 1
    d_model: int = 16
    d_ff: int = 32
    num_kernels: int = 6
    top_k: int = 3
    e_layers: int = 3
    enc_in: int = 1
    c_out: int = 1
    embed: str = "timeF"
    freq: str = "h"
    dropout: float = 0.3
    variant: str = "enecg"
    """`enecg`: amplitudes are the real part of the spectrum in half precision, as EnECG's copy has it; anything else:
    the plain magnitude of the original."""
    leads: tuple[str, ...] | None = None
    """Names of the channels, where `enc_in` is neither 1, 8 nor 12."""

    @property
    def n_tokens(self) -> int:
        """Length of the sequence that the blocks see."""
        return self.seq_len + self.pred_len


class TimesNet(nn.Module):
    """Forecaster of Wu et al. 2023 (arXiv 2210.02186; EnECG models/TimesNet.py), without calendar features."""

    def __init__(self, options: TimesNetOptions) -> None:
        super().__init__()
        o = self.options = options
        self.model = nn.ModuleList(TimesBlock(o) for _ in range(o.e_layers))
        self.enc_embedding = DataEmbedding(o)
        self.layer_norm = nn.LayerNorm(o.d_model)
        self.predict_linear = nn.Linear(o.seq_len, o.n_tokens)
        self.projection = nn.Linear(o.d_model, o.c_out)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Forecast and hidden states.

        Parameters
        ----------
        x
            [batch, enc_in, seq_len].

        Returns
        -------
        y [batch, pred_len, channel] in the input's units, and the tokens [batch, seq_len + pred_len, d_model] before
        the first block and after the norm behind each.
        """
        x = x.float().transpose(1, 2)
        mean = x.mean(dim=1, keepdim=True)
        scale = torch.sqrt(x.var(dim=1, keepdim=True, unbiased=False) + 1e-5)
        tokens = self.enc_embedding(((x - mean) / scale).to(self.projection.weight.dtype))
        hidden = [self.predict_linear(tokens.transpose(1, 2)).transpose(1, 2)]
        for block in self.model:
            hidden.append(self.layer_norm(block(hidden[-1])))
        last = self.projection(hidden[-1][:, -self.options.pred_len :])
        return last.float() * scale + mean, hidden


class TimesBlock(nn.Module):
    """One block: the series folded along its own strongest periods, 2-D convolutions, a weighted sum, a residual."""

    def __init__(self, options: TimesNetOptions) -> None:
        super().__init__()
        self.top_k = options.top_k
        self.half_real_spectrum = options.variant == "enecg"
        self.conv = nn.Sequential(
            Inception(options.d_model, options.d_ff, options.num_kernels),
            nn.GELU(),
            Inception(options.d_ff, options.d_model, options.num_kernels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, dim] -> the same shape."""
        periods, weights = self.periods(x)
        first, second = (layer.merged() for layer in self.conv if isinstance(layer, Inception))
        mixed = torch.zeros_like(x)
        for period in periods.unique().tolist():
            chosen = periods == period
            rows = chosen.any(dim=1).nonzero()[:, 0].to(x.device)
            share = (weights * chosen.to(x.device))[rows].sum(dim=1)
            folded = fold(x[rows], period)
            out = convolve(F.gelu(convolve(folded, *first)), *second)
            out = out.permute(0, 2, 3, 1).flatten(1, 2)[:, : x.shape[1]]
            mixed = mixed.index_add(0, rows, out * share[:, None, None].to(out.dtype))
        return mixed + x

    def periods(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Find each record's own periods (on the CPU) and their weights, both [batch, top_k].

        The official code takes one set of periods from the mean over the batch; here every record is a batch of one.
        """
        spectrum = torch.fft.rfft(x.float(), dim=1)
        amplitude = (spectrum.real.half() if self.half_real_spectrum else spectrum).abs().mean(dim=-1)
        ranked = amplitude.detach().cpu().index_fill(1, torch.tensor([0]), 0)
        # On the CPU, where equal amplitudes are ranked as in the official code, and periods have to be known anyway.
        frequency = ranked.topk(self.top_k, dim=1).indices
        weights = torch.softmax(amplitude.gather(1, frequency.to(x.device)), dim=1)
        return x.shape[1] // frequency, weights.float()


def fold(x: Tensor, period: int) -> Tensor:
    """[batch, time, dim] -> [batch, dim, cycles, period], the end filled up with zeros."""
    missing = -x.shape[1] % period
    return F.pad(x, (0, 0, 0, missing)).unflatten(1, (-1, period)).permute(0, 3, 1, 2)


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve, same size, without the rows and columns of the kernel that can only meet the padding."""
    cut_h, cut_w = (max(0, weight.shape[-1] // 2 - (size - 1)) for size in x.shape[-2:])
    height, width = (weight.shape[-1] - cut for cut in (cut_h, cut_w))
    kernel = weight[..., cut_h:height, cut_w:width]
    return F.conv2d(x, kernel, bias, padding=(kernel.shape[-2] // 2, kernel.shape[-1] // 2))


class Inception(nn.Module):
    """Mean of square convolutions of sizes 1, 3, 5 ..., each of which keeps the size of its input."""

    def __init__(self, dim_in: int, dim_out: int, num_kernels: int) -> None:
        super().__init__()
        convs = [nn.Conv2d(dim_in, dim_out, kernel_size=2 * i + 1, padding=i) for i in range(num_kernels)]
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.constant_(conv.get_parameter("bias"), 0.0)
        self.kernels = nn.ModuleList(convs)

    def merged(self) -> tuple[Tensor, Tensor]:
        """Return the one kernel and bias that give the same mean, at less than half of the work."""
        largest = len(self.kernels) - 1
        weights = [F.pad(conv.get_parameter("weight"), (largest - i,) * 4) for i, conv in enumerate(self.kernels)]
        biases = torch.stack(tuple(conv.get_parameter("bias") for conv in self.kernels))
        return torch.stack(weights).mean(dim=0), biases.mean(dim=0)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, dim_in, height, width] -> [batch, dim_out, height, width]."""
        return convolve(x, *self.merged())


class DataEmbedding(nn.Module):
    """Circular convolution over time plus fixed positions; the calendar's weights are held, but never used."""

    def __init__(self, options: TimesNetOptions) -> None:
        super().__init__()
        conv = nn.Conv1d(options.enc_in, options.d_model, kernel_size=3, padding=1, padding_mode="circular", bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="leaky_relu")
        self.value_embedding = nn.ModuleDict({"tokenConv": conv})
        self.position_embedding = SinePositions(options.d_model)
        self.temporal_embedding = _calendar(options)
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, enc_in] -> [batch, time, d_model]."""
        values = self.value_embedding["tokenConv"](x.transpose(1, 2)).transpose(1, 2)
        return self.dropout(values + self.position_embedding(x.shape[1]))


def _calendar(options: TimesNetOptions) -> nn.Module:
    """Build the official holder of calendar features: `timeF` a Linear, `fixed` and `learned` tables."""
    holder = nn.Module()
    if options.embed == "timeF":
        holder.embed = nn.Linear(TIME_FEATURES[options.freq], options.d_model, bias=False)
        return holder
    sizes = CALENDAR | ({"minute": 4} if options.freq == "t" else {})
    for name, size in sizes.items():
        table: nn.Module = nn.Embedding(size, options.d_model)
        if options.embed == "fixed":
            fixed, table = table, nn.Module()
            fixed.weight = nn.Parameter(SinePositions(options.d_model, size).pe[0], requires_grad=False)
            table.emb = fixed
        holder.add_module(f"{name}_embed", table)
    return holder
