import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from cache.errors import StoreError
from cache.records import Target, open_records, write_records
from stages.ingest.record_table import EXTRA
from stages.report import ReportPaths, ReportSettings, run
from stages.scoring.plots import write_plots
from stages.scoring.predictions import open_predictions, writing_predictions
from stages.scoring.summary import read_metrics, summarise, write_metrics
from stages.scoring.table import (
    differences_table,
    differences_tables,
    metrics_table,
    metrics_tables,
    number,
    width_of,
)
from tests.stages.synthetic_predictions import SKILLS, TARGETS, write_judged, write_study

VOID = {"meta", "br", "line", "link", "img", "hr", "wbr"}


CUTS = "5 s cuts of the record, a shorter rest left out"
FACTS = ReportSettings(
    title="A <study> & more",
    warnings=("ecgfm was pretrained on this cohort",),
    commands=("ensemble ingest --source ptbxl",),
    experts=(
        {
            "name": "ecgfm",
            "version": "1",
            "licence": "MIT",
            "sha256": "ab" * 32,
            "pretrained_on": ["ptbxl"],
            "windows": CUTS,
        },
    ),
)


EVALUATION = {
    "parameters": {"gate": 74896, "expert:ecgfm": 70000, "mean": 1},
    "versions": {"torch": "2.13.0"},
    "left_out": {"pma": "no expert has layers.", "enecg on superclass": "EnECG has no multilabel task"},
    "missing_points": {"gender": {"0.01": "one class only"}, "age": {"0.02": "too few"}},
    "learning_curve": {
        "age": [{"fraction": f, "method": "gate", "value": 8 - f, "low": 7, "high": 9} for f in (0.1, 1)]
    },
}


FIT_COSTS = {"seconds": 2.5}


class Wellformed(HTMLParser):
    """Collects text and attributes, and fails where tags do not match."""

    def __init__(self):
        super().__init__()
        self.open, self.words, self.attributes, self.ids = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def printed(metrics):
    console = Console(file=io.StringIO(), width=200)
    console.print(metrics_table(metrics))
    return console.file.getvalue()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_judged(tmp_path_factory.mktemp("study"))


def report(study, out, facts=FACTS, weights="gate_weights.parquet", found=EVALUATION):
    out.parent.mkdir(exist_ok=True)
    evaluation, fit = out.with_name("evaluation.json"), out.with_name("fit_costs.json")
    evaluation.write_text(json.dumps(found))
    fit.write_text(json.dumps(FIT_COSTS if found else {}))
    inputs = (study / name for name in ("records.parquet", "metrics.json", "predictions.parquet"))
    return run(facts, ReportPaths(*inputs, out, study / weights if weights else None, evaluation, fit)).report


