"""The published protocol: its crops, heads and training, the board that follows from its predictions, resuming."""

import csv
import json
import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from sklearn.metrics import mean_absolute_error, roc_auc_score

import stages.leaderboard.crops
from cache import open_records, open_signals
from cache.embeddings import Identity, Layout, Shard
from cache.errors import InputError, UsageError
from cache.records import records_digest
from cache.upkeep.resume import create_embeddings
from stages.experts import load_expert
from stages.heads.targets.tasks import TaskSpec
from stages.leaderboard import ExpertRun, LeaderboardPaths, LeaderboardSettings, run
from stages.leaderboard.crops import crop_seconds, cut_crops, embed_crops, tokens_inside
from stages.leaderboard.inputs import VectorInputs
from stages.leaderboard.protocol import FrozenHead, TaskLabels, batches, drawn_crops, predict, protocol_loss, train
from stages.report.leaderboard.section import leaderboard_section

N = 140


def test_the_frozen_head_is_the_benchmarks(parity_dir):
    tensors = load_file(parity_dir / "fmbench-attnpool-a.safetensors")
    state = {k.removeprefix("state/head."): v for k, v in tensors.items() if k.startswith("state/")}
    tokens, logits = tensors["in/tokens"], tensors["out/logits"]
    head = FrozenHead(tokens.shape[-1], logits.shape[-1])
    head.load_state_dict({k if k == "c_proj.weight" else f"pool.{k}": v for k, v in state.items()}, strict=True)
    with torch.inference_mode():
        torch.testing.assert_close(head(tokens), logits, atol=1e-5, rtol=0)


def test_crops_are_exact_samples():
    signals = np.arange(2 * 12 * 5600, dtype=np.float32).reshape(2, 12, 5600)
    cut = cut_crops(signals, 500.0)
    assert cut.shape == (2, 4, 12, 1250)
    for k in range(4):
        np.testing.assert_array_equal(cut[:, k], signals[..., k * 1250 : (k + 1) * 1250])
    assert cut_crops(signals[..., :3749], 500.0).shape[1] == 2  # the rest of 1249 samples is no crop
    assert cut_crops(signals[..., :2500], 250.0).shape[1] == 4
    np.testing.assert_array_equal(cut_crops(signals, 500.0, 5.0)[:, 1], signals[..., 2500:5000])
    gap = signals.copy()
    gap[0, 3, 1300] = np.nan
    assert np.argwhere(np.isnan(cut_crops(gap, 500.0))).tolist() == [[0, 1, 3, 50]]


def test_tokens_behind_the_crop_are_left_out():
    expert = load_expert("seed")
    spec = expert.spec
    assert crop_seconds(expert) == 2.5
    inside = tokens_inside(spec, 1, spec.tokens.per_window, 2.5)
    starts = spec.tokens.spans_s(spec.tokens.per_window)[0]
    assert inside.sum() == (starts < 2.5).sum() < len(inside)


