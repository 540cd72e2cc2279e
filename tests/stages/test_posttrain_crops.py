"""Post-training on crops: where they lie, what training draws, and what is said of a record from all of its crops."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cache import open_records, open_signals
from cache.errors import InputError, UsageError
from stages.experts import expert_class, load_expert
from stages.heads.targets.tasks import TaskSpec, layout
from stages.posttrain import PosttrainPaths, PosttrainSettings
from stages.posttrain import run as posttrain
from stages.posttrain.drop_path import residual_blocks
from stages.posttrain.inputs import Crops, WholeRecords, inputs_of, mean_of_records, open_crops
from stages.posttrain.probing import Head
from stages.posttrain.tuned import Tuned, early_blocks, rate_groups
from stages.training.settings import LoopSettings

LOOP = LoopSettings(epochs=2, batch_size=8, learning_rate=3e-3, min_learning_rate=3e-3, checkpoint_seconds=0)
PROTOCOL = {"head": "linear", "drop_path": 0.0, "select": "metric", "crop_s": 5.0, "half_decay": 0.1}
LENGTHS = np.array([10, 11, 40, 29])


def as_it_is(signals_mv, rate_hz):
    assert rate_hz == 500
    return torch.from_numpy(signals_mv)[:, None]


def toy_crops(**options):
    """Four records whose first lead says which one it is, and whose second counts its samples."""
    flat = np.zeros((LENGTHS.sum(), 12), np.float32)
    flat[:, 0] = np.repeat(np.arange(4), LENGTHS)
    flat[:, 1] = np.concatenate([np.arange(n) for n in LENGTHS])
    ends = np.cumsum(LENGTHS)
    return Crops(flat, ends - LENGTHS, ends, 10, as_it_is, **options)


def test_a_drawn_crop_lies_inside_its_record_and_reaches_both_ends():
    crops, generator = toy_crops(), np.random.default_rng(0)
    positions = np.tile([3, 0, 2, 1], 1000)
    x = crops.draw(positions, generator)[:, 0]
    assert x.shape == (4000, 12, 10)
    assert torch.equal(x[:, 0], torch.from_numpy(positions).float()[:, None].expand(-1, 10))
    assert torch.equal(x[:, 1].diff(dim=1), torch.ones(4000, 9))
    for record, length in enumerate(LENGTHS):
        starts = x[positions == record, 1, 0]
        assert (starts.min(), starts.max()) == (0, length - 10)


def test_what_is_drawn_is_a_function_of_the_generator():
    crops, positions = toy_crops(), np.array([2, 3, 2])
    first, again, other = (crops.draw(positions, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_judged_crops_stand_one_after_the_other_and_a_rest_is_none():
    crops = toy_crops()
    assert crops.positions.tolist() == [0, 1, 2, 2, 2, 2, 3, 3]
    x = crops.read(np.arange(8))[:, 0]
    assert x[:, 1, 0].tolist() == [0, 0, 0, 10, 20, 30, 0, 10]
    assert x[:, 0, -1].tolist() == crops.positions.tolist()
    assert inputs_of(crops, np.array([3, 1, 2])).tolist() == [6, 7, 1, 2, 3, 4, 5]
    middle = toy_crops(test_crops="middle")
    assert middle.read(np.arange(4))[:, 0, 1, 0].tolist() == [0, 0, 15, 9]
    kept = crops.chosen(np.array([False, False, True, True]))
    assert kept.read(np.arange(6))[:, 0, 0, 0].tolist() == [2, 2, 2, 2, 3, 3]
    whole = WholeRecords(np.zeros((3, 1, 12, 4), np.float32))
    assert inputs_of(whole, np.array([2, 0])).tolist() == [2, 0]


def test_values_are_averaged_over_the_crops_of_each_record():
    values = torch.tensor([[0.1], [0.2], [0.3], [0.5], [0.7], [0.9], [1.0], [0.5]])
    torch.testing.assert_close(mean_of_records(toy_crops(), values), torch.tensor([[0.1], [0.2], [0.6], [0.75]]))


class OneShard:
    """What `open_crops` asks of a signal store: records of two rates, one of them unreadable."""

    rates = np.array([500.0, 250.0, 0.0, 500.0])
    valid = np.array([5000, 1000, 0, 1000])

    def __len__(self):
        return 4

    def content_digest(self):
        return "digest"

    def valid_of(self, rows):
        return self.valid[rows]

    def rates_of(self, rows):
        return self.rates[rows]

    def read_groups(self, rows, wanted):
        for row in np.flatnonzero(wanted & (self.valid > 0)):
            yield np.array([row]), np.full((1, 12, self.valid[row]), float(row), np.float32), self.rates[row]


def test_records_are_laid_out_at_500_hz_once_and_short_ones_are_left_out(tmp_path, caplog):
    crops, rows = open_crops(tmp_path, OneShard(), np.arange(4), 4.0, as_it_is, "mean")
    assert rows.tolist() == [0, 1]
    assert crops.positions.tolist() == [0, 0, 1]
    np.testing.assert_allclose(crops.read(np.arange(3))[:, 0, 5].mean(1), [0, 0, 1], atol=1e-4)
    assert "2 of 4 records are left out of training, the first: shorter than 4 s" in caplog.text
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    shorter, rows = open_crops(tmp_path, OneShard(), np.arange(4), 1.0, as_it_is, "mean")
    assert rows.tolist() == [0, 1, 3]
    assert len(shorter.positions) == 10 + 4 + 2
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    with pytest.raises(InputError, match="crop_s 11: the longest record has 10 s"):
        open_crops(tmp_path, OneShard(), np.arange(4), 11.0, as_it_is, "mean")


def test_crops_that_the_expert_refuses_are_left_out_with_its_reason(tmp_path, caplog):
    def fussy(signals_mv, rate_hz):
        if (signals_mv == 1.0).all((1, 2)).any() or signals_mv.shape[-1] < 500:
            raise InputError("a flat record of ones")
        return as_it_is(signals_mv, rate_hz)

    shard = OneShard()
    shard.rates = np.array([500.0, 500.0, 0.0, 500.0])
    _, rows = open_crops(tmp_path, shard, np.arange(4), 1.0, fussy, "mean")
    assert rows.tolist() == [0, 3]
    assert "a flat record of ones" in caplog.text
    with pytest.raises(InputError, match="no record can be trained on: a flat record of ones"):
        open_crops(tmp_path, shard, np.arange(4), 0.5, fussy, "mean")


EARLY = {
    "jepa": (12, [f"encoder_blocks.blocks.{k}" for k in range(3)]),
    "stmem": (12, [f"block{k}" for k in range(3)]),
    "ecgfounder": (20, [f"stage_list.{stage}.block_list.{k}" for stage in range(3) for k in range(2)]),
    "merl": (8, [f"layer{layer}.{k}" for layer in (1, 2) for k in range(2)]),
    "hubert-base": (12, [f"encoder.layers.{k}" for k in range(6)]),
    "ecgfm": (12, [f"encoder.layers.{k}" for k in range(6)]),
    "ecgcpc": (4, []),
    "seed": (15, [f"members.{member}.stages.{stage}.0" for member in range(3) for stage in range(2)]),
}
"""Blocks at the published size, and the slowest: of the benchmark's encoders as its fm_ecg.py, `get_params`, has it."""


