"""Post-training on several tasks at once: one head for each network side by side, softened labels, small files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cache.errors import InputError, MissingFileError, UsageError
from cache.records import open_records, target_array
from stages.experts import load_expert
from stages.heads.targets.tasks import TaskSpec, layout
from stages.posttrain import PosttrainPaths, PosttrainSettings
from stages.posttrain import run as posttrain
from stages.posttrain.cohort import LabelledCohort
from stages.posttrain.joint import JointHead
from stages.posttrain.settings import PosttrainSection
from stages.posttrain.stage import summary_lines
from stages.posttrain.teacher import taught
from stages.scoring.predictions import writing_predictions
from stages.training.settings import LoopSettings

SMALL = {"members": 2, "stem": 8, "widths": (8, 16), "blocks": (1, 1)}
LOOP = LoopSettings(epochs=3, batch_size=8, learning_rate=3e-3, ema=0.9, clip_norm=1.0)
PATHS = PosttrainPaths(Path("records.parquet"), Path("signals.zarr"), Path(".ensemble"))
CHANGES = {"crop": 0.8, "noise": 0.1, "lead_dropout": 0.4}


@pytest.fixture(autouse=True)
def study(toy_study, monkeypatch):
    monkeypatch.chdir(toy_study)
    torch.set_num_threads(1)
    return toy_study


@pytest.fixture
def asked():
    how = {"head": "joint", "head_dropout": 0.1, "drop_path": 0.0, "select": "last", "store": "float16"}
    return PosttrainSettings(
        "seed+mine", "seed", "sex, age", LOOP, None, SMALL, start="random", augment=CHANGES, mixup=0.4, **how
    )


def test_two_tasks_make_one_version_in_half_precision(asked):
    summary = posttrain(asked, PATHS)
    curve = summary.runs[0]["curve"]
    assert curve[-1]["loss"] < curve[0]["loss"]
    state = load_file(Path(summary.folder) / "model.safetensors")
    assert {v.dtype for v in state.values()} == {torch.float16, torch.int64}
    expert = load_expert("seed+mine")
    assert expert.spec.pretrained_on == ()
    assert expert.spec.embedding_dim == 2 * expert.module.options.member_dim
    assert {"sex auroc", "age mae"} <= set(summary.runs[0]["tuned"]["test"])
    [line] = summary_lines(summary)
    assert "tuned age mae" in line
    assert "probe" not in line


def test_a_run_is_a_function_of_its_seed(asked):
    weights = []
    for seed in (0, 0, 1):
        for path in Path(".ensemble/training").glob("*"):
            path.unlink()
        folder = posttrain(replace(asked, seeds=(seed,)), PATHS).folder
        weights.append((Path(folder) / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_each_part_of_the_embedding_learns_alone():
    torch.manual_seed(0)
    head = JointHead(6, layout([TaskSpec("sex", "binary"), TaskSpec("age", "regression")]), parts=2)
    features = torch.randn(16, 6, requires_grad=True)
    logits = head(features)
    assert logits.shape == (16, 2, 2)
    logits[:, 0].sum().backward()
    assert (features.grad[:, 3:] == 0).all()
    head.eval()
    assert head(features).shape == (16, 2)


def test_a_teacher_stands_in_for_a_share_of_each_label(asked, tmp_path):
    table, predicted = _predictions(tmp_path)
    expert = load_expert("seed", config=SMALL, random_weights=True)
    data = LabelledCohort.read(expert, ("sex", "age"), (PATHS.records, PATHS.signals), PATHS.state)
    y = taught(data, table, 0.25)
    labelled = data.known[:, 1] > 0
    expected = 0.75 * data.y[:, 1] + 0.25 * torch.from_numpy(predicted["age"][data.rows])
    assert torch.allclose(y[labelled, 1], expected.float()[labelled])
    assert torch.equal(taught(data, table, 0.0), data.y)
    losses = {
        share: posttrain(replace(asked, teacher=table, teacher_share=share), PATHS).runs[0]["curve"][0]["loss"]
        for share in (0.0, 1.0)
    }
    assert losses[0.0] != losses[1.0]


def test_a_teacher_that_says_nothing_of_a_task_is_refused(asked, tmp_path):
    table, _ = _predictions(tmp_path, ("sex",))
    with pytest.raises(InputError, match=r"no out-of-fold gate predictions of task 'age'"):
        posttrain(replace(asked, teacher=table), PATHS)
    with pytest.raises(MissingFileError, match=r"none\.parquet"):
        posttrain(replace(asked, teacher="none.parquet"), PATHS)


def test_several_tasks_need_the_joint_head(asked):
    with pytest.raises(UsageError, match="learnt together by `head: joint` alone"):
        replace(asked, head="probe")
    with pytest.raises(UsageError, match="has the targets sex, age"):
        posttrain(replace(asked, task="sex,height"), PATHS)


def test_the_recipe_of_the_packaged_weights_is_valid():
    import yaml

    recipe = yaml.safe_load((Path(__file__).parents[2] / "weights" / "seed.yaml").read_text())
    section = PosttrainSection.model_validate(recipe["posttrain"]["seed+ptbxl"])
    assert set(section.task.split(",")) == set(recipe["tasks"])
    assert recipe["cohort"]["options"]["strat_folds"] == [1, 2, 3, 4, 5, 6, 7, 8]


def _predictions(folder, tasks=("sex", "age")):
    """Write a predictions.parquet that says something of every record."""
    records = open_records("records.parquet")
    targets = {name: records.attrs["targets"][name] for name in tasks}
    predicted = {"sex": np.full(len(records), 0.5), "age": np.arange(len(records), dtype=float)}
    with writing_predictions(path := folder / "teacher.parquet", targets) as writer:
        for name, target in targets.items():
            writer.add(
                name,
                "gate",
                "test",
                0,
                record_ids=records["record_id"].to_numpy(),
                patient_ids=records["patient_id"].to_numpy(),
                y_true=target_array(records, target),
                y_pred=predicted[name],
            )
    return path, predicted
