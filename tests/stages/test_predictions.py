import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache.errors import InputError, MissingFileError, StoreError, UsageError
from stages.scoring.gate_weights import open_gate_weights, writing_gate_weights
from stages.scoring.predictions import COLUMNS, open_predictions, writing_predictions
from tests.stages.synthetic_predictions import TARGETS, truths, write_study

IDS = np.array(["b", "a", "c"], dtype=object)
PATIENTS = np.array(["p1", "p1", "p2"], dtype=object)
AGES = np.array([50.0, np.nan, 70.0])


def add_ages(table, method="gate", y_pred=IDS != "", **changes):
    rows = {"record_ids": IDS, "patient_ids": PATIENTS, "y_true": AGES, "y_pred": y_pred} | changes
    table.add("age", method, "test", 0, **rows)


def test_blocks_of_every_kind_come_back_as_they_were(tmp_path):
    rng = np.random.default_rng(0)
    y = truths(rng, 3)
    p = {name: rng.random(y[name].shape if name != "report_label" else (3, 4)).astype(np.float32) for name in y}
    with writing_predictions(tmp_path / "p.parquet", TARGETS) as table:
        for name in y:
            table.add(name, "gate", "val", 2, record_ids=IDS, patient_ids=PATIENTS, y_true=y[name], y_pred=p[name])
    read = open_predictions(tmp_path / "p.parquet")
    assert read.tasks == TARGETS
    for name in y:
        block = read.read(name, "gate", "val")
        assert block.record_ids.tolist() == IDS.tolist()
        assert block.patients.arrow().to_pylist() == PATIENTS.tolist()
        assert block.fold.tolist() == [2, 2, 2]
        np.testing.assert_array_equal(block.y_true, y[name])
        np.testing.assert_array_equal(block.y_pred, p[name])
        assert len(read.read(name, "gate", "test")) == 0


def test_the_file_is_a_plain_long_table(tmp_path):
    write_study(tmp_path, n=20)
    frame = pq.read_table(tmp_path / "predictions.parquet").to_pandas()
    assert list(frame) == list(COLUMNS)
    assert frame.loc[frame["task"] == "age", "class"].isna().all()
    rows = frame[(frame["task"] == "superclass") & (frame["method"] == "gate")]
    assert rows.groupby("record_id", observed=True)["class"].nunique().eq(5).all()


def test_rows_in_another_order_read_the_same(tmp_path):
    write_study(tmp_path, n=40, folds=3)
    table = pq.read_table(tmp_path / "predictions.parquet")
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    pq.write_table(shuffled, tmp_path / "shuffled.parquet")
    for task in TARGETS:
        first, second = (
            open_predictions(tmp_path / name).read(task, "concat")
            for name in ("predictions.parquet", "shuffled.parquet")
        )
        order = [np.lexsort((b.fold, b.record_ids.astype(str))) for b in (first, second)]
        np.testing.assert_array_equal(first.take(order[0]).y_pred, second.take(order[1]).y_pred)
        np.testing.assert_array_equal(first.take(order[0]).y_true, second.take(order[1]).y_true)


def test_methods_are_listed_in_the_order_written(tmp_path):
    with writing_predictions(tmp_path / "p.parquet", TARGETS) as table:
        for method in ("gate", "expert:b", "expert:a"):
            add_ages(table, method)
    read = open_predictions(tmp_path / "p.parquet")
    assert read.methods("age") == ["gate", "expert:b", "expert:a"]
    assert read.methods("gender") == []