def _toy_labels(rng, n, columns):
    y = (rng.random((n, columns)) < 0.4).astype(np.float32)
    known = np.ones_like(y)
    known[: n // 4, 1] = 0
    task = TaskSpec("findings", "multilabel", tuple(f"c{k}" for k in range(columns)))
    return TaskLabels(task, torch.from_numpy(y), torch.from_numpy(known))


def test_training_the_linear_head_equals_a_reference_written_from_the_formulas():
    """Logistic gradients and AdamW's update in float64, on the batches and crops that the loop draws."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(150, 4, 6)).astype(np.float32)
    vectors[5, 2:] = np.nan
    inputs, labels = VectorInputs.of(vectors), _toy_labels(rng, 150, 3)
    settings = LeaderboardSettings(epochs=5, seed=3)
    torch.manual_seed(1)
    head = torch.nn.Linear(6, 3)
    w, b = head.weight.detach().double().numpy().copy(), head.bias.detach().double().numpy().copy()
    seen: list[int] = []
    rows = np.arange(140), np.arange(140, 150)
    found = train(head, inputs, labels, rows, lambda p: seen.append(1) or len(seen), settings)
    assert found.epoch == 5
    draw, y, known = np.random.default_rng(3), labels.y.numpy(), labels.known.numpy()
    moments = {name: [np.zeros_like(p), np.zeros_like(p)] for name, p in (("w", w), ("b", b))}
    step = 0
    for _ in range(5):
        drawn = batches(np.arange(140), 64, draw)
        assert [len(batch) for batch in drawn] == [64, 64]
        for batch in drawn:
            step += 1
            x = vectors[batch, drawn_crops(inputs.present[batch], draw)].astype(np.float64)
            residual = (1 / (1 + np.exp(-(x @ w.T + b))) - y[batch]) * known[batch]
            residual /= known[batch].sum(0) * 3
            for name, slope in (("w", residual.T @ x), ("b", residual.sum(0))):
                parameter = {"w": w, "b": b}[name]
                first, second = moments[name]
                parameter *= 1 - 1e-3 * 1e-3
                first += 0.1 * (slope - first)
                second += 0.001 * (slope**2 - second)
                scale = np.sqrt(second / (1 - 0.999**step)) + 1e-8
                parameter -= 1e-3 * first / (1 - 0.9**step) / scale
    np.testing.assert_allclose(head.weight.detach().numpy(), w, atol=2e-6)
    np.testing.assert_allclose(head.bias.detach().numpy(), b, atol=2e-6)


def test_the_epoch_of_the_best_validation_metric_is_kept():
    rng = np.random.default_rng(0)
    inputs, labels = VectorInputs.of(rng.normal(size=(80, 1, 4)).astype(np.float32)), _toy_labels(rng, 80, 2)
    values, states = iter([0.5, 0.9, 0.7, np.nan]), []

    def judge(predicted):
        states.append(predicted)
        return next(values)

    rows = np.arange(60), np.arange(60, 80)
    found = train(torch.nn.Linear(4, 2), inputs, labels, rows, judge, LeaderboardSettings(epochs=4))
    assert (found.epoch, found.validation) == (2, 0.9)
    np.testing.assert_array_equal(predict(found.head, inputs, labels.task, rows[1]), states[1])


def test_predictions_of_crops_are_averaged_as_probabilities():
    vectors = np.array([[[0.0], [2.0], [np.nan]]], np.float32)
    head = torch.nn.Linear(1, 1)
    torch.nn.init.ones_(head.weight)
    torch.nn.init.zeros_(head.bias)
    found = predict(head, VectorInputs.of(vectors), TaskSpec("t", "binary"), np.array([0]))
    assert found[0, 0] == pytest.approx((0.5 + 1 / (1 + np.exp(-2))) / 2)


def test_losses_are_those_of_the_benchmark():
    logits = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]])
    y = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    full, kinds = torch.ones_like(y), ("multilabel", "regression", "multiclass")
    expected = (
        torch.nn.functional.binary_cross_entropy_with_logits(logits, y),
        torch.nn.functional.l1_loss(logits, y),
        torch.nn.functional.cross_entropy(logits, y.argmax(1)),
    )
    one_hot = torch.nn.functional.one_hot(y.argmax(1), 3).float()
    for kind, loss in zip(kinds, expected, strict=True):
        torch.testing.assert_close(protocol_loss(logits, one_hot if kind == "multiclass" else y, full, kind), loss)


@pytest.fixture(scope="module")
def board_paths(tmp_path_factory: pytest.TempPathFactory, make_cohort, tiny_ecgfm) -> LeaderboardPaths:
    """A cohort with a tiny ECG-FM (tokens, segments cached) and vectors of another tool (no tokens, no network)."""
    from stages.embed import EmbedPaths, EmbedSettings
    from stages.embed import run as embed

    folder = tmp_path_factory.mktemp("board")
    make_cohort(folder, N)
    asked = EmbedSettings(
        expert="ecgfm", weights=tiny_ecgfm.weights, config=tiny_ecgfm.config, device="cpu", views=("segments",)
    )
    embed(asked, EmbedPaths(folder / "records.parquet", folder / "signals.zarr", folder / "ecgfm.zarr", folder / "s"))
    records = open_records(folder / "records.parquet")
    ids = records["record_id"].tolist()
    vectors = np.random.default_rng(0).normal(size=(N, 5)).astype(np.float32)
    vectors[:, 0] += 2 * records["sex"].to_numpy(float)
    layout = Layout(N, ("embed",), (5,), 5, 0, "float32", N)
    store = create_embeddings(
        folder / "mine.zarr", layout, Identity({"expert": "mine", "version": "1"}, "s", records_digest(ids))
    )
    store.write(0, Shard(vectors[:, None], vectors, None))

    def load():
        return load_expert("ecgfm", tiny_ecgfm.weights, tiny_ecgfm.config)

    experts = {
        "ecgfm": ExpertRun(folder / "ecgfm.zarr", load, 12_345, 50.0),
        "mine": ExpertRun(folder / "mine.zarr", None, None, None),
    }
    return _paths(folder, experts)


def _paths(folder: Path, experts) -> LeaderboardPaths:
    inputs = folder / "records.parquet", folder / "signals.zarr"
    return LeaderboardPaths.of(folder, *inputs, experts, folder / "state")


SETTINGS = LeaderboardSettings(epochs=4, batch_size=16, bootstrap=100)


def test_the_board_follows_from_its_predictions(board_paths):
    board = run(SETTINGS, board_paths).board
    table = pd.read_parquet(board_paths.predictions)
    records = open_records(board_paths.records).set_index("record_id")
    values = {}
    for row in board["rows"]:
        of_row = table[table["method"] == row["method"]]
        assert set(records.loc[of_row["record_id"], "split"]) == {"test"}
        for task, metric in (("sex", roc_auc_score), ("age", mean_absolute_error)):
            part = of_row[of_row["task"] == task]
            np.testing.assert_array_equal(part["y_true"], records.loc[part["record_id"], task].astype(float))
            values[row["method"], task] = metric(part["y_true"], part["y_pred"])
            found = row["scores"][task]
            assert found["value"] == pytest.approx(values[row["method"], task], abs=1e-6)
            assert found["low"] <= found["value"] <= found["high"]
    methods = [row["method"] for row in board["rows"]]
    ranks = pd.DataFrame(
        {
            "sex": pd.Series({m: values[m, "sex"] for m in methods}).rank(ascending=False),
            "age": pd.Series({m: values[m, "age"] for m in methods}).rank(),
        }
    ).mean(axis=1)
    for row in board["rows"]:
        assert row["mean_rank"]["value"] == pytest.approx(ranks[row["method"]])
    assert [row["mean_rank"]["value"] for row in board["rows"]] == sorted(ranks)
    assert sum(row["mean_rank_of_experts"]["value"] for row in board["rows"] if row["inputs"] == "native") == 6
    for task, best in (("sex", max), ("age", min)):
        top = best(values[m, task] for m in methods)
        for row in board["rows"]:
            apart = row["differences"][task]
            assert apart["value"] == pytest.approx(values[row["method"], task] - top, abs=1e-6)
            assert apart["low"] <= apart["value"] <= apart["high"]
            assert (apart["value"] == 0) == (apart["low"] == apart["high"] == 0)  # a row against itself


def test_an_expert_without_tokens_has_its_linear_head_twice_and_the_board_says_so(board_paths):
    board = run(SETTINGS, board_paths).board
    rows = {row["method"]: row for row in board["rows"]}
    assert rows["mine/frozen/native"]["pooling"] == "mean: the store has no segments (experts.NAME.views)"
    assert rows["mine/frozen/native"]["scores"] == rows["mine/linear/native"]["scores"]
    assert rows["ecgfm/frozen/crops"]["pooling"] == "attention over tokens"
    assert rows["ecgfm/frozen/native"]["pooling"] == "attention over seconds"
    assert rows["ecgfm/frozen/crops"]["trained_parameters"]["sex"] == 32 + 3 * 32**2 + 32
    assert rows["ecgfm/frozen/crops"]["crop_s"] == 5.0  # its window
    assert board["left_out"] == {"mine/crops": "its vectors were made by another tool, which cannot be run on crops"}
    assert "mine/linear/crops" not in rows


def test_finished_heads_are_read_and_the_outputs_are_the_same_bytes(board_paths, monkeypatch):
    run(SETTINGS, board_paths)
    outputs = (board_paths.predictions, board_paths.board, board_paths.table, board_paths.costs)
    first = [path.read_bytes() for path in outputs]

    def refuse(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr("stages.leaderboard.fits.train", refuse)
    run(SETTINGS, board_paths)
    assert [path.read_bytes() for path in outputs] == first
    with pytest.raises(AssertionError, match="trained again"):
        run(SETTINGS.model_copy(update={"learning_rate": 2e-3}), board_paths)


def test_a_killed_run_goes_on_to_the_same_crops(board_paths, tmp_path):
    """SIGKILL in the middle of writing the second block's vectors."""
    signals, load = open_signals(board_paths.signals), board_paths.experts["ecgfm"].load
    embed_crops(load, signals, tmp_path / "whole")
    child = os.fork()
    if child == 0:
        writes, save = [], np.save

        def killed(file, values, **options):
            writes.append(1)
            if len(writes) == 4:
                file.write(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
            save(file, values, **options)

        stages.leaderboard.crops.np.save = killed
        embed_crops(load, signals, tmp_path / "resumed")
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "resumed").glob("*-000000.npy")}
    assert len(before) == 2
    assert not (tmp_path / "resumed/vectors-000001.npy").exists()
    embed_crops(load, signals, tmp_path / "resumed")
    names = sorted(p.name for p in (tmp_path / "whole").iterdir())
    assert len(names) == 8
    for name in names:
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert {name: (tmp_path / "resumed" / name).stat().st_mtime_ns for name in before} == before


