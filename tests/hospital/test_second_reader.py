"""What other libraries, none of which the product reads that format with, make of the same files.

MUSE, aECG, Mortara, SCP-ECG and MFER are read by ecgdatakit and by no other library under an open licence on the
package registry, CardioSoft by none at all: the tests' own writers are their second witness, and for the text formats a
few lines of the standard library.
"""

import base64
import lzma
import xml.etree.ElementTree as ET
from pathlib import Path

import ishneholterlib
import numpy as np
import pydicom
import pyedflib
import pytest
import sierraecg
from ecgdatakit.parsing.parser import FileParser

from cache import open_records
from cache.signals import LEADS
from stages.readers.files import facts_of, known_format, read_ecg
from stages.readers.rows import RowOptions
from tests.hospital import write_binary, write_xml
from tests.hospital.ecgs import beats_uv, ecg_of
from tests.ingesting import ingest

REAL = Path(__file__).parent / "real"
WHOLE = RowOptions(seconds=None)


def ours_uv(path, leads=LEADS, options=WHOLE):
    rows = [LEADS.index(lead) for lead in leads]
    return read_ecg(path, options).signals_mv[rows].astype(np.float64) * 1000


@pytest.fixture
def ecg():
    return ecg_of(beats_uv(), 5.0)


def test_dicom_is_what_pydicom_and_ecgdatakit_say(tmp_path, ecg):
    path = tmp_path / "a.dcm"
    median = write_binary.dicom_group(ecg, ecg.median, "DERIVED", "MEDIAN")
    rhythm = write_binary.dicom_group(ecg, ecg.counts, correction=0.5, baseline=40.0)
    write_binary.dicom(ecg, path, [median, rhythm])
    values = pydicom.dcmread(path).waveform_array(1).T
    assert np.abs(ours_uv(path) - values).max() < 0.51
    other = FileParser.parse(path, units="uV")
    assert [lead.label for lead in other.leads] == list(LEADS)
    assert np.abs(ours_uv(path) - np.stack([lead.samples for lead in other.leads])).max() < 0.51


def test_edf_is_what_pyedflib_says(tmp_path):
    ecg = ecg_of(beats_uv(), write_binary.edf_step_uv(5.0))
    path = tmp_path / "a.edf"
    write_binary.edf(ecg, path)
    with pyedflib.EdfReader(str(path)) as file:
        values = np.stack([file.readSignal(k) for k in range(file.signals_in_file)])
        assert [label.split()[1] for label in file.getSignalLabels()] == list(LEADS)
    assert np.abs(ours_uv(path) - values).max() < 0.51


def test_edf_that_pyedflib_writes_is_read(tmp_path):
    signals_uv = beats_uv(250)
    path = tmp_path / "b.edf"
    head = {"dimension": "mV", "sample_frequency": 250, "physical_max": 5.0, "physical_min": -5.0}
    head |= {"digital_max": 32767, "digital_min": -32768, "transducer": "", "prefilter": "HP:0.05Hz LP:100Hz"}
    with pyedflib.EdfWriter(str(path), 12) as file:
        file.setPatientCode("p7")
        file.setSignalHeaders([{**head, "label": lead} for lead in LEADS])
        file.writeSamples(list(signals_uv / 1000))
    assert np.abs(ours_uv(path) - signals_uv).max() < 0.51 + 10000 / 65535
    facts = facts_of(str(tmp_path), "b.edf")
    assert facts.patient_id == "p7"
    assert facts.measurements == {"filter_high_pass_hz": 0.05, "filter_low_pass_hz": 100.0}


@pytest.mark.filterwarnings("ignore:Data type alias")
def test_ishne_is_what_ishneholterlib_says(tmp_path, ecg):
    path = tmp_path / "a.ecg"
    write_binary.ishne(ecg, path)
    holter = ishneholterlib.Holter(str(path), check_valid=False)  # its checksum needs an older NumPy
    holter.load_data()
    values = np.stack([lead.data for lead in holter.lead]) * 1000
    assert [str(lead) for lead in holter.lead] == list(LEADS)
    assert np.abs(ours_uv(path) - values).max() < 0.51


@pytest.mark.parametrize("version", ["1.03", "1.04", "1.04.01", "1.04.02"])
def test_philips_is_what_sierraecg_says(tmp_path, ecg, version):
    path = tmp_path / "a.xml"
    write_xml.philips(ecg, path, version=version, pulse=400)
    other = sierraecg.read_file(str(path))
    values = np.stack([lead.samples[: ecg.counts.shape[1]] for lead in other.leads]) * 5.0
    assert np.abs(ours_uv(path) - values).max() < 0.51