@pytest.mark.parametrize("name", EARLY)
def test_the_slowest_blocks_are_the_benchmarks(name):
    cls, variant = expert_class(name)
    with torch.device("meta"):
        expert = cls.build(None, None, variant=variant)
    paths = [path for path, _ in residual_blocks(expert)]
    assert (len(paths), [paths[index] for index in sorted(early_blocks(expert))]) == EARLY[name]


def test_what_stands_before_the_first_block_is_as_slow_as_the_early_ones():
    expert = load_expert("ecgcpc", config=expert_class("ecgcpc")[0].small_config(), random_weights=True, trainable=True)
    tuned = Tuned(expert, Head(expert.spec.embedding_dim, layout([TaskSpec("sex", "binary")])), None)
    slowest = rate_groups(tuned, 1.0, 0.1)[0]
    convolutions = [p for name, p in expert.module.named_parameters() if "ts_encoder.encoder." in name]
    assert slowest["scale"] == pytest.approx(0.01)
    assert {id(p) for p in slowest["params"]} == {id(p) for p in convolutions if p.requires_grad}


def test_halves_of_the_blocks_learn_ten_and_a_hundred_times_more_slowly():
    expert = load_expert("seed", random_weights=True, trainable=True)
    tuned = Tuned(expert, Head(expert.spec.embedding_dim, layout([TaskSpec("sex", "binary")])), None)
    groups = rate_groups(tuned, 1.0, 0.1)
    assert [group["scale"] for group in groups] == pytest.approx([0.01, 0.1, 1.0])
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in tuned.parameters())
    assert groups[-1]["params"] == list(tuned.head.parameters())


