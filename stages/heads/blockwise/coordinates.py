"""One standardised copy of an expert's features for all folds, so that one matrix product serves them all.

Lives here: `SharedScale` (raw features -> shared coordinates, and how every fold's standardised features follow from
them), `RecordBlock`, and products of blocks with the folds' weights. Not here: reading (`blockwise.blocks`), the scaler
(`inputs.scaler`).

Fold f sees z_f = clip((x - m_f) / s_f). But for the clipping and for missing values, which its own training median
replaces, that is affine in u = (x - c) / s with one c and s for all folds: z_f = a_f u + b_f, so that z_f W_f = u
(a_f W_f) + b_f W_f, and the folds' weights are columns of one product. The entries of u that some fold clips, and
the missing ones, are listed with each block, and what z_f differs by there is added entry by entry. c and s are
those of one fold's scaler; they cancel, but for rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.heads.blockwise.products import add_transposed_, linear
from stages.heads.inputs.scaler import CLIP_SD, RobustScaler


@dataclass(frozen=True)
class RecordBlock:
    """Some records in shared coordinates.

    Attributes
    ----------
    u
        [b, D], the missing 0, the others pulled in to where every fold clips.
    row, column, value
        [m]: where u was missing (value NaN) or where some fold clips (value as it was).
    """

    u: Tensor
    row: Tensor
    column: Tensor
    value: Tensor

    @classmethod
    def empty(cls, n_rows: int, width: int, device: torch.device) -> RecordBlock:
        """Make a block of `n_rows` rows that are to be filled, without entries."""
        place = torch.zeros(0, dtype=torch.long, device=device)
        return cls(torch.empty(n_rows, width, device=device), place, place, torch.zeros(0, device=device))

    def __len__(self) -> int:
        return len(self.u)

    @property
    def n_bytes(self) -> int:
        """Size in memory."""
        return sum(t.numel() * t.element_size() for t in (self.u, self.row, self.column, self.value))

    def take(self, index: Tensor, into: Tensor | None = None) -> RecordBlock:
        """Select rows, each once, in the order given; u is written `into` memory that is there already, if given."""
        place = torch.full((len(self.u),), -1, device=self.u.device)
        place[index] = torch.arange(len(index), device=self.u.device)
        row = place[self.row]
        kept = row >= 0
        u = torch.index_select(self.u, 0, index, out=None if into is None else into[: len(index)])
        return RecordBlock(u, row[kept], self.column[kept], self.value[kept])


def join(blocks: list[RecordBlock], into: Tensor | None = None) -> RecordBlock:
    """Put blocks one below the other, u `into` memory that is there already, if given."""
    starts = np.cumsum([0, *(len(b) for b in blocks)])
    rows = [b.row + int(start) for b, start in zip(blocks, starts, strict=False)]
    u = torch.cat([b.u for b in blocks], out=None if into is None else into[: starts[-1]])
    column, value = (torch.cat([getattr(b, name) for b in blocks]) for name in ("column", "value"))
    return RecordBlock(u, torch.cat(rows), column, value)


class SharedScale:
    """Shared coordinates of all folds' scalers.

    Attributes
    ----------
    slope, shift
        [F, D]: a_f, and b_f less the fold's centre. A column that a fold does not have is 0.
    """

    def __init__(self, scalers: list[RobustScaler], device: torch.device) -> None:
        self.scalers, self.device = scalers, device
        mean, scale = (np.stack([getattr(s, k) for s in scalers]).astype(np.float64) for k in ("mean", "scale"))
        first = np.isfinite(scale).argmax(0)[None]  # the first fold in which a feature is no constant
        centre, unit = np.take_along_axis(mean, first, 0)[0], np.take_along_axis(scale, first, 0)[0]
        known = np.isfinite(scale)
        slope = np.where(known, unit / np.where(known, scale, 1), 0)
        shift = np.where(known, (centre - mean) / np.where(known, scale, 1), 0)
        median = np.stack([s.median for s in scalers]).astype(np.float64)
        filled = np.where(known, (median - mean) / np.where(known, scale, 1), 0).clip(-CLIP_SD, CLIP_SD)
        divisor = np.where(slope > 0, slope, 1)
        strict = np.where(slope > 0, (CLIP_SD - np.abs(shift)) / divisor, np.inf).min(0).clip(0, CLIP_SD)
        loose = np.where(slope > 0, (CLIP_SD + np.abs(shift)) / divisor, CLIP_SD).max(0)
        self._strict, self._loose, self._lowest = (
            self._tensor(strict),
            self._tensor(loose),
            float(strict.min(initial=8)),
        )
        self.n_features = len(centre)
        self.indicators = np.unique(np.concatenate([s.indicators for s in scalers])).astype(np.int64)
        has = np.stack([np.isin(self.indicators, s.indicators) for s in scalers]).astype(np.float64)
        self._centre, self._inverse = self._tensor(centre), self._tensor(1 / unit)
        self._filled, self._raw_shift = self._tensor(filled), self._tensor(shift)
        self.slope = self._tensor(np.concatenate([slope, has], 1))
        self.shift = self._tensor(np.concatenate([shift, 0 * has], 1))

    def _tensor(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(x.astype(np.float32)).to(self.device)

    @property
    def width(self) -> int:
        """D: features and the indicators of any fold."""
        return self.slope.shape[1]

    def columns(self, fold: int) -> np.ndarray:
        """Columns of D that make up what this fold's own scaler gives, in its order."""
        of_fold = np.searchsorted(self.indicators, self.scalers[fold].indicators)
        return np.concatenate([np.arange(self.n_features), self.n_features + of_fold])

    def centre_on(self, mean: Tensor) -> None:
        """Measure each fold's z from `mean` [F, D]."""
        self.shift = self.shift - mean

    def block(self, x: np.ndarray) -> RecordBlock:
        """Convert raw features [b, d] (any float type; NaN is missing)."""
        raw = torch.from_numpy(x if x.flags.writeable else x.copy()).to(self.device)
        u = torch.empty(len(x), self.width, device=self.device)
        features = u[:, : self.n_features]
        features.copy_(raw)
        features.sub_(self._centre).mul_(self._inverse)
        low, high = torch.aminmax(features) if features.numel() else (torch.zeros(()), torch.zeros(()))
        nothing = torch.zeros(0, dtype=torch.long, device=self.device)
        row, column, value = nothing, nothing, u.new_zeros(0)
        if not (low >= -self._lowest and high <= self._lowest):  # also where either is NaN
            row, column, value = self._entries(features)
        if len(self.indicators):
            u[:, self.n_features :] = torch.isnan(raw[:, torch.from_numpy(self.indicators).to(self.device)])
        return RecordBlock(u, row, column, value)

    def _entries(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """List the entries of [b, d] that some fold clips, and pull in what all folds do."""
        outside = ~(features.abs() <= self._strict)
        outside &= ~torch.isnan(features).all(1, keepdim=True)  # a record that the expert has not seen
        row, column = torch.nonzero(outside, as_tuple=True)
        value = features[row, column]
        features.nan_to_num_(nan=0.0).clamp_(-self._loose, self._loose)
        return row, column, value

    def differences(self, block: RecordBlock) -> Tensor:
        """Compute by how much each fold's z differs from its affine map at the listed entries, [F, m]."""
        slope, shift = self.slope[:, block.column], self._raw_shift[:, block.column]
        seen = torch.clamp(slope * block.value + shift, -CLIP_SD, CLIP_SD)
        loose = self._loose[block.column]
        pulled = block.value.nan_to_num(nan=0.0).clamp(-loose, loose)
        true = torch.where(torch.isnan(block.value), self._filled[:, block.column], seen)
        return true - (slope * pulled + shift)


class FoldMaps:
    """Linear maps of every fold's z: blocks -> [b, F, k].

    Parameters
    ----------
    weight, bias
        [F, D, k], [F, k].
    """

    def __init__(self, scale: SharedScale, weight: Tensor, bias: Tensor) -> None:
        self.scale, self.weight = scale, weight
        n_folds, width, k = weight.shape
        self.joint = (scale.slope[..., None] * weight).permute(1, 0, 2).reshape(width, n_folds * k)
        self.offset = (torch.einsum("fd,fdk->fk", scale.shift, weight) + bias).reshape(-1)

    def __call__(self, block: RecordBlock) -> Tensor:
        """Map."""
        n_folds, _, k = self.weight.shape
        out = linear(block.u, self.joint).add_(self.offset).view(len(block), n_folds, k)
        if len(block.row):
            difference = self.scale.differences(block)
            out.index_add_(0, block.row, (difference[..., None] * self.weight[:, block.column]).transpose(0, 1))
        return out


class FoldGradients:
    """Sums over blocks of z_f' R_f, [F, D, k], and of R_f, [F, k]."""

    def __init__(self, scale: SharedScale, k: int) -> None:
        n_folds, width = scale.slope.shape
        self.scale, self.k = scale, k
        self._joint = scale.slope.new_zeros(n_folds * k, width)
        self._sum = scale.slope.new_zeros(n_folds, k)
        self._entries = scale.slope.new_zeros(width, n_folds, k)

    def add(self, block: RecordBlock, r: Tensor) -> None:
        """Add R [b, F, k] of a block."""
        add_transposed_(self._joint, r.reshape(len(block), -1), block.u)
        self._sum += r.sum(0)
        if len(block.row):
            difference = self.scale.differences(block)
            self._entries.index_add_(0, block.column, difference.t()[..., None] * r[block.row])

    def result(self) -> tuple[Tensor, Tensor]:
        """Return both sums."""
        n_folds, width = self.scale.slope.shape
        weight = self._joint.view(n_folds, self.k, width).transpose(1, 2) * self.scale.slope[..., None]
        weight = weight + self.scale.shift[..., None] * self._sum[:, None] + self._entries.permute(1, 0, 2)
        return weight, self._sum
