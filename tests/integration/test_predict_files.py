"""`ensemble predict --out`: what is written, by whomever, killed or not; of files, manifests and studies."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from distributed import LocalCluster

from cache import open_records
from cache.errors import StoreError, UsageError
from pipeline.compute.prediction import predict_on_cluster, run_predict
from stages.heads import EnsembleHeads
from stages.learning.data import read_data
from stages.learning.gate_signal import leads_of, read_gate_signal
from stages.predict import FilePredictor
from stages.predict.tables import check_out, out_files
from tests.integration.end_to_end import Case, write_case
from tests.integration.faults import is_alive, wait_until
from tests.integration.predict_files import work_of

CASES = [Case(500, 10.0), Case(360, 10.0, "mimic", "uV"), Case(1000, 15.0, "reversed"), Case(250, 5.0)]
N_RECORDS = 40


class Made(NamedTuple):
    """A fit, a folder of files and what was predicted of the fit's own study by one undisturbed process."""

    fit: Path
    files: Path
    whole: dict[str, bytes]


def bytes_of(out: Path) -> dict[str, bytes]:
    return {name: file.read_bytes() for name, file in out_files(out).items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory, make_cohort, tiny_ecgfm):
    fit = tmp_path_factory.mktemp("fit")
    make_cohort(fit, N_RECORDS)
    params = {
        "cohort": {"source": "wfdb", "path": "."},
        "experts": {"ecgfm": {"weights": str(tiny_ecgfm.weights), "config": tiny_ecgfm.config}},
        "embed": {"shard_records": 16},
        "fit_heads": {"options": {"lora_epochs": 1, "gate_input": "signal"}},
        "machine": {"device": "cpu", "workers": 1},
    }
    (fit / "params.yaml").write_text(yaml.safe_dump(params))
    before = Path.cwd()
    os.chdir(fit)
    from pipeline import cli

    with pytest.MonkeyPatch.context() as patched:
        for arguments in (["embed", "--expert", "ecgfm"], ["fit-heads"]):
            patched.setattr(sys, "argv", ["ensemble", *arguments])
            with pytest.raises(SystemExit, match=r"^0$"):
                cli.main()
    files = tmp_path_factory.mktemp("files")
    for case in CASES:
        write_case(files, case)
    (files / "lost.hea").write_text((files / f"{CASES[0].name}.hea").read_text().replace(CASES[0].name, "lost"))
    out = tmp_path_factory.mktemp("whole") / "out.parquet"
    run_predict(work_of(fit, fit, out), workers=1, notes=[])
    os.chdir(before)
    return Made(fit, files, bytes_of(out))


@pytest.fixture(autouse=True)
def in_the_study(made, monkeypatch):
    monkeypatch.chdir(made.fit)


def test_a_study_gives_what_the_heads_say_of_its_cached_vectors(made, tmp_path, ensemble):
    out = tmp_path / "out.parquet"
    done = ensemble("predict", ".", "--out", str(out))
    assert done.returncode == 3, done.stderr
    assert "1 of 40 records cannot be read (--max-bad 0)" in done.stderr
    assert ensemble("predict", ".", "--out", str(out), "--max-bad", "1").returncode == 0
    table = pd.read_parquet(out)
    records = open_records("records.parquet")
    heads, data = (
        EnsembleHeads.load("heads"),
        read_data(Path("records.parquet"), {"ecgfm": Path("embeddings/ecgfm.zarr")}),
    )
    seen = read_gate_signal(heads, Path("signals.zarr"), leads_of(heads))
    proba, interval = (
        heads.predict_proba(data.features, gate_signal=seen),
        heads.predict_interval(data.features, gate_signal=seen),
    )
    readable = np.arange(N_RECORDS) != 3
    for task in ("sex", "age"):
        rows = table[table["task"] == task]
        assert list(rows["record_id"]) == list(records["record_id"][readable])
        assert list(rows["patient_id"]) == list(records["patient_id"][readable])
        np.testing.assert_allclose(rows["y_pred"], proba[task][readable], rtol=1e-5)
        assert rows["class"].isna().all()
        assert set(rows["method"]) == {"gate"}
    ages = table[table["task"] == "age"]
    np.testing.assert_allclose(ages[["low", "high"]], interval["age"][readable], rtol=1e-5)
    sexes = table[table["task"] == "sex"]
    assert sexes[["low", "high"]].isna().all(axis=None)
    assert ages[["above_threshold", "in_set", "uncertain"]].isna().all(axis=None)
    said = [json.loads(line)["tasks"]["sex"] for line in ensemble("predict", ".", "--json").stdout.splitlines()]
    assert sexes["above_threshold"].tolist() == [one["above"] for one in said]
    assert sexes["in_set"].tolist() == ["female" in one["set"] for one in said]
    assert sexes["uncertain"].tolist() == [one["uncertain"] for one in said]
    assert len(set(sexes["above_threshold"])) == 2
    weights = pd.read_parquet(out.with_suffix(".gate_weights.parquet"))
    assert list(weights.columns) == ["record_id", "task", "expert", "weight"]
    np.testing.assert_allclose(weights.groupby(["record_id", "task"], observed=True)["weight"].sum(), 1, rtol=1e-6)
    warned = pd.read_parquet(out.with_suffix(".warnings.parquet"))
    assert warned.loc[warned["kind"] == "unreadable", ["record_id", "message"]].to_numpy().tolist() == [
        ["r0003", "r0003: truncated"]
    ]
    described = json.loads(pq.read_schema(out).metadata[b"ensemble.tasks"])
    assert described["age"] == {"name": "age", "kind": "regression", "unit": "years", "classes": []}
    assert not list(tmp_path.glob(".*")), "what was unfinished is gone"


