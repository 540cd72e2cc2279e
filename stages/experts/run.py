"""Running an expert over records: grouping, preparing, forward passes of one size, vectors as numpy arrays.

`embed_records` is the one way from signals to vectors: `embed`, `predict` and the Python API all take it. A record's
vector is the same to the last bit whatever else is in the batch, because every forward pass on a device has the same
number of windows (the last one is filled up) and no window sees its neighbours. Not here: reading signals or writing
stores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cache.errors import InputError
from stages.devices import Precision
from stages.experts.contract import PRECISION_DTYPES, Encoding, Expert, ExpertSpec
from stages.experts.faults import SAME_FAULTS, Faults, encode_checked
from stages.experts.networks.parts.pooling import pool_outputs
from stages.experts.views import token_views, view_shapes

GPU_BATCH = 256
"""Windows of a forward pass on a GPU where nothing else is asked for."""
NOT_FINITE = "the expert gave no finite vector"


class Signal(NamedTuple):
    """One record as an expert is given it.

    Attributes
    ----------
    signals_mv
        [12, time] in mV, standard lead order, as long as the record is; missing = NaN.
    rate_hz
        Its own sampling rate.
    """

    signals_mv: np.ndarray
    rate_hz: float


class SignalGroup(NamedTuple):
    """Records of one rate and length.

    Attributes
    ----------
    positions
        Where each of them stands among the records asked for, int [record].
    signals_mv
        [record, 12, time] in mV; missing = NaN.
    """

    positions: np.ndarray
    signals_mv: np.ndarray
    rate_hz: float


@dataclass(frozen=True)
class RunSettings:
    """How records are embedded.

    Attributes
    ----------
    dtype
        float16 or float32, what vectors are rounded to; None: the expert's own (`spec.store_dtype`).
    threads
        CPU threads of the forward pass. The last bits of a sum depend on it.
    batch_size
        Windows of a forward pass on a GPU; None: 256, halved while the device's memory is full. On a CPU it is
        `Expert.windows_at_once`.
    views
        Views of the tokens that are wanted besides, of `spec.views`.
    """

    dtype: str | None = None
    threads: int = 1
    batch_size: int | None = None
    views: tuple[str, ...] = ()


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
    views
        float32 arrays of the views asked for, see `views.token_views`.
    """

    layers: np.ndarray
    embedding: np.ndarray
    output: np.ndarray | None
    views: Mapping[str, np.ndarray] = field(default_factory=dict)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return every array by its name in a store."""
        output = {} if self.output is None else {"output": self.output}
        return {"layers": self.layers, "embedding": self.embedding, **output, **self.views}

    def failed(self, nan_features: bool) -> np.ndarray:
        """Return which records have no usable vector, bool [batch]; `nan_features` as the expert's spec says."""
        finite = np.isfinite(self.embedding)
        return ~(finite.any(axis=1) if nan_features else finite.all(axis=1))


@dataclass(frozen=True)
class Embedded:
    """Vectors of the records asked for, in their order; a row of NaN is a record without one.

    Attributes
    ----------
    layers
        [record, layer, dim] in the dtype asked for; layers narrower than the widest are padded with NaN.
    embedding
        [record, dim].
    output
        [record, output_dim], None where the expert has no head of its own.
    views
        The views asked for, see `views.token_views`.
    reasons
        Position of a record without a vector -> why it has none.
    """

    layers: np.ndarray
    embedding: np.ndarray
    output: np.ndarray | None
    views: dict[str, np.ndarray] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return every array by its name in a store."""
        output = {} if self.output is None else {"output": self.output}
        return {"layers": self.layers, "embedding": self.embedding, **output, **self.views}


def set_precision(expert: Expert, precision: Precision) -> None:
    """Cast an expert's network; inputs are cast along in `run_expert`."""
    expert.precision = precision
    if expert.module is not None:
        expert.module.to(PRECISION_DTYPES[precision])


def embed_records(expert: Expert, records: Sequence[Signal], settings: RunSettings | None = None) -> Embedded:
    """Embed records of any rates and lengths.

    A record that the expert refuses (too short, without a lead it needs) has no vector, and a reason.

    Raises
    ------
    ExpertCodeError
        The expert's own code fails, or gives other widths than its spec says.

    Examples
    --------
    >>> from stages.experts import load_expert
    >>> from stages.experts.signals.reference_ecgs import reference_signals
    >>> records = [Signal(signals_mv, 500.0) for signals_mv in reference_signals(2, 5000, 500.0, seed=1)]
    >>> embed_records(load_expert("morphology"), records).embedding.shape
    (2, 709)
    """
    settings = settings or RunSettings()
    result, names = empty_result(expert, len(records), settings), [f"record {k}" for k in range(len(records))]
    faults = Faults(expert.spec.name, min(SAME_FAULTS, len(records)))
    with torch_threads(settings.threads):
        for group in grouped(records):
            prepared = prepare_group(expert, group, faults, names, result.reasons)
            if prepared is not None:
                vectors = run_expert(expert, prepared.x, settings.batch_size, settings.views, prepared.record_s)
                put_vectors(result, prepared.positions, vectors, expert.spec.nan_features)
    return result