def test_muse_is_what_the_standard_library_reads(tmp_path, ecg):
    path = tmp_path / "a.xml"
    write_xml.muse(ecg, path)
    rhythm = next(w for w in ET.parse(path).getroot().iter("Waveform") if w.findtext("WaveformType") == "Rhythm")
    values = {
        lead.findtext("LeadID"): np.frombuffer(base64.b64decode(lead.findtext("WaveFormData")), "<i2")
        * float(lead.findtext("LeadAmplitudeUnitsPerBit"))
        for lead in rhythm.iter("LeadData")
    }
    assert np.abs(ours_uv(path) - np.stack([values[lead] for lead in LEADS])).max() < 0.51


# ---- real files ------------------------------------------------------------------------------------------------------


@pytest.fixture
def real(tmp_path):
    """Unpack a real file."""

    def unpack(name):
        path = tmp_path / name
        path.write_bytes(lzma.decompress((REAL / f"{name}.xz").read_bytes()))
        return path

    return unpack


@pytest.mark.parametrize("name", ["129dyprg.xml", "ad4d3d80-d165_1-04_orig.xml"])
def test_real_files_of_philips_are_what_sierraecg_says(real, name):
    path = real(name)
    found = ours_uv(path)
    other = sierraecg.read_file(str(path))
    values = np.stack([lead.samples for lead in other.leads]) * 5.0
    n_kept = found.shape[1]
    assert np.abs(found - values[:, :n_kept]).max() < 0.51
    # What is cut off is the pulse of 1 mV and its rest, and nothing of the patient.
    cut = values[:, n_kept:]
    assert set(np.unique(cut)) == {0.0, 1000.0}
    assert 0.4 <= cut.shape[1] / 500 <= 0.5
    assert "a calibration pulse behind the rhythm is cut off" in read_ecg(path).warnings


def test_a_real_ecg_is_the_same_in_sierra_xml_and_as_another_program_made_aecg_of_it(real):
    """The other program did not keep every sample as it was: the two differ by 20 microvolts at most."""
    found = [ours_uv(real(f"ad4d3d80-d165_1-04_{kind}.xml"), options=RowOptions()) for kind in ("orig", "converted")]
    assert np.abs(found[0] - found[1]).max() <= 20.01
    for a, b in zip(*found, strict=True):
        assert np.corrcoef(a, b)[0, 1] > 0.99


def test_the_real_ecg_that_pydicom_ships_is_what_pydicom_says():
    path = Path(pydicom.__file__).parent / "data" / "test_files" / "waveform_ecg.dcm"
    assert known_format(str(path.parent), path.name).name == "DICOM ECG"
    one = read_ecg(path)
    assert (one.rate_hz, one.signals_mv.shape) == (1000.0, (12, 10000))
    values = pydicom.dcmread(path).waveform_array(0).T
    assert np.abs(one.signals_mv * 1000 - values).max() < 0.51
    assert facts_of(str(path.parent), path.name).measurements["qrs_ms"] == 75


def test_real_files_are_ingested_as_they_are(real, tmp_path):
    folder = tmp_path
    for name in ("129dyprg.xml", "ad4d3d80-d165_1-04_orig.xml", "ad4d3d80-d165_1-04_converted.xml"):
        real(name)
    shipped = Path(pydicom.__file__).parent / "data" / "test_files" / "waveform_ecg.dcm"
    (folder / "waveform_ecg.dcm").write_bytes(shipped.read_bytes())
    out = tmp_path / "out"
    options = {"measurements": True}
    summary = ingest("files", folder, options, records_path=out / "r.parquet", signals_path=out / "s.zarr")
    assert (summary.n_records, summary.n_bad) == (4, 0)
    frame = open_records(out / "r.parquet").set_index("path")
    assert frame["cart_qrs_ms"].dropna().to_dict() == {
        "129dyprg.xml": 135,
        "ad4d3d80-d165_1-04_orig.xml": 102,
        "waveform_ecg.dcm": 75,
    }
    assert not any("amplitude: " in note for notes in frame["notes"] for note in notes)


def test_the_edf_files_that_pyedflib_ships_are_what_pyedflib_says():
    """Generated signals, no ECGs: two of them are called I and II here."""
    folder = Path(pyedflib.__file__).parent / "tests" / "data"
    names = (("sine 8 Hz", "I"), ("sine 15 Hz", "II"))
    for name in ("test_generator.edf",):
        one = read_ecg(folder / name, RowOptions(lead_names=names))
        with pyedflib.EdfReader(str(folder / name)) as file:
            labels = file.getSignalLabels()
            for row, (label, _) in enumerate(names):
                values = file.readSignal(labels.index(label))[: one.signals_mv.shape[1]]
                limit_uv = np.clip(values, -32767, 32767)
                assert np.abs(one.signals_mv[row] * 1000 - limit_uv).max() < 0.51