def test_the_same_blocks_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_study(tmp_path / name, n=50)
    for file in ("predictions.parquet", "gate_weights.parquet"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_an_error_leaves_the_old_table(tmp_path):
    path = tmp_path / "p.parquet"
    with writing_predictions(path, TARGETS) as table:
        add_ages(table)
    before = path.read_bytes()
    with (
        pytest.raises(InputError, match="'a' has a prediction that is not finite"),
        writing_predictions(path, TARGETS) as t,
    ):
        add_ages(t, y_pred=np.array([1.0, np.nan, 2.0]))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["p.parquet"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_pred": np.zeros((3, 2))}, r"y_pred has the shape \(3, 2\), expected \(3, 1\)"),
        ({"patient_ids": PATIENTS[:2]}, "2 patient_ids for 3 record_ids"),
        ({"record_ids": np.array(["a", "b", "a"])}, "record 'a' occurs twice"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message), writing_predictions(tmp_path / "p.parquet", TARGETS) as table:
        add_ages(table, **changes)


def test_unknown_tasks_and_splits_are_refused(tmp_path):
    rows = {"record_ids": IDS, "patient_ids": PATIENTS, "y_true": AGES, "y_pred": AGES}
    with writing_predictions(tmp_path / "p.parquet", TARGETS) as table:
        with pytest.raises(UsageError, match="task 'height' is not one"):
            table.add("height", "gate", "test", 0, **rows)
        with pytest.raises(UsageError, match="split 'holdout'"):
            table.add("age", "gate", "holdout", 0, **rows)


def test_what_is_not_a_predictions_table_is_refused(tmp_path):
    with pytest.raises(MissingFileError, match="run `ensemble evaluate` first"):
        open_predictions(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(StoreError, match="not a readable Parquet file"):
        open_predictions(tmp_path / "text.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(StoreError, match="not a predictions table"):
        open_predictions(tmp_path / "other.parquet")


def test_gate_weights_come_back_and_must_sum_to_one(tmp_path):
    weights = np.array([[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]])
    path = tmp_path / "g.parquet"
    with writing_gate_weights(path) as table:
        table.add("age", "test", 1, record_ids=IDS, experts=["x", "y"], weights=weights)
        with pytest.raises(InputError, match="do not sum to 1"):
            table.add("age", "test", 1, record_ids=IDS, experts=["x", "y"], weights=weights * 2)
        with pytest.raises(InputError, match=r"shape \(3, 2\)"):
            table.add("age", "test", 1, record_ids=IDS, experts=["x"], weights=weights)
    wide = open_gate_weights(path).pivot(index="record_id", columns="expert", values="weight")
    assert wide.loc["b"].tolist() == [0.25, 0.75]
    assert wide.loc["a", "x"] == 1


def test_one_split_of_the_gates_weights_is_read_alone(tmp_path):
    weights = np.full((3, 2), 0.5, np.float32)
    with writing_gate_weights(tmp_path / "w.parquet") as table:
        for split in ("val", "test"):
            table.add("age", split, 0, record_ids=IDS, experts=("a", "b"), weights=weights)
    whole, tested = (open_gate_weights(tmp_path / "w.parquet", split) for split in (None, "test"))
    assert (len(whole), len(tested)) == (12, 6)
    assert set(tested["split"]) == {"test"}
    assert tested["record_id"].tolist() == [*IDS, *IDS]


def test_records_without_a_patient_are_refused(tmp_path):
    ages = {"y_true": np.ones(3), "y_pred": np.ones(3)}
    refusal = r"task 'age', method 'gate': 2 records have no patient_id; name each one's patient, or itself"
    with pytest.raises(InputError, match=refusal), writing_predictions(tmp_path / "p.parquet", TARGETS) as table:
        table.add("age", "gate", "test", 0, record_ids=IDS, patient_ids=["a", None, None], **ages)


def test_whether_a_method_has_labels_is_asked_of_the_labels_alone(tmp_path):
    unknown = {"age": np.full(3, np.nan), "report_label": np.full(3, -1)}
    p = {"age": np.ones(3), "report_label": np.full((3, 4), 0.25)}
    with writing_predictions(tmp_path / "p.parquet", TARGETS) as table:
        for task, y in unknown.items():
            for split, truth in (("test", y), ("val", np.ones(3, y.dtype))):
                given = {"record_ids": IDS, "patient_ids": PATIENTS, "y_true": truth, "y_pred": p[task]}
                table.add(task, "gate", split, 0, **given)
    read = open_predictions(tmp_path / "p.parquet")
    for task in unknown:
        labelled = [read.is_labelled(task, "gate", split) for split in ("test", "val", "train")]
        assert labelled == [False, True, False]
        assert labelled == [bool(read.read(task, "gate", split).labelled.any()) for split in ("test", "val", "train")]
