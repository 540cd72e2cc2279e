import pytest
import yaml

from cache.errors import MissingFileError, UsageError
from pipeline.study.folder import Study
from pipeline.study.params import read_params

MINIMAL = {"cohort": {"source": "ptbxl", "path": "records"}, "experts": {"rocket": None}}


def write(folder, content):
    (folder / "params.yaml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return folder


def test_what_is_not_said_has_a_default(tmp_path):
    params = read_params(write(tmp_path, MINIMAL))
    assert params.experts["rocket"].weights == "weights/default"
    assert (params.tasks, params.fit_heads.folds, params.evaluate.bootstrap) == ("all", "split", 1000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expert": {}}, "unknown key 'expert'; did you mean 'experts'?"),
        ({"machine": {"batchsize": 4}}, "unknown key 'machine.batchsize'; did you mean 'batch_size'?"),
        ({"experts": {"rocket": {"wheights": "x"}}}, "unknown key 'experts.rocket.wheights'; did you mean 'weights'?"),
        ({"evaluate": {"bootstrap": 5}}, "evaluate.bootstrap: input should be greater than or equal to 100, got 5"),
        ({"evaluate": {"fractions": [0.1, 1.5]}}, "evaluate.fractions.1: input should be less than or equal to 1"),
        ({"evaluate": {"compared": True}}, "unknown key 'evaluate.compared'; did you mean 'compare'?"),
        ({"machine": {"device": "tpu"}}, "machine.device: string should match pattern"),
        ({"cohort": {"source": "ptbxl"}}, "cohort.path: field required"),
        ({"tasks": []}, "tasks [] is not allowed; it must be all, or a list of target columns such as [age, sex]"),
        ({"tasks": "age"}, "tasks 'age' is not allowed; it must be all, or a list"),
        ({"fit_heads": {"options": {"rnak": 4}}}, "unknown key 'fit_heads.options.rnak'; did you mean 'rank'?"),
        (
            {"fit_heads": {"options": {"top_k": -2}}},
            "fit_heads.options.top_k -2 is not allowed; it must be a whole number from 0",
        ),
        (
            {"fit_heads": {"options": {"gate_leads": ["II", "II"]}}},
            "fit_heads.options.gate_leads ['II', 'II'] is not allowed; it must be a list of different leads",
        ),
        ({"machine": {"workers": 0}}, "machine.workers 0 is not allowed; it must be auto, or a whole number from 1"),
        ({"machine": {"batch_size": 2.5}}, "machine.batch_size 2.5 is not allowed; it must be auto, or a whole number"),
        ({"machine": {"memory_gb": "much"}}, "machine.memory_gb 'much' is not allowed; it must be auto, or a number"),
        (
            {"fit_heads": {"folds": 2}},
            "fit_heads.folds 2 is not allowed; it must be split, all, source, or a whole number from",
        ),
        (
            {"cohort": {**MINIMAL["cohort"], "seconds": 0}},
            "cohort.seconds 0 is not allowed; it must be all, or a number from 1 to 3600",
        ),
        ({"embed": {"device": "cpu"}}, "embed.device is machine.device now; move it there"),
        ({"cohort": {**MINIMAL["cohort"], "workers": 2}}, "cohort.workers is machine.workers now"),
        ({"fit_heads": {"options": {"memory_gb": 3}}}, "fit_heads.options.memory_gb is machine.memory_gb now"),
        ({"pretrain": {"stmem+a": {"device": "cpu"}}}, "pretrain.stmem+a.device is machine.device now"),
        ({"embeddings": "../shared"}, "embeddings: ../shared is nothing that dvc.yaml watches"),
        ({"signals": "/elsewhere/signals.zarr"}, "is nothing that dvc.yaml watches"),
    ],
)
def test_a_wrong_key_or_value_is_named_in_one_line(tmp_path, change, message):
    with pytest.raises(UsageError) as stop:
        read_params(write(tmp_path, {**MINIMAL, **change}))
    assert message in str(stop.value)
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize("content", ["a: [1", "- a list", "", "\x00"])
def test_a_file_that_is_not_a_mapping_is_refused(tmp_path, content):
    with pytest.raises(UsageError, match=r"params\.yaml"):
        read_params(write(tmp_path, content))


def test_a_folder_without_params_says_how_to_make_a_study(tmp_path):
    with pytest.raises(MissingFileError, match="ensemble init FOLDER"):
        read_params(tmp_path)


def test_source_and_path_need_no_params_file(tmp_path):
    study = Study(tmp_path)
    chosen = study.cohort("wfdb", tmp_path / "records", tmp_path / "labels.csv")
    assert (chosen.source, chosen.path, study.seed) == ("wfdb", str(tmp_path / "records"), 0)
    assert chosen.options == {"labels": str(tmp_path / "labels.csv")}


def test_another_source_does_not_inherit_the_options(tmp_path):
    params = {**MINIMAL, "cohort": {"source": "ptbxl", "path": "records", "options": {"rate": 100}}}
    study = Study(write(tmp_path, params))
    assert study.cohort("ptbxl").options == {"rate": 100}
    assert study.cohort("wfdb", tmp_path).options == {}
    with pytest.raises(UsageError, match="with --path"):
        study.cohort("wfdb")


def test_an_expert_that_is_not_in_the_study_is_answered_with_those_that_are(tmp_path):
    with pytest.raises(UsageError, match=r"'ecgfm' is not in params\.yaml; there are: rocket"):
        Study(write(tmp_path, MINIMAL)).check_experts(["ecgfm"])


def test_a_misspelt_option_of_the_source_is_refused_before_any_work(tmp_path):
    study = Study(write(tmp_path, {**MINIMAL, "cohort": {"source": "ptbxl", "path": "x", "options": {"rata": 100}}}))
    with pytest.raises(UsageError, match=r"source 'ptbxl' has no option 'rata'; did you mean 'rate'\?"):
        study.params  # noqa: B018
    study = Study(write(tmp_path, {**MINIMAL, "cohort": {"source": "ptb-xl", "path": "x"}}))
    with pytest.raises(UsageError, match="unknown source 'ptb-xl'; did you mean 'ptbxl'"):
        study.params  # noqa: B018


def test_a_crop_shorter_than_its_expert_takes_is_refused_when_params_are_read(tmp_path):
    version = {"expert": "stmem", "task": "sex", "crop_s": 2.5}
    write(tmp_path, {**MINIMAL, "posttrain": {"stmem+sex": version}})
    says = (
        r"params.yaml: posttrain.stmem\+sex.crop_s 2.5: expert 'stmem': 2.5 s are shorter than 9 s, .* give at least 9"
    )
    with pytest.raises(UsageError, match=says):
        read_params(tmp_path)
    for taken in ({"crop_s": 9}, {"expert": "seed"}, {"config": {"seq_len": 500}}, {"preprocessing": "soup"}):
        write(tmp_path, {**MINIMAL, "posttrain": {"one+sex": version | taken}})
        assert read_params(tmp_path).posttrain["one+sex"].task == "sex"
