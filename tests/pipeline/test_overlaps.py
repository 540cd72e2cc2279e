"""Who has seen whom: every expert's pretraining data against every source, as reports warn of it."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from cache.patients import People, patient_digests
from cache.record_columns import Texts
from cache.records import open_records
from pipeline.views import report_facts
from pipeline.views.report_facts import overlap_warning
from stages.cohorts import list_cohorts, shared_collections
from stages.cohorts._overlaps import PARTS, SINGLE, parts_of, parts_of_source
from stages.experts import expert_class, list_experts
from stages.report import ExpertFacts

SEEN = {
    name: cls.published_spec(variant).pretrained_on for name in list_experts() for cls, variant in [expert_class(name)]
}
CHALLENGE = {"challenge", "ptbxl", "chapman", "chapman-csv", "cpsc2018", "ptb"}
CHAPMAN = {"chapman", "chapman-csv"}
WARNED = {  # docs/experts.md says what each has seen
    **dict.fromkeys(("clef", "dbeta", "melp"), frozenset({"mimic-iv-ecg", "enecg-jsonl"})),
    "ecgcpc": set(),
    **{f"ecgcpc-{objective}": {"code15"} for objective in ("cpc", "jepa", "data2vec", "dinosr", "hubert")},
    "ecgfm": CHALLENGE | {"mimic-iv-ecg", "enecg-jsonl"},
    "hubert": CHALLENGE | {"code15", "sph"},
    "jepa": CHAPMAN | {"challenge", "code15"},
    "merl": {"mimic-iv-ecg", "enecg-jsonl"},
    "openecg": {"ludb"},
    "seed": {"ptbxl", "challenge"},
    "stmem": CHAPMAN | {"challenge", "code15"},
    "xecg": CHAPMAN | {"challenge", "code15"},
}


def test_every_source_and_every_collection_is_known():
    named = {collection for seen in SEEN.values() for collection in seen}
    assert named - set(PARTS) - SINGLE == set()
    parts = {part for name in named for part in parts_of(name)}
    parts |= {part for source in list_cohorts() for part in parts_of_source(source)}
    assert parts <= SINGLE | {"chapman", "qtdb"}


@pytest.mark.parametrize("expert", sorted(SEEN))
def test_an_expert_is_warned_of_on_every_cohort_that_it_has_seen(expert):
    warned = {source for source in list_cohorts() if shared_collections(source, SEEN[expert])}
    assert warned == WARNED.get(expert, WARNED.get(expert.split("-")[0], set()))


def test_a_warning_names_the_collections():
    told = {
        source: overlap_warning("ecgfm", source, shared_collections(source, SEEN["ecgfm"]))
        for source in WARNED["ecgfm"]
    }
    assert told["mimic-iv-ecg"] == "ecgfm was pretrained on mimic-iv-ecg: its numbers here may be too good"
    assert told["ptbxl"].startswith("ecgfm was pretrained on challenge2021, ptbxl, which hold records of ptbxl:")
    assert told["enecg-jsonl"].startswith("ecgfm was pretrained on mimic-iv-ecg, which holds records of enecg-jsonl:")
    assert "challenge2021, ptbxl" in told["challenge"]


def test_parts_of_one_collection_do_not_overlap():
    assert shared_collections("ptbxl", ["chapman", "georgia", "code"]) == []
    assert shared_collections("ludb", ["challenge2021"]) == []
    assert shared_collections("challenge", ["challenge2020"]) == ["challenge2020"]
    assert shared_collections("a source of a package", ["a source of a package"]) == ["a source of a package"]


@pytest.mark.parametrize(
    ("patients", "hashed", "told"),
    [
        (["1", "2", "9"], False, ["seed was trained on 2 of the 3 patients of ptbxl that it is judged on:"]),
        (["8", "9"], False, []),
        (["8", "9"], True, ["seed was pretrained on ptbxl: its numbers here may be too good"]),
    ],
)
def test_patients_that_packaged_weights_have_seen_are_counted(patients, hashed, told, tmp_path, monkeypatch):
    spec = expert_class("seed")[0].published_spec()
    seen = pd.DataFrame({"source": "ptbxl", "patient_id": ["1", "2", "3"]})
    np.save(tmp_path / spec.weights.patients, patient_digests(seen, b"seed 3"))
    monkeypatch.setattr("stages.training.versions.PACKAGE_FOLDER", tmp_path)
    judged = People(Texts.of(["ptbxl"] * len(patients)), Texts.of(patients))
    monkeypatch.setattr(report_facts, "_judged", lambda _: judged)
    monkeypatch.setattr(report_facts, "_sources", lambda _: ["ludb", "ptbxl"])
    cohort = SimpleNamespace(hash_patients=hashed)
    study = SimpleNamespace(params=SimpleNamespace(cohort=cohort), source_folders=dict)
    facts = ExpertFacts(
        name="seed", title="", version="2", licence="", sha256=spec.weights.sha256, pretrained_on=("ptbxl",)
    )
    warnings = report_facts._overlaps(study, [facts])
    assert [warning[: len(begins)] for warning, begins in zip(warnings, told, strict=True)] == told
    others = facts.model_copy(update={"sha256": "of other weights"})
    assert report_facts._overlaps(study, [others]) == [overlap_warning("seed", "ptbxl", ["ptbxl"])]


def test_without_a_fit_the_test_split_is_judged(toy_study, monkeypatch):
    """A leaderboard warns of patients that packaged weights have seen, and needs no heads/."""
    from pipeline.study.folder import Study
    from pipeline.views.report_facts import _judged

    monkeypatch.chdir(toy_study)
    records = open_records(Study().records, columns=["patient_id", "split"])
    tested = records["patient_id"][records["split"] == "test"]
    found = _judged(Study()).patient
    assert found.spelt(found.codes) == tested.tolist()
