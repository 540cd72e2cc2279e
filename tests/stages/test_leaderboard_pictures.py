"""The picture of accuracy against cost: names that can be read, ticks that are round, better above."""

import itertools
import re

import pytest

from stages.report.leaderboard.section import (
    NAME_HEIGHT,
    NAME_WIDTH,
    SIZE,
    cost_figure,
    decimal_ticks,
    leaderboard_section,
    short_number,
)

LABELS = ("records/s", "mean AUROC over tasks")


def row(expert, value, mode="frozen", inputs="crops", metric="mean_auroc"):
    return {
        "expert": expert,
        "mode": mode,
        "inputs": inputs,
        metric: {"value": value, "low": value - 0.02, "high": value + 0.02},
    }


def names_of(svg, experts):
    found = re.findall(r'<text class="label" x="([\d.]+)" y="([\d.]+)">([^<]+)</text>', svg)
    return [(name, float(x), float(y)) for x, y, name in found if name in experts]


def test_names_of_experts_with_one_cost_and_one_value_do_not_overlap():
    experts = [f"expert-{k}" for k in range(9)]
    points = [(90.0 + k, row(name, 0.8, mode)) for k, name in enumerate(experts) for mode in ("linear", "frozen")]
    placed = names_of(cost_figure(points, "mean_auroc", LABELS), experts)
    assert sorted(name for name, _, _ in placed) == experts, "each once"
    for (one, x, y), (other, x2, y2) in itertools.combinations(placed, 2):
        apart = x + NAME_WIDTH * len(one) <= x2 or x2 + NAME_WIDTH * len(other) <= x
        assert apart or abs(y - y2) >= NAME_HEIGHT - 0.1
    assert all(x > 0 and x + NAME_WIDTH * len(name) < SIZE[0] and 0 < y < SIZE[1] - 38 for name, x, y in placed)


@pytest.mark.parametrize(("metric", "better"), [("mean_auroc", 0.9), ("mean_rank", 1.0)])
def test_what_is_better_stands_higher(metric, better):
    points = [
        (10.0, row("good", better, metric=metric)),
        (99.0, row("bad", better + (metric == "mean_rank") - 0.5, metric=metric)),
    ]
    circles = re.findall(r'cy="([\d.]+)"', cost_figure(points, metric, LABELS))
    assert float(circles[0]) < float(circles[1])


def test_rows_of_experts_with_nearly_one_cost_do_not_cover_each_other():
    modes = [*itertools.product(("linear", "frozen"), ("crops", "native")), ("finetuned", "crops")]
    points = [(cost, row(f"e{cost}", 0.8, *mode)) for cost in (6.0, 6.1, 6.2, 50.0) for mode in modes]
    at = sorted(float(x) for x in re.findall(r'cx="([\d.]+)"', cost_figure(points, "mean_auroc", LABELS)))
    assert len(at) == 20
    assert min(b - a for a, b in itertools.pairwise(at)) > 7.5  # dots are at most 7 pixels wide
    assert at[0] > 66
    assert at[-1] < SIZE[0] - 12
    crowded = [(float(cost), row(f"e{cost}", 0.8, *mode)) for cost in range(100, 120) for mode in modes]
    at = [float(x) for x in re.findall(r'cx="([\d.]+)"', cost_figure(crowded, "mean_auroc", LABELS))]
    assert 66 < min(at) < max(at) < SIZE[0] - 12


def test_costs_that_nobody_knows_draw_nothing():
    assert cost_figure([(None, row("mine", 0.8))], "mean_auroc", LABELS) == ""


def test_ticks_are_round_and_short():
    assert decimal_ticks(0.5, 3.2) == [10, 100, 1000]
    assert decimal_ticks(1.2, 2.1) == [20, 50, 100]
    assert [short_number(value) for value in (0.5, 200.0, 50_000.0, 2e6, 1e9)] == ["0.5", "200", "50 k", "2 M", "1 G"]


def test_rows_whose_difference_to_the_best_may_be_none_stand_out():
    rows, common = [], {"pooling": "mean", "crop_s": 2.5, "expert_parameters": None, "trained_parameters": {}}
    for expert, low, high in (("best", 0.0, 0.0), ("close", -0.03, 0.01), ("behind", -0.05, -0.01)):
        one = {**row(expert, 0.9), **common, "mean_rank": None, "mean_rank_of_experts": None}
        one["scores"] = {"sex": row(expert, 0.9)["mean_auroc"]}
        rows.append(one | {"differences": {"sex": {"value": (low + high) / 2, "low": low, "high": high}}})
    of_before = {key: value for key, value in rows[-1].items() if key != "differences"}  # a board of an older release
    board = {"protocol": {}, "tasks": {"sex": {"metric": "auroc", "unit": ""}}, "rows": [*rows, of_before]}
    cells = [one["cells"][0] for one in leaderboard_section("fm-benchmark", board, {})["rows"]]
    assert [(value, among_best) for value, _, among_best in cells] == [
        ("0.900", True),
        ("0.900", True),
        ("0.900", False),
        ("0.900", False),
    ]
