"""A study that version 0.1 made goes on with this one: `ensemble upgrade`, under real DVC."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cache.errors import MissingFileError, UsageError
from pipeline.study.params import read_params
from pipeline.study.scaffold import StoreUrls, make_study
from pipeline.study.upgrade import plan_upgrade, upgrade_study, what_dvc_misses
from pipeline.study.yaml_text import YamlText
from pipeline.views.doctor import stage_findings
from stages.synthetic import GeneratePaths, GenerateSettings
from stages.synthetic import run as generate

OLD = Path(__file__).with_name("study_0_1")
"""params.yaml and dvc.yaml as `ensemble init` of version 0.1 wrote them."""
DVC = [sys.executable, "-m", "dvc"]
OWN_STAGE = """
  note:  # of this study alone
    cmd: echo done > note.txt
    deps:
      - metrics.json
    outs:
      - note.txt
"""


def dvc(folder, *arguments):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    return subprocess.run([*DVC, *arguments], cwd=folder, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture
def study(tmp_path):
    """A study of version 0.1, with a stage and a dependency of its own; no outputs yet."""
    folder = tmp_path / "study"
    (folder / "weights").mkdir(parents=True)
    (tmp_path / "cohort").mkdir()
    (tmp_path / "cohort/machine_measurements.csv").write_text("")
    shutil.copy(OLD / "params.yaml", folder)
    with (folder / "params.yaml").open("a") as file:
        file.write("robustness: {records: 40, kinds: [lead]}\n")  # as version 0.2 had it
    text = (OLD / "dvc.yaml").read_text()
    text = text.replace("\nplots:", f"{OWN_STAGE}\nplots:").replace(
        "    cmd: ensemble fit-heads\n    deps:\n", "    cmd: ensemble fit-heads\n    deps:\n      - notes.md\n"
    )
    (folder / "dvc.yaml").write_text(text)
    (folder / "notes.md").write_text("why these tasks")
    (folder / "weights/default").write_text("kept")
    (folder / ".gitignore").write_text("/records.parquet\n/mine\n")
    return folder


def test_an_old_params_file_beside_the_stages_of_this_version_is_named_with_its_fix(study, tmp_path):
    shutil.copy(new_study(tmp_path) / "dvc.yaml", study / "dvc.yaml")
    assert "report" in what_dvc_misses(study)
    assert "embed@rocket" in dvc_listed(study), "optional stages that params.yaml does not name are none"
    with pytest.raises(UsageError, match=r"cohort\.workers is machine\.workers now; .* run `ensemble upgrade`"):
        read_params(study)


def new_study(tmp_path, **options):
    """Make a study of this version, without the run of `dvc init`."""
    (tmp_path / "cohort").mkdir(exist_ok=True)
    (tmp_path / "new/.dvc").mkdir(parents=True)
    make_study(tmp_path / "new", "wfdb", tmp_path / "cohort", **options)
    return tmp_path / "new"


def test_doctor_says_what_dvc_would_miss(tmp_path, ensemble, monkeypatch):
    monkeypatch.chdir(new_study(tmp_path))
    path = Path("params.yaml")
    content = yaml.safe_load(path.read_text())
    del content["report"], content["maps"]
    path.write_text(yaml.safe_dump(content))
    [finding] = stage_findings()
    assert str(finding) == "FAIL  dvc.yaml names report, which params.yaml lacks -> ensemble upgrade"
    assert ensemble("upgrade").stdout.splitlines()[:2] == ["params.yaml: report added", "params.yaml: maps added"]
    assert list(stage_findings()) == []


def test_what_is_missing_is_added_and_what_has_moved_is_moved(study):
    before = (study / "params.yaml").read_text()
    changes = upgrade_study(study).changes
    assert "params.yaml: cohort.workers moved to machine.workers" in changes
    assert "params.yaml: embed.workers: auto dropped, as machine.workers is 2" in changes
    assert "params.yaml: evaluate.fits added ({})" in changes
    assert "dvc.yaml: stage evaluate: outs + evaluation.json, evaluate_costs.json, decisions.json" in changes
    assert ".gitignore: /decisions.json added" in changes
    params = read_params(study)
    assert params.robustness["all"].model_dump() == {"records": 40, "kinds": ("lead",), "mains_hz": 50.0}
    assert (params.machine.workers, params.embed.shard_records, params.maps) == (2, 16, {})
    text = (study / "params.yaml").read_text()
    kept = [line for line in before.splitlines() if line in text.splitlines()]
    assert len(kept) == len(before.splitlines()) - 6, "six lines moved; every other one is as it was"
    assert (study / "params.yaml.old").read_text() == before
    assert (study / "weights/default").read_text() == "kept"
    assert (study / ".gitignore").read_text().startswith("/records.parquet\n/mine\n/signals.zarr\n")
    assert what_dvc_misses(study) == []


def test_what_a_study_added_to_its_stages_stays(study):
    upgrade_study(study)
    text = (study / "dvc.yaml").read_text()
    stages = yaml.safe_load(text)["stages"]
    assert "note:  # of this study alone" in text
    assert stages["note"]["cmd"] == "echo done > note.txt"
    assert stages["fit-heads"]["deps"] == ["records.parquet", "signals.zarr", "embeddings", "notes.md"]
    assert stages["ingest"]["deps"] == ["../cohort/machine_measurements.csv"]
    assert "cohort.workers" not in stages["ingest"]["params"]
    listed = dvc_listed(study)
    assert {"ingest", "embed@rocket", "note", "report"} <= listed


def dvc_listed(study):
    (study / ".dvc").mkdir()
    (study / ".dvc/config").write_text("[core]\n    no_scm = True\n")
    done = dvc(study, "stage", "list", "--name-only")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_a_second_time_there_is_nothing_to_do(study, monkeypatch, ensemble):
    monkeypatch.chdir(study)
    dry = ensemble("upgrade", "--dry-run")
    assert (study / "params.yaml").read_text().startswith((OLD / "params.yaml").read_text())
    done = ensemble("upgrade")
    assert done.stdout.splitlines()[:-1] == dry.stdout.splitlines()
    written = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    assert ensemble("upgrade").stdout == "nothing to do: the study is up to date\n"
    assert {path: path.read_bytes() for path in study.rglob("*") if path.is_file()} == written


URLS = StoreUrls("s3://bucket/embeddings", "s3://bucket/signals.zarr", "s3://bucket/records.parquet")


@pytest.mark.parametrize(
    "options", [{}, {"more": True}, {"urls": StoreUrls("s3://bucket/embeddings")}, {"urls": URLS}], ids=str
)
def test_a_new_study_is_up_to_date(tmp_path, options):
    more = {"more": [("wfdb", tmp_path / "cohort")]} if "more" in options else {}
    assert plan_upgrade(new_study(tmp_path, **{**options, **more})).changes == []


def entries(stage, part):
    return [one if isinstance(one, str) else next(iter(one)) for one in stage.get("do", stage).get(part, [])]


@pytest.mark.parametrize("elsewhere", [("signals",), ("records",), ("records", "signals")])
def test_what_ingest_writes_into_a_bucket_is_watched_by_its_marker(study, elsewhere):
    names = {"records": "records.parquet", "signals": "signals.zarr"}
    with (study / "params.yaml").open("a") as file:
        file.writelines(f"{key}: s3://bucket/study/{names[key]}\n" for key in elsewhere)
    upgrade_study(study)
    stages = yaml.safe_load((study / "dvc.yaml").read_text())["stages"]
    here = [name for key, name in names.items() if key not in elsewhere]
    gone = {names[key] for key in elsewhere}
    table = [] if "records" in elsewhere else ["bad_records.csv"]
    assert sorted(entries(stages["ingest"], "outs")) == sorted(["ingested.json", *here, *table])
    assert set(elsewhere) <= set(entries(stages["ingest"], "params"))
    for name, stage in stages.items():
        deps = entries(stage, "deps")
        assert not gone & {*deps, *entries(stage, "outs")}
        if name not in ("ingest", "note"):  # the last one is of the study alone
            assert deps.count("ingested.json") == 1, name
            assert set(here) <= set(deps), name
    assert plan_upgrade(study).changes == []


def test_only_a_bucket_is_a_url_for_init(tmp_path):
    with pytest.raises(UsageError, match=r"--signals here: expected a URL such as s3://bucket/study/signals.zarr"):
        new_study(tmp_path, urls=StoreUrls(signals="here"))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [("params.yaml", "a: [1", "not YAML"), ("dvc.yaml", "vars: []", "expected stages"), ("params.yaml", "- a", "keys")],
)
def test_a_file_that_cannot_be_read_is_named(study, name, text, words):
    (study / name).write_text(text)
    with pytest.raises(UsageError, match=words):
        plan_upgrade(study)


def test_a_folder_without_a_study_is_refused(tmp_path):
    with pytest.raises(MissingFileError, match=r"no params\.yaml in .*; make a study with `ensemble init FOLDER`"):
        plan_upgrade(tmp_path)


@pytest.mark.parametrize(
    ("text", "edit", "expected"),
    [
        ("b:\n  c: 2  # two\n\n# end\n", ("add", ("b", "d"), "3"), "b:\n  c: 2  # two\n  d: 3\n\n# end\n"),
        ("b: {c: 2}  # braces\n", ("add", ("b", "d"), "3"), "b: {c: 2, d: 3}  # braces\n"),
        ("b: {}\n", ("add", ("b", "d"), "3"), "b: {d: 3}\n"),
        ("b:\n", ("add", ("b", "d"), "3"), "b: {d: 3}\n"),
        ("a: 1\n", ("add", ("b", "d", "e"), "3"), "a: 1\n\nb: {d: {e: 3}}\n"),
        ("b:\n  - 1\n  - 2\nc: 3", ("add", ("d",), "4"), "b:\n  - 1\n  - 2\nc: 3\nd: 4\n"),
        ("b:\n  c: 2  # two\n  d: 3\n", ("remove", ("b", "c")), "b:\n  d: 3\n"),
        ("b:  # of: all\n  c: 2\ne: 4\n", ("remove", ("b", "c")), "b: {}  # of: all\ne: 4\n"),
        ("b: {c: 2, d: 3, e: 4}\n", ("remove", ("b", "c")), "b: {d: 3, e: 4}\n"),
        ("b: {c: 2, d: 3, e: 4}\n", ("remove", ("b", "e")), "b: {c: 2, d: 3}\n"),
        ("b: {c: 2}\n", ("remove", ("b", "c")), "b: {}\n"),
    ],
)  # fmt: skip
def test_an_edit_changes_only_its_lines(text, edit, expected):
    how, path, *value = edit
    edited = YamlText(text)
    getattr(edited, how)(path, *value)
    assert edited.text == expected


@pytest.mark.slow
def test_an_old_study_goes_on_under_dvc(study, tmp_path):
    """Made and reproduced as far as version 0.1 went, then brought up to date: everything new is made, too."""
    shutil.rmtree(tmp_path / "cohort")
    generate(GenerateSettings(records=60, seed=1), GeneratePaths(tmp_path / "cohort"))
    params = YamlText((study / "params.yaml").read_text().replace("tasks: all", "tasks: [rr_interval, gender]"))
    params.remove(("experts", "rocket"))
    (study / "params.yaml").write_text(params.text.replace("bootstrap: 1000", "bootstrap: 100"))
    assert dvc(study, "init", "--no-scm", "-q").returncode == 0
    refused = dvc(study, "repro")
    assert refused.returncode != 0
    assert "ensemble upgrade" in refused.stdout + refused.stderr
    upgrade_study(study)
    params = YamlText((study / "params.yaml").read_text())
    params.add(("robustness", "short"), "{records: 10, kinds: [seconds]}")
    params.add(("leaderboard", "quick"), "{epochs: 1, inputs: [native]}")
    (study / "params.yaml").write_text(params.text)
    done = dvc(study, "repro")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"decisions.json", "report.html", "note.txt", "tables"} <= {path.name for path in study.iterdir()}
    tracked = yaml.safe_load((study / "dvc.lock").read_text())["stages"]["robustness@short"]["outs"]
    assert [out["path"] for out in tracked] == ["robustness/short.json", "robustness/short.parquet"]
    listed = yaml.safe_load((study / "dvc.lock").read_text())["stages"]["leaderboard@quick"]["outs"]
    assert [(out["path"], out["nfiles"]) for out in listed] == [("leaderboard/quick", 4)]
    page = (study / "report.html").read_text()
    assert 'id="robustness"' in page
    assert 'id="leaderboard"' in page
    assert "up to date" in dvc(study, "repro").stdout
    params = (study / "params.yaml").read_text()
    (study / "params.yaml").write_text(params.replace("{epochs: 1, inputs: [native]}", "{epochs: 2, inputs: [native]}"))
    concerned = dvc(study, "status", "--json").stdout
    assert set(json.loads(concerned)) == {"leaderboard@quick"}, "nothing else watches it"
