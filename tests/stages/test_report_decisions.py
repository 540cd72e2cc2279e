"""The report's part on decisions says what decisions.json says, and draws its curves."""

import re
from pathlib import Path

import pytest

from cache.errors import StoreError
from cache.records import open_records
from stages.evaluate.decisions import judge_decisions
from stages.heads.decisions.answers import Decisions
from stages.report import ReportPaths, ReportSettings, run
from stages.report.decisions.section import decision_section
from stages.scoring.comparison import Draws
from stages.scoring.predictions import open_predictions
from stages.scoring.summary import read_metrics, write_metrics
from tests.stages.synthetic_predictions import write_judged
from tests.stages.test_decisions import PREVALENCE, decisions  # noqa: F401 - a fixture


@pytest.fixture(scope="module")
def study(tmp_path_factory, decisions: Decisions) -> Path:  # noqa: F811
    folder = write_judged(tmp_path_factory.mktemp("study"))
    predictions, records = open_predictions(folder / "predictions.parquet"), open_records(folder / "records.parquet")
    judged = judge_decisions(predictions, decisions, records, Draws(40, 0), PREVALENCE)
    write_metrics(folder / "decisions.json", judged, folder / "predictions.parquet")
    return folder


def paths(study: Path, out: Path) -> ReportPaths:
    inputs = (study / name for name in ("records.parquet", "metrics.json", "predictions.parquet"))
    return ReportPaths(*inputs, out, decisions=study / "decisions.json")


@pytest.fixture(scope="module")
def page(study, tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("out") / "report.html"
    return run(ReportSettings(), paths(study, out)).report.read_text(encoding="utf-8")


def test_every_threshold_and_coverage_is_on_the_page(study, page):
    found = read_metrics(study / "decisions.json")["tasks"]
    judged = found["gender"]["operating_points"]["classes"]["female"]
    female = [
        row for row in re.findall("<tr>.*?</tr>", page) if row.startswith("<tr><th>female</th>") and " of " in row
    ]
    words = re.sub("<.*?>", " ", female[0])
    for rate in ("sensitivity", "specificity", "ppv", "npv", "alarm_rate"):
        assert f" {judged[rate]['value']:.3f} " in words, rate
    assert f"{judged['positives']} of {judged['n']}" in words
    assert f" {judged['given']['ppv']['value']:.3f} " in words
    assert "0.1" in words
    coverage = found["age"]["conformal"]["answers"]["age"]["all"]
    assert f"{coverage['value']:.3f}" in page
    assert page.count("Intervals that hold the truth of 85 % of new patients") == 1
    assert page.count("Sets of classes that hold the truth of 85 % of new patients") == 3
    assert page.count('<th class="num">mean width</th>') == 1
    assert "a sensitivity of at least 0.8" in page
    assert page.count("Each class stands against the rest") == 1
    other = found["report_label"]["operating_points"]["classes"]["AF"]
    assert f'<td class="num">{other["positives"]} of {other["n"]}</td>' in page


def test_curves_are_drawn_and_stay_in_their_frame(study, page):
    found = read_metrics(study / "decisions.json")["tasks"]
    drawn = re.findall(r'<svg viewBox="0 0 (\d+) (\d+)"[^>]*aria-label="Decision curve of (.*?)">(.*?)</svg>', page)
    assert {name for *_, name, _ in drawn} == {
        "female",
        *found["superclass"]["decision_curves"],
        *found["report_label"]["decision_curves"],
    }
    for width, height, _, marks in drawn:
        for points in re.findall(r'polyline class="curve[^"]*" points="(.*?)"', marks):
            for pair in points.split():
                x, y = map(float, pair.split(","))
                assert 0 <= x <= float(width)
                assert 0 <= y <= float(height)


def test_a_study_without_decisions_has_no_such_part(study, tmp_path):
    inputs = (study / name for name in ("records.parquet", "metrics.json", "predictions.parquet"))
    plain = run(ReportSettings(), ReportPaths(*inputs, tmp_path / "report.html")).report.read_text(encoding="utf-8")
    assert "Decision curve" not in plain
    assert decision_section(None) is None


def test_decisions_of_another_evaluation_are_refused(study, tmp_path):
    other = tmp_path / "decisions.json"
    other.write_text(
        (study / "decisions.json").read_text().replace('"predictions_sha256": "', '"predictions_sha256": "0')
    )
    inputs = (study / name for name in ("records.parquet", "metrics.json", "predictions.parquet"))
    with pytest.raises(StoreError, match=r"decisions.json was not computed from this"):
        run(ReportSettings(), ReportPaths(*inputs, tmp_path / "report.html", decisions=other))
