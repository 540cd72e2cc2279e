"""Labels that cannot be learnt: an error when the task was asked for, a recorded reason when it was one of all."""

import json

import pytest
import yaml

from cache import open_records
from cache.records import Target, write_records


@pytest.fixture
def ensemble(ensemble, toy_study, monkeypatch):
    monkeypatch.chdir(toy_study)
    records = open_records("records.parquet")
    targets = list(records.attrs["targets"].values())
    records["empty"] = None
    records["constant"] = 1
    more = [Target("empty", "regression"), Target("constant", "binary", classes=("no", "yes"))]
    write_records(toy_study / "records.parquet", records, [*targets, *more])
    assert ensemble("embed", "--expert", "ecgfm", "--workers", "1")[0] == 0
    return ensemble


@pytest.mark.parametrize("task", ["empty", "constant"])
def test_a_task_that_was_asked_for_is_an_error_that_names_it(ensemble, task):
    code, _, err = ensemble("fit-heads", "--tasks", task)
    assert code != 0
    assert err.startswith("error: ")
    assert task in err
    assert err.count("\n") == 1


def test_with_all_tasks_it_is_left_out_with_the_reason(ensemble, toy_study):
    code, out, err = ensemble("fit-heads")
    assert code == 0, err
    assert "left out: empty" in out
    assert "left out: constant" in out
    config = json.loads((toy_study / "heads/config.json").read_text())
    assert [task["name"] for task in config["tasks"]] == ["sex", "age"]
    assert ensemble("evaluate")[0] == 0
    done = ensemble("--debug", "report")
    assert done[0] == 0, done[2]


def test_a_task_that_no_column_holds_is_answered_with_those_that_exist(ensemble, toy_study):
    params = yaml.safe_load((toy_study / "params.yaml").read_text())
    (toy_study / "params.yaml").write_text(yaml.safe_dump({**params, "tasks": ["potassium"]}))
    code, _, err = ensemble("fit-heads")
    assert code == 2
    assert "'potassium' is no target of records.parquet; it has: sex, age, empty, constant" in err
