"""Self-supervised forecasting for TimesNet and DLinear: the first part of a record tells its continuation.

A record of 10 s becomes seq_len + pred_len samples on EnECG's input path (one z-score over leads and time); the network
sees the first seq_len. With the published 500 + 1 samples that is 50.1 Hz in training against 50 Hz afterwards.

Lives here: series, targets, loss. Not here: the networks (`stages.experts`).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.experts.contract import STANDARD_LEADS
from stages.experts.networks.timesnet_net import TimesNet
from stages.experts.signals import enecg_input as _enecg

SERIES_VERSION = 1
"""Raised whenever `prepare_series` gives other numbers: kept inputs are then made again."""


class Forecaster(nn.Module):
    """A network and its loss: the mean squared error of the continuation."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        if isinstance(net, TimesNet):  # its calendar is held, but never used
            net.enc_embedding.temporal_embedding.requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Loss of forecasting y [batch, channel, pred_len] from x [batch, channel, seq_len]."""
        return F.mse_loss(self.forecast(x).float(), y)

    def forecast(self, x: Tensor) -> Tensor:
        """[batch, channel, seq_len] -> [batch, channel, pred_len]."""
        if isinstance(self.net, TimesNet):
            return self.net(x)[0].transpose(1, 2)
        trend, season = self.net(x)
        return trend + season


class Series:
    """Batches of series cut into what is seen and what follows."""

    def __init__(self, inputs: np.ndarray, seq_len: int, *, joint: bool) -> None:
        self.inputs, self.seq_len, self.joint = inputs, seq_len, joint
        self.leads = 1 if joint else inputs.shape[2]

    def __len__(self) -> int:
        """Return the number of series: records, or records times leads where each lead is one."""
        return len(self.inputs) * self.leads

    def fetch(self, rows: np.ndarray, generator: np.random.Generator) -> tuple[Tensor, ...]:
        """Return x [row, channel, seq_len] and what follows, [row, channel, pred_len]."""
        record, lead = rows // self.leads, rows % self.leads
        window = generator.integers(self.inputs.shape[1], size=len(rows))
        series = self.inputs[record, window] if self.joint else self.inputs[record, window, lead][:, None]
        whole = torch.from_numpy(np.ascontiguousarray(series))
        return whole[..., : self.seq_len], whole[..., self.seq_len :]


def prepare_series(signals_mv: np.ndarray, rate_hz: float, n_samples: int) -> Tensor:
    """[batch, 12, time] in mV -> [batch, windows, 12, n_samples] on EnECG's input path."""
    x = _enecg.published_input(signals_mv, rate_hz, n_samples, STANDARD_LEADS, "authors")
    return torch.from_numpy(x.astype(np.float32))