def grouped(records: Sequence[Signal]) -> Iterator[SignalGroup]:
    """Put records of one rate and length together."""
    keys = [(float(record.rate_hz), record.signals_mv.shape[-1]) for record in records]
    for key in dict.fromkeys(keys):
        positions = np.array([k for k, other in enumerate(keys) if other == key])
        yield SignalGroup(positions, np.stack([records[k].signals_mv for k in positions]), key[0])


class Prepared(NamedTuple):
    """Model input of records of one length: positions int [record], x [record, windows, ...], seconds of a record."""

    positions: np.ndarray
    x: Tensor
    record_s: float


def prepare_group(
    expert: Expert, group: SignalGroup, faults: Faults, names: Sequence[str], reasons: dict[int, str]
) -> Prepared | None:
    """Prepare records of one rate and length; those that cannot be are left out, with the reason in `reasons`.

    Parameters
    ----------
    names
        Of all records, by position, for messages.

    Raises
    ------
    ExpertCodeError
        The expert's code fails at several records in a row alike.
    """
    if not len(group.positions):
        return None
    record_s = group.signals_mv.shape[-1] / group.rate_hz
    try:
        prepared = Prepared(group.positions, expert.prepare(group.signals_mv, group.rate_hz), record_s)
        faults.succeeded()
        return prepared
    except Exception:  # noqa: BLE001 - one record spoilt the batch: find it, keep the others
        kept, parts = [], []
        for position, signals_mv in zip(group.positions.tolist(), group.signals_mv, strict=True):
            try:
                parts.append(expert.prepare(signals_mv[None], group.rate_hz))
                kept.append(position)
                faults.succeeded()
            except Exception as error:  # noqa: BLE001
                reasons[position] = faults.failed(names[position], error)
        return Prepared(np.array(kept, dtype=np.int64), torch.cat(parts), record_s) if parts else None


