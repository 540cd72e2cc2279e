"""No name, birth date or free text of a file gets into any output; patients can be hashed with a key kept elsewhere."""

import re

import pandas as pd
import pytest

from cache import open_records
from cache.errors import UsageError
from stages.convert import ConvertPaths, ConvertSettings
from stages.convert import run as convert
from stages.readers.files import facts_of, read_ecg
from stages.readers.files.patients import KEY_VARIABLE, hashed, patient_key
from tests.hospital.cases import ONE_EACH
from tests.hospital.ecgs import SECRETS, beats_uv, ecg_of
from tests.ingesting import ingest

MRN = "MRN4711"


@pytest.fixture
def folder(tmp_path):
    """Two files of each format, of one patient, and one file that is damaged."""
    home = tmp_path / "in"
    home.mkdir()
    for k, way in enumerate(ONE_EACH.values()):
        for n in range(2):
            who = f"{MRN}{k}"
            ecg = ecg_of(
                beats_uv(way.rate_hz), way.step_uv, way.rate_hz, way.leads, patient_id=who, test_id=f"9.{k}.{n}"
            )
            way.write(ecg, home / f"{k}_{n}")
    content = (home / "0_0").read_bytes()
    (home / "broken").write_bytes(content[: len(content) // 3])
    return home


def written_below(folder):
    """Return the bytes of every file below a folder, and the names of all."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return b"\n".join([*(str(path).encode() for path in files), *(path.read_bytes() for path in files)])


def tables_of(folder):
    """Return what packed tables hold, as text."""
    return "".join(pd.read_parquet(path).to_csv() for path in sorted(folder.rglob("*.parquet"))).encode()


def test_nothing_of_ingest_names_a_person(folder, tmp_path):
    out = tmp_path / "out"
    summary = ingest(
        "files",
        folder,
        {"measurements": True},
        records_path=out / "records.parquet",
        signals_path=out / "signals.zarr",
    )
    assert summary.n_bad == 1
    content = written_below(out) + tables_of(out) + " ".join([*summary.notes, *summary.reasons]).encode()
    assert f"{MRN}3".encode() in content  # the search finds what is there
    assert [secret for secret in SECRETS if secret.lower().encode() in content.lower()] == []


def test_nothing_of_convert_names_a_person(folder, tmp_path):
    summary = convert(ConvertSettings(), ConvertPaths(folder, tmp_path / "out"))
    content = written_below(tmp_path / "out") + " ".join([*summary.notes, *summary.bad]).encode()
    assert f"{MRN}3".encode() in content
    assert [secret for secret in SECRETS if secret.lower().encode() in content.lower()] == []


def test_nothing_that_predict_warns_of_names_a_person(folder):
    said = " ".join(" ".join(read_ecg(path).warnings) for path in sorted(folder.iterdir()) if path.name != "broken")
    assert [secret for secret in SECRETS if secret in said] == []


def test_statements_of_one_patient_alone_are_no_label(tmp_path):
    """What was typed for one patient may be anything."""
    way = ONE_EACH["GE MUSE XML"]
    for k, lines in enumerate([("Sinus rhythm", "Seen by Bob"), ("Sinus rhythm",), ("Sinus rhythm", "Quentzel again")]):
        ecg = ecg_of(
            beats_uv(way.rate_hz),
            way.step_uv,
            way.rate_hz,
            way.leads,
            patient_id=f"p{k}",
            test_id=f"1.{k}",
            statements=lines,
        )
        way.write(ecg, tmp_path / f"{k}.xml")
    options = {"measurements": True}
    summary = ingest(
        "files", tmp_path, options, records_path=tmp_path / "o/r.parquet", signals_path=tmp_path / "o/s.zarr"
    )
    frame = open_records(tmp_path / "o" / "r.parquet")
    assert [list(cell) for cell in frame["cart_statements"]] == [["Sinus rhythm"]] * 3
    assert "cart_statements: 2 statements of single patients are left out" in summary.notes


# ---- keyed hashes ----------------------------------------------------------------------------------------------------


def ask(folder, out, **settings):
    return ingest("files", folder, records_path=out / "records.parquet", signals_path=out / "signals.zarr", **settings)


def test_hashed_patients_need_the_key_and_stay_the_same_with_it(folder, tmp_path, monkeypatch):
    key = tmp_path / "safe" / "key"
    monkeypatch.setenv(KEY_VARIABLE, str(key))
    for name in ("a", "b"):
        ask(folder, tmp_path / name, hash_patients=True)
    frames = [open_records(tmp_path / name / "records.parquet") for name in ("a", "b")]
    plain = ask(folder, tmp_path / "c")
    assert plain.n_patients == frames[0]["patient_id"].nunique() == len(ONE_EACH)
    assert frames[0]["patient_id"].tolist() == frames[1]["patient_id"].tolist()
    found = dict(zip(frames[0]["path"], frames[0]["patient_id"], strict=True))
    assert found["3_0"] == found["3_1"] == hashed(f"{MRN}3", key.read_bytes())
    assert re.fullmatch(r"h-[0-9a-f]{32}", found["3_0"])
    everything = written_below(tmp_path / "a") + tables_of(tmp_path / "a")
    assert MRN.encode() not in everything
    assert key.read_bytes() not in everything
    assert key.stat().st_mode & 0o077 == 0
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "safe" / "other"))
    ask(folder, tmp_path / "d", hash_patients=True)
    other = open_records(tmp_path / "d" / "records.parquet")
    assert set(other["patient_id"]).isdisjoint(found.values())
    # Folds are dealt to the same patients, whatever they are called.
    assert other["patient_id"].nunique() == frames[0]["patient_id"].nunique()


def test_hashed_and_plain_patients_are_never_in_one_table(folder, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "key"))
    for first in (True, False):
        out = tmp_path / str(first)
        ask(folder, out, hash_patients=first)
        with pytest.raises(UsageError, match="patient ids, and --append was asked for with"):
            ask(folder, out, hash_patients=not first, append=True)
        assert ask(folder, out, hash_patients=first, append=True).n_new == 0


def test_the_key_never_lies_with_the_outputs(tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "out" / "deep" / "key"))
    with pytest.raises(UsageError, match=r"lies in .*, with the outputs"):
        patient_key([tmp_path / "out"])
    assert not (tmp_path / "out").exists()
    (tmp_path / "short").write_text("abc")
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "short"))
    with pytest.raises(UsageError, match="fewer than 16 bytes"):
        patient_key([])
    monkeypatch.setenv(KEY_VARIABLE, "/proc/nowhere/key")
    with pytest.raises(UsageError, match="cannot be read or made"):
        patient_key([])


def test_convert_with_hashes_tells_neither_patient_nor_file_name(folder, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "key"))
    (folder / f"{MRN}x.xml").write_bytes((folder / "1_0").read_bytes().replace(b"9.1.0", b"9.1.7"))
    summary = convert(ConvertSettings(hash_patients=True), ConvertPaths(folder, tmp_path / "out"))
    assert summary.n_written == 2 * len(ONE_EACH) + 1
    assert MRN.encode() not in written_below(tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "manifest.csv")
    assert "source_file" not in table
    assert table["record_id"].str.fullmatch(r"ecg_[0-9a-f]{16}").all()
    assert table["patient_id"].nunique() == len(ONE_EACH)


def test_paths_that_hold_the_patients_id_are_counted(tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "key"))
    (tmp_path / "in").mkdir()
    way = ONE_EACH["GE MUSE XML"]
    way.write(ecg_of(beats_uv(500), 4.88, 500, way.leads, patient_id=MRN), tmp_path / "in" / f"{MRN}_1.xml")
    summary = ask(tmp_path / "in", tmp_path / "out", hash_patients=True)
    assert "1 paths or record ids hold the patient's id; `ensemble convert` renames them" in summary.notes


def test_nothing_of_a_damaged_file_is_logged(tmp_path, caplog):
    """pydicom logs values that it cannot decode; a name may stand anywhere."""
    from tests.hospital import write_binary

    path = tmp_path / "file"
    write_binary.dicom(ecg_of(beats_uv(500, 2.0), 5.0), path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"20240229130509", b"Quentzel      ").replace(b"072Y", b"Xand"))
    with caplog.at_level(0):
        assert facts_of(str(tmp_path), "file").acquired is None
        read_ecg(path)
    assert not any(secret in caplog.text for secret in SECRETS)


def test_an_id_that_is_none_is_left_out(tmp_path):
    way = ONE_EACH["MFER"]
    for test_id in ("x\ny", "x" * 300, "\x07"):
        way.write(ecg_of(beats_uv(500, 2.0), 5.0, test_id=test_id), tmp_path / "file")
        assert facts_of(str(tmp_path), "file").test_id is None


def test_one_patient_for_all_files_is_said(tmp_path):
    way = ONE_EACH["SCP-ECG"]
    for k in range(10):
        way.write(ecg_of(beats_uv(500, 2.0), 5.0, patient_id="0"), tmp_path / f"{k}")
    summary = ask(tmp_path, tmp_path / "out")
    assert any("all files name the same patient" in note for note in summary.notes)
