"""The report's section on weights that were made here."""

import re

import pytest

from stages.report.training_figures import MAX_POINTS, loss_curve, training

CURVE = [{"epoch": 0, "validation_loss": 0.7}] + [
    {"epoch": e, "loss": 1 / e, "validation_loss": 0.5 + abs(e - 3) / 10} for e in range(1, 6)
]
TOLD = {
    "name": "stmem+a+sex",
    "made_by": "posttrain",
    "parent": "stmem+a",
    "task": "sex",
    "kept_epoch": 3,
    "curve": CURVE,
    "sources": ["ptbxl"],
    "n_records": 1200,
    "n_patients": 1000,
    "n_seen": 0,
    "n_judged": 54,
}


def lines(svg):
    return {css: points.split() for css, points in re.findall(r'<polyline class="curve (s\d)" points="([^"]*)"', svg)}


def test_both_losses_are_drawn_and_the_kept_epoch_is_marked():
    svg = loss_curve("x", CURVE, 3)
    drawn = lines(svg)
    assert len(drawn["s0"]) == 5  # no training loss before the first step
    assert len(drawn["s1"]) == 6
    kept = drawn["s1"][3].split(",")
    assert f'cx="{kept[0]}" cy="{kept[1]}"' in svg
    assert svg.count("<circle") == 1


def test_a_run_of_one_epoch_and_one_without_validation_show():
    assert "<circle" in loss_curve("x", [{"epoch": 1, "loss": 0.3}])
    assert lines(loss_curve("x", [{"epoch": e, "loss": 1.0} for e in (1, 2)])).keys() == {"s0"}
    assert loss_curve("x", []) == ""


def test_long_runs_are_thinned_to_their_ends():
    drawn = lines(loss_curve("x", [{"epoch": e, "loss": 1 / e} for e in range(1, 802)]))["s0"]
    full = lines(loss_curve("x", [{"epoch": e, "loss": 1 / e} for e in (1, 801)]))["s0"]
    assert len(drawn) <= MAX_POINTS + 1
    assert [drawn[0], drawn[-1]] == full


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "Posttrained to sex from stmem+a on 1,200 records of 1,000 patients (ptbxl), 5 epochs, epoch 3 kept."),
        (
            {"made_by": "pretrain", "parent": None, "task": None, "kept_epoch": None},
            "Pretrained on 1,200 records of 1,000 patients (ptbxl), 5 epochs.",
        ),
    ],
)
def test_how_a_version_was_made_is_told(change, words):
    assert training({**TOLD, **change})["how"] == words
