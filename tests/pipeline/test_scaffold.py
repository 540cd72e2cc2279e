import importlib
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from cache.errors import MissingFileError, UsageError
from cache.storage.locations import location_of
from pipeline.study.params import read_params
from pipeline.study.scaffold import StoreUrls, make_study
from stages.embed import Embedder, EmbedPaths, EmbedSettings
from stages.fit_heads.settings import StudyFitOptions
from stages.ingest import IngestPaths, IngestSettings
from stages.ingest import run as ingest
from tests import structure

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ptbxl(tmp_path):
    folder = tmp_path / "ptb xl: copy"
    folder.mkdir()
    for name in ("ptbxl_database.csv", "scp_statements.csv"):
        (folder / name).write_text("")
    return folder


def test_a_study_is_ready_for_dvc(tmp_path, ptbxl):
    make_study(tmp_path / "study", "ptbxl", ptbxl)
    params = read_params(tmp_path / "study")
    assert (params.cohort.source, params.cohort.path) == ("ptbxl", str(ptbxl))
    stages = yaml.safe_load((tmp_path / "study/dvc.yaml").read_text())["stages"]
    assert stages["ingest"]["deps"] == [str(ptbxl / "ptbxl_database.csv"), str(ptbxl / "scp_statements.csv")]
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "stage", "list", "--name-only"],
        cwd=tmp_path / "study",
        capture_output=True,
        text=True,
        check=True,
    )
    experts = {"embed@rocket", "embed@morphology", "embed@seed"}
    assert {"ingest", *experts, "fit-heads", "evaluate", "report"} <= set(done.stdout.split())
    assert list(params.experts) == ["rocket", "morphology", "seed"]


def test_a_study_of_arrays_can_be_made_and_ingested(tmp_path, ensemble, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    np.save(folder / "ecgs.npy", np.random.default_rng(0).normal(0, 0.3, (4, 12, 5000)).astype(np.float32))
    pd.DataFrame({"y": [0, 1, 0, 1]}).to_csv(folder / "labels.csv", index=False)
    options = ["--option", "file=ecgs.npy", "--option", "rate_hz=500", "--option", "labels=labels.csv"]
    code, _, err = ensemble("init", str(tmp_path / "study"), "--source", "arrays", "--path", str(folder), *options)
    assert code == 0, err
    monkeypatch.chdir(tmp_path / "study")
    assert ensemble("ingest")[0] == 0
    deps = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]["ingest"]["deps"]
    assert deps == [str(folder / "ecgs.npy"), str(folder / "labels.csv")]
    code, _, err = ensemble(
        "init", str(tmp_path / "x"), "--source", "arrays", "--path", str(folder), "--option", "file"
    )
    assert (code, "expected NAME=VALUE" in err) == (2, True)


def code_that_runs(stage: str) -> set[Path]:
    """Files that a stage's body imports, and those that they import; what a registry loads counts as its folder."""
    room = "synthetic" if stage == "generate" else stage.replace("-", "_")
    return structure.closure(ROOT, Path("stages", room, "stage.py"))


def covers(dependency: Path, file: Path) -> bool:
    return file == dependency or dependency in file.parents


@pytest.mark.parametrize(
    "stage", ["generate", "ingest", "pretrain", "posttrain", "embed", "fit-heads", "evaluate", "report"]
)
def test_dvc_watches_exactly_the_code_that_a_stage_runs(stage):
    found = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]
    dependencies = found.get("do", found)["deps"]
    watched = {Path(path) for path in dependencies if path.split("/")[0] in ("cache", "stages")}
    run = code_that_runs(stage)
    assert not {file for file in run if file.name != "__init__.py" and not any(covers(w, file) for w in watched)}
    assert not {w for w in watched if not any(covers(w, file) for file in run)}


@pytest.mark.parametrize("stage", ["pretrain", "posttrain", "embed", "fit-heads", "evaluate", "report"])
def test_dvc_watches_the_signals_of_every_stage_that_is_given_them(tmp_path, ptbxl, stage):
    """A gate reads the signal: with imported embeddings alone nothing else would tell that it has changed."""
    settings = importlib.import_module(f"stages.{stage.replace('-', '_')}.settings")
    [paths] = [cls for name, cls in vars(settings).items() if name.endswith("Paths")]
    assert "signals" in {field.name for field in fields(paths)}
    make_study(tmp_path / "study", "ptbxl", ptbxl)
    for folder in (ROOT, tmp_path / "study"):
        found = yaml.safe_load((folder / "dvc.yaml").read_text())["stages"].get(stage, {})
        assert "signals.zarr" in found.get("do", found).get("deps", ["signals.zarr"]), folder


def test_a_study_inside_a_git_repository_is_a_project_of_its_own(tmp_path, ptbxl):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    make_study(tmp_path / "inner/study", "ptbxl", ptbxl)
    assert (tmp_path / "inner/study/.dvc/config").is_file()


def test_nothing_is_overwritten(tmp_path, ptbxl):
    make_study(tmp_path / "study", "ptbxl", ptbxl)
    with pytest.raises(UsageError, match=r"holds params\.yaml already"):
        make_study(tmp_path / "study", "ptbxl", ptbxl)


def test_a_missing_folder_or_source_makes_nothing(tmp_path, ptbxl):
    with pytest.raises(MissingFileError, match="nowhere"):
        make_study(tmp_path / "study", "ptbxl", tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"unknown source 'ptbx'; did you mean 'ptbxl'\? there are: "):
        make_study(tmp_path / "study", "ptbx", ptbxl)
    assert not (tmp_path / "study").exists()


def test_a_new_study_names_options_by_their_defaults(tmp_path, ptbxl):
    """They stand in params.yaml so that `dvc exp run -S fit_heads.options.rank=4` finds them; they change nothing."""
    make_study(tmp_path / "study", "ptbxl", ptbxl)
    for folder in (tmp_path / "study", ROOT):
        written = yaml.safe_load((folder / "params.yaml").read_text())["fit_heads"]["options"]
        defaults = StudyFitOptions().model_dump()
        assert {"rank", "layer_mix", "share_tasks"} <= set(written)
        assert written == {name: defaults[name] for name in written}


@pytest.mark.parametrize("protocol", ["http", "hf", "memory"])
def test_a_storage_that_is_only_read_is_refused_before_any_work(protocol, tmp_path):
    url = location_of(f"{protocol}://bucket/study")
    only_read = rf"{protocol}://bucket/study/\S+: can only be read; stores are written to s3://"
    asked = IngestSettings(source="wfdb", path=str(tmp_path / "nowhere"))
    for paths in (IngestPaths(url / "r.parquet", tmp_path / "s.zarr"), IngestPaths(tmp_path / "r", url / "s.zarr")):
        with pytest.raises(UsageError, match=only_read):
            ingest(asked, paths)
    nowhere = tmp_path / "nowhere"
    with pytest.raises(UsageError, match=only_read):
        Embedder(EmbedSettings("rocket"), EmbedPaths(nowhere, nowhere, url / "rocket.zarr", nowhere))
    with pytest.raises(UsageError, match=only_read):
        make_study(tmp_path / "study", "wfdb", tmp_path, urls=StoreUrls(embeddings=f"{url}/embeddings"))
