"""What a journal asks for: counts again by pandas alone, tables, a checklist without guesses."""

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from cache.records import open_records, write_records
from stages.evaluate.decisions import judge_decisions
from stages.external.calibration import calibration
from stages.external.recalibration import recalibration
from stages.external.transfer import transfer
from stages.heads.decisions.answers import Decisions
from stages.report import ReportPaths, ReportSettings, run
from stages.report.external.section import read_external
from stages.report.journal.checklist import AUTHORS, FILLED, tripod_checklist
from stages.report.journal.files import JournalTable, write_tables
from stages.report.journal.flow import participant_flow
from stages.report.journal.latex import beyond_pdflatex, latex_table, latex_text
from stages.report.journal.section import run_facts
from stages.scoring.comparison import Draws, labelled_test_block
from stages.scoring.predictions import open_predictions
from stages.scoring.summary import read_metrics, summarise, write_metrics
from tests.stages.synthetic_predictions import TARGETS, write_study
from tests.stages.test_decisions import decisions  # noqa: F401 - a fixture

SECTIONS = {
    **{
        "3": "abc",
        "5": "ab",
        "6": "abc",
        "8": "abc",
        "9": "abc",
        "12": "abcdefg",
        "18": "abcdef",
        "20": "abc",
        "23": "ab",
    },
    "27": "abc",
}
ITEMS = [f"{k}{letter}" for k in range(1, 28) for letter in SECTIONS.get(str(k), ("",))]
FIT = {
    "params": {"layer_mix": "embedding+ppa", "lora": True, "rank": 8, "strengths": [1, 2, 3], "gate_input": "none"},
    "experts": ["rocket"],
}


@pytest.fixture(scope="module")
def study(tmp_path_factory, decisions: Decisions) -> Path:  # noqa: F811
    """A study of two sources, whose split stands in the table: all predictions are of the test split's records."""
    folder = tmp_path_factory.mktemp("study")
    records = write_study(folder, n=300, folds=1)
    number = records["record_id"].str[3:].astype(int)
    patient = records["patient_id"].str[3:].astype(int)
    records["source"] = ["north" if k % 3 else "south" for k in patient]
    records["split"] = ["train" if k % 5 < 3 else "val" if k % 5 == 3 else "test" for k in patient]
    records.loc[number == 7, ["status", "reason"]] = ["bad", "no such file"]
    write_records(folder / "records.parquet", records, list(TARGETS.values()))
    predictions = open_predictions(folder / "predictions.parquet")
    write_metrics(folder / "metrics.json", summarise(predictions, records, n_resamples=20), predictions.path)
    write_metrics(
        folder / "decisions.json", judge_decisions(predictions, decisions, records, Draws(20)), predictions.path
    )
    (folder / "config.json").write_text(json.dumps(FIT))
    paths = (folder / name for name in ("records.parquet", "metrics.json", "predictions.parquet", "report.html"))
    more = {"decisions": folder / "decisions.json", "fit": folder / "config.json", "tables": (folder / "tables",)}
    run(ReportSettings(commands=("dvc repro   # as params.yaml says",)), ReportPaths(*paths, **more))
    return folder


