"""Running an expert over a batch of records: windows, precision, and vectors as numpy arrays.

What `embed` and `predict` share. Not here: reading signals or writing stores.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.experts.contract import PRECISION_DTYPES, Encoding, Expert, Precision
from stages.experts.faults import encode_checked


@dataclass(frozen=True)
class Vectors:
    """What one expert gives for a batch of records, pooled over windows.

    Attributes
    ----------
    layers
        float32 [batch, layer, dim]; layers narrower than the widest are padded with NaN.
    embedding
        float32 [batch, dim].
    output
        float32 [batch, output_dim] or None.
    """

    layers: np.ndarray
    embedding: np.ndarray
    output: np.ndarray | None

    def failed(self, nan_features: bool) -> np.ndarray:
        """Return which records have no usable vector, bool [batch]; `nan_features` as the expert's spec says."""
        finite = np.isfinite(self.embedding)
        return ~(finite.any(axis=1) if nan_features else finite.all(axis=1))


def set_precision(expert: Expert, precision: Precision) -> None:
    """Cast an expert's network; inputs are cast along in `run_expert`."""
    if expert.module is not None:
        expert.module.to(PRECISION_DTYPES[precision])


def run_expert(expert: Expert, x: Tensor, precision: Precision = "fp32") -> Vectors:
    """Encode prepared input [batch, windows, ...] and average the windows' vectors."""
    batch, windows = x.shape[:2]
    with torch.inference_mode():
        flat = x.flatten(0, 1).to(expert.device, non_blocking=True)
        if expert.module is not None:
            flat = flat.to(PRECISION_DTYPES[precision])
        encoding = encode_checked(expert, flat)
        return _pooled(encoding, batch, windows)


def _pooled(encoding: Encoding, batch: int, windows: int) -> Vectors:
    def pool(values: Tensor) -> np.ndarray:
        values = values.float()
        if windows > 1:
            values = values.unflatten(0, (batch, windows)).mean(dim=1)
        return values.cpu().numpy()

    if isinstance(encoding.layers, Tensor):
        layers = pool(encoding.layers)
    else:
        layers = _stacked([pool(layer) for layer in encoding.layers])
    return Vectors(layers, pool(encoding.embedding), None if encoding.output is None else pool(encoding.output))


def _stacked(layers: list[np.ndarray]) -> np.ndarray:
    width = max(layer.shape[1] for layer in layers)
    stacked = np.full((len(layers[0]), len(layers), width), np.nan, dtype=np.float32)
    for index, layer in enumerate(layers):
        stacked[:, index, : layer.shape[1]] = layer
    return stacked
