"""The generated cohort, written in every format, comes in as the same rows as from WFDB."""

import numpy as np
import pytest

from cache import open_records, open_signals
from cache.signals import LEADS
from stages.readers.files import find_ecgs, known_format, read_ecg
from stages.readers.rows import RowOptions
from stages.synthetic import GeneratePaths, GenerateSettings
from stages.synthetic import run as generate
from tests.hospital.cases import WAYS
from tests.hospital.ecgs import ecg_of
from tests.ingesting import ingest

N_RECORDS = 3
ENDINGS = (".pdf", "", ".xml", ".dcm", ".hea.old")
"""None is the format's own: a file is known by its content."""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Records of the generated cohort with all leads and samples, as WFDB files and as microvolts [12, 5000]."""
    folder = tmp_path_factory.mktemp("cohort")
    generate(GenerateSettings(records=24, defect_rate=0.0), GeneratePaths(folder))
    read = [(path, read_ecg(path)) for path in find_ecgs([folder / "files"])]
    whole = [(path, one) for path, one in read if np.isfinite(one.signals_mv).all()][:N_RECORDS]
    assert len(whole) == N_RECORDS
    return [(path, one.signals_mv.astype(np.float64) * 1000) for path, one in whole]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_rows_are_those_of_wfdb(cohort, tmp_path, way):
    folder = tmp_path / "files"
    folder.mkdir()
    every = 500 // way.rate_hz
    for k, (_, signals_uv) in enumerate(cohort):
        ecg = ecg_of(
            signals_uv[:, ::every],
            way.step_uv,
            way.rate_hz,
            way.leads,
            patient_id=f"p{k}",
            test_id=f"1.2.3.{k}",
        )
        path = folder / f"r{k}{ENDINGS[k % len(ENDINGS)]}"
        way.write(ecg, path)
        assert known_format(str(folder), path.name).name == way.name
    summary = ingest("files", folder, records_path=tmp_path / "records.parquet", signals_path=tmp_path / "signals.zarr")
    frame = open_records(tmp_path / "records.parquet")
    assert summary.n_bad == 0, frame["reason"].tolist()
    assert set(frame["patient_id"]) == {f"p{k}" for k in range(N_RECORDS)}
    assert set(frame["sampling_rate_hz"]) == {float(way.rate_hz)}
    assert frame["record_id"].is_unique
    store = open_signals(tmp_path / "signals.zarr")
    for row, path in enumerate(frame["path"]):
        k = int(path[1])
        expected = cohort[k][1][:, ::every]
        found = store.read_uv(slice(row, row + 1))[0, :, : expected.shape[1]].astype(np.float64)
        derived = list(frame["derived_leads"][row])
        assert derived == ([] if len(way.leads) == 12 else ["III", "aVR", "aVL", "aVF"])
        # A computed lead is made of two, each of which may be off by half a count and rounded.
        step = np.array([(2 if lead in derived else 1) * max(way.step_uv, 1.0) for lead in LEADS])
        # The generated limb leads are themselves rounded to 5 microvolts each.
        step += np.array([10.0 if lead in derived else 0.0 for lead in LEADS])
        assert (np.abs(found - expected) <= step[:, None]).all(), path
        assert store.valid_of(slice(row, row + 1))[0] == expected.shape[1]


def test_a_mix_below_one_folder_is_found_by_content_with_wfdb_beside_it(cohort, tmp_path):
    folder = tmp_path / "files"
    for k, (key, way) in enumerate(WAYS.items()):
        home = folder / f"d{k % 3}"
        home.mkdir(parents=True, exist_ok=True)
        signals_uv = cohort[0][1][:, :: 500 // way.rate_hz]
        facts = {"patient_id": f"p{k}", "test_id": f"1.2.4.{k}"}
        way.write(ecg_of(signals_uv, way.step_uv, way.rate_hz, way.leads, **facts), home / f"{k}.bin")
        assert key
    stem = cohort[0][0]
    for suffix in (".hea", ".dat"):
        (folder / f"{stem.name}{suffix}").write_bytes(stem.with_suffix(suffix).read_bytes())
    (folder / "notes.txt").write_text("no ECG")
    (folder / "empty").write_bytes(b"")
    summary = ingest("files", folder, records_path=tmp_path / "records.parquet", signals_path=tmp_path / "signals.zarr")
    assert (summary.n_records, summary.n_bad) == (len(WAYS) + 1, 0)
    assert summary.n_patients == len(WAYS) + 1
    counted = next(note for note in summary.notes if note.startswith("files: "))
    assert "3 GE MUSE XML" in counted
    assert "4 Philips Sierra XML" in counted
    assert "1 WFDB" in counted


def test_predict_and_ingest_make_the_same_row(cohort, tmp_path):
    """One door: what `predict` and `embed` read of a file is the row that ingest stored."""
    for k, way in enumerate(WAYS.values()):
        signals_uv = cohort[1][1][:, :: 500 // way.rate_hz]
        way.write(ecg_of(signals_uv, way.step_uv, way.rate_hz, way.leads, test_id=f"1.{k}"), tmp_path / f"{k:02d}")
    out = tmp_path / "out"
    ingest("files", tmp_path, records_path=out / "records.parquet", signals_path=out / "signals.zarr")
    frame, store = open_records(out / "records.parquet"), open_signals(out / "signals.zarr")
    options = RowOptions.from_json(frame.attrs["row_options"])
    for row, path in enumerate(frame["path"]):
        one = read_ecg(tmp_path / path, options)
        [(_, signals_mv, rate_hz)] = store.read_groups(slice(row, row + 1))
        assert rate_hz == one.rate_hz
        np.testing.assert_array_equal(signals_mv[0], one.signals_mv)
