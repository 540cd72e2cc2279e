"""What other libraries, none of which the product reads that format with, make of the same files.

ecg2dcm reads the XML of carts a second time (second/README.md); pydicom, pyedflib, ishneholterlib and sierraecg read
their own formats. No library under an open licence on the package registry reads SCP-ECG and MFER beside ecgdatakit:
from_standards.py reads them, which shares no code with it.
"""

import base64
import hashlib
import importlib
import lzma
import sys
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
from cache.errors import InputError
from cache.signals import LEADS
from stages.readers.files import facts_of, known_format, read_ecg
from stages.readers.rows import RowOptions
from tests.hospital import from_standards, write_binary, write_xml
from tests.hospital.cases import WAYS
from tests.hospital.ecgs import EIGHT, beats_uv, ecg_of
from tests.ingesting import ingest

REAL = Path(__file__).parent / "real"
WHEEL = Path(__file__).parent / "second" / "ecg2dcm-1.3.1-py3-none-any.whl"
WHEEL_SHA256 = "cfee6ad899201d3da3cf687413691755a2843175d0870bbfd35a31d884611c14"
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


def knows_type(name):
    try:
        np.dtype(name)
    except (DeprecationWarning, TypeError) as refused:
        return isinstance(refused, DeprecationWarning)
    return True


@pytest.mark.skipif(
    not knows_type("a8"), reason="ishneholterlib 2020.5.29 reads by a type of bytes that NumPy 2.5 lacks"
)
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


@pytest.fixture(scope="module")
def ecg2dcm():
    """The library as it was published, imported from its wheel: see second/README.md."""
    assert hashlib.sha256(WHEEL.read_bytes()).hexdigest() == WHEEL_SHA256
    sys.path.insert(0, str(WHEEL))
    try:
        yield lambda maker: importlib.import_module(f"ecg2dcm.adapters.{maker}")
    finally:
        sys.path.remove(str(WHEEL))


CARTS = {
    "muse, eight leads": ("muse", write_xml.muse, 4.88, 500, EIGHT),
    "muse at 250 Hz": ("muse", write_xml.muse, 4.88, 250, EIGHT),
    "cardiosoft": ("cardiosoft", write_xml.cardiosoft, 5.0, 500, LEADS),
    "cardiosoft at 1000 Hz": ("cardiosoft", write_xml.cardiosoft, 2.0, 1000, LEADS),
    "mortara": ("mortara", write_xml.mortara, 2.5, 500, LEADS),
    "mortara at 1000 Hz": ("mortara", write_xml.mortara, 1.25, 1000, LEADS),
    "aecg": ("aecg", write_xml.aecg, 5.0, 500, LEADS),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # its own: numpy.fromstring, truth of XML elements
@pytest.mark.parametrize("name", CARTS)
def test_the_xml_of_carts_is_what_ecg2dcm_says(tmp_path, ecg2dcm, name):
    maker, write, step_uv, rate_hz, leads = CARTS[name]
    path = tmp_path / "a.xml"
    write(ecg_of(beats_uv(rate_hz), step_uv, rate_hz, leads), path)
    other = ecg2dcm(maker).parse(str(path))
    rhythm = other.waveforms[0]
    assert (rhythm.label, rhythm.originality) == ("Rhythm", "ORIGINAL")
    values = np.stack([rhythm.leads[lead] for lead in leads]) * rhythm.units_per_bit
    assert np.abs(ours_uv(path, leads) - values).max() < 0.51
    assert read_ecg(path).rate_hz == rhythm.sampling_frequency
    # The two agree on whose ECG it is, and on what the cart measured.
    facts = facts_of(str(tmp_path), "a.xml")
    assert facts.patient_id == other.patient_id
    assert facts.acquired.strftime("%Y%m%d %H%M%S") == f"{other.acquisition_date} {other.acquisition_time}"
    measured = {
        "pr_ms": other.measurements.pr_ms,
        "qrs_ms": other.measurements.qrs_ms,
        "qt_ms": other.measurements.qt_ms,
    }
    for measurement, value in measured.items():
        assert value is None or facts.measurements[measurement] == value


@pytest.mark.parametrize("null", [None, -32768])
@pytest.mark.parametrize("little", [False, True], ids=["high byte first", "low byte first"])
def test_mfer_is_what_a_reader_from_the_standard_says(tmp_path, ecg, little, null):
    path = tmp_path / "a.mwf"
    if null is not None:
        ecg.counts[3, 700:900] = null
    write_binary.mfer(ecg, path, little=little, null=null)
    other = from_standards.mfer(path)
    values = np.stack([other.uv[lead] for lead in LEADS])
    assert np.isnan(values).sum() == (0 if null is None else 200)
    np.testing.assert_allclose(ours_uv(path), values, rtol=0, atol=0.51)
    assert read_ecg(path).rate_hz == pytest.approx(other.rate_hz)


@pytest.mark.parametrize("name", [name for name, way in WAYS.items() if way.name == "SCP-ECG"])
def test_scp_is_what_a_reader_from_the_standard_says(tmp_path, ecg, name):
    path = tmp_path / "a.scp"
    WAYS[name].write(ecg, path)
    other = from_standards.scp(path)
    values = np.stack([other.uv[lead] for lead in LEADS])
    np.testing.assert_allclose(ours_uv(path), values, rtol=0, atol=0.51)
    assert read_ecg(path).rate_hz == pytest.approx(other.rate_hz)


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


SHIPPED = Path(pyedflib.__file__).parent / "tests" / "data"
EDF_NAMES = {
    "test_generator.edf": (("sine 8 Hz", "I"), ("sine 15 Hz", "II")),
    "test_legacy.edf": (("sine 8 Hz", "I"), ("sine 15 Hz", "II")),
    "test_subsecond.edf": (("Fp1", "I"),),
    "test_utf8.edf": (("Fp1", "I"),),
}


@pytest.mark.parametrize("name", EDF_NAMES)
def test_the_edf_files_that_pyedflib_ships_are_what_pyedflib_says(name):
    """Generated signals and an EEG, no ECGs: some of their channels are called I and II here."""
    one = read_ecg(SHIPPED / name, RowOptions(lead_names=EDF_NAMES[name]))
    with pyedflib.EdfReader(str(SHIPPED / name)) as file:
        labels = file.getSignalLabels()
        for label, lead in EDF_NAMES[name]:
            found = one.signals_mv[LEADS.index(lead)]
            values = file.readSignal(labels.index(label))[: len(found)]
            assert np.abs(found * 1000 - np.clip(values, -32767, 32767)).max() < 0.51
            assert one.rate_hz == file.getSampleFrequency(labels.index(label))


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.bdf")), ids=lambda path: path.name)
def test_the_bdf_files_that_pyedflib_ships_say_why_they_are_not_read(path):
    with pytest.raises(InputError, match="24-bit BioSemi"):
        read_ecg(path)
