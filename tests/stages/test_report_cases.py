"""The cases of a report: the right records, drawn, the same bytes each time."""

import dataclasses
import re
import shutil

import numpy as np
import pytest

from cache.records import Target, open_records, write_records
from cache.signals import create_signals, to_microvolts
from stages.plots import plot_ecg, scale_of
from stages.plots.thumbnail import thumbnail
from stages.report import ReportPaths, ReportSettings, run
from stages.scoring.blocks import PredictionBlock
from stages.scoring.cases import choose, label_issues
from tests.stages.synthetic_predictions import write_judged

N_RECORDS = 300


def block(y_true, y_pred):
    n = len(y_true)
    ids = np.array([f"r{i}" for i in range(n)], dtype=object)
    return PredictionBlock.of(
        ids, ids, np.full(n, "test"), np.zeros(n, dtype=int), np.asarray(y_true), np.asarray(y_pred)
    )


def test_the_most_certain_the_wrong_and_the_unsure_of_a_binary_task():
    found = choose(Target("t", "binary"), block([1.0, 0, 1, 0, 1], [0.99, 0.02, 0.1, 0.8, 0.52]), [], 2)
    assert found.right.tolist() == [0, 1]
    assert found.wrong.tolist() == [2, 3]
    assert found.unsure.tolist() == [4, 3]


def test_the_worst_finding_of_a_multilabel_record_counts():
    truth = [[1.0, 0], [1, 0], [np.nan, 1]]
    said = [[0.9, 0.1], [0.95, 0.97], [0.5, 0.45]]
    found = choose(Target("t", "multilabel", classes=("a", "b")), block(truth, said), [], 1)
    assert (found.right.tolist(), found.wrong.tolist(), found.unsure.tolist()) == ([0], [1], [2])


def test_a_regression_shows_errors_and_where_experts_differ():
    truth = np.array([50.0, 60, 70])
    main, other = block(truth, [50.1, 40, 65]), block(truth, [50, 60, 95])
    found = choose(Target("t", "regression"), main, [main, other], 1)
    assert (found.right.tolist(), found.wrong.tolist(), found.unsure.tolist()) == ([0], [1], [2])
    assert found.mislabelled.size == 0


def test_planted_wrong_labels_are_found_by_the_published_rule():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 600)
    logits = 4.0 * (truth[:, None] == np.arange(3)) + rng.normal(0, 1, (600, 3))
    said = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    planted = rng.choice(600, 30, replace=False)
    labels = truth.copy()
    labels[planted] = (truth[planted] + 1) % 3
    found = label_issues(Target("t", "multiclass", classes=("a", "b", "c")), block(labels, said))
    assert len(set(found) & set(planted)) >= 20
    assert len(set(found) - set(planted)) <= 2
    assert np.all(np.diff(said[found, labels[found]]) >= 0)


def test_the_rule_by_hand():
    """Thresholds are (0.9 + 0.8 + 0.1) / 3 = 0.6 and (0.7 + 0.9) / 2 = 0.8; only the third reaches the other one."""
    said = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.3, 0.7], [0.1, 0.9]])
    found = label_issues(Target("t", "multiclass", classes=("a", "b")), block([0, 0, 0, 1, 1], said))
    assert found.tolist() == [2]
    both = label_issues(Target("t", "binary"), block([0.0, 0, 0, 1, 1], said[:, 1]))
    assert both.tolist() == [2]


def heights(svg, lead):
    return re.search(rf'>{lead}</text><path d="(.*?)"', svg)[1]


def test_a_thumbnail_keeps_the_height_of_r_and_names_what_is_not_there():
    signals = np.zeros((12, 5000))
    signals[0, 250] = 1.0  # one sample of 2 ms
    signals[1] = np.nan
    signals[2, 100:200] = np.nan
    drawn = thumbnail(signals, 500, "a <b>")
    assert "l49 0 1-40" in heights(drawn, "I")  # 10 mm up, four units each
    assert "no samples" in drawn
    assert heights(drawn, "III").count("M") == 2
    assert "a &lt;b&gt;" in drawn
    for rate_hz in (80, 250, 257.1, 1000):
        assert thumbnail(np.tile(signals, 2)[:, : int(10 * rate_hz)], rate_hz, "").count("<path") == 11