@pytest.fixture(scope="module")
def page(study, tmp_path_factory):
    return report(study, tmp_path_factory.mktemp("out") / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def metrics(study):
    return read_metrics(study / "metrics.json")


def test_the_table_of_experts_says_how_they_take_records_of_other_lengths(page):
    table = page[page.index('<section id="experts">') :]
    assert "Records of other lengths" in table
    assert f"<td>{CUTS}</td>" in table


def test_undefined_metrics_become_null(tmp_path):
    target = Target("rare", "binary")
    ids = np.array(["a", "b", "c"], dtype=object)
    with writing_predictions(tmp_path / "p.parquet", {"rare": target}) as table:
        table.add(
            "rare", "gate", "test", 0, record_ids=ids, patient_ids=ids, y_true=np.zeros(3), y_pred=np.full(3, 0.1)
        )
    found = summarise(open_predictions(tmp_path / "p.parquet"), n_resamples=10)
    write_metrics(tmp_path / "m.json", found, tmp_path / "p.parquet")
    found = read_metrics(tmp_path / "m.json")["tasks"]["rare"]
    assert found["methods"]["gate"]["auroc"] == {"value": None, "low": None, "high": None}
    assert found["methods"]["gate"]["accuracy"]["value"] == 1
    assert found["best_single_expert"] is None
    assert found["differences"] == {}
    assert "\N{EN DASH}" in printed({"tasks": {"rare": found}})


def test_the_page_counts_exchanged_derived_and_paced_records(study, tmp_path):
    shutil.copytree(study, tmp_path / "study")
    records = open_records(study / "records.parquet")
    good = np.flatnonzero(records["status"] != "bad")
    swaps, spikes, derived = [None] * len(records), [0] * len(records), [[] for _ in range(len(records))]
    for k in good[:3]:
        swaps[k] = "arms exchanged"
    for k in good[:5]:
        spikes[k] = 7
    for k in good[:4]:
        derived[k] = ["aVF"]
    extra = {"limb_swap": swaps, "pace_spikes": pd.array(spikes, dtype="Int16"), "derived_leads": derived}
    extra |= {name: None for name in EXTRA if name not in extra}
    write_records(tmp_path / "study/records.parquet", records.assign(**extra), list(TARGETS.values()), EXTRA)
    words = re.sub(r"<[^>]+>", " ", report(tmp_path / "study", tmp_path / "q.html").read_text(encoding="utf-8"))
    words = " ".join(words.split())
    assert "limb leads computed from I and II 4" in words
    assert "limb leads that look exchanged 3 \N{EM DASH} arms exchanged 3" in words
    assert "3 pacemaker spikes or more 5" in words


def test_metrics_and_predictions_of_different_evaluations_are_refused(study, tmp_path):
    for name in ("metrics.json", "records.parquet", "gate_weights.parquet"):
        shutil.copy(study / name, tmp_path / name)
    write_study(tmp_path, n=300, folds=2, seed=5)
    with pytest.raises(StoreError, match=r"metrics\.json was not computed from this .*predictions\.parquet; run `ens"):
        report(tmp_path, tmp_path / "out.html")
    assert not (tmp_path / "out.html").exists()


def test_the_page_is_wellformed_and_names_every_task_and_method(page):
    parser = Wellformed()
    parser.feed(page)
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))
    words = " ".join(parser.words)
    for name in [*TARGETS, *(method.removeprefix("expert:") for method in SKILLS if method.startswith("expert:"))]:
        assert name in words
    for phrase in (
        "gate",
        "concatenation",
        "uniform mean",
        "trivial baseline",
        "74,896",
        "ensemble ingest --source ptbxl",
    ):
        assert phrase in words
    assert "the signal file is truncated" in words
    assert "pretrained on ptbxl" in words


def test_the_page_needs_nothing_from_outside(page):
    parser = Wellformed()
    parser.feed(page)
    linked = [value for name, value in parser.attributes if name in ("src", "href", "srcset", "xlink:href", "action")]
    assert linked
    assert all(value.startswith("#") for value in linked)
    assert not re.search(r"https?://|<script|@import|url\(", page)
    assert {value[1:] for value in linked} <= set(parser.ids)


def test_what_a_user_wrote_is_escaped(page):
    assert "A &lt;study&gt; &amp; more" in page
    assert "<study>" not in page


def test_the_page_shows_the_numbers_of_metrics_json(page, metrics):
    for task, places in (("age", 2), ("gender", 3), ("report_label", 3), ("superclass", 3)):
        found = metrics["tasks"][task]
        for values in found["methods"].values():
            assert f'<span class="value">{number(values[found["headline"][0]]["value"], places)}</span>' in page


def test_every_method_is_told_with_its_difference_to_the_best_expert(page, metrics):
    terminal = io.StringIO()
    Console(file=terminal, width=220).print(differences_table(metrics))
    for task, places in (("age", 2), ("gender", 3), ("report_label", 3), ("superclass", 3)):
        found = metrics["tasks"][task]
        assert set(found["differences"]) == set(found["methods"]) - {found["best_single_expert"]}
        for method, differences in found["differences"].items():
            told = differences[found["headline"][0]]
            value, low, high = (number(told[key], places, sign=True) for key in ("value", "low", "high"))
            assert (
                f'<small class="difference">{value}</small> <small class="difference">({low} to {high})</small>' in page
            )
            line = next(line for line in terminal.getvalue().splitlines() if f" {method} " in line)
            assert value in line
            assert f"({low} to {high})" in line


