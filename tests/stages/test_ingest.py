import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from cache import open_records, open_signals
from cache.errors import EnsembleError, InputError, MissingFileError, StoreError, UsageError
from cache.signals import MISSING
from stages.ingest import shards as stage
from stages.synthetic import GeneratePaths, GenerateSettings
from stages.synthetic import run as generate
from tests.ingesting import ingest


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "mimic"
    generate(GenerateSettings(records=600, seed=3), GeneratePaths(folder))
    return folder


def run(path, out: Path, source="mimic-iv-ecg", options=None, **more):
    return ingest(
        source, path, options, records_path=out / "records.parquet", signals_path=out / "signals.zarr", **more
    )


def digest(out: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        total.update(f"{path.relative_to(out)}\0".encode() + path.read_bytes())
    return total.hexdigest()


@pytest.fixture(scope="module")
def whole(cohort, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return run(cohort, out), out


def test_every_record_has_a_row_and_bad_ones_say_why(whole, cohort):
    summary, out = whole
    records, signals = open_records(out / "records.parquet"), open_signals(out / "signals.zarr")
    assert len(records) == len(signals) == summary.n_records == 600
    bad = records["status"] == "bad"
    assert bad.sum() == summary.n_bad == sum(summary.reasons.values()) > 0
    assert records.loc[bad, "reason"].notna().all()
    assert records.loc[~bad, "reason"].isna().all()
    assert not np.asarray(signals.valid)[bad].any()
    assert (signals.signals[int(np.flatnonzero(bad)[0])] == MISSING).all()
    with (out / "bad_records.csv").open(newline="") as file:
        listed = [row["record_id"] for row in csv.DictReader(file)]
    assert listed == records.loc[bad, "record_id"].tolist()
    assert sorted(p.name for p in out.iterdir()) == [
        "bad_records.csv",
        "records.parquet",
        "signals.zarr",
    ]


def test_splits_are_by_patient_and_all_there(whole):
    records = open_records(whole[1] / "records.parquet")
    assert (records.groupby("patient_id")["fold"].nunique() == 1).all()
    assert set(records["fold"]) == set(range(10))
    assert (records["split"] == records["fold"].map(lambda f: {8: "val", 9: "test"}.get(f, "train"))).all()


def test_the_same_input_gives_the_same_bytes_whatever_the_workers(whole, cohort, tmp_path):
    run(cohort, tmp_path, workers=2)
    assert digest(tmp_path) == digest(whole[1])
    run(cohort, tmp_path)
    assert digest(tmp_path) == digest(whole[1])


def test_an_interrupted_run_goes_on_where_it_stopped(whole, cohort, tmp_path, monkeypatch):
    monkeypatch.setattr("cache.signals.SHARD_RECORDS", 128)
    monkeypatch.setattr("cache.signals.create_signals.__defaults__", (128,))
    run(cohort, tmp_path / "whole")
    seen = []

    def stop(done, total):
        seen.append(done)
        if done > 300:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(cohort, tmp_path / "stopped", progress=stop)
    with pytest.raises(StoreError, match="not written yet"):
        open_signals(tmp_path / "stopped" / "signals.zarr").content_digest()
    read = []
    real = stage._read_shard
    monkeypatch.setattr(stage, "_read_shard", lambda task, *more: (read.append(task.shard), real(task, *more))[1])
    run(cohort, tmp_path / "stopped")
    assert 0 < len(read) < 5
    assert digest(tmp_path / "stopped") == digest(tmp_path / "whole")


def test_a_run_of_other_options_starts_afresh(cohort, tmp_path):
    def stop(done, total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(cohort, tmp_path, limit=40, progress=stop)
    run(cohort, tmp_path, limit=30)
    assert len(open_signals(tmp_path / "signals.zarr")) == len(open_records(tmp_path / "records.parquet")) == 30


def test_progress_reaches_the_end(cohort, tmp_path):
    told = []
    run(cohort, tmp_path, limit=100, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (100, 100)
    assert [d for d, _ in told] == sorted(d for d, _ in told)


def test_paths_that_leave_the_folder_and_repeated_ids_are_bad_records(cohort, tmp_path):
    names = ["files", "hosp", "machine_measurements.csv"]
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in names:
        (folder / name).symlink_to(cohort / name)
    table = pd.read_csv(cohort / "record_list.csv", dtype=str).head(6)
    table.loc[1, "path"] = "../mimic/" + table.loc[1, "path"]
    table.loc[2, "path"] = str(cohort / table.loc[2, "path"])
    table.loc[4, "study_id"] = table.loc[3, "study_id"]
    table.loc[5, "path"] = None
    table.to_csv(folder / "record_list.csv", index=False)
    run(folder, tmp_path / "out")
    reasons = open_records(tmp_path / "out" / "records.parquet")["reason"].tolist()
    # `files` itself leads out of the folder here.
    assert all("leaves the cohort's folder" in reasons[k] for k in range(4))
    assert "more than once" in reasons[4]
    assert "empty" in reasons[5]


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        ({"source": "nothing"}, UsageError, "unknown source 'nothing'; there are: .*mimic-iv-ecg.*ptbxl.*wfdb"),
        ({"path": "no-such-folder"}, MissingFileError, "no-such-folder is not a folder"),
        ({"options": {"hopsital": 1}}, UsageError, "has no option 'hopsital'; its options: .*hosp"),
        ({"options": {"potassium_hours_before": -1}}, UsageError, "option 'potassium_hours_before'.*got -1"),
        ({"options": {"hosp": "nowhere"}}, MissingFileError, "nowhere is not a folder"),
        ({"source": "ptbxl"}, MissingFileError, "ptbxl_database.csv does not exist"),
        ({"source": "wfdb", "options": {"labels": "no.csv"}}, MissingFileError, "no.csv does not exist"),
        ({"source": "wfdb", "options": {"kinds": {"a": "odd"}}}, UsageError, "option 'kinds.a'"),
    ],
)
def test_mistakes_are_one_line_that_names_them(cohort, tmp_path, call, error, says):
    call = {"path": cohort, **call}
    with pytest.raises(error, match=says) as caught:
        run(call.pop("path"), tmp_path, **call)
    assert isinstance(caught.value, EnsembleError)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "records.parquet").exists()


@pytest.mark.parametrize("call", [{"limit": 0}, {"workers": 0}, {"seconds": 0.5}, {"derive_leads": "perhaps"}])
def test_settings_that_are_not_allowed_are_refused_before_anything_is_read(tmp_path, call):
    with pytest.raises(ValidationError, match=next(iter(call))):
        run(tmp_path / "nowhere", tmp_path, **call)


def test_a_list_without_a_column_is_named(cohort, tmp_path):
    (tmp_path / "record_list.csv").write_text("subject_id,study_id,path\n1,2,x\n")
    with pytest.raises(InputError, match=r"record_list\.csv: has no column 'ecg_time'"):
        run(tmp_path, tmp_path / "out")


def test_every_worker_process_may_meet_bad_records(cohort, tmp_path):
    summary = run(cohort, tmp_path, limit=520, workers=2)
    told = json.dumps(summary.reasons)
    assert summary.n_records == 520
    assert "does not exist" in told or "cut short" in told
