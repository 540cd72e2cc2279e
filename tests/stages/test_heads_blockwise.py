"""Heads fitted block by block: the same optimum as in memory, whatever is kept, with memory that does not grow."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache.embeddings import Identity, Layout, Shard
from cache.errors import UsageError
from cache.upkeep.resume import create_embeddings
from stages.heads import EnsembleHeads, TaskSpec
from stages.heads import fit as fitting
from stages.heads.blockwise import expert as by_blocks
from stages.heads.blockwise.blocks import BLOCK_ROWS, Blocks
from stages.heads.blockwise.coordinates import FoldGradients, FoldMaps, RecordBlock, SharedScale, join
from stages.heads.blockwise.lora import WideAdapters
from stages.heads.blockwise.loss_pass import Labels, Pass
from stages.heads.blockwise.products import add_transposed_, gram, linear
from stages.heads.in_memory.lora import LoraOptions
from stages.heads.inputs.lazy_rows import LazyRows
from stages.heads.inputs.scaler import RobustScaler
from stages.heads.targets.tasks import layout
from stages.learning.data import expert_parts, fits

N = 2 * BLOCK_ROWS + 500
TASKS = (
    TaskSpec("sex", "binary"),
    TaskSpec("age", "regression", unit="years"),
    TaskSpec("r", "multiclass", tuple("abc")),
    TaskSpec("s", "multilabel", ("x", "y")),
)
Folds = list[tuple[np.ndarray, np.ndarray, np.ndarray]]


class FromFunction(LazyRows):
    """Rows that are made when they are read."""

    def __init__(self, make: Callable[[slice], np.ndarray], shape: tuple[int, ...]) -> None:
        self.make, self.shape, self.dtype, self.n_reads = make, shape, np.dtype(np.float16), 0

    def read(self, rows: slice) -> np.ndarray:
        self.n_reads += 1
        return self.make(rows)


@pytest.fixture
def blockwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "LARGE_RECORDS", 100)


def _study() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], Folds]:
    """Two experts with missing values, artefacts and absent records; every kind of task, with missing labels."""
    rng = np.random.default_rng(0)
    u = rng.normal(size=(N, 6))
    x = {k: (u @ rng.normal(size=(6, 24)) + 2 * rng.normal(size=(N, 24)) + 3).astype(np.float16) for k in "ab"}
    x["a"][rng.random((N, 24)) < 0.01] = np.nan
    x["a"][rng.random(N) < 0.1, 3] = np.nan
    x["a"][::200, 5] = 5e4
    x["a"][:, 7] = 1
    x["b"][:150] = np.nan
    y = {
        "sex": np.where(rng.random(N) < 0.2, np.nan, u[:, 0] + rng.normal(size=N) > 0),
        "age": 60 + 10 * u[:, 1] + 5 * rng.normal(size=N),
        "r": np.argmax(2 * u[:, 2:5] + rng.gumbel(size=(N, 3)), 1).astype(float),
        "s": np.stack([u[:, 5] > 1, u[:, 0] > 1.5], 1).astype(float),
    }
    fold, rows = rng.integers(0, 2, N), np.arange(N)
    val = rows % 5 == 0
    return x, y, [(rows[(fold != f) & ~val], rows[(fold != f) & val], rows[fold == f]) for f in range(2)]


@pytest.mark.parametrize(("strengths", "inner"), [((1.0,), 2), ((1.0, 1e6), 0)])
def test_the_optimum_is_that_of_the_fit_in_memory(
    monkeypatch: pytest.MonkeyPatch, strengths: tuple[float, ...], inner: int
) -> None:
    x, y, folds = _study()
    monkeypatch.setattr("stages.heads.in_memory.expert.find_telling", lambda *_: None)  # blocks have none
    options: dict[str, Any] = {"lora": False, "gate_epochs": 0, "inner_folds": inner, "strengths": strengths}
    inside = EnsembleHeads(**options).fit(x, y, TASKS, splits=folds)
    monkeypatch.setattr(fitting, "LARGE_RECORDS", 100)
    by_block = EnsembleHeads(**options).fit(x, y, TASKS, splits=folds)
    assert inside.history_["experts"]["a"]["passes"] is None
    assert by_block.history_["experts"]["a"]["passes"] < 40
    assert by_block.history_["experts"]["a"]["strength"] == inside.history_["experts"]["a"]["strength"]
    for fold in range(2):
        expected, got = (h.expert_predictions(x, fold=fold) for h in (inside, by_block))
        for name in "ab":
            np.testing.assert_allclose(got[name]["sex"], expected[name]["sex"], atol=0.02)
            np.testing.assert_allclose(got[name]["age"], expected[name]["age"], atol=0.2)
            np.testing.assert_allclose(got[name]["r"], expected[name]["r"], atol=0.02)
            np.testing.assert_allclose(got[name]["s"], expected[name]["s"], atol=0.02)


@pytest.mark.usefixtures("blockwise")
def test_what_is_kept_in_memory_changes_no_bit() -> None:
    x, y, folds = _study()
    options: dict[str, Any] = {"lora_epochs": 1, "gate_epochs": 0}
    kept = EnsembleHeads(**options, memory_gb=1.0).fit(x, y, TASKS, splits=folds)
    sources = {k: FromFunction(lambda rows, v=v: v[rows], v.shape) for k, v in x.items()}
    part = 1.5 * BLOCK_ROWS * 24 * 4 / 1e9
    some = EnsembleHeads(**options, memory_gb=part).fit(sources, y, TASKS, splits=folds)
    n_reads = sources["b"].n_reads
    streamed = EnsembleHeads(**options, memory_gb=0).fit(sources, y, TASKS, splits=folds)
    assert sources["b"].n_reads - n_reads > n_reads
    expected = kept.predict_proba(x)
    for heads in (some, streamed):
        for name, p in heads.predict_proba(sources).items():
            np.testing.assert_array_equal(p, expected[name])


@pytest.mark.usefixtures("blockwise")
def test_lora_by_blocks_learns_what_the_probe_cannot() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3000, 20)).astype(np.float32)
    y = 60 + 10 * x[:, 0] + 30 * rng.standard_t(1.2, size=3000)  # the probe is least squares, LoRA is Huber
    rows = np.arange(3000)
    folds = [(rows[:1800], rows[1800:2400], rows[2400:])]
    heads = EnsembleHeads(gate_epochs=0, lora_epochs=12).fit({"a": x}, {"age": y}, splits=folds)
    probe = EnsembleHeads(gate_epochs=0, lora=False).fit({"a": x}, {"age": y}, splits=folds)
    assert heads.history_["experts"]["a"]["lora_epoch"][0][0] > 0
    truth = 60 + 10 * x[2400:, 0]
    error, plain = (np.abs(h.predict({"a": x[2400:]})["age"] - truth).mean() for h in (heads, probe))
    assert error < 0.8 * plain


def _age_of_expert(heads: EnsembleHeads, x: np.ndarray) -> np.ndarray:
    """The expert's head alone: what is read beside the mixture is least squares, whose error such tails decide."""
    return heads.expert_predictions({"a": x}, fold=0)["a"]["age"]