def test_cached_vectors_and_experts_that_run_give_the_same_numbers(made, tmp_path, ensemble):
    stored = tmp_path / "stored.parquet"
    assert ensemble("predict", ".", "--out", str(stored), "--max-bad", "1").returncode == 0
    run_on_signals = tmp_path / "whole.parquet"
    run_on_signals.write_bytes(made.whole["predictions"])
    one, other = (pd.read_parquet(file).sort_values(["task", "record_id"]) for file in (stored, run_on_signals))
    np.testing.assert_allclose(one["y_pred"], other["y_pred"], rtol=1e-5)
    assert one["record_id"].tolist() == other["record_id"].tolist()


def test_files_folders_globs_and_manifests_say_what_json_says(made, tmp_path, ensemble):
    """Whatever names the files, a record has the same answer; the one that cannot be read stops nothing."""
    as_json = ensemble("predict", str(made.files), "--json", "--max-bad", "1")
    assert as_json.returncode == 0, as_json.stderr
    expected = {row["record"]: row for row in map(json.loads, as_json.stdout.splitlines())}
    assert len(expected) == len(CASES)
    manifest = tmp_path / "list.csv"
    paths = [f"{case.name}.hea" for case in CASES] + ["lost"]
    pd.DataFrame(
        {"path": [made.files / path for path in paths], "patient_id": 7, "record_id": [f"m{k}" for k in range(5)]}
    ).to_csv(manifest, index=False, sep=";")
    (tmp_path / "nested").symlink_to(made.files)
    as_table = tmp_path / "list.parquet"
    pd.DataFrame({"path": [f"nested/{path}" for path in paths]}).to_parquet(as_table)
    named = {
        "folder": [str(made.files)],
        "glob": [str(made.files / "*")],
        "files": [str(made.files / path) for path in paths],
        "csv": [str(manifest)],
        "parquet": [str(as_table)],
    }
    for kind, arguments in named.items():
        out = tmp_path / f"{kind}.parquet"
        done = ensemble("predict", *arguments, "--out", str(out))
        assert done.returncode == 3, done.stderr
        assert "4 of 5 records predicted" in done.stdout
        table = pd.read_parquet(out)
        assert table["record_id"].nunique() == len(CASES), kind
        values = sorted(table.loc[table["task"] == "age", "y_pred"])
        np.testing.assert_allclose(values, sorted(row["tasks"]["age"]["value"] for row in expected.values()), rtol=1e-6)
        warned = pd.read_parquet(out.with_suffix(".warnings.parquet"))
        [why] = warned.loc[warned["kind"] == "unreadable", "message"]
        assert "lost" in why
        n_warnings = sum(len(row["warnings"]) for row in expected.values())
        assert (warned["kind"] == "warning").sum() == n_warnings, kind
    assert set(pd.read_parquet(tmp_path / "csv.parquet")["record_id"]) == {"m0", "m1", "m2", "m3"}
    assert set(pd.read_parquet(tmp_path / "csv.parquet")["patient_id"]) == {"7"}


