"""Means and covariances of every fold's standardised features in one pass, and what they make solving cheap with.

Lives here: the pass, the folds' `Whitening`. Not here: the solver (`descent`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.heads.blockwise.blocks import Blocks
from stages.heads.blockwise.coordinates import RecordBlock
from stages.heads.blockwise.products import gram

MAX_GRAM_WIDTH = 2048
"""Of wider features the leading axes are found on a sample; the covariance itself would not be worth its time."""
MAX_FOLDS = 62
"""That a pattern of bits has room for."""
WIDE_RANK, WIDE_RECORDS = 384, 4096


@dataclass
class Whitening:
    """Principal axes of every fold's training records.

    Attributes
    ----------
    mean
        [F, D].
    axes, variance
        [F, D, r], [F, r], largest first.
    rest
        [F]: variance that is assumed of directions outside the axes.
    length
        [F]: mean squared length of a centred training record.
    n_train
        [F].
    """

    mean: Tensor
    axes: Tensor
    variance: Tensor
    rest: Tensor
    length: Tensor
    n_train: Tensor


class WhiteScaling:
    """The square root P of the inverse bound of each fold's losses, see `descent.Scaling`.

    Parameters
    ----------
    curvature
        [F, k]: bound of the summed loss's second derivative along a coordinate of variance 1.
    penalty
        [F, k].
    """

    def __init__(self, whitening: Whitening, curvature: Tensor, penalty: Tensor) -> None:
        self.axes = whitening.axes
        along = (curvature[:, None] * whitening.variance[..., None] + penalty[:, None]).clamp_min(1e-9).rsqrt()
        self.outside = (curvature * whitening.rest[:, None] + penalty).clamp_min(1e-9).rsqrt()[:, None]
        self.along = along - self.outside
        self.intercept = curvature.clamp_min(1e-9).rsqrt()[:, None]

    def __call__(self, x: Tensor) -> Tensor:
        """Apply P."""
        body = x[:, :-1]
        mapped = self.axes @ (self.along * (self.axes.mT @ body)) + self.outside * body
        return torch.cat([mapped, self.intercept * x[:, -1:]], 1)


def fit_whitening(blocks: Blocks, train: Tensor, length: list[float], seed: int) -> Whitening:
    """Read all blocks once.

    Few entries differ from a fold's affine map (`shared`), and they are left out here: the axes steer the solver and
    are shown to the gate, while the optimum does not depend on them.

    Parameters
    ----------
    train
        bool [F, n].
    length
        As `Whitening.length`.
    """
    n_folds, width = blocks.scale.slope.shape
    wide = width > MAX_GRAM_WIDTH
    total = torch.zeros(n_folds, width, dtype=torch.float64, device=blocks.scale.device)
    square = torch.zeros(n_folds, *([] if wide else [width, width]), dtype=torch.float64, device=blocks.scale.device)
    for part, folds in _parts(train):
        sums, squares = torch.zeros_like(total[0]), torch.zeros_like(square[0])
        for u in _members(blocks, part):
            sums += u.sum(0)
            if not wide:
                squares += gram(u)
        for f in folds:
            total[f] += sums
            square[f] += squares
    n_train = train.sum(1).to(total)
    mean = total / n_train[:, None]
    slope = blocks.scale.slope.double()
    centre = (slope * mean + blocks.scale.shift).float()
    if wide:
        return _from_sample(blocks, train, centre, torch.tensor(length).to(centre), seed)
    axes, variances = [], []
    for f in range(n_folds):
        covariance = square[f] / n_train[f] - torch.outer(mean[f], mean[f])
        values, vectors = torch.linalg.eigh((covariance * torch.outer(slope[f], slope[f])).float())
        axes.append(vectors.flip(1))
        variances.append(values.flip(0).clamp_min(0))
    variance = torch.stack(variances)
    rest = variance[:, -1]
    return Whitening(centre, torch.stack(axes), variance, rest, torch.tensor(length).to(centre), n_train.float())


def _parts(train: Tensor) -> list[tuple[Tensor, list[int]]]:
    """Find disjoint sets of records, bool [n], and the folds that train on them; where fewer, the folds' own sets."""
    of_folds = [(mask, [f]) for f, mask in enumerate(train)]
    if len(train) > MAX_FOLDS:
        return of_folds
    code = torch.zeros(train.shape[1], dtype=torch.int64)
    for f, mask in enumerate(train):
        code |= mask.long() << f
    used = [k for k in torch.unique(code).tolist() if k]
    if len(used) > len(train):
        return of_folds
    return [(code == k, [f for f in range(len(train)) if k >> f & 1]) for k in used]


def _members(blocks: Blocks, part: Tensor) -> Iterator[Tensor]:
    """Shared coordinates of a set of records, block by block."""
    for rows, block in blocks:
        index = torch.nonzero(part[rows]).ravel()
        if len(index):
            yield block.u[index.to(block.u.device)]


def _from_sample(blocks: Blocks, train: Tensor, centre: Tensor, length: Tensor, seed: int) -> Whitening:
    """Leading axes of wide features, from a sample of each fold's training records (Halko et al. 2011)."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(train.shape[1], generator=generator)
    axes, variances = [], []
    for f, mask in enumerate(train):
        rows = chosen[mask[chosen]][:WIDE_RECORDS].sort().values
        block: RecordBlock = blocks.take(rows)
        x = block.u * blocks.scale.slope[f] + blocks.scale.shift[f] - centre[f]
        start = torch.randn(x.shape[1], min(WIDE_RANK, len(rows)), generator=generator).to(x)
        q = torch.linalg.qr(x @ start).Q
        q = torch.linalg.qr(x @ (x.T @ q)).Q
        small = q.T @ x
        values, vectors = torch.linalg.eigh(small @ small.T)
        values, vectors = values.flip(0).clamp_min(1e-6 * values[-1]), vectors.flip(1)
        axes.append(small.T @ (vectors / values.sqrt()))
        variances.append(values / len(rows))
    rest = torch.stack([v[-1] for v in variances])
    # a fold with fewer records of this expert than the others has fewer axes
    rank = max(len(v) for v in variances)
    padded = [torch.nn.functional.pad(a, (0, rank - a.shape[1])) for a in axes]
    variance = torch.stack([torch.nn.functional.pad(v, (0, rank - len(v))) for v in variances])
    return Whitening(centre, torch.stack(padded), variance, rest, length, train.sum(1).to(centre))
