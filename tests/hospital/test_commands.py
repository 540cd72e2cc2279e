"""`predict`, `embed` and `convert` take a hospital's files as they are."""

import json
import lzma
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import wfdb

import ensemble as face
from cache import open_records, open_signals
from cache.errors import InputError, MissingFileError, UsageError
from cache.signals import LEADS
from stages.convert import ConvertPaths, ConvertSettings
from stages.convert import run as convert
from stages.readers.files import find_ecgs, read_ecg
from tests.hospital.cases import ONE_EACH
from tests.hospital.ecgs import beats_uv, ecg_of
from tests.ingesting import ingest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One file of each format, in two folders."""
    home = tmp_path_factory.mktemp("files")
    for k, way in enumerate(ONE_EACH.values()):
        (home / "a").mkdir(exist_ok=True)
        ecg = ecg_of(beats_uv(way.rate_hz, seed=k), way.step_uv, way.rate_hz, way.leads, patient_id=f"p{k}")
        way.write(ecg_of_id(ecg, k), (home / "a" if k % 2 else home) / f"{k}.any file")
    return home


def ecg_of_id(ecg, k):
    from dataclasses import replace

    return replace(ecg, test_id=f"1.2.3.{k}")


def test_embed_takes_files_and_folders(folder, tmp_path):
    assert len(find_ecgs([folder])) == len(ONE_EACH)
    (tmp_path / "two").mkdir()
    for path in find_ecgs([folder])[:2]:
        (tmp_path / "two" / path.name).write_bytes(path.read_bytes())
    files = find_ecgs([tmp_path / "two"])
    found = face.embed(tmp_path / "two", expert="seed")
    assert found.record_ids.tolist() == [str(path) for path in files]
    assert np.isfinite(found.numpy()).all()
    one = read_ecg(files[0])
    np.testing.assert_array_equal(
        face.embed(str(files[0]), expert="seed").numpy()[0],
        face.embed(one.signals_mv, one.rate_hz, expert="seed").numpy()[0],
    )
    pair = face.embed([files[1]], expert="seed", record_ids=["x"])
    assert pair.record_ids.tolist() == ["x"]
    with pytest.raises(UsageError, match="files have their own rate"):
        face.embed(files[0], rate_hz=500, expert="seed")
    (tmp_path / "no.xml").write_text("<x/>")
    with pytest.raises(InputError, match="none of the formats"):
        face.embed(tmp_path / "no.xml", expert="seed")
    with pytest.raises(MissingFileError):
        face.embed("nowhere.xml", expert="seed")
    with pytest.raises(UsageError, match="rate_hz is None"):
        face.embed(one.signals_mv, expert="seed")


def test_converted_records_are_the_rows_of_the_files(folder, tmp_path):
    out = tmp_path / "wfdb"
    summary = convert(ConvertSettings(), ConvertPaths(folder, out))
    assert (summary.n_written, summary.bad) == (len(ONE_EACH), [])
    table = pd.read_csv(out / "manifest.csv", dtype=str)
    for name, source in zip(table["record_id"], table["source_file"], strict=True):
        record = wfdb.rdrecord(str(out / name))
        ours = read_ecg(folder / source)
        assert record.fs == ours.rate_hz
        rows = [LEADS.index(lead) for lead in record.sig_name]
        np.testing.assert_allclose(record.p_signal.T, ours.signals_mv[rows], atol=1e-6)
    at = {"records_path": tmp_path / "a.parquet", "signals_path": tmp_path / "a.zarr"}
    ingest("wfdb", out, {"labels": "manifest.csv", "targets": ["cart_pr_ms"]}, **at)
    ingest("files", folder, records_path=tmp_path / "b.parquet", signals_path=tmp_path / "b.zarr")
    by_wfdb, by_files = open_records(tmp_path / "a.parquet"), open_records(tmp_path / "b.parquet")
    stores = [open_signals(tmp_path / f"{name}.zarr") for name in "ab"]
    of_source = dict(zip(table["source_file"], table["record_id"], strict=True))
    row_of = {path: row for row, path in enumerate(by_wfdb["path"])}
    for row, path in enumerate(by_files["path"]):
        there = row_of[of_source[path]]
        np.testing.assert_array_equal(
            stores[0].read_uv(slice(there, there + 1)), stores[1].read_uv(slice(row, row + 1))
        )
        assert by_wfdb["patient_id"][there] == by_files["patient_id"][row]


def test_one_file_is_converted_alone_and_a_bad_one_is_a_line(folder, tmp_path):
    first = find_ecgs([folder])[0]
    convert(ConvertSettings(), ConvertPaths(first, tmp_path / "one"))
    assert len(list((tmp_path / "one").glob("*.hea"))) == 1
    with pytest.raises(UsageError, match="name a new folder"):
        convert(ConvertSettings(), ConvertPaths(first, tmp_path / "one"))
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    content = first.read_bytes()
    (mixed / "good").write_bytes(content)
    (mixed / "bad").write_bytes(content[: len(content) // 2])
    summary = convert(ConvertSettings(), ConvertPaths(mixed, tmp_path / "two"))
    assert (summary.n_written, len(summary.bad)) == (1, 1)
    table = pd.read_csv(tmp_path / "two" / "manifest.csv").set_index("record_id")
    assert table["status"].to_dict() == {"bad": "bad", "good": "ok"}
    assert isinstance(table["reason"]["bad"], str)
    (mixed / "good").unlink()
    with pytest.raises(InputError, match=r"none of 1 files of .* can be read"):
        convert(ConvertSettings(), ConvertPaths(mixed, tmp_path / "three"))


def test_names_that_differ_in_their_end_alone_stay_two_records(tmp_path):
    (tmp_path / "in").mkdir()
    for k, end in enumerate(("xml", "dcm")):
        way = ONE_EACH["GE MUSE XML"]
        way.write(ecg_of_id(ecg_of(beats_uv(500), 4.88, 500, way.leads), k), tmp_path / "in" / f"Jürgen 1.{end}")
    convert(ConvertSettings(), ConvertPaths(tmp_path / "in", tmp_path / "out"))
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.hea")) == ["J_rgen_1", "J_rgen_1_2"]


def test_the_commands_convert_and_ingest(folder, tmp_path, monkeypatch, ensemble):
    monkeypatch.chdir(tmp_path)
    done = ensemble("convert", str(folder), "out")
    assert done.returncode == 0, done.stderr
    assert f"{len(ONE_EACH)} records, 0 bad -> out" in done.stdout
    done = ensemble("ingest", "--source", "files", "--path", str(folder))
    assert done.returncode == 0, done.stderr
    assert "files: " in done.stdout
    assert len(open_records(tmp_path / "records.parquet")) == len(ONE_EACH)
    monkeypatch.setenv("ENSEMBLE_PATIENT_KEY", str(tmp_path / "key"))
    done = ensemble("ingest", "--source", "files", "--path", str(folder), "--hash-patients")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "with the outputs; set ENSEMBLE_PATIENT_KEY elsewhere" in done.stderr
    monkeypatch.setenv("ENSEMBLE_PATIENT_KEY", str(tmp_path.parent / "key"))
    done = ensemble("ingest", "--source", "files", "--path", str(folder), "--hash-patients")
    assert done.returncode == 0, done.stderr
    assert open_records(tmp_path / "records.parquet")["patient_id"].str.fullmatch("h-[0-9a-f]{32}").all()


def test_new_files_are_added_behind_those_that_are_there(folder, tmp_path):
    home, at = tmp_path / "in", {"records_path": tmp_path / "r.parquet", "signals_path": tmp_path / "s.zarr"}
    home.mkdir()
    files = find_ecgs([folder])
    for path in files[:4]:
        (home / path.name).write_bytes(path.read_bytes())
    ingest("files", home, **at)
    before = open_records(at["records_path"])
    for path in files[4:]:
        (home / path.name).write_bytes(path.read_bytes())
    summary = ingest("files", home, append=True, **at)
    after = open_records(at["records_path"])
    assert summary.n_new == len(files) - 4
    assert after["record_id"].tolist()[:4] == before["record_id"].tolist()
    assert set(after["path"]) == {path.name for path in files}


def test_a_study_of_files_is_made_and_ingested(folder, tmp_path, monkeypatch, ensemble):
    monkeypatch.chdir(tmp_path)
    done = ensemble("init", "study", "--source", "files", "--path", str(folder), "--option", "measurements=true")
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path / "study")
    done = ensemble("ingest")
    assert done.returncode == 0, done.stderr
    frame = open_records(tmp_path / "study" / "records.parquet")
    assert len(frame) == len(ONE_EACH)
    assert "cart_pr_ms" in frame


@pytest.mark.slow
def test_predict_takes_files(folder, toy_study, monkeypatch, ensemble):
    monkeypatch.chdir(toy_study)
    for arguments in (["embed", "--expert", "ecgfm"], ["fit-heads"]):
        done = ensemble(*arguments)
        assert done.returncode == 0, done.stderr
    real = Path(pydicom.__file__).parent / "data" / "test_files" / "waveform_ecg.dcm"
    philips = toy_study / "129dyprg.xml"
    philips.write_bytes(lzma.decompress((Path(__file__).parent / "real" / "129dyprg.xml.xz").read_bytes()))
    done = ensemble("predict", str(folder), str(real), str(philips), "--json")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(line["record"]) for line in lines] == [*find_ecgs([folder]), real, philips]
    assert all(line["tasks"] for line in lines)