def test_what_cannot_be_done_is_one_line(made, tmp_path, ensemble):
    (tmp_path / "list.csv").write_text("file\na\n")
    out = str(tmp_path / "out.parquet")
    for arguments, words in (
        (["--out", "records.parquet"], "no output of `ensemble predict`; name another file"),
        (["--out", "out.csv"], "ends in .parquet"),
        (["--workers", "2"], "need --out"),
    ):
        done = ensemble("predict", ".", *arguments)
        assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    assert len(open_records("records.parquet")) == N_RECORDS
    assert "no column 'path'" in ensemble("predict", str(tmp_path / "list.csv"), "--out", out).stderr
    assert "no file or folder matches" in ensemble("predict", str(tmp_path / "*.xml"), "--out", out).stderr
    assert "is a study; predict it by itself" in ensemble("predict", ".", str(made.files), "--out", out).stderr
    (tmp_path / "list.csv").write_text("path\n")
    assert "has no row" in ensemble("predict", str(tmp_path / "list.csv"), "--out", out).stderr
    broken = tmp_path / "out.parquet"
    broken.write_bytes(b"PAR1")
    with pytest.raises(UsageError, match="no output of"):
        check_out(broken)


@pytest.mark.slow
def test_any_number_of_processes_leaves_the_same_bytes(made, tmp_path):
    for workers in (1, 2):
        out = tmp_path / f"{workers}.parquet"
        summary = run_predict(work_of(made.fit, made.fit, out), workers=workers, notes=[])
        assert (summary.n_computed, summary.n_predicted) == (N_RECORDS, N_RECORDS - 1)
        assert bytes_of(out) == made.whole


def test_a_killed_run_goes_on_with_the_part_where_it_stopped(made, tmp_path):
    out = tmp_path / "out.parquet"
    command = [sys.executable, Path(__file__).with_name("predict_files.py"), made.fit, made.fit, out]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as run:
        parts = tmp_path / ".out.parquet.parts"
        wait_until(lambda: len(list(parts.glob("0*.arrow"))) >= 3 or run.poll() is not None)
        os.kill(run.pid, signal.SIGKILL)
    assert not out.exists()
    finished = {file.name: file.stat().st_ino for file in parts.glob("0*.arrow")}
    assert 3 <= len(finished) < N_RECORDS / 4, "it was killed in the middle"
    predictor = work_of(made.fit, made.fit, out).predictor()
    pending = predictor.prepare()
    assert len(pending) == N_RECORDS / 4 - len(finished)
    assert predictor.run() == 4 * len(pending), "no record of a finished part is computed again"
    assert {name: (parts / name).stat().st_ino for name in finished} == finished
    predictor.finish()
    assert bytes_of(out) == made.whole


def test_parts_of_another_run_are_not_taken_over(made, tmp_path):
    out = tmp_path / "out.parquet"
    first = work_of(made.fit, made.files, out).predictor()
    first.prepare()
    first.run([0])
    other = work_of(made.fit, made.fit, out).predictor()
    assert len(other.prepare()) == N_RECORDS / 4
    other.run()
    with pytest.raises(StoreError, match="another run has begun"):
        first.finish()
    other.finish()
    assert bytes_of(out) == made.whole


def test_a_damaged_part_is_named(made, tmp_path):
    out = tmp_path / "out.parquet"
    predictor: FilePredictor = work_of(made.fit, made.fit, out).predictor()
    predictor.prepare()
    predictor.run()
    part = tmp_path / ".out.parquet.parts" / "00000002.arrow"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(StoreError, match=r"00000002\.arrow is damaged; remove it"):
        predictor.finish()
    part.unlink()
    assert predictor.run() == 4
    predictor.finish()
    assert bytes_of(out) == made.whole


@pytest.mark.slow
def test_dask_workers_over_tcp_may_die_and_join(made, tmp_path):
    out = tmp_path / "out.parquet"
    work, parts = work_of(made.fit, made.fit, out), tmp_path / ".out.parquet.parts"
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        assert cluster.scheduler_address.startswith("tcp://")
        victim = next(iter(cluster.workers.values())).pid

        def change():
            wait_until(lambda: list(parts.glob("0*.arrow")))
            os.kill(victim, signal.SIGKILL)
            cluster.scale(3)

        other = threading.Thread(target=change)
        other.start()
        summary = predict_on_cluster(work, cluster.scheduler_address, "cpu", [])
        other.join()
        assert not is_alive(victim)
    assert summary.n_predicted == N_RECORDS - 1
    assert bytes_of(out) == made.whole