def test_records_that_rotate_through_the_folds_are_not_counted_twice(page, metrics):
    assert metrics["tasks"]["gender"]["n"]["test"] == 300
    assert "300 labelled test records of" in page
    assert "Each is judged by the one fit, of several, that has not seen its patient." in page
    assert " training, " not in page


def test_what_is_missing_is_told_with_its_reason(page):
    words = " ".join(re.sub(r"<[^>]+>", "", page).split())
    assert "Left out. layer gate (PMA): no expert has layers; EnECG preset on superclass: EnECG has no multi" in words
    assert "Label efficiency has no point at 0.01 of the patients: one class only." in words
    assert "Label efficiency has no point at 0.02 of the patients: too few." in words
    assert "count the experts' heads that they stand on" in words.replace("&#39;", "'")


def test_the_same_inputs_give_the_same_page_and_metrics(study, page, tmp_path):
    assert report(study, tmp_path / "again.html").read_text(encoding="utf-8") == page
    records = write_study(tmp_path, n=300, folds=2)
    write_metrics(
        tmp_path / "metrics.json",
        summarise(open_predictions(tmp_path / "predictions.parquet"), records, n_resamples=60),
        tmp_path / "predictions.parquet",
    )
    assert (tmp_path / "metrics.json").read_bytes() == (study / "metrics.json").read_bytes()


def test_a_report_without_facts_and_gate_weights_is_still_whole(study, tmp_path):
    text = report(study, tmp_path / "plain.html", facts=ReportSettings(), weights=None, found={}).read_text(
        encoding="utf-8"
    )
    assert "Whom the gate trusts" not in text
    assert 'id="cohort"' in text


@pytest.mark.parametrize("n", [2, 12])
def test_very_few_records_still_give_a_whole_report(tmp_path, n):
    records = write_study(tmp_path, n=n, seed=1)
    write_records(tmp_path / "records.parquet", records, list(TARGETS.values()))
    predictions = open_predictions(tmp_path / "predictions.parquet")
    found = summarise(predictions, records, n_resamples=20)
    write_metrics(tmp_path / "metrics.json", found, tmp_path / "predictions.parquet")
    write_plots(predictions, read_metrics(tmp_path / "metrics.json"), tmp_path / "plots")
    parser = Wellformed()
    parser.feed(report(tmp_path, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert parser.open == []


def test_the_terminal_table_marks_the_best_and_the_verdicts(metrics):
    lines = printed(metrics).splitlines()
    gate = next(line for line in lines if "gate" in line)
    assert gate.count("▲") + gate.count("≈") == 5
    assert next(line for line in lines if "trivial" in line).count("▼") == 5
    assert next(line for line in lines if "expert:ecgfm" in line).count("●") == 5
    assert any("MAE, years" in line for line in lines)


@pytest.mark.parametrize("width", [80, 120])
def test_terminal_tables_fit_the_terminal_and_keep_every_number(metrics, width):
    eight = {
        **metrics,
        "tasks": {name + end: task for end in ("", "_again") for name, task in metrics["tasks"].items()},
    }
    shown = io.StringIO()
    console = Console(file=shown, width=width)
    for table in [*metrics_tables(eight, width), *differences_tables(eight, width)]:
        console.print(table)
    lines = shown.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown.getvalue()
    for name, found in eight["tasks"].items():
        assert name in shown.getvalue()
        for values in found["methods"].values():
            assert number(values[found["headline"][0]]["value"], 2 if name.startswith("age") else 3) in shown.getvalue()
    assert len(metrics_tables(eight)) == 1
    assert width_of(metrics_tables(eight)[0]) > 200


def test_wide_prints_one_table_that_is_not_cut(study, monkeypatch, ensemble, tmp_path):
    shutil.copytree(study, tmp_path / "study")
    monkeypatch.chdir(tmp_path / "study")
    monkeypatch.setenv("COLUMNS", "80")
    narrow, wide = (ensemble("report", "--show", *more).stdout.splitlines() for more in ([], ["--wide"]))
    assert max(len(line) for line in narrow if "report:" not in line) <= 80
    gate = next(line for line in wide if " gate " in line)
    assert gate.count("(") == 5