def test_lora_by_blocks_gains_what_lora_in_memory_does(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(3000, 20)).astype(np.float32)
    y = 60 + 10 * x[:, 0] + 30 * rng.standard_t(1.2, size=3000)
    rows, truth = np.arange(3000), 60 + 10 * x[2400:, 0]
    folds = [(rows[:1800], rows[1800:2400], rows[2400:])]
    errors = []
    for large in (20_000, 100):
        monkeypatch.setattr(fitting, "LARGE_RECORDS", large)
        heads = EnsembleHeads(gate_epochs=0, lora_epochs=12).fit({"a": x}, {"age": y}, splits=folds)
        assert (heads.history_["experts"]["a"]["passes"] is None) == (large > 1800)
        errors.append(float(np.abs(_age_of_expert(heads, x[2400:]) - truth).mean()))
    probe = EnsembleHeads(gate_epochs=0, lora=False).fit({"a": x}, {"age": y}, splits=folds)
    plain = float(np.abs(_age_of_expert(probe, x[2400:]) - truth).mean())
    assert max(errors) < 0.8 * plain
    assert abs(errors[0] - errors[1]) < 0.02 * plain


@pytest.mark.usefixtures("blockwise")
def test_a_split_that_repeats_itself_hides_no_training_record(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, folds = _study()
    monkeypatch.setattr(by_blocks, "SAMPLE_RECORDS", N // 10)  # every tenth record is one of validation
    heads = EnsembleHeads(lora_epochs=1, gate_epochs=1).fit(x, y, list(TASKS), splits=folds)
    assert all(np.isfinite(heads.predict_proba(x)["sex"]))


def test_every_folds_standardised_features_follow_from_the_shared_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.heads.blockwise.blocks.BLOCK_ROWS", 64)
    rng = np.random.default_rng(2)
    x = rng.normal(size=(300, 6)).astype(np.float32) * [1, 2, 3, 0, 5, 1] + 4
    x[rng.random((300, 6)) < 0.1] = np.nan
    x[rng.random((300, 6)) < 0.01] = 1e4
    x[:5] = np.nan
    scalers = [RobustScaler.fit(x[rows]) for rows in (slice(0, 150), slice(100, 300))]
    scale = SharedScale(scalers, torch.device("cpu"))
    parts = [scale.block(part.astype(np.float32)) for part in (x[:120], x[120:])]
    block = join(parts)
    identity = torch.eye(scale.width)[None].expand(2, -1, -1)
    z = FoldMaps(scale, identity, torch.zeros(2, scale.width))(block)
    blocks = Blocks(lambda rows: x[rows].astype(np.float32), 300, scale, 0.0)
    taken = FoldMaps(scale, identity, torch.zeros(2, scale.width))(blocks.take(torch.arange(7, 300, 3)))
    torch.testing.assert_close(taken, z[7::3])
    order = torch.from_numpy(rng.permutation(300)[:200])
    shuffled = FoldMaps(scale, identity, torch.zeros(2, scale.width))(block.take(order))
    r = torch.randn(300, 2, 3, generator=torch.Generator().manual_seed(0))
    sums = FoldGradients(scale, 3)
    sums.add(block, r)
    for f, scaler in enumerate(scalers):
        expected, own = scaler.transform(x), scale.columns(f)
        np.testing.assert_allclose(z[5:, f, own], expected[5:], atol=1e-4)
        np.testing.assert_allclose(shuffled[:, f], z[order, f], atol=1e-5)
        np.testing.assert_allclose(sums.result()[0][f], z[:, f].T @ r[:, f], atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("rows", [10, 3000])
def test_products_equal_plain_ones(rows: int) -> None:
    x, w, r = torch.randn(rows, 40), torch.randn(40, 7), torch.randn(rows, 7)
    out = torch.ones(7, 40)
    with torch.no_grad():
        np.testing.assert_allclose(linear(x, w), x @ w, atol=1e-4)
        np.testing.assert_allclose(gram(x), x.T @ x, atol=2e-3)
        add_transposed_(out, r, x)
    np.testing.assert_allclose(out, 1 + r.T @ x, atol=2e-3)


def test_shuffled_batches_hold_every_wanted_record_once() -> None:
    x = np.arange(N, dtype=np.float32)[:, None]
    scale = SharedScale([RobustScaler.fit(x)], torch.device("cpu"))
    wanted = torch.arange(N) % 3 > 0
    orders = []
    for room in (0.0, 1e9):
        blocks = Blocks(lambda rows: x[rows], N, scale, room)
        shuffled = blocks.shuffled(256, wanted, torch.Generator().manual_seed(0))
        batches = [(rows, block.u[:, 0].clone()) for rows, block in shuffled]
        rows = torch.cat([rows for rows, _ in batches])
        np.testing.assert_array_equal(rows.sort().values, torch.nonzero(wanted).ravel())
        again = torch.cat([u for _, u in batches])
        np.testing.assert_array_equal(again, blocks.take(torch.arange(N)).u[rows, 0])
        orders.append(rows)
    np.testing.assert_array_equal(orders[0], orders[1])
    assert float((rows[:256] - rows[:256].roll(1)).abs().float().mean()) > 500


def test_reading_scattered_rows_keeps_their_order() -> None:
    values = np.arange(20_000, dtype=np.float16)[:, None]
    rows = FromFunction(lambda part: values[part], values.shape)
    index = np.array([19_999, 3, 8_192, 3, 0])
    np.testing.assert_array_equal(rows[index], values[index])
    np.testing.assert_array_equal(rows[5:50:7], values[5:50:7])
    np.testing.assert_array_equal(np.asarray(rows), values)


def test_a_store_that_does_not_fit_is_left_on_disk_with_the_same_values(tmp_path: Path) -> None:
    layout_ = Layout(300, ("embed", "block_1", "block_2"), (6, 6, 6), 6, shard_records=128)
    store = create_embeddings(tmp_path / "net.zarr", layout_, Identity({"expert": "net"}, "s", "r"))
    values = np.random.default_rng(4).normal(size=(300, 4, 6)).astype(np.float16)
    for shard in range(store.n_shards):
        part = values[store.rows_of(shard)]
        store.write(shard, Shard(part[:, :3], part[:, 3]))
    assert fits([store], 1.0)
    assert not fits([store], 1e-6)
    inside, outside = expert_parts(store), expert_parts(store, lazy=True)
    assert set(inside) == set(outside) == {"embedding", "layers", "embed"}
    rows = np.array([299, 5, 130])
    for name, array in inside.items():
        assert isinstance(outside[name], LazyRows)
        assert outside[name].shape == array.shape
        np.testing.assert_array_equal(np.asarray(outside[name]), array)
        np.testing.assert_array_equal(outside[name][rows], array[rows])
    y = {"y": (values[:, 3, 0] > 0).astype(float)}
    heads = EnsembleHeads(lora=False, gate_epochs=0).fit({"net": outside}, y)
    np.testing.assert_array_equal(heads.predict_proba({"net": outside})["y"], heads.predict_proba({"net": inside})["y"])


MEMORY = """
import json, sys
import numpy as np
from stages.heads import EnsembleHeads
from stages.heads import fit as fitting
from stages.heads.inputs.lazy_rows import LazyRows
from stages.learning.peak_memory import PeakMemory
fitting.LARGE_RECORDS = 1000
n, table = int(sys.argv[1]), np.random.default_rng(0).normal(size=(10_007, 256)).astype(np.float16)
class Made(LazyRows):
    shape, dtype = (n, 256), np.dtype(np.float16)
    def read(self, rows):
        return table[np.arange(rows.start, min(rows.stop, n)) % len(table)]
rng, rows = np.random.default_rng(0), np.arange(n)
y = {"a": rng.integers(0, 2, n).astype(float), "b": rng.integers(0, 2, n).astype(float)}
with PeakMemory() as memory:
    heads = EnsembleHeads(lora_epochs=1, gate_epochs=1, memory_gb=0.001, inner_folds=0, strengths=(1.0,))
    heads.fit({"x": Made()}, y, splits=[(rows[2000:], rows[:2000], [])])
print(json.dumps(memory.mb))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_records() -> None:
    peaks = []
    for n in (40_000, 120_000):
        done = subprocess.run([sys.executable, "-c", MEMORY, str(n)], check=True, capture_output=True, text=True)
        peaks.append(json.loads(done.stdout))
    if peaks[0] is None:
        pytest.skip("this system does not count peak memory per process")
    # the features of the other 80,000 records are 41 MB, 82 in float32; their labels and masks some 10
    assert peaks[1] - peaks[0] < 25


def test_every_product_and_gradient_is_where_the_device_says() -> None:
    """A meta tensor has a device and a shape but no values: an operation that meets one of the CPU fails."""
    blocks = layout([TaskSpec("sex", "binary"), TaskSpec("r", "multiclass", tuple("abc"))])
    x = np.random.default_rng(3).normal(size=(64, 8)).astype(np.float32)
    device = torch.device("meta")
    labels = Labels(torch.zeros(2, 64, 4), torch.ones(2, 64, 4), torch.ones(2, 1, 64, dtype=torch.bool), blocks)
    scale = SharedScale([RobustScaler.fit(x), RobustScaler.fit(x[:40])], device)
    nothing = torch.zeros(3, dtype=torch.long, device=device)
    block = RecordBlock(torch.zeros(64, 8, device=device), nothing, nothing, torch.zeros(3, device=device))
    source = Blocks(lambda rows: x[rows], 64, scale, 0.0)
    base = torch.zeros(2, 8, 4, device=device), torch.zeros(2, 4, device=device)
    with torch.no_grad():
        found = Pass(source, labels, 1, block)(*base)
    assert {t.device for t in found} == {device}
    adapters = WideAdapters(source, labels, base, LoraOptions(), 0)
    with torch.no_grad():
        logits = adapters.maps()(block)
    adapters.set_gradients(block, torch.zeros_like(logits))
    assert adapters.a.grad is not None
    assert adapters.a.grad.device == logits.device == device
    if mixes_devices(device):
        pytest.skip("this torch multiplies a meta and a CPU tensor silently")
    with pytest.raises(RuntimeError, match="device"):
        adapters.maps()(RecordBlock(torch.zeros(64, 8), nothing, nothing, block.value))


def mixes_devices(device: torch.device) -> bool:
    """Whether torch (2.6, for one) multiplies tensors of the CPU and of another device without an error."""
    try:
        torch.zeros(2, 2) @ torch.zeros(2, 2, device=device)
    except RuntimeError:
        return False
    return True


def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="device 'cuda:99': this machine has"):
        EnsembleHeads(device="cuda:99").fit({"a": np.zeros((4, 2))}, {"y": [0, 1, 0, 1]})


def test_a_wide_expert_that_few_records_have_is_fitted_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folds with different, small numbers of its records: their axes differ in number."""
    monkeypatch.setattr("stages.heads.fit.LARGE_RECORDS", 100)
    monkeypatch.setattr("stages.heads.blockwise.whitening.MAX_GRAM_WIDTH", 32)
    rng = np.random.default_rng(0)
    y = rng.normal(size=400)
    wide = np.full((400, 64), np.nan, np.float32)
    seen = np.r_[0:30, 200:223]
    wide[seen] = y[seen, None] + rng.normal(size=(len(seen), 64))
    narrow = (y[:, None] + rng.normal(size=(400, 5))).astype(np.float32)
    rows = np.arange(400)
    splits = [(rows[:300], rows[300:350], rows[350:]), (rows[100:], rows[50:100], rows[:50])]
    heads = EnsembleHeads(lora=False, gate_epochs=0).fit({"wide": wide, "narrow": narrow}, {"y": y}, splits=splits)
    alone = heads.expert_predictions({"wide": wide, "narrow": narrow}, fold=1)["wide"]["y"]
    assert np.corrcoef(alone[:30], y[:30])[0, 1] > 0.8