def test_z_scores_are_drawn_in_standard_deviations_and_say_so():
    signals = np.zeros((12, 5000))
    signals[0, 250] = 4.0
    drawn = thumbnail(signals, 500, "", scale_of("z-score"))
    assert "l49 0 1-40" in heights(drawn, "I")  # four deviations: 10 mm up
    assert ">2.5 mm/SD</text>" in drawn
    assert scale_of("mV").square == "200 ms and 0.5 mV"
    assert "mm/" not in thumbnail(signals, 500, "", scale_of("mV"))
    figure = plot_ecg(signals, scale=scale_of("z-score"), notes=["flat leads"])
    words = " ".join(text.get_text() for text in figure.axes[0].texts)
    assert "2.5 mm/SD   pulse 4 SD" in words
    assert "signals are z-scores" in words
    assert "mV" not in words


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = write_judged(tmp_path_factory.mktemp("cases"))
    store = create_signals(folder / "signals.zarr", N_RECORDS, shard_records=512)
    rng = np.random.default_rng(0)
    signals = 0.3 * rng.standard_normal((N_RECORDS, 12, 5000)).cumsum(axis=2)[:, :, ::1] / 30
    store.write_shard(0, to_microvolts(signals), np.full(N_RECORDS, 5000))
    return folder


def page(study, out, **options):
    inputs = (study / name for name in ("records.parquet", "metrics.json", "predictions.parquet"))
    paths = dataclasses.replace(ReportPaths(*inputs, out), signals=study / "signals.zarr")
    return run(ReportSettings(**options), paths).report.read_text(encoding="utf-8")


def test_each_task_shows_its_cases_drawn_and_named(study, tmp_path):
    found = page(study, tmp_path / "a.html", cases=2)
    assert found == page(study, tmp_path / "b.html", cases=2)
    assert found.count("<h4>Most certain, and right</h4>") == 3
    assert found.count("<h4>Probably mislabelled</h4>") == 3
    assert found.count("<h4>Largest errors</h4>") == 1
    assert found.count("25 mm/s, 10 mm/mV: a square of the grid is 200 ms and 0.5 mV.") == 4
    assert 4 * 3 * 2 < found.count('<svg class="ecg"') <= 4 * 4 * 2
    assert re.search(r"<figcaption>rec\d+: labelled (fe)?male; says female \d\.\d\d", found)
    assert "Unreadable records by name" in found
    pictures = re.findall(r'<svg class="ecg".*?</svg>', found)
    assert max(map(len, pictures)) < 25_000  # of noise, which is longer than a heart's


def test_ids_are_hidden_and_pictures_left_out_on_request(study, tmp_path):
    hidden = page(study, tmp_path / "a.html", cases=1, hide_ids=True)
    assert "rec0" not in hidden
    assert "<figcaption>labelled" in hidden
    without = page(study, tmp_path / "b.html", cases=0)
    assert 'class="ecg"' not in without
    assert "ecg-grid" not in without


def test_cases_of_a_cohort_of_z_scores_are_on_their_scale(study, tmp_path):
    """The page of the same signals, of which the table says that they are z-scores."""
    records = open_records(study / "records.parquet")
    targets = list(records.attrs["targets"].values())
    of_scores = tmp_path / "scores"
    shutil.copytree(study, of_scores)
    write_records(of_scores / "records.parquet", records, targets, row_options={"amplitude": "z-score"})
    found = page(of_scores, tmp_path / "scores.html", cases=1)
    assert found.count("25 mm/s, 2.5 mm/SD: a square of the grid is 200 ms and 2 SD. The signals are z-scores") == 4
    assert found.count(">2.5 mm/SD</text>") == found.count('<svg class="ecg"')
    assert "10 mm/mV" not in found
