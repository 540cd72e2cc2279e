"""What learns and judges reads single columns of records.parquet, and the names of those records that it asks for."""

import hashlib

import numpy as np
import pandas as pd
import pytest

from cache.embeddings import Identity, Layout, Shard
from cache.record_members import RecordMembers
from cache.record_rows import RecordRows
from cache.records import BASE_COLUMNS, Target, open_records, target_array, write_records
from cache.upkeep.resume import create_embeddings
from stages.fit_heads import FitHeadsPaths, FitHeadsSettings, run
from stages.heads import EnsembleHeads
from stages.leaderboard.fits import TaskRows
from stages.learning import data as learning

N = 120


@pytest.fixture
def study(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 4)).astype(np.float16)
    frame = pd.DataFrame({name: [None] * N for name in BASE_COLUMNS})
    frame["record_id"], frame["patient_id"] = [f"r{k}" for k in range(N)], [f"p{k // 2}" for k in range(N)]
    frame["source"], frame["status"], frame["fold"] = "one", "ok", np.arange(N) // 2 % 6
    frame["split"] = np.select([frame["fold"] == 5, frame["fold"] == 4], ["test", "val"], "train")
    frame["sex"] = (x[:, 0] > 0).astype(int)
    write_records(tmp_path / "records.parquet", frame, [Target("sex", "binary", classes=("f", "m"))])
    digest = RecordRows(tmp_path / "records.parquet").digest()
    store = create_embeddings(tmp_path / "a.zarr", Layout(N, ("x",), (4,), 4), Identity({"expert": "a"}, "", digest))
    store.write(0, Shard(x[:, None], x))
    return tmp_path


def test_a_fit_is_that_of_the_names(study):
    options = {"lora": False, "gate_epochs": 0, "share_tasks": False, "strengths": (1.0,)}
    paths = FitHeadsPaths(study / "records.parquet", study / "signals.zarr", {"a": study / "a.zarr"}, study / "heads")
    run(FitHeadsSettings(options=options), paths)

    data = learning.read_data(paths.records, paths.stores)
    records = open_records(paths.records, without=())
    rows = np.array([3, 7, 100])
    assert data.patient_ids(rows).to_pylist() == records["patient_id"][rows].tolist()
    ids = learning.RecordIds(data.rows, [rows[:2], rows[1:]])
    assert ids.of(rows[1:]).to_pylist() == records["record_id"][rows[1:]].tolist()
    splits = [[np.flatnonzero(records["split"] == name) for name in ("train", "val", "test")]]
    target = records.attrs["targets"]["sex"]
    plain = EnsembleHeads(**options, seed=0).fit(
        {"a": data.features["a"]},
        {"sex": target_array(records, target)},
        learning.task_specs([target]),
        splits=splits,
        groups=records["patient_id"].to_numpy(),
    )
    fitted = EnsembleHeads.load(paths.heads)
    np.testing.assert_array_equal(fitted.predict_proba(data.features)["sex"], plain.predict_proba(data.features)["sex"])


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel", "regression"])
def test_a_board_names_its_fits_as_a_frame_would(study, kind):
    records = open_records(study / "records.parquet", without=())
    classes = () if kind == "regression" else ("f", "m")
    records["age"] = [["m"], ["f", "m"], []] * (N // 3) if kind == "multilabel" else np.arange(N) % 2
    records["age"] = records["age"].astype(object).where(np.arange(N) % 7 != 0, None)
    if kind != "multilabel":
        records["age"] = records["age"].astype(float if kind == "regression" else "Int16")
    write_records(study / "more.parquet", records, [Target("age", kind, classes=classes)])
    records = open_records(study / "more.parquet", without=())
    task = TaskRows.read(RecordMembers.read(study / "more.parquet"), records.attrs["targets"]["age"])
    values, usable = target_array(records, task.target), (np.arange(N) % 7 != 0)
    split = [np.flatnonzero(usable & (records["split"] == name)) for name in ("train", "val", "test")]
    assert task.digest == hashlib.sha256(b"".join(part.tobytes() for part in (values, *split))).hexdigest()
    np.testing.assert_array_equal(task.truth(split[0]), values[split[0]])
