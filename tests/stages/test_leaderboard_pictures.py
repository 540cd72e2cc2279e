"""The picture of accuracy against cost: names that can be read, ticks that are round, better above."""

import itertools
import re

import pytest

from stages.report.leaderboard.section import NAME_HEIGHT, NAME_WIDTH, SIZE, cost_figure, decimal_ticks, short_number

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


def test_costs_that_nobody_knows_draw_nothing():
    assert cost_figure([(None, row("mine", 0.8))], "mean_auroc", LABELS) == ""


def test_ticks_are_round_and_short():
    assert decimal_ticks(0.5, 3.2) == [10, 100, 1000]
    assert decimal_ticks(1.2, 2.1) == [20, 50, 100]
    assert [short_number(value) for value in (0.5, 200.0, 50_000.0, 2e6, 1e9)] == ["0.5", "200", "50 k", "2 M", "1 G"]
