"""Several sources in one study: the rows of each alone, targets that are joined and never guessed, folds by source."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml

from cache.errors import InputError, UsageError
from cache.records import Target, open_records
from cache.signals import open_signals
from pipeline.study.folder import Study
from stages.cohorts import check_options, list_cohorts, open_cohort
from stages.cohorts.contract import Entries
from stages.cohorts.labels.joined_targets import SourceEntries, TargetRule, joined, mapped
from stages.heads import EnsembleHeads
from stages.learning.folds import make_splits
from tests.ingesting import ingest
from tests.stages.heads_study import TASKS, study
from tests.stages.memberships import membership

KEPT = ["age", "sex"]
RR_MS = np.linspace(700.5, 900.5, 12)


def several(*parts):
    return {"cohorts": list(parts)}


def part(name, source, path, **more):
    return {"name": name, "source": source, "path": str(path), **more}


def run(source, path, out, options=None, **settings):
    out.mkdir()
    ingest(source, path, options, records_path=out / "records.parquet", signals_path=out / "signals.zarr", **settings)
    return open_records(out / "records.parquet"), open_signals(out / "signals.zarr")


def arrays(folder: Path, **labels) -> Path:
    """Write a source of 12 ECGs; each label is a column."""
    folder.mkdir()
    np.save(folder / "ecgs.npy", np.random.default_rng(len(labels)).normal(0, 0.3, (12, 12, 5000)).astype(np.float32))
    pd.DataFrame(labels).to_csv(folder / "labels.csv", index=False)
    return folder


def of_arrays(name, folder, **more):
    options = {"file": "ecgs.npy", "rate_hz": 500, "labels": "labels.csv"}
    return part(name, "arrays", folder, options=options, **more)


def test_two_real_cohorts_in_one_study_are_the_rows_of_each_alone(test_data, tmp_path):
    options = several(
        part("german", "ptbxl", test_data / "ptbxl", limit=14, targets=KEPT),
        part("ludb", "ludb", test_data / "ludb", limit=9, targets=KEPT),
    )
    records, signals = run("several", test_data, tmp_path / "both", options)
    first, of_first = run("ptbxl", test_data / "ptbxl", tmp_path / "one", limit=14)
    second, of_second = run("ludb", test_data / "ludb", tmp_path / "two", limit=9)
    assert list(records["source"]) == ["german"] * 14 + ["ludb"] * 9
    assert list(records.attrs["targets"]) == KEPT
    np.testing.assert_array_equal(signals.read_uv(slice(0, 14)), of_first.read_uv(slice(0, 14)))
    np.testing.assert_array_equal(signals.read_uv(slice(14, 23)), of_second.read_uv(slice(0, 9)))
    alone = pd.concat([first, second], ignore_index=True)
    for name in ("path", "sampling_rate_hz", "n_samples", "status", "age", "sex"):
        pd.testing.assert_series_equal(records[name], alone[name], check_dtype=False)
    prefixes = ["german/"] * 14 + ["ludb/"] * 9
    for name in ("record_id", "patient_id"):
        assert list(records[name]) == [before + one for before, one in zip(prefixes, alone[name], strict=True)]
    assert list(records["fold"][:14]) == list(first["fold"])
    assert list(records["split"][:14]) == list(first["split"])
    assert set(records["split"][14:]) == {"train", "val", "test"}


def test_the_order_of_processes_changes_no_byte(tmp_path):
    options = several(
        of_arrays("a", arrays(tmp_path / "a", patient_id=range(12), y=[0, 1] * 6)),
        of_arrays("b", arrays(tmp_path / "b", patient_id=range(12), y=[0, 1] * 6)),
    )
    run("several", tmp_path, tmp_path / "one", options)
    run("several", tmp_path, tmp_path / "two", options, workers=2)
    assert (tmp_path / "one/records.parquet").read_bytes() == (tmp_path / "two/records.parquet").read_bytes()


def test_targets_that_differ_are_refused_and_both_sources_named(test_data, tmp_path):
    ptbxl = part("ptbxl", "ptbxl", test_data / "ptbxl", limit=5)
    ludb = part("ludb", "ludb", test_data / "ludb", limit=5)
    with pytest.raises(InputError, match=r"'rhythm' has the classes .* in source 'ptbxl' and .* in 'ludb'") as stop:
        open_cohort("several", test_data, several(ptbxl, ludb)).entries()
    assert "{rhythm: null}" in str(stop.value)
    found = open_cohort("several", test_data, several(ptbxl, {**ludb, "targets": {"rhythm": None}})).entries()
    assert found.frame.loc[found.frame["source"] == "ludb", "rhythm"].isna().all()
    assert any("target superclass: of ptbxl alone" in note for note in found.notes)


def test_a_map_joins_other_names_classes_and_units(tmp_path):
    one = arrays(tmp_path / "one", sex=["m", "f"] * 6, rr=RR_MS)
    two = arrays(tmp_path / "two", gender=["Woman", "Man"] * 6, rr=RR_MS / 1000)
    rule = {"from": "gender", "classes": {"Woman": "f", "Man": "m"}}
    targets = {"sex": rule, "rr": {"factor": 1000, "unit": ""}}
    found = open_cohort("several", tmp_path, several(of_arrays("a", one), of_arrays("b", two, targets=targets)))
    entries = found.entries()
    sex = next(target for target in entries.targets if target.name == "sex")
    words = [sex.classes[int(code)] for code in entries.frame["sex"]]
    assert words == ["m", "f"] * 6 + ["f", "m"] * 6
    assert list(entries.frame["rr"]) == pytest.approx([*RR_MS, *RR_MS])


def test_parents_of_classes_follow_the_names_of_the_study():
    def source(name, *parents):
        targets = [
            Target("low", "multilabel", classes=("a", "b"), parents=parents),
            Target("high", "multilabel", classes=("x", "y")),
        ]
        frame = pd.DataFrame({"record_id": [name], "low": [["a"]], "high": [["x"]]})
        return SourceEntries(name, Entries(frame, targets))

    rules = {
        "statement": TargetRule(source_name="low", classes={"a": "A", "b": "B"}),
        "group": TargetRule(source_name="high", classes={"x": "X", "y": None}, absent=("Y",)),
    }
    one = mapped(source("one", ("a", "high", "x"), ("b", "high", "y")), rules)
    assert one.entries.targets[0].parents == (("A", "group", "X"),)
    alone = mapped(source("one", ("a", "high", "x")), {"low": TargetRule()}, only=True)
    assert alone.entries.targets[0].parents == ()
    two = [source("one", ("a", "high", "x")), source("two", ("b", "high", "y"))]
    _, targets, _ = joined(two)
    assert targets[0].parents == (("a", "high", "x"), ("b", "high", "y"))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({}, "'sex' has the classes f, m in source 'a' and man, woman in 'b'"),
        ({"sex": "gender"}, "source 'b' has no target 'gender'; it has: sex"),
        ({"sex": {"classes": {"w": "f"}}}, "has no class 'w'; it has: man, woman"),
        ({"sex": {"classes": {"man": "m"}}}, "only one has 'woman'"),
        ({"other": "sex"}, None),
        ({"sex": {"classes": {"man": "m", "woman": None}, "absent": ["f"]}}, None),
    ],
)
def test_what_a_map_does_not_say_is_refused(tmp_path, targets, message):
    one = of_arrays("a", arrays(tmp_path / "one", sex=["m", "f"] * 6))
    two = of_arrays("b", arrays(tmp_path / "two", sex=["woman", "man"] * 6), targets=targets)
    cohort = open_cohort("several", tmp_path, several(one, two))
    if message is None:
        assert cohort.entries().frame["sex"].isna().sum() == (12 if "other" in targets else 6)
    else:
        with pytest.raises(InputError, match=message):
            cohort.entries()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (several(part("a", "ptbxl", "x"), part("a", "ludb", "y")), "two sources are named 'a'"),
        (several(part("a", "ptbxl", "x", options={"rat": 100})), "cohorts: a: options: .*no option 'rat'"),
        (several(part("a/b", "ptbxl", "x")), "name"),
        (several(part("a", "nothing", "x")), "unknown source 'nothing'"),
        (several(part("a", "several", "x", options=several())), "is itself of the source 'several'"),
        ({}, "cohorts"),
    ],
)
def test_wrong_sections_are_refused_before_a_folder_is_looked_at(options, message):
    with pytest.raises(UsageError, match=message):
        check_options("several", options, "params.yaml: cohorts")


def test_several_is_no_kind_of_data():
    assert "several" not in list_cohorts()


def test_sources_that_may_hold_the_same_ecgs_are_named(test_data):
    one, two = part("a", "ptbxl", test_data / "ptbxl"), part("b", "challenge", test_data / "challenge2021")
    found = open_cohort("several", test_data, several({**one, "targets": KEPT}, {**two, "targets": KEPT})).entries()
    assert any(note.startswith("a and b may hold the same ECGs (ptbxl)") for note in found.notes)


# ---- params.yaml -----------------------------------------------------------------------------------------------------


def write(folder, content):
    (folder / "params.yaml").write_text(yaml.safe_dump({"experts": {"rocket": {}}, **content}, sort_keys=False))
    return Study(folder)


def test_a_list_and_named_sections_say_the_same(tmp_path):
    ptbxl, ludb = {"source": "ptbxl", "path": "p", "limit": 3}, {"source": "ludb", "path": "l", "targets": KEPT}
    listed = write(tmp_path, {"cohorts": [ptbxl, ludb]}).params.cohort
    named = write(tmp_path, {"cohorts": {"ptbxl": ptbxl, "ludb": ludb}}).params.cohort
    assert listed == named
    assert listed.source == "several"
    assert Study(tmp_path).source_folders() == {"ptbxl": ("ptbxl", tmp_path / "p"), "ludb": ("ludb", tmp_path / "l")}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"cohort": {"source": "ptbxl", "path": "p"}, "cohorts": []}, "names both cohort and cohorts"),
        ({"cohorts": []}, "expected a list of sections"),
        ({"cohorts": [{"source": "ptbxl", "path": "p", "limt": 2}]}, "ptbxl: 'limt' .*did you mean 'limit'"),
        (
            {
                "cohorts": [
                    {"source": "ptbxl", "path": "p", "seconds": 5},
                    {"source": "ludb", "path": "l"},
                ]
            },
            "seconds is 5.0 for 'ptbxl' and 10.0 for 'ludb'",
        ),
        ({"cohorts": [{"source": "ptbxl", "path": "p"}] * 2}, "two sources are named 'ptbxl'"),
    ],
)
def test_what_cohorts_cannot_say_is_one_line(tmp_path, content, message):
    with pytest.raises(UsageError, match=message) as stop:
        write(tmp_path, content).params  # noqa: B018
    assert "\n" not in str(stop.value)


def test_append_and_limit_are_refused(tmp_path):
    options = several(of_arrays("a", arrays(tmp_path / "a", y=[0, 1] * 6)))
    run("several", tmp_path, tmp_path / "s", options)
    paths = {"records_path": tmp_path / "s/records.parquet", "signals_path": tmp_path / "s/signals.zarr"}
    with pytest.raises(InputError, match="several cohorts without --append"):
        ingest("several", tmp_path, options, append=True, **paths)
    with pytest.raises(UsageError, match="--limit 3"):
        ingest("several", tmp_path, options, limit=3, **paths)


# ---- leave-source-out ------------------------------------------------------------------------------------------------


def table(n_of):
    source = np.repeat(list(n_of), list(n_of.values()))
    split = np.array(["train", "val", "test", "train"] * len(source))[: len(source)]
    of = membership(len(source), source=source, split=split)
    return SimpleNamespace(source=source, split=split, membership=of, usable=np.ones(len(source), bool))


def test_each_source_is_tested_once_by_the_others():
    data = table({"b": 12, "a": 8, "c": 20})
    source, split = data.source, data.split
    for name, (train, val, test) in zip(["a", "b", "c"], make_splits(data, "source"), strict=True):
        assert set(source[test]) == {name}
        assert len(test) == (source == name).sum()
        assert set(split[val]) == {"val"}
        assert set(source[train]) | set(source[val]) == {"a", "b", "c"} - {name}
        assert len(train) + len(val) == (source != name).sum()


def test_leave_source_out_needs_two_sources_and_validation_records():
    with pytest.raises(InputError, match="at least 2 sources"):
        make_splits(table({"a": 8}), "source")
    data = table({"a": 8, "b": 8})
    split = np.where(data.source == "b", "train", data.split)
    data.membership = membership(16, source=data.source, split=split)
    with pytest.raises(InputError, match="without 'a' no record is in the split val"):
        make_splits(data, "source")


def answers_to_others(features, targets, splits):
    """What the fit without the second source says of all other records."""
    heads = EnsembleHeads(lora_epochs=3, gate_epochs=3, gate_input="all", layer_mix="ppa")
    signal = np.random.default_rng(1).normal(size=(240, 1000)).astype(np.float32)
    heads.fit(features, targets, TASKS, splits=splits, gate_signal=signal)
    fold = len(splits) - 1
    rows = np.concatenate(splits[fold][:2])
    said = heads.predict_proba(features, gate_signal=signal, fold=fold)
    weights = heads.gate_weights(features, gate_signal=signal, fold=fold)
    limits = json.dumps([[task.tolist() for task in heads.held_out_.y_pred[fold].values()]])
    return np.concatenate([np.atleast_2d(x[rows].T).ravel() for x in (*said.values(), *weights.values())]), limits


def with_other_source(features, targets, rows):
    """Replace features and labels of some records."""
    features = {
        name: {part: _moved(array, rows) for part, array in value.items()}
        if isinstance(value, dict)
        else _moved(value, rows)
        for name, value in features.items()
    }
    changed = {name: array.copy() for name, array in targets.items()}
    for name, array in changed.items():
        array[rows] = array[rows] * 3 + 500 if name == "rr" else array[rows][::-1]
    return features, changed


def _moved(array, rows):
    found = array.copy()
    found[rows] = found[rows] * 2 + 1
    return found


@pytest.fixture(scope="module")
def two_sources():
    features, targets = study(240)
    features = {"wide": features["wide"][:, :40], "layered": features["layered"]}
    splits = make_splits(table({"a": 150, "b": 90}), "source")
    return features, targets, splits


def test_nothing_of_the_held_out_source_is_in_the_fit(two_sources):
    features, targets, splits = two_sources
    fit, limits = answers_to_others(features, targets, splits[1:])
    other, other_limits = answers_to_others(*with_other_source(features, targets, splits[1][2]), splits[1:])
    np.testing.assert_array_equal(fit, other)
    assert limits == other_limits


def test_a_planted_leak_is_caught(two_sources, monkeypatch):
    """The check above sees a statistic of the held-out source: a scaler that learns from all rows."""
    from stages.heads.inputs import scaler

    features, targets, splits = two_sources
    plain = scaler.RobustScaler.fit
    wide = features["wide"]

    def leaking(x, *rest, **more):
        return plain(wide_of["now"], *rest, **more) if x.shape[1] == wide.shape[1] else plain(x, *rest, **more)

    wide_of = {"now": wide}
    monkeypatch.setattr(scaler.RobustScaler, "fit", staticmethod(leaking))
    fit, _ = answers_to_others(features, targets, splits[1:])
    changed = with_other_source(features, targets, splits[1][2])
    wide_of["now"] = changed[0]["wide"]
    other, _ = answers_to_others(*changed, splits[1:])
    assert np.abs(fit - other).max() > 1e-3