def test_regressions_may_lose_the_absolute_error():
    head = Head(2, layout([TaskSpec("age", "regression")]), absolute_error=True)
    logits, y = torch.tensor([[1.0], [-2.0]]), torch.tensor([[0.0], [1.0]])
    assert float(head.loss(logits, y, torch.ones(2, 1))) == pytest.approx(2.0)


@pytest.fixture
def asked(toy_study, tiny_ecgfm, monkeypatch) -> PosttrainSettings:
    monkeypatch.chdir(toy_study)
    torch.set_num_threads(1)
    options = {"weights": tiny_ecgfm.weights, "config": tiny_ecgfm.config, **PROTOCOL}
    return PosttrainSettings("ecgfm+sex", "ecgfm", "sex", LOOP, **options)


def test_a_crop_that_the_expert_does_not_take_is_refused_before_records_are_read(asked):
    with pytest.raises(UsageError, match=r"^crop_s 2.5: expert 'ecgfm': 2.5 s are shorter than 5 s, .* at least 5, or"):
        posttrain(replace(asked, crop_s=2.5), PosttrainPaths(Path("nowhere"), Path("nowhere"), Path(".ensemble")))


PATHS = PosttrainPaths(Path("records.parquet"), Path("signals.zarr"), Path(".ensemble"))


def test_a_record_is_what_its_crops_are_on_average(asked):
    """The test predictions again from the version's files: cut by hand, encoded, averaged as probabilities."""
    summary = posttrain(asked, PATHS)
    expert, head = load_expert("ecgfm+sex"), load_file(f"{summary.folder}/head.safetensors")
    signals_mv, by_hand = open_signals("signals.zarr").read_mv(slice(0, 40)), []
    for row in summary.test_rows:
        crops = np.stack([signals_mv[row, :, :2500], signals_mv[row, :, 2500:5000]])
        with torch.inference_mode():
            embedding = expert.encode(expert.prepare(crops, 500.0)[:, 0]).embedding
        logits = embedding @ head["linear.weight"].T + head["linear.bias"]
        by_hand.append(logits.sigmoid().mean(0).numpy())
    np.testing.assert_allclose(summary.predictions[0], by_hand, atol=2e-6)
    assert set(open_records("records.parquet")["split"].to_numpy()[summary.test_rows]) == {"test"}
    run = summary.runs[0]
    costs = {entry["epoch"]: entry["validation_cost"] for entry in run["curve"]}
    assert costs.keys() == {1, 2}
    assert run["epoch"] == min(costs, key=costs.__getitem__)
    assert run["tuned"]["val"]["auroc"] == pytest.approx(-costs[run["epoch"]])
    assert "probe" not in run


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(asked):
    def stop(done, total, loss):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        posttrain(asked, PATHS, stop)
    steps = []
    resumed = posttrain(asked, PATHS, lambda done, *_: steps.append(done))
    assert min(steps) > 1
    weights = Path(resumed.folder, "model.safetensors").read_bytes()
    whole = posttrain(asked, replace(PATHS, state=Path("elsewhere")))
    assert whole.runs == resumed.runs
    assert Path(whole.folder, "model.safetensors").read_bytes() == weights


def test_the_probe_can_start_from_crops_too(asked):
    run = posttrain(replace(asked, head="probe", half_decay=1.0, select="best"), PATHS).runs[0]
    assert run["probe"]["test"].keys() == run["tuned"]["test"].keys()
    assert run["curve"][0]["epoch"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_decay": 0.5}, "half_decay and layer_decay: set one of them"),
        ({"absolute_error": True, "head": "joint"}, "absolute_error: belongs to"),
        ({"task": "sex,age", "head": "joint"}, "select: metric chooses by one task"),
    ],
)
def test_options_that_contradict_each_other_are_refused(asked, change, message):
    with pytest.raises(UsageError, match=message):
        replace(asked, **change)