def table(study: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(study / "tables" / f"{name}.csv", dtype=str, keep_default_na=False)


def test_the_flow_is_counted_per_split_and_source(study):
    flow = table(study, "flow").set_index(["split", "source"])
    labels = table(study, "labels").set_index(["split", "source", "task"])
    raw = pd.read_parquet(study / "records.parquet")
    assert len(flow) == (1 + 3) * (1 + 2)
    for (split, source), row in flow.iterrows():
        part = raw[raw["split"].isin([split] if split != "all" else raw["split"])]
        part = part[part["source"].isin([source] if source != "all" else part["source"])]
        good = part[part["status"] == "ok"]
        counts = [len(part), part["patient_id"].nunique(), (part["status"] == "bad").sum(), len(good)]
        found = row[["records", "patients", "not readable", "readable"]].astype(int).tolist()
        assert found == counts
        for task in TARGETS:
            labelled = labels.loc[(split, source, task)].astype(int).tolist()
            assert labelled == [good[task].notna().sum(), good[task].isna().sum()], task


def test_the_picture_of_the_flow_says_the_same_counts(study):
    page = (study / "report.html").read_text(encoding="utf-8")
    drawn = re.search(r'aria-label="Flow of participants">(.*?)</svg>', page)[1]
    words = re.findall(r"<text[^>]*>(.*?)</text>", drawn)
    raw = pd.read_parquet(study / "records.parquet")
    good = raw[raw["status"] == "ok"]
    assert f"{len(raw)} records of {raw['patient_id'].nunique()} patients" in words
    assert f"Not readable: {(raw['status'] == 'bad').sum()} records" in words
    assert "no such file: 1" in words
    test = good[good["split"] == "test"]
    assert f"gender: {test['gender'].notna().sum()} labelled, {test['gender'].isna().sum()} not" in words
    south = raw[raw["source"] == "south"]
    assert f"south: {len(south)} records of {south['patient_id'].nunique()} patients" in words


def test_characteristics_are_those_of_the_readable_records(study):
    found = table(study, "characteristics").set_index("characteristic")
    raw = pd.read_parquet(study / "records.parquet")
    test = raw[(raw["status"] == "ok") & (raw["split"] == "test")]
    assert found.loc["records", "test"] == str(len(test))
    quartiles = test["age"].quantile([0.5, 0.25, 0.75])
    assert found.loc["age, years, median (quartiles)", "test"] == "{:.1f} ({:.1f} to {:.1f})".format(*quartiles)
    women = test["gender"].dropna()
    assert found.loc["gender: female", "test"] == f"{int(women.sum())} ({100 * women.mean():.1f} %)"
    known = test["superclass"].dropna()
    n = sum("MI" in list(labels) for labels in known)
    assert found.loc["superclass: MI", "test"] == f"{n} ({100 * n / len(known):.1f} %)"


def test_performance_and_thresholds_are_those_of_the_outputs(study):
    metrics = read_metrics(study / "metrics.json")
    rows = table(study, "performance")
    gate = rows[(rows["task"] == "gender") & (rows["method"] == "gate")].iloc[0]
    value = metrics["tasks"]["gender"]["methods"]["gate"][metrics["tasks"]["gender"]["headline"][0]]
    assert [gate[k] for k in ("value", "95 % low", "95 % high")] == [
        f"{value[k]:.3f}" for k in ("value", "low", "high")
    ]
    judged = read_metrics(study / "decisions.json")["tasks"]["superclass"]["operating_points"]["classes"]["CD"]
    points = table(study, "operating_points")
    row = points[points["class"] == "CD"].iloc[0]
    assert row["Sensitivity"].startswith(f"{judged['sensitivity']['value']:.3f} (")
    assert row["positive"] == str(judged["positives"])
    assert {"age", "gender", "report_label", "superclass"} == set(table(study, "coverage")["task"])


def parts_of(text: str) -> list[tuple[str, list[str]]]:
    """The columns and the rows of every part of a table, heads once."""
    found = []
    for name, head, body in re.findall(r"\\begin\{(tabular|longtable)\}\{([^\n]*)\}\n(.*?)\\end\{\1\}", text, re.S):
        columns = re.sub(r">\{.*?\}p\{[^}]*\}", "p", head)
        once = body.partition("\\endfirsthead")[2] if name == "longtable" else body
        found.append((columns, [line for line in once.splitlines() if line.endswith(r"\\")]))
    return found


def test_latex_has_as_many_cells_in_every_row(study):
    files = sorted((study / "tables").glob("*.tex"))
    assert [path.stem for path in files] == [path.stem for path in sorted((study / "tables").glob("*.csv"))]
    assert len(files) == 7
    for path in files:
        with path.with_suffix(".csv").open(newline="", encoding="utf-8") as file:
            n_rows = len(list(csv.reader(file)))
        parts = parts_of(path.read_text(encoding="utf-8"))
        assert parts
        for columns, rows in parts:
            assert len(rows) == n_rows
            for row in rows:
                assert len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1
                assert not re.search(r"(?<!\\)[%#]", row)
    assert latex_text(r"a_b & 50 % {x} $5 \n") == r"a\_b \& 50 \% \{x\} \$5 \textbackslash{}n"


def test_wide_tables_come_in_parts_that_repeat_what_a_row_is_about():
    head = ["task", "class", *(f"rate {k}" for k in range(9))]
    rows = [["flag", f"class {k}", *[f"0.{k}00 (0.100-0.900)"] * 9] for k in range(3)]
    parts = parts_of(latex_table("wide", "Wide", head, rows, 2))
    assert len(parts) > 1
    shown = [row.removesuffix(r" \\").split(" & ") for row in (found[1][1] for found in parts)]
    assert {tuple(cells[:2]) for cells in shown} == {("flag", "class 0")}
    assert [cell for cells in shown for cell in cells[2:]] == rows[0][2:]
    words = latex_table("words", "Words", ["item", "answer"], [["1", "long " * 60]], 1)
    [share] = re.findall(r"p\{(0\.\d+)\\linewidth\}", words)
    assert 0.8 < float(share) < 1
    long = latex_table("long", "Long", ["item"], [["1"]] * 60, 1)
    assert long.count(r"\begin{longtable}") == 1
    assert r"\begin{table}" not in long


STRANGE = (
    "50 % & more",
    "a_b #1",
    "{x} $5 \\n",
    "Müller, Århus, Łódź",
    "[60, 70) ≥ 65",
    "* starred",
    'QTc "long" ≤ 500 µs²',
    "\N{GREEK SMALL LETTER ALPHA}-block → β",
    "~^|<>",
    "25 °C ± 1 \N{MULTIPLICATION SIGN} 10\N{MINUS SIGN}3",
)


def test_every_table_compiles_and_fits_the_page(study, tmp_path):
    """By pdflatex itself, with names of classes and cohorts that hold what LaTeX reads otherwise."""
    program = shutil.which("pdflatex")
    if program is None:
        pytest.skip("pdflatex is not installed: apt-get install texlive-latex-base texlive-latex-recommended")
    rates = [[word, word, *["0.900 (0.812\N{EN DASH}0.988)"] * 8] for word in STRANGE]
    strange = JournalTable("strange", STRANGE[0], ["class", "source", *STRANGE[:8]], rates, 2)
    write_tables([strange], tmp_path)
    named = [strange.name, *(path.stem for path in sorted((study / "tables").glob("*.tex")))]
    for path in (study / "tables").glob("*.tex"):
        shutil.copy(path, tmp_path)
    inputs = "\n".join(rf"\input{{{name}.tex}}\clearpage" for name in named)
    preamble = r"\documentclass{article}\usepackage{array,booktabs,longtable}"
    (tmp_path / "all.tex").write_text(f"{preamble}\\begin{{document}}\n{inputs}\n\\end{{document}}\n")
    for _ in range(2):  # longtable settles its widths in the second run
        done = subprocess.run(
            [program, "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:]
    log = (tmp_path / "all.log").read_text(errors="replace")
    assert "Float too large" not in log
    assert not [float(points) for points in re.findall(r"Overfull \\hbox \(([\d.]+)pt", log) if float(points) > 12]
    assert (tmp_path / "all.pdf").stat().st_size > 20_000


def test_letters_that_pdflatex_lacks_are_named():
    assert beyond_pdflatex("".join(STRANGE)) == ""
    assert beyond_pdflatex("心电 é") == "心电"
    assert "% pdflatex lacks 心: use xelatex or lualatex" in latex_table("t", "T", ["心"], [["1"]], 1)


def test_tables_that_are_gone_are_removed(tmp_path):
    one, two = (JournalTable(name, "", ["a"], [["1"]]) for name in ("one", "two"))
    write_tables([one, two], tmp_path)
    write_tables([one], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.csv", "one.tex"]


def test_the_checklist_has_every_item_once_and_says_what_it_cannot_know(study):
    rows = table(study, "tripod_ai")
    assert rows["item"].tolist() == ITEMS
    for _, row in rows.iterrows():
        assert row["what the run says"] or row["what the authors add"], row["item"]
        assert (row["answered"] == AUTHORS) == (row["what the run says"] == "")
    answers = rows.set_index("item")["what the run says"]
    raw = pd.read_parquet(study / "records.parquet")
    assert f"All {len(raw)} records that were given; {(raw['status'] == 'bad').sum()} could not" in answers["6b"]
    assert "rank 8" in answers["12c"]
    assert "sensitivity, youden" in answers["15"]
    assert "north" in answers["16"]
    for item in ("3a", "17", "18a", "25", "26"):
        assert answers[item] == ""
    page = (study / "report.html").read_text(encoding="utf-8")
    assert page.count("The run cannot know this.") == (rows["answered"] == AUTHORS).sum()


def test_external_validation_answers_its_items(study, tmp_path):
    records, metrics = open_records(study / "records.parquet"), read_metrics(study / "metrics.json")
    predictions = open_predictions(study / "predictions.parquet")
    found = {**metrics, "fit": "north-fit", "notes": ["3 of 9 patients have the id of one in the fit's own study"]}
    found |= {"calibration": {}, "transfer": {}, "recalibration": {}, "left_out": {}}
    for name, target in TARGETS.items():
        block = labelled_test_block(predictions, name, "gate")
        found["calibration"][name] = calibration(target, block, Draws(20))
        found["transfer"][name] = transfer(target, block, predictions, "gate", Draws(20))
        found["recalibration"][name] = recalibration(target, block, (20, 30), 3, 0)
    write_metrics(tmp_path / "north-fit/metrics.json", found, predictions.path)
    judged = read_external(tmp_path)
    plain = {i.number: i.answer for i in tripod_checklist(run_facts(metrics, records, FIT, {}))}
    of_both = {i.number: i.answer for i in tripod_checklist(run_facts(metrics, records, FIT, {"external": judged}))}
    assert {item for item in ITEMS if of_both[item] != plain[item]} == {
        "1", "4", "12a", "12e", "12f", "16", "21", "23a", "24",
    }  # fmt: skip
    for item, answer in of_both.items():
        assert answer.startswith(plain[item]), "what the study's own fit says stays"
    value = metrics["tasks"]["gender"]["methods"]["gate"]["auroc"]["value"]
    assert (
        f"'north-fit' here: age: MAE {metrics['tasks']['age']['methods']['gate']['mae']['value']:.3f}" in of_both["23a"]
    )
    assert f"gender: AUROC {value:.3f}" in of_both["23a"]
    assert f"calibration slope {judged[0]['calibration']['gender']['slope']['value']:.3f}" in of_both["23a"]
    assert "3 of 9 patients" in of_both["16"]
    assert "on 20, 30 patients" in of_both["12f"]
    after = judged[0]["recalibration"]["age"][-1]["mae"]["intercept_and_slope"]["value"]
    assert "age on 30 patients: MAE" in of_both["24"]
    assert f"{after:.3f} after intercept and slope" in of_both["24"]


def test_answers_follow_the_run(study):
    records, metrics = open_records(study / "records.parquet"), read_metrics(study / "metrics.json")
    found = {}
    for balanced in (False, True):
        fit = {**FIT, "params": {**FIT["params"], "balanced": balanced, "lora": not balanced}}
        found[balanced] = {i.number: i for i in tripod_checklist(run_facts(metrics, records, fit, {}))}
    assert found[False]["13"].answer.startswith("No reweighting")
    assert found[True]["13"].answer.startswith("Classes weighted alike")
    assert "no adapters" in found[True]["12c"].answer
    assert "Thresholds" not in found[True]["15"].answer
    assert found[True]["11"].status == FILLED
    metrics["tasks"]["age"]["folds"] = {}
    assert participant_flow(records, TARGETS, rotated=True).splits == ()
    assert (
        "each fold is tested by one fit"
        in {i.number: i for i in tripod_checklist(run_facts(metrics, records, FIT, {}))}["12a"].answer
    )