def test_costs_stand_beside_the_board_and_in_the_table(board_paths):
    found = run(SETTINGS, board_paths)
    assert found.costs["records_per_s"] == {"ecgfm": 50.0, "mine": None}
    assert "records_per_s" not in board_paths.board.read_text()
    lines = list(csv.DictReader(board_paths.table.read_text().splitlines()))
    assert len(lines) == 2 * len(found.board["rows"])
    speeds = {(line["expert"], line["records_per_s"], line["expert_parameters"]) for line in lines}
    assert speeds == {("ecgfm", "50.0", "12345"), ("mine", "", "")}


def test_the_report_draws_accuracy_against_cost(board_paths):
    run(SETTINGS, board_paths)
    board, costs = (json.loads(path.read_text()) for path in (board_paths.board, board_paths.costs))
    section = leaderboard_section("mine", board, costs)
    assert [words.split(" against ")[1] for words, _ in section["pictures"]] == [
        "records a second of embed",
        "parameters of the expert",
    ]
    assert all(svg.count("<circle") == 4 for _, svg in section["pictures"])  # mine has no known cost
    assert [row["names"][0] for row in section["rows"]] == [row["expert"] for row in board["rows"]]
    assert section["without_tokens"] == ["mine"]
    assert leaderboard_section("mine", {}, {}) is None


