"""The contract of a hospital's files: bad files, names of records, measurements, missing packages, what is no ECG."""

import sys
from functools import partial
from types import SimpleNamespace

import pytest

from cache import open_records
from cache.errors import EnsembleError, UsageError
from stages.readers.files import check_installed, facts_of, known_format, read_ecg, read_file
from tests.hospital import write_binary
from tests.hospital.cases import ONE_EACH
from tests.hospital.ecgs import beats_uv, ecg_of
from tests.hospital.reading import refused, written
from tests.ingesting import ingest


def test_one_bad_file_is_one_line(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for k, way in enumerate(ONE_EACH.values()):
        ecg = ecg_of(beats_uv(way.rate_hz), way.step_uv, way.rate_hz, way.leads, test_id=f"1.2.{k}")
        way.write(ecg, folder / f"{k}")
    content = (folder / "3").read_bytes()
    (folder / "3").write_bytes(content[: len(content) // 2])
    summary = ingest("files", folder, records_path=tmp_path / "r.parquet", signals_path=tmp_path / "s.zarr")
    assert (summary.n_records, summary.n_bad) == (len(ONE_EACH), 1)
    lines = (tmp_path / "bad_records.csv").read_text().splitlines()
    assert len(lines) == 2
    assert ",3," in lines[1]


def test_records_are_named_by_their_test_id_else_by_their_path(tmp_path):
    (tmp_path / "in" / "a").mkdir(parents=True)
    by_id = {"GE MUSE XML", "GE CardioSoft XML", "HL7 aECG", "DICOM ECG", "EDF/EDF+", "MFER"}
    for k, way in enumerate(ONE_EACH.values()):
        ecg = ecg_of(beats_uv(way.rate_hz), way.step_uv, way.rate_hz, way.leads, test_id=f"1.2.{k}")
        way.write(ecg, tmp_path / "in" / "a" / f"{k}.x")
    ingest("files", tmp_path / "in", records_path=tmp_path / "r.parquet", signals_path=tmp_path / "s.zarr")
    frame = open_records(tmp_path / "r.parquet").set_index("path")
    for k, way in enumerate(ONE_EACH.values()):
        assert frame["record_id"][f"a/{k}.x"] == (f"1.2.{k}" if way.name in by_id else f"a/{k}.x"), way.name
    assert set(frame["patient_id"]) == {"00123"}


def test_a_file_twice_is_read_once(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        write_binary.dicom(ecg_of(beats_uv(), 5.0), tmp_path / "in" / name)
    summary = ingest("files", tmp_path / "in", records_path=tmp_path / "r.parquet", signals_path=tmp_path / "s.zarr")
    assert (summary.n_records, summary.n_bad) == (2, 1)
    assert "more than once; only the first is read" in next(iter(summary.reasons))


@pytest.mark.parametrize("way", ONE_EACH.values(), ids=ONE_EACH)
def test_measurements_and_filters_are_optional_columns(tmp_path, way):
    (tmp_path / "in").mkdir()
    for k in range(2):
        ecg = ecg_of(beats_uv(way.rate_hz), way.step_uv, way.rate_hz, way.leads, patient_id=f"p{k}", test_id=f"1.{k}")
        way.write(ecg, tmp_path / "in" / f"{k}")
    ask = partial(ingest, "files", tmp_path / "in")
    ask(records_path=tmp_path / "a.parquet", signals_path=tmp_path / "a.zarr")
    assert not [name for name in open_records(tmp_path / "a.parquet") if name.startswith("cart_")]
    ask({"measurements": True}, records_path=tmp_path / "b.parquet", signals_path=tmp_path / "b.zarr")
    frame = open_records(tmp_path / "b.parquet")
    expected = {"cart_sex": 1}
    if way.name not in ("EDF/EDF+", "ISHNE Holter", "MFER"):
        expected |= {"cart_pr_ms": 162, "cart_qrs_ms": 94, "cart_qt_ms": 404, "cart_qrs_axis_deg": -12}
    if way.name not in ("HL7 aECG", "ISHNE Holter", "Philips Sierra XML"):
        expected |= {"cart_filter_low_pass_hz": 150}
    if way.name != "HL7 aECG":
        expected |= {"cart_age_years": 72}
    assert {name: frame[name][0] for name in expected} == expected
    if way.name in ("GE MUSE XML", "Mortara ELI XML"):
        assert list(frame["cart_statements"][0]) == ["Left anterior fascicular block", "Sinus bradycardia"]
    elif way.name == "Philips Sierra XML":
        assert list(frame["cart_statements"][0]) == ["LEFT", "SINU"]
    else:
        assert "cart_statements" not in frame


# ---- what is not installed, and what is no ECG -----------------------------------------------------------------------


ABSENT = {"ecgdatakit": ("ecgdatakit", "ecgdatakit.parsing.parsers.ge_muse_xml"), "pydicom": ("pydicom",)}


@pytest.mark.parametrize(("name", "package"), [("GE MUSE XML", "ecgdatakit"), ("DICOM ECG", "pydicom")])
def test_a_missing_extra_is_one_line_that_names_it(tmp_path, monkeypatch, name, package):
    way = ONE_EACH[name]
    way.write(ecg_of(beats_uv(way.rate_hz), way.step_uv, way.rate_hz, way.leads), tmp_path / "file")
    for module in ABSENT[package]:
        monkeypatch.setitem(sys.modules, module, None)
    line = f"reading .* needs {package}; run pip install 'ecg-ensemble\\[hospital\\]'"
    with pytest.raises(UsageError, match=line):
        check_installed({name})
    with pytest.raises(UsageError, match=line):
        ingest("files", tmp_path, records_path=tmp_path / "o/r.parquet", signals_path=tmp_path / "o/s.zarr")
    with pytest.raises(EnsembleError, match=line):
        read_ecg(tmp_path / "file")


def test_what_is_no_ecg_is_refused_by_name_of_what_is_read(tmp_path):
    for content in (b"", b"PK\3\4", b"<html><body/></html>", b"a,b\n1,2\n", bytes(range(256)) * 40, b"\0" * 5000):
        (tmp_path / "x").write_bytes(content)
        assert known_format(str(tmp_path), "x") is None
        assert "none of the formats that are read: WFDB, GE MUSE XML" in refused(tmp_path / "x")


def test_pictures_of_an_archive_are_left_out_and_counted(tmp_path):
    write_binary.dicom(ecg_of(beats_uv(), 5.0), tmp_path / "ecg")
    other = SimpleNamespace(**vars(ecg_of(beats_uv(), 5.0, test_id="1.2.9")), signals_uv=None)
    write_binary.dicom(other, tmp_path / "picture", groups=[])
    import pydicom

    data = pydicom.dcmread(tmp_path / "picture")
    del data.WaveformSequence
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    data.save_as(tmp_path / "picture")
    summary = ingest("files", tmp_path, records_path=tmp_path / "o/r.parquet", signals_path=tmp_path / "o/s.zarr")
    assert (summary.n_records, summary.n_bad) == (1, 0)
    assert "1 DICOM files hold no waveform and are left out" in summary.notes


def test_facts_need_no_samples(tmp_path):
    """What a file says of its ECG is read although its samples are lost."""
    path = written(tmp_path, write_binary.scp)
    facts = facts_of(str(tmp_path), path.name)
    assert (facts.patient_id, facts.acquired.isoformat()) == ("00123", "2024-02-29T13:05:09")


def test_only_the_beginning_is_kept_of_a_long_file(tmp_path):
    ecg = ecg_of(beats_uv(seconds=60.0), 5.0)
    for way in (ONE_EACH["MFER"], ONE_EACH["ISHNE Holter"], ONE_EACH["HL7 aECG"]):
        way.write(ecg, tmp_path / "file")
        recording = read_file(str(tmp_path), "file", 10.0)
        assert recording.signals_mv.shape[1] == 5500
        assert recording.n_samples == 30000
