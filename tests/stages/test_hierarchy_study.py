"""A study whose classes are kinds of others, from the table of records to fit, evaluation and report of the fit."""

import json
from pathlib import Path

import numpy as np
import pytest

from cache.records import Target, open_records, write_records
from stages.heads import EnsembleHeads
from stages.scoring.predictions import open_predictions
from tests.stages.survival.test_survival_study import evaluate, fit, write_store

N = 120
CLASSES = tuple(f"{parent}{k}" for parent in "ab" for k in range(3))
ABOVE = Target("above", "multilabel", classes=("a", "b"))
BELOW = Target("below", "multilabel", classes=CLASSES, parents=tuple((c, "above", c[0]) for c in CLASSES))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, make_cohort) -> Path:
    folder = tmp_path_factory.mktemp("hierarchy")
    make_cohort(folder, N)
    records = open_records(folder / "records.parquet")
    rng = np.random.default_rng(0)
    above = rng.random((N, 2)) < 0.35
    which = rng.integers(0, 3, (N, 2))
    has = (above[:, :, None] & (which[:, :, None] == np.arange(3))).reshape(N, -1)
    frame = records[["record_id", "patient_id", *[c for c in records if c not in records.attrs["targets"]]]]
    frame = frame.loc[:, ~frame.columns.duplicated()].assign(
        above=[[name for name, yes in zip("ab", row, strict=True) if yes] for row in above],
        below=[[name for name, yes in zip(CLASSES, row, strict=True) if yes] for row in has],
    )
    write_records(folder / "records.parquet", frame, [BELOW, ABOVE])
    for name in ("a", "b"):
        vectors = above @ rng.normal(size=(2, 8)) * 1.5 + rng.normal(size=(N, 8))
        write_store(folder / f"embeddings/{name}.zarr", records["record_id"].tolist(), vectors)
    fit(folder, folds=3)
    return folder


def test_parents_reach_the_fit_and_its_answers(study: Path) -> None:
    config = json.loads((study / "heads/config.json").read_text())
    assert config["tasks"][0]["parents"] == [list(link) for link in BELOW.parents]
    assert len(config["history"]["gate"]["hierarchy"]["below"]) == 3
    metrics = evaluate(study).metrics["tasks"]["below"]["methods"]
    assert metrics["gate"]["auroc_macro"]["value"] > metrics["mean"]["auroc_macro"]["value"]
    table = open_predictions(study / "predictions.parquet")
    assert table.tasks == {"below": BELOW, "above": ABOVE}
    heads = EnsembleHeads.load(study / "heads")
    assert heads.decisions_.conformal is not None
    assert {task.name for task in heads.tasks_ if task.parents} == {"below"}


@pytest.mark.slow
def test_a_study_may_switch_it_off_or_name_parents_of_its_own(study: Path) -> None:
    turned = {name: {"above": "b" if name[0] == "a" else "a"} for name in CLASSES}
    fit(study, folds=3, parents={"below": turned})
    heads = EnsembleHeads.load(study / "heads")
    assert heads.tasks_[0].parents == tuple((name, "above", turned[name]["above"]) for name in CLASSES)
    assert max(heads.history_["gate"]["hierarchy"]["below"]) < 0.2
    fit(study, folds=3, tasks=("below",))
    assert "hierarchy" not in EnsembleHeads.load(study / "heads").history_["gate"]