def test_what_cannot_be_judged_is_told(board_paths):
    with pytest.raises(UsageError, match="task 'height' is no target of records"):
        run(SETTINGS.model_copy(update={"tasks": ("height",)}), board_paths)
    with pytest.raises(UsageError, match="no experts"):
        run(SETTINGS, _paths(board_paths.records.parent, {}))
    with pytest.raises(InputError, match="no task can be judged"):
        run(SETTINGS.model_copy(update={"tasks": ()}), board_paths)


@pytest.mark.slow
def test_the_command_judges_and_fine_tunes_the_study(toy_study, ensemble, monkeypatch):
    """The whole way from params.yaml: an embedded expert, its crops, heads, a fine-tuned copy through posttrain."""
    monkeypatch.chdir(toy_study)
    params = yaml.safe_load((toy_study / "params.yaml").read_text())
    quick = {"epochs": 1, "batch_size": 16, "fine_tune": ["ecgfm"]}
    params |= {"leaderboard": {"quick": quick}, "tasks": ["sex"]}
    params |= {"evaluate": {"bootstrap": 100}}
    (toy_study / "params.yaml").write_text(yaml.safe_dump(params))
    assert ensemble("embed", "--expert", "ecgfm").returncode == 0
    done = ensemble("evaluate", "--preset", "fm-benchmark", "--name", "quick")
    assert done.returncode == 0, done.stderr
    board = json.loads((toy_study / "leaderboard/quick/leaderboard.json").read_text())
    kinds = {(row["mode"], row["inputs"]) for row in board["rows"]}
    both = {(mode, source) for mode in ("linear", "frozen") for source in ("crops", "native")}
    assert kinds == both | {("finetuned", "crops")}
    costs = json.loads((toy_study / "leaderboard/quick/leaderboard_costs.json").read_text())
    record = json.loads((toy_study / ".ensemble/runs/embed-ecgfm.json").read_text())
    assert costs["records_per_s"]["ecgfm"] == pytest.approx(record["n_embedded"] / record["seconds"]["total"])
    tuned = json.loads((toy_study / "weights/versions/ecgfm+fmbench-sex/results.json").read_text())["runs"][0]
    row = next(row for row in board["rows"] if row["mode"] == "finetuned")
    assert row["scores"]["sex"]["value"] == pytest.approx(tuned["tuned"]["test"]["auroc"])
    assert (row["crop_s"], row["kept_epochs"]["sex"], tuned["epoch"]) == (5.0, 1, 1)
    facts = json.loads((toy_study / "weights/versions/ecgfm+fmbench-sex/version.json").read_text())["parameters"]
    asked = {"crop_s": 5.0, "test_crops": "mean", "head": "linear", "half_decay": 0.1, "select": "metric"}
    assert asked.items() <= facts.items()
    assert "finetuned" in done.stdout
    params["experts"]["ecgfm"]["precision"] = "bf16"
    (toy_study / "params.yaml").write_text(yaml.safe_dump(params))
    stale = ensemble("evaluate", "--preset", "fm-benchmark")
    assert stale.returncode == 1
    assert "run `ensemble embed --expert ecgfm` first" in stale.stderr


def test_an_expert_to_fine_tune_that_is_none_of_the_study_is_told(toy_study, ensemble, monkeypatch):
    monkeypatch.chdir(toy_study)
    params = yaml.safe_load((toy_study / "params.yaml").read_text())
    for value, words in ((["hubert"], "leaderboard.quick.fine_tune names hubert, which is not under"), (3, "list of")):
        asked = {**params, "leaderboard": {"quick": {"fine_tune": value}}}
        (toy_study / "params.yaml").write_text(yaml.safe_dump(asked))
        assert words in ensemble("evaluate", "--preset", "fm-benchmark", "--name", "quick").stderr


def test_the_preset_is_named_right(ensemble, toy_study, monkeypatch):
    monkeypatch.chdir(toy_study)
    assert "expected fm-benchmark" in ensemble("evaluate", "--preset", "fmbench").stderr
    assert "belongs to --preset fm-benchmark" in ensemble("evaluate", "--fine-tune").stderr
    unknown = ensemble("evaluate", "--preset", "fm-benchmark", "--name", "other")
    assert "--name other: leaderboard in params.yaml has no such entry; it has none" in unknown.stderr