def run_expert(
    expert: Expert, x: Tensor, batch_size: int | None = None, views: Sequence[str] = (), record_s: float = 10.0
) -> Vectors:
    """Encode prepared input [batch, windows, ...] and average the windows' vectors.

    Parameters
    ----------
    batch_size, views
        As in `RunSettings`.
    record_s
        Length of the records in seconds, which says where windows lie; only views need it.

    Raises
    ------
    InputError
        The device's memory is full at this batch size.
    """
    batch, windows = x.shape[:2]
    flat = x.flatten(0, 1)
    block = expert.windows_at_once(flat) if expert.device.type == "cpu" else batch_size or GPU_BATCH
    while True:
        try:
            with torch.inference_mode():
                parts = _encoded(expert, flat, block, windows, with_tokens=bool(views))
                return _joined([_vectors(expert, part, windows, views, record_s) for part in parts], batch)
        except torch.OutOfMemoryError as error:
            if batch_size is not None or block == 1:
                raise InputError(
                    f"expert '{expert.spec.name}': device memory is full at batch size {block}; use a smaller "
                    "--batch-size or --precision bf16"
                ) from error
            torch.cuda.empty_cache()
            block = max(1, block // 2)


def _encoded(expert: Expert, flat: Tensor, block: int, windows: int, *, with_tokens: bool) -> Iterator[Encoding]:
    """Encode [window, ...] by passes of `block` windows, and give the vectors of whole records."""
    held: list[Encoding] = []
    for start in range(0, len(flat), block):
        held.append(_one_pass(expert, flat[start : start + block], block, with_tokens=with_tokens))
        whole = sum(len(part.embedding) for part in held)
        if whole % windows == 0:
            yield _concatenated(held)
            held = []


def _one_pass(expert: Expert, part: Tensor, block: int, *, with_tokens: bool) -> Encoding:
    n = len(part)
    if n < block:
        part = torch.cat([part, part[-1:].expand(block - n, *part.shape[1:])])
    part = part.to(expert.device, non_blocking=True)
    if expert.module is not None:
        part = part.to(PRECISION_DTYPES[expert.precision])
    found = encode_checked(expert, part)
    layers = found.layers[:n] if isinstance(found.layers, Tensor) else [layer[:n] for layer in found.layers]
    tokens = found.tokens[:n] if with_tokens and found.tokens is not None else None
    return Encoding(layers, found.embedding[:n], None if found.output is None else found.output[:n], tokens)


def _concatenated(parts: list[Encoding]) -> Encoding:
    if len(parts) == 1:
        return parts[0]
    first = parts[0].layers
    if isinstance(first, Tensor):
        layers: Tensor | list[Tensor] = torch.cat([torch.as_tensor(part.layers) for part in parts])
    else:
        layers = [torch.cat([part.layers[k] for part in parts]) for k in range(len(first))]
    outputs = [part.output for part in parts if part.output is not None]
    tokens = [part.tokens for part in parts if part.tokens is not None]
    return Encoding(
        layers,
        torch.cat([part.embedding for part in parts]),
        torch.cat(outputs) if outputs else None,
        torch.cat(tokens) if tokens else None,
    )


def _vectors(expert: Expert, encoding: Encoding, windows: int, views: Sequence[str], record_s: float) -> Vectors:
    found = _pooled(encoding, windows, expert.spec)
    if not views or encoding.tokens is None:
        return found
    made = token_views(encoding.tokens, windows, expert.spec, views, record_s)
    return Vectors(found.layers, found.embedding, found.output, made)


def _pooled(encoding: Encoding, windows: int, spec: ExpertSpec) -> Vectors:
    """Average over windows, outputs as the spec says."""

    def pool(values: Tensor) -> np.ndarray:
        values = values.float()
        if windows > 1:
            values = values.unflatten(0, (-1, windows)).mean(dim=1)
        return values.cpu().numpy()

    if isinstance(encoding.layers, Tensor):
        layers = pool(encoding.layers)
    else:
        layers = _stacked([pool(layer) for layer in encoding.layers])
    output = None
    if encoding.output is not None:
        output = pool_outputs(encoding.output, windows, spec.output_pooling, spec.output_maxima).cpu().numpy()
    return Vectors(layers, pool(encoding.embedding), output)


def _stacked(layers: list[np.ndarray]) -> np.ndarray:
    width = max(layer.shape[1] for layer in layers)
    stacked = np.full((len(layers[0]), len(layers), width), np.nan, dtype=np.float32)
    for index, layer in enumerate(layers):
        stacked[:, index, : layer.shape[1]] = layer
    return stacked


def _joined(parts: list[Vectors], n_records: int) -> Vectors:
    if len(parts) == 1:
        return parts[0]
    outputs = [part.output for part in parts if part.output is not None]
    joined = Vectors(
        np.concatenate([part.layers for part in parts]),
        np.concatenate([part.embedding for part in parts]),
        np.concatenate(outputs) if outputs else None,
        {name: np.concatenate([part.views[name] for part in parts]) for name in parts[0].views},
    )
    assert len(joined.embedding) == n_records
    return joined


def empty_result(expert: Expert, n: int, settings: RunSettings) -> Embedded:
    """Return room for the vectors of `n` records, none of which has one yet."""
    spec, dtype = expert.spec, np.dtype(settings.dtype or expert.spec.store_dtype)
    layers = np.full((n, len(spec.layer_names), max(spec.layer_dims)), np.nan, dtype)
    output = np.full((n, spec.output_dim), np.nan, dtype) if spec.output_dim else None
    views = {name: np.full((n, *shape), np.nan, dtype) for name, shape in view_shapes(spec, settings.views).items()}
    return Embedded(layers, np.full((n, spec.embedding_dim), np.nan, dtype), output, views)


def put_vectors(result: Embedded, positions: np.ndarray, vectors: Vectors, nan_features: bool) -> None:
    """Round vectors to the dtype asked for, as a store does."""
    failed = vectors.failed(nan_features)
    result.reasons.update(dict.fromkeys(positions[failed].tolist(), NOT_FINITE))
    kept = positions[~failed]
    given = vectors.arrays()
    pairs = [(array, given[name]) for name, array in result.arrays().items() if name in given]
    with np.errstate(over="ignore"):
        for target, values in pairs:
            target[kept] = values[~failed]
    infinite = [np.isinf(target[kept]).reshape(len(kept), -1).any(axis=1) for target, _ in pairs]
    too_large = kept[np.logical_or.reduce(infinite)]
    for target, _ in pairs:
        target[too_large] = np.nan
    reason = f"a value does not fit {result.embedding.dtype}; set `dtype: float32` for this expert in params.yaml"
    result.reasons.update(dict.fromkeys(too_large.tolist(), reason))


@contextmanager
def torch_threads(n: int) -> Iterator[None]:
    """Let torch use `n` CPU threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
